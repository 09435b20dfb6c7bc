// y = activation(x @ weight.T + bias), and its gradients, for products so small that a launch is most of their time.
// x (rows, inner), weight (outer, inner), bias (outer), y and dy (rows, outer); all row-major without gaps.
//
// A block makes one TILE x TILE tile of a result. Its threads form GROUPS groups; each makes the whole tile over its
// own part of the inner dimension, REG_M x REG_N outputs a thread, and the groups' tiles are added in shared memory in
// a fixed order: narrow layers have few tiles, so the threads that hide latency come from the inner dimension.
// Of both factors, 16 KB are in shared memory while the next 16 KB are on their way into registers.
typedef Pack<T, 4> Quad;
typedef Pack<S, 4> Stored;

constexpr int THREADS = 256;
constexpr int REG_M = TILE == 16 ? 4 : 8, REG_N = TILE == 64 ? 8 : 4;
constexpr int DOWN = TILE / REG_M, ACROSS = TILE / REG_N;  // the threads of a group
constexpr int GROUPS = THREADS / (DOWN * ACROSS);
constexpr int DEPTH = 8192 / (TILE * sizeof(T));   // of the inner dimension at a time
constexpr int SLICE = DEPTH / GROUPS;              // and of that, a group's part
constexpr int QUADS = TILE * DEPTH / 4 / THREADS;  // of one factor, a thread's part
constexpr int PLACE = TILE * DEPTH + 4 * (TILE > DEPTH ? TILE : DEPTH);  // one factor in shared memory
constexpr int PITCH = TILE + 4;                                          // of a group's tile there
constexpr int MEMORY = 10240 * 4 / sizeof(T);
constexpr int LIVE = GROUPS * TILE * PITCH <= MEMORY ? GROUPS : GROUPS / 2;  // tiles of groups that fit at once
constexpr int RESIDENT = TILE == 64 || sizeof(T) == 8 ? 1 : 2;               // blocks on a multiprocessor, at least
static_assert(4 * PLACE <= MEMORY && LIVE * TILE * PITCH <= MEMORY, "a tile of 16, 32 or, but for double, 64");

// A matrix in memory; GRADIENT: dz = dy * derivative(saved), of data = dy.
template <bool GRADIENT>
struct Matrix {
    const S* data;
    const S* saved;
    int rows, columns;
    bool wide;  // rows are whole quads, at aligned addresses

    // Four elements of a row as they are in memory: they are computed with only after the next tile is in flight.
    struct Part {
        Stored data, saved;
    };

    __device__ Matrix(const S* data, const S* saved, int rows, int columns)
        : data(data), saved(saved), rows(rows), columns(columns) {
        const auto bits = (unsigned long long)data | (GRADIENT ? (unsigned long long)saved : 0);
        wide = bits % sizeof(Stored) == 0 && columns % 4 == 0;
    }

    // How many of the four elements from here on there are; those outside are 0.
    __device__ __forceinline__ int valid(int row, int column) const { return row < rows ? columns - column : 0; }

    __device__ __forceinline__ Part read(int row, int column) const {
        Part part;
        const int count = valid(row, column);
        if (count <= 0) return part;
        const int at = row * columns + column;
        if (wide) {
            part.data = *reinterpret_cast<const Stored*>(data + at);
            if (GRADIENT) part.saved = *reinterpret_cast<const Stored*>(saved + at);
            return part;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i < count) part.data.v[i] = data[at + i];
            if (GRADIENT && i < count) part.saved.v[i] = saved[at + i];
        }
        return part;
    }

    __device__ __forceinline__ Quad value(const Part& part, int row, int column) const {
        Quad quad;
        const int count = valid(row, column);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            quad.v[i] = T(0);
            if (i < count) quad.v[i] = T(part.data.v[i]);
            if (GRADIENT && i < count) quad.v[i] *= derivative(T(part.saved.v[i]));
        }
        return quad;
    }
};

// One factor of a product on its way through shared memory, where it lies as it does in memory. ALONG: its rows run
// along the inner dimension. `first` is its first row or column that belongs to the block's tile.
template <class M, bool ALONG>
struct Factor {
    static constexpr int WIDTH = ALONG ? DEPTH : TILE;
    const M matrix;
    const int first;
    typename M::Part parts[QUADS];

    __device__ Factor(const M& matrix, int first) : matrix(matrix), first(first) {}

    static __device__ __forceinline__ int row_of(int q) { return (threadIdx.x + q * THREADS) / (WIDTH / 4); }
    static __device__ __forceinline__ int column_of(int q) { return (threadIdx.x + q * THREADS) % (WIDTH / 4) * 4; }

    __device__ __forceinline__ void load(int inner) {
        const int top = ALONG ? first : inner, left = ALONG ? inner : first;
#pragma unroll
        for (int q = 0; q < QUADS; ++q) parts[q] = matrix.read(top + row_of(q), left + column_of(q));
    }

