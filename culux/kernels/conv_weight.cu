// The gradient of a convolution in its weight: dweight[o, c, t] = the sum over n and i of
// dy[n, o, i] * x[n, c, i * stride + t * dilation - before]; three spatial axes, row-major without gaps.
//
// A matrix product whose inner dimension is all positions of all samples. It is long where the result is small, so it
// is cut into parts: a block sums one of them for ROWS channels of dy in a group by COLUMNS pairs of c and t, and a
// second launch adds the parts, in their order. Up to 4 rows, a thread sums positions for the whole block; of more, the
// factors go through shared memory, and a thread makes REG by REG sums. The sizes are by reasoning, not measured.
constexpr bool DIRECT = ROWS <= 4;
constexpr int COLUMNS = DIRECT ? 9 : ROWS;  // a kernel of 3 x 3
constexpr int REG = DIRECT ? ROWS : ROWS / 8;
constexpr int THREADS = DIRECT ? 128 : 64;
constexpr int STEP = DIRECT ? THREADS : 8;  // positions at a time
constexpr int PITCH = ROWS + 4;             // of a position in shared memory
constexpr int WARPS = ROWS == 32 ? 16 : sizeof(T) == 8 && ROWS != 1 ? 8 : 12;
constexpr int RESIDENT = WARPS * 32 / THREADS;  // blocks on a multiprocessor, at least
constexpr int OUTSIDE = -(1 << 29);

struct Geometry {
    int size[3], kernel[3], stride[3], dilation[3], before[3], out[3];
    int batch, groups, filters, width;  // a group has `filters` channels of dy and `width` of x
    int parts;                          // of `part` positions each

    __device__ __forceinline__ int plane() const { return out[0] * out[1] * out[2]; }
    __device__ __forceinline__ int volume() const { return size[0] * size[1] * size[2]; }
    __device__ __forceinline__ int columns() const { return width * kernel[0] * kernel[1] * kernel[2]; }
};

// Where a column, a channel of x and a tap, lies from the place of tap 0 in channel 0.
struct alignas(16) Tap {
    int offset, shift[3];

    __device__ Tap() {}
    __device__ Tap(const Geometry& g, int column) {
        int rest = column;
#pragma unroll
        for (int i = 2; i >= 0; --i) {
            shift[i] = rest % g.kernel[i] * g.dilation[i];
            rest /= g.kernel[i];
        }
        offset = ((rest * g.size[0] + shift[0]) * g.size[1] + shift[1]) * g.size[2] + shift[2];
        if (column >= g.columns()) shift[0] = OUTSIDE;
    }
};

// A position of dy, which moves on by STEP without a division.
struct Walk {
    Index sample;
    int at[3];

    __device__ Walk(const Geometry& g, Index position) {
        sample = position / g.plane();
        unsigned rest = unsigned(position - sample * g.plane());
#pragma unroll
        for (int i = 2; i >= 0; --i) {
            at[i] = int(rest % g.out[i]);
            rest /= g.out[i];
        }
    }

    __device__ __forceinline__ void advance(const Geometry& g, const Walk& by) {
        bool carry = false;
#pragma unroll
        for (int i = 2; i >= 0; --i) {
            at[i] += by.at[i] + carry;
            carry = at[i] >= g.out[i];
            if (carry) at[i] -= g.out[i];
        }
        sample += by.sample + carry;
    }
};

// What belongs to a position: the channel of dy it starts with, and the place of tap 0 in x; nothing where not `valid`.
struct Position {
    const S *outer, *inner;
    int at[3];

    __device__ __forceinline__ Position(
        const S* dy, const S* x, const Geometry& g, const Walk& walk, Index group, int row, bool valid) {
        const Index image = walk.sample * g.groups + group;
        const int place = (walk.at[0] * g.out[1] + walk.at[1]) * g.out[2] + walk.at[2];
        outer = valid ? dy + (image * g.filters + row) * g.plane() + place : nullptr;
#pragma unroll
        for (int i = 0; i < 3; ++i) at[i] = walk.at[i] * g.stride[i] - g.before[i];
        inner = x + image * g.width * g.volume() + (Index(at[0]) * g.size[1] + at[1]) * g.size[2] + at[2];
        if (!valid) at[0] = OUTSIDE;
    }

