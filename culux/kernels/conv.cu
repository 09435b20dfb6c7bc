// y = activation(z), z[n, o, i] = bias[o] + the sum over c and t of weight[o, c, t] * x[n, c, i * stride + t * dilation
// - before]; or, TRANSPOSED, z[n, c, i * stride + t * dilation - before] = bias[c] + the sum over o, t and i of
// weight[o, c, t] * x[n, o, i]. weight is (out, in / groups, taps) in both; three spatial axes, row-major without gaps.
//
// A block makes ROWS channels of a group by COLUMNS positions of all samples, as a matrix product whose inner dimension
// is channels by taps. Nothing is copied in advance: a thread reads the column of one position from x where each tap
// lies. A transposed result depends on its position modulo the stride only in which taps reach it, so that a block's
// positions are a stride apart, and none of its products is with a zero between outputs.
//
// Up to 16 channels are all of a block, and its threads have a position each: what they read is used at once. More are
// tiles in shared memory, of which a thread makes REG_M by REG_N. The sizes are by reasoning, not measured.
constexpr bool DIRECT = ROWS <= 16;
constexpr int REG_M = DIRECT ? ROWS : ROWS == 32 || sizeof(T) == 8 ? 4 : 8, REG_N = DIRECT ? 1 : sizeof(T) == 8 ? 4 : 8;
constexpr int COLUMNS = DIRECT ? 256 : 64;
constexpr int THREADS = ROWS / REG_M * (COLUMNS / REG_N);
constexpr int DEPTH = DIRECT ? 9 : 8;                            // of the inner dimension at a time: a kernel of 3 x 3
constexpr int PITCH = DIRECT ? ROWS : ROWS + 4;                  // of a step of weights in shared memory
constexpr int READS = DEPTH * COLUMNS / THREADS;                 // of x, a thread's part
constexpr int FACTORS = (DEPTH * ROWS + THREADS - 1) / THREADS;  // of the weight, at most
constexpr int TILED_WARPS = sizeof(T) == 8 || ROWS > 32 ? 12 : 16;  // as many as fit without spills
constexpr int WARPS = !DIRECT ? TILED_WARPS : sizeof(T) == 8 ? 8 : ROWS < 8 ? 24 : 16;
constexpr int RESIDENT = WARPS * 32 / THREADS;  // blocks on a multiprocessor, at least
constexpr int OUTSIDE = -(1 << 29);

struct Geometry {
    int size[3], kernel[3], stride[3], dilation[3], before[3], out[3];
    int period[3];                      // from one tap that reaches a position to the next
    int batch, groups, filters, width;  // a group has `filters` channels of outputs and `width` of inputs
    int tiles;                          // of COLUMNS positions
};

// A block's results along an axis, and what they are made of: result i lies at `first + i * step`, and its tap u, the
// kernel's `tap + u * period`, at `origin + i * move + u * shift` of the `source` elements there.
struct Axis {
    int length, first, step, taps, tap, period, source, origin, move, shift;

    __device__ Axis() {}
    __device__ Axis(const Geometry& g, int i, int phase) {
        length = g.out[i], first = 0, step = 1, taps = g.kernel[i], tap = 0, period = 1;
        source = g.size[i], origin = -g.before[i], move = g.stride[i], shift = g.dilation[i];
        if (!TRANSPOSED) return;
        while (tap < taps && (phase + g.before[i] - tap * g.dilation[i]) % g.stride[i]) ++tap;
        length = (g.size[i] - phase + g.stride[i] - 1) / g.stride[i], first = phase, step = g.stride[i];
        period = g.period[i], taps = (g.kernel[i] - tap + period - 1) / period;
        source = g.out[i], move = 1, shift = -(period * g.dilation[i] / g.stride[i]);
        origin = (phase + g.before[i] - tap * g.dilation[i]) / g.stride[i];
    }
};

// One step of the inner dimension: where it lies from the place of tap 0 in channel 0.
struct alignas(16) Tap {
    int offset, shift[3];
};

// A place in the inner dimension, which moves on by DEPTH without a division.
struct Walk {
    int channel, at[3];

    __device__ Walk() {}
    __device__ Walk(int k, const Axis* axes) {
#pragma unroll
        for (int i = 2; i >= 0; --i) {
            const int taps = max(axes[i].taps, 1);
            at[i] = k % taps;
            k /= taps;
        }
        channel = k;
    }

    __device__ __forceinline__ void advance(const Walk& by, const Axis* axes) {
        bool carry = false;
#pragma unroll
        for (int i = 2; i >= 0; --i) {
            at[i] += by.at[i] + carry;
            carry = at[i] >= axes[i].taps;
            if (carry) at[i] -= axes[i].taps;
        }
        channel += by.channel + carry;
    }

    __device__ __forceinline__ Tap tap(const Axis* axes, int channels) const {
        const int d = at[0] * axes[0].shift, h = at[1] * axes[1].shift, w = at[2] * axes[2].shift;
        const int offset = ((channel * axes[0].source + d) * axes[1].source + h) * axes[2].source + w;
        return {offset, {channel < channels ? d : OUTSIDE, h, w}};
    }