    // Puts what `load(inner)` read into shared memory, and its sum over the inner dimension into `sum` (where not ALONG).
    __device__ __forceinline__ void store(int inner, T* place, Quad& sum) const {
        const int top = ALONG ? first : inner, left = ALONG ? inner : first;
#pragma unroll
        for (int q = 0; q < QUADS; ++q) {
            const Quad quad = matrix.value(parts[q], top + row_of(q), left + column_of(q));
            *reinterpret_cast<Quad*>(place + row_of(q) * (WIDTH + 4) + column_of(q)) = quad;
#pragma unroll
            for (int i = 0; i < 4; ++i) sum.v[i] += quad.v[i];
        }
    }

    // Where in the tile the i-th output is of the `thread`-th of `threads`; both forms read without bank conflicts.
    static __device__ __forceinline__ int position(int thread, int threads, int i) {
        return ALONG ? thread + i * threads : 4 * (thread + i / 4 * threads) + i % 4;
    }

    // Four steps along the inner dimension, for the REG outputs of a thread.
    template <int REG>
    static __device__ __forceinline__ void fetch(const T* place, int thread, int inner, T (&out)[4][REG]) {
#pragma unroll
        for (int i = 0; i < REG; ++i) {
            const int row = ALONG ? position(thread, TILE / REG, i) : inner + i % 4;
            const int column = ALONG ? inner : position(thread, TILE / REG, i / 4 * 4);
            const Quad quad = *reinterpret_cast<const Quad*>(place + row * (WIDTH + 4) + column);
#pragma unroll
            for (int j = 0; j < 4; ++j) (ALONG ? out[j][i] : out[i % 4][i / 4 * 4 + j]) = quad.v[j];
        }
    }
};

// The thread's place in its group, in Z-order: neighbours share what they read of either factor.
struct Place {
    int group, row, column;
    __device__ Place() : group(threadIdx.x / (DOWN * ACROSS)) {
        const int t = threadIdx.x % (DOWN * ACROSS);
        column = (t & 1) | (t >> 1 & 2) | (t >> 2 & 4);
        row = (t >> 1 & 1) | (t >> 2 & 2) | (t >> 3 & 4);
    }
};

template <class A, class B>
__device__ __forceinline__ void step(const T* left, const T* right, const Place& at, T (&sums)[REG_M][REG_N]) {
#pragma unroll
    for (int k = 0; k < SLICE; k += 4) {
        T a[4][REG_M], b[4][REG_N];
        A::fetch(left, at.row, at.group * SLICE + k, a);
        B::fetch(right, at.column, at.group * SLICE + k, b);
#pragma unroll
        for (int n = 0; n < 4 * REG_M * REG_N; ++n) {
            const int kk = n / (REG_M * REG_N), i = n / REG_N % REG_M, j = n % REG_N;
            sums[i][j] += a[kk][i] * b[kk][j];
        }
    }
}

// Adds the groups' sums into LIVE tiles in shared memory.
template <class A, class B>
__device__ __forceinline__ void spread(T (&sums)[REG_M][REG_N], const Place& at, T* memory) {
#pragma unroll
    for (int turn = LIVE == GROUPS ? 2 : 0; turn < 3; ++turn) {  // the upper half puts, the lower takes, then puts
        if (turn == 0 ? at.group >= LIVE : at.group < LIVE) {
            T* tile = memory + at.group % LIVE * TILE * PITCH;
#pragma unroll
            for (int n = 0; n < REG_M * REG_N; ++n) {
                const int i = n / REG_N, j = n % REG_N;
                T& place = tile[A::position(at.row, DOWN, i) * PITCH + B::position(at.column, ACROSS, j)];
                if (turn == 1) sums[i][j] += place;
                if (turn != 1) place = sums[i][j];
            }
        }
        __syncthreads();
    }
}

// A tile of the product of two factors: `tile_sum` finds it in `memory`. Returns the thread's part of the sums of the
// first factor over the inner dimension.
template <class A, class B>
__device__ __forceinline__ Quad multiply(A a, B b, int inner, T* memory) {
    const Place at;
    T sums[REG_M][REG_N] = {};
    Quad sum = {}, ignored = {};
    T* place = memory;
    a.load(0);
    b.load(0);
    a.store(0, place, sum);
    b.store(0, place + PLACE, ignored);
    __syncthreads();
    for (int k = DEPTH; k < inner + DEPTH; k += DEPTH) {
        if (k < inner) {
            a.load(k);
            b.load(k);
        }
        step<A, B>(place, place + PLACE, at, sums);
        place = place == memory ? memory + 2 * PLACE : memory;
        if (k < inner) {
            a.store(k, place, sum);
            b.store(k, place + PLACE, ignored);
        }
        __syncthreads();
    }
    spread<A, B>(sums, at, memory);
    return sum;
}