    __device__ __forceinline__ S read(const Geometry& g, const Tap& tap) const {
        const bool inside = unsigned(at[0] + tap.shift[0]) < unsigned(g.size[0]) &&
                            unsigned(at[1] + tap.shift[1]) < unsigned(g.size[1]) &&
                            unsigned(at[2] + tap.shift[2]) < unsigned(g.size[2]);
        return inside ? inner[tap.offset] : S(T(0));
    }
};

// Of a block: its part of the positions, its group, and its first row and column.
struct Place {
    int part, group, row, column;

    __device__ Place(const Geometry& g) {
        const int across = (g.columns() + COLUMNS - 1) / COLUMNS, down = (g.filters + ROWS - 1) / ROWS;
        int block = blockIdx.x;
        column = block % across * COLUMNS;
        block /= across;
        row = block % down * ROWS;
        block /= down;
        group = block % g.groups;
        part = block / g.groups;
    }
};

// Where there is one part, `partials` is null and the sums are the result.
__device__ __forceinline__ void put_sum(
    T* partials, S* dweight, const Geometry& g, const Place& place, int row, int column, T value) {
    row += place.row, column += place.column;
    if (row >= g.filters || column >= g.columns()) return;
    const Index at = (Index(place.group) * g.filters + row) * g.columns() + column;
    if (partials)
        partials[Index(place.part) * g.groups * g.filters * g.columns() + at] = value;
    else
        put(dweight, at, value);
}

#if ROWS <= 4
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    conv_weight_gradient(const S* __restrict__ dy, const S* __restrict__ x, T* __restrict__ partials,
                         S* __restrict__ dweight, Geometry g, Index part) {
    __shared__ Tap taps[COLUMNS];
    __shared__ T scratch[THREADS / 32][ROWS * COLUMNS];
    const Place block(g);
    const int t = threadIdx.x;
    if (t < COLUMNS) taps[t] = Tap(g, block.column + t);
    __syncthreads();
    const Index begin = block.part * part, end = min(begin + part, Index(g.batch) * g.plane());
    Walk walk(g, begin + t);
    const Walk by(g, STEP);
    T sums[ROWS][COLUMNS] = {};
    for (Index k = begin + t; k < end; k += STEP) {
        const Position position(dy, x, g, walk, block.group, block.row, true);
        S outer[ROWS], inner[COLUMNS];
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
            outer[i] = block.row + i < g.filters ? position.outer[i * g.plane()] : S(T(0));
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) inner[j] = position.read(g, taps[j]);
#pragma unroll
        for (int i = 0; i < ROWS * COLUMNS; ++i)
            sums[i / COLUMNS][i % COLUMNS] += T(outer[i / COLUMNS]) * T(inner[i % COLUMNS]);
        walk.advance(g, by);
    }