    // The tap's place in a row of the weight, which has `each` elements for a channel; -1 behind the last.
    __device__ __forceinline__ int factor(const Axis* axes, const Geometry& g, int channels, int each) const {
        int place = 0;
#pragma unroll
        for (int i = 0; i < 3; ++i) place = place * g.kernel[i] + axes[i].tap + at[i] * axes[i].period;
        return channel < channels ? channel * each + place : -1;
    }
};

// The position that a thread reads x for.
struct Column {
    const S* image;
    int at[3], offset;
    Index place;  // of its result in the first channel of the group; -1 behind the last position

    __device__ Column(const S* x, const Axis* axes, const Geometry& g, Index first, int column, int group) {
        const unsigned count = unsigned(axes[0].length) * axes[1].length * axes[2].length;
        Index sample = first / count;  // the same for all threads; theirs are divisions of 32 bits
        unsigned rest = unsigned(first - sample * count) + column;
        sample += rest / count;
        rest %= count;
        int to[3];
#pragma unroll
        for (int i = 2; i >= 0; --i) {
            const int place = int(rest % axes[i].length);
            rest /= axes[i].length;
            at[i] = axes[i].origin + place * axes[i].move;
            to[i] = axes[i].first + place * axes[i].step;
        }
        const Index inputs = sample * g.groups + group;
        const int* lengths = TRANSPOSED ? g.size : g.out;
        image = x + inputs * (TRANSPOSED ? g.filters : g.width) * axes[0].source * axes[1].source * axes[2].source;
        offset = (at[0] * axes[1].source + at[1]) * axes[2].source + at[2];
        place = ((inputs * (TRANSPOSED ? g.width : g.filters) * lengths[0] + to[0]) * lengths[1] + to[1]) * lengths[2] +
                to[2];
        if (sample >= g.batch) at[0] = OUTSIDE, place = -1;
    }

    __device__ __forceinline__ S read(const Tap& tap, const int (&source)[3]) const {
        const bool inside = unsigned(at[0] + tap.shift[0]) < unsigned(source[0]) &&
                            unsigned(at[1] + tap.shift[1]) < unsigned(source[1]) &&
                            unsigned(at[2] + tap.shift[2]) < unsigned(source[2]);
        return inside ? image[offset + tap.offset] : S(T(0));
    }
};

// What the threads of a block share: the steps of the inner dimension and the weights for two turns of the loop, one of
// which is computed with while the other is on its way, and of a tile the columns of x.
struct Stage {
    Walk walks[DEPTH + 1];  // of each step, and how far DEPTH steps go
    Tap taps[2][DEPTH];
    int factors[2][DEPTH];
    Pack<T, 4> left[2][(DEPTH * PITCH + 3) / 4], right[2][DIRECT ? 1 : DEPTH * COLUMNS / 4];

    __device__ Stage() {}

    __device__ __forceinline__ void describe(int slot, const Axis* axes, const Geometry& g, int channels, int each) {
        const int t = threadIdx.x;
        if (t >= DEPTH) return;
        Walk& walk = walks[t];
        taps[slot][t] = walk.tap(axes, channels);
        factors[slot][t] = walk.factor(axes, g, channels, each);
        walk.advance(walks[DEPTH], axes);
    }
};

// A thread's part of what a turn needs: first as it is in memory, computed with only after the turn before has been.
struct Parts {
    S values[READS], weights[FACTORS];
    T held[DIRECT ? READS : 1];

    // Of the weight from `base` on; behind its last row, which makes results that nobody writes, that row again.
    __device__ __forceinline__ void load(
        const Stage& stage, int slot, const Column& column, const int (&source)[3], const S* base, int step, int last) {
        const int t = threadIdx.x;
#pragma unroll
        for (int i = 0; i < READS; ++i)
            values[i] = column.read(stage.taps[slot][t / COLUMNS + i * (THREADS / COLUMNS)], source);
#pragma unroll
        for (int i = 0; i < FACTORS; ++i) {
            const int row = (t + i * THREADS) / DEPTH;
            const int factor = row < ROWS ? stage.factors[slot][(t + i * THREADS) % DEPTH] : -1;
            weights[i] = factor >= 0 ? base[min(row, last) * step + factor] : S(T(0));
        }
    }

    __device__ __forceinline__ void store(Stage& stage, int slot) {
        T *left = reinterpret_cast<T*>(stage.left[slot]), *right = reinterpret_cast<T*>(stage.right[slot]);
        const int t = threadIdx.x;
#pragma unroll
        for (int i = 0; i < READS; ++i) (DIRECT ? held[i] : right[t + i * THREADS]) = T(values[i]);
#pragma unroll
        for (int i = 0; i < FACTORS; ++i) {
            const int at = t + i * THREADS;
            if (at < DEPTH * ROWS) left[at % DEPTH * PITCH + at / DEPTH] = T(weights[i]);
        }
    }
};