__device__ __forceinline__ T tile_sum(const T* memory, int row, int column) {
    T sum = 0;
#pragma unroll
    for (int group = 0; group < LIVE; ++group) sum += memory[(group * TILE + row) * PITCH + column];
    return sum;
}

// Writes a tile of a gradient.
__device__ __forceinline__ void put_tile(S* out, const T* memory, int m, int n, int rows, int columns) {
    for (int i = threadIdx.x; i < TILE * TILE; i += THREADS) {
        const int row = m + i / TILE, column = n + i % TILE;
        if (row < rows && column < columns) put(out, row * columns + column, tile_sum(memory, i / TILE, i % TILE));
    }
}

// Adds the parts of the sums that the threads hold, each of them of the quad of columns threadIdx.x % (TILE / 4).
__device__ __forceinline__ void put_columns(S* out, Quad sum, Quad* memory, int first, int count) {
    constexpr int COLUMNS = TILE / 4;
#pragma unroll
    for (int offset = COLUMNS; offset < 32; offset *= 2)
        for (int i = 0; i < 4; ++i) sum.v[i] += __shfl_xor_sync(0xffffffffu, sum.v[i], offset);
    __syncthreads();  // the tile has been read
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane < COLUMNS) memory[warp * COLUMNS + lane] = sum;
    __syncthreads();
    const int column = threadIdx.x;
    if (column >= TILE || first + column >= count) return;
    T total = 0;
    for (int w = 0; w < THREADS / 32; ++w) total += memory[w * COLUMNS + column / 4].v[column % 4];
    put(out, first + column, total);
}

// z, x @ weight.T + bias, is for the backward pass; it and bias may be null.
extern "C" __global__ void __launch_bounds__(256, RESIDENT)
    dense_forward(const S* __restrict__ x, const S* __restrict__ weight, const S* __restrict__ bias, S* __restrict__ z,
                  S* __restrict__ y, int rows, int inner, int outer) {
    __shared__ Quad memory[MEMORY / 4];
    const int across = (outer + TILE - 1) / TILE, m = blockIdx.x / across * TILE, n = blockIdx.x % across * TILE;
    typedef Factor<Matrix<false>, true> Rows;
    T* tile = reinterpret_cast<T*>(memory);
    const Matrix<false> left(x, nullptr, rows, inner), right(weight, nullptr, outer, inner);
    multiply(Rows(left, m), Rows(right, n), inner, tile);
    for (int i = threadIdx.x; i < TILE * TILE; i += THREADS) {
        const int row = m + i / TILE, column = n + i % TILE;
        if (row >= rows || column >= outer) continue;
        const T value = tile_sum(tile, i / TILE, i % TILE) + (bias ? get(bias, column) : T(0));
        if (z) put(z, row * outer + column, value);
        put(y, row * outer + column, activation(value));
    }
}

// Of the grid, `count` blocks from `begin` on make dx = dz @ weight, the others dweight = dz.T @ x and dbias, the sums
// of the columns of dz; where only dbias is wanted these are one column of blocks. dweight and dbias may be null.
extern "C" __global__ void __launch_bounds__(256, RESIDENT)
    dense_backward(const S* __restrict__ dy, const S* __restrict__ saved, const S* __restrict__ x,
                   const S* __restrict__ weight, S* __restrict__ dx, S* __restrict__ dweight, S* __restrict__ dbias,
                   int rows, int inner, int outer, int begin, int count) {
    typedef Matrix<KEEPS_X || KEEPS_Y> Gradient;
    __shared__ Quad memory[MEMORY / 4];
    T* tile = reinterpret_cast<T*>(memory);
    const int block = blockIdx.x, across = (inner + TILE - 1) / TILE;
    const Gradient dz(dy, saved, rows, outer);
    if (block >= begin && block < begin + count) {
        const int m = (block - begin) / across * TILE, n = (block - begin) % across * TILE;
        const Matrix<false> right(weight, nullptr, outer, inner);
        multiply(Factor<Gradient, true>(dz, m), Factor<Matrix<false>, false>(right, n), outer, tile);
        put_tile(dx, tile, m, n, rows, inner);
        return;
    }
    const int i = begin ? block : block - count, columns = dweight && across ? across : 1;
    const int m = i / columns * TILE, n = i % columns * TILE;
    const Matrix<false> right(x, nullptr, dweight ? rows : 0, inner);
    const Quad sum = multiply(Factor<Gradient, false>(dz, m), Factor<Matrix<false>, false>(right, n), rows, tile);
    if (dweight) put_tile(dweight, tile, m, n, outer, inner);
    if (dbias && n == 0) put_columns(dbias, sum, memory, m, outer);
}