#pragma unroll
    for (int i = 0; i < ROWS * COLUMNS; ++i) {
        const T sum = warp_sum(sums[i / COLUMNS][i % COLUMNS]);
        if (t % 32 == 0) scratch[t / 32][i] = sum;
    }
    __syncthreads();
    if (t >= ROWS * COLUMNS) return;
    T total = 0;
    for (int warp = 0; warp < THREADS / 32; ++warp) total += scratch[warp][t];
    put_sum(partials, dweight, g, block, t / COLUMNS, t % COLUMNS, total);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    conv_weight_gradient(const S* __restrict__ dy, const S* __restrict__ x, T* __restrict__ partials,
                         S* __restrict__ dweight, Geometry g, Index part) {
    __shared__ Tap taps[COLUMNS];
    __shared__ Pack<T, 4> left[2][STEP * PITCH / 4], right[2][STEP * PITCH / 4];
    const Place block(g);
    // A thread reads the rows and columns from `first` on, every 8th, of the position `lane` places after the first.
    const int t = threadIdx.x, lane = t % STEP, first = t / STEP, rows = g.filters - block.row - first;
    if (t < COLUMNS) taps[t] = Tap(g, block.column + t);
    __syncthreads();
    const Index begin = block.part * part, end = min(begin + part, Index(g.batch) * g.plane());
    Walk walk(g, begin + lane);
    const Walk by(g, STEP);
    S outer[REG], inner[REG];
    const auto load = [&](Index k) {
        const Position position(dy, x, g, walk, block.group, block.row + first, k + lane < end);
#pragma unroll
        for (int i = 0; i < REG; ++i)
            outer[i] = position.outer && 8 * i < rows ? position.outer[8 * i * g.plane()] : S(T(0));
#pragma unroll
        for (int i = 0; i < REG; ++i) inner[i] = position.read(g, taps[first + 8 * i]);
        walk.advance(g, by);
    };
    const auto store = [&](int slot) {
        T *a = reinterpret_cast<T*>(left[slot]), *b = reinterpret_cast<T*>(right[slot]);
#pragma unroll
        for (int i = 0; i < REG; ++i) {
            a[lane * PITCH + first + 8 * i] = T(outer[i]);
            b[lane * PITCH + first + 8 * i] = T(inner[i]);
        }
    };
    const int m = t / 8, n = t % 8;
    T sums[REG][REG] = {};
    load(begin);
    store(0);
    __syncthreads();
    int slot = 1;
    for (Index k = begin + STEP; k < end + STEP; k += STEP, slot ^= 1) {
        if (k < end) load(k);
        const T *a = reinterpret_cast<const T*>(left[slot ^ 1]), *b = reinterpret_cast<const T*>(right[slot ^ 1]);
#pragma unroll
        for (int step = 0; step < STEP; ++step) {
            T down[REG], over[REG];
            fetch(a + step * PITCH + m * 4, 32, down);
            fetch(b + step * PITCH + n * 4, 32, over);
#pragma unroll
            for (int i = 0; i < REG * REG; ++i) sums[i / REG][i % REG] += down[i / REG] * over[i % REG];
        }
        if (k < end) store(slot);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < REG * REG; ++i) {
        const int a = i / REG, b = i % REG;
        const int row = 4 * (m + a / 4 * 8) + a % 4, column = 4 * (n + b / 4 * 8) + b % 4;
        put_sum(partials, dweight, g, block, row, column, sums[a][b]);
    }
}
#endif

// The sums over the parts of dweight, `size` elements, and in the blocks from `begin` on over those of dbias,
// `channels` elements, where there are any. Threads are elements by parts.
extern "C" __global__ void __launch_bounds__(512)
    conv_weight_sum(const T* __restrict__ partials, const T* __restrict__ bias_partials, S* __restrict__ dweight,
                    S* __restrict__ dbias, Index size, int parts, int channels, int bias_parts, int begin) {
    __shared__ T scratch[512];
    const bool of_bias = int(blockIdx.x) >= begin;
    const T* from = of_bias ? bias_partials : partials;
    const Index count = of_bias ? channels : size;
    const Index at = Index(of_bias ? blockIdx.x - begin : blockIdx.x) * blockDim.x + threadIdx.x;
    const int last = of_bias ? bias_parts : parts;
    T sum = 0;
    if (at < count)
        for (int i = threadIdx.y; i < last; i += blockDim.y) sum += from[i * count + at];
    scratch[threadIdx.y * blockDim.x + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || at >= count) return;
    for (int i = 1; i < blockDim.y; ++i) sum += scratch[i * blockDim.x + threadIdx.x];
    put(of_bias ? dbias : dweight, at, sum);
}