// A thread's results. A warp is 4 by 8 threads of a tile: it reads about as much of one factor as of the other.
struct Sums {
    static constexpr int DOWN = ROWS / REG_M, ACROSS = COLUMNS / REG_N, BESIDE = DIRECT ? 1 : ACROSS / 8;
    const int m, n;
    T v[REG_M][REG_N] = {};

    __device__ Sums()
        : m(DIRECT ? 0 : threadIdx.x / 32 / BESIDE * 4 + threadIdx.x % 32 / 8),
          n(DIRECT ? threadIdx.x : threadIdx.x / 32 % BESIDE * 8 + threadIdx.x % 8) {}

    __device__ __forceinline__ int row(int i) const { return DIRECT ? i : 4 * (m + i / 4 * DOWN) + i % 4; }
    __device__ __forceinline__ int column(int j) const { return DIRECT ? n : 4 * (n + j / 4 * ACROSS) + j % 4; }

    __device__ __forceinline__ void add(const Stage& stage, int slot, const Parts& parts) {
        const T* left = reinterpret_cast<const T*>(stage.left[slot]);
        const T* right = reinterpret_cast<const T*>(stage.right[slot]);
#pragma unroll
        for (int k = 0; k < DEPTH; ++k) {
            T down[REG_M], over[REG_N];
            fetch(left + k * PITCH + m * 4, DOWN * 4, down);
            if (DIRECT)
                over[0] = parts.held[k];
            else
                fetch(right + k * COLUMNS + n * 4, ACROSS * 4, over);
#pragma unroll
            for (int i = 0; i < REG_M * REG_N; ++i) v[i / REG_N][i % REG_N] += down[i / REG_N] * over[i % REG_N];
        }
    }
};

// z, which is for the backward pass, and bias may be null.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    conv_gather(const S* __restrict__ x, const S* __restrict__ weight, const S* __restrict__ bias, S* __restrict__ z,
                S* __restrict__ y, Geometry g) {
    __shared__ Axis axes[3];
    __shared__ Stage stage;
    __shared__ Index places[COLUMNS];
    const int rows = TRANSPOSED ? g.width : g.filters, channels = TRANSPOSED ? g.filters : g.width;
    const int across = (rows + ROWS - 1) / ROWS, t = threadIdx.x;
    const int group = blockIdx.x / across % g.groups, top = blockIdx.x % across * ROWS;
    const Index first = Index(blockIdx.x / across / g.groups % g.tiles) * COLUMNS;
    if (t == 0)
        for (int i = 2, phase = blockIdx.x / across / g.groups / g.tiles; i >= 0; phase /= g.stride[i], --i)
            axes[i] = Axis(g, i, phase % g.stride[i]);
    __syncthreads();
    if (first >= Index(g.batch) * axes[0].length * axes[1].length * axes[2].length) return;
    const int source[3] = {axes[0].source, axes[1].source, axes[2].source};
    const Column column(x, axes, g, first, t % COLUMNS, group);
    if (t < COLUMNS) places[t] = column.place;
    if (t <= DEPTH) stage.walks[t] = Walk(t, axes);
    __syncthreads();

    const int each = g.kernel[0] * g.kernel[1] * g.kernel[2], reached = axes[0].taps * axes[1].taps * axes[2].taps;
    const int inner = channels * reached, present = reached ? channels : 0;
    const int row_step = TRANSPOSED ? each : g.width * each, channel_step = TRANSPOSED ? g.width * each : each;
    const S* base = weight + Index(group) * g.filters * g.width * each + Index(top) * row_step;
    Parts parts;
    Sums sums;
    stage.describe(0, axes, g, present, channel_step);
    stage.describe(1, axes, g, present, channel_step);
    __syncthreads();
    parts.load(stage, 0, column, source, base, row_step, rows - 1 - top);
    parts.store(stage, 0);
    __syncthreads();
    for (int k = DEPTH, slot = 1; k < inner + DEPTH; k += DEPTH, slot ^= 1) {
        if (k < inner) parts.load(stage, slot, column, source, base, row_step, rows - 1 - top);
        sums.add(stage, slot ^ 1, parts);
        if (k < inner) {
            parts.store(stage, slot);
            stage.describe(slot ^ 1, axes, g, present, channel_step);
        }
        __syncthreads();
    }

    const int* lengths = TRANSPOSED ? g.size : g.out;
#pragma unroll
    for (int i = 0; i < REG_M * REG_N; ++i) {
        const int row = top + sums.row(i / REG_N);
        const Index place = places[sums.column(i % REG_N)], plane = lengths[0] * lengths[1] * lengths[2];
        if (row >= rows || place < 0) continue;
        const T value = sums.v[i / REG_N][i % REG_N] + (bias ? get(bias, group * rows + row) : T(0));
        if (z) put(z, place + row * plane, value);
        put(y, place + row * plane, activation(value));
    }
}
