// What a library's matrix product leaves to do of a Dense layer. z, y, dy, saved and dz are (rows, columns), row-major.
// A thread works on packs of LANES columns, 16 bytes where rows are whole and aligned packs, in ROWS rows at a time,
// whose loads are in flight together.
typedef Pack<S, LANES> Lanes;

constexpr int ROWS = sizeof(T) == 8 ? 2 : 4;
constexpr int STRIP = 2;  // packs: 32 bytes, the least that memory moves
constexpr int THREADS = 512;

__device__ __forceinline__ void load(Lanes& lanes, const S* from, int count, bool wide) {
    if (wide) {
        lanes = *reinterpret_cast<const Lanes*>(from);
        return;
    }
#pragma unroll
    for (int i = 0; i < LANES; ++i)
        if (i < count) lanes.v[i] = from[i];
}

__device__ __forceinline__ void store(S* to, const Lanes& lanes, int count, bool wide) {
    if (wide) {
        *reinterpret_cast<Lanes*>(to) = lanes;
        return;
    }
#pragma unroll
    for (int i = 0; i < LANES; ++i)
        if (i < count) to[i] = lanes.v[i];
}

// y = activation(z + bias), and z += bias where `keep`; y may be z where not. bias may be null. A block is threads of
// columns by threads of rows, so that a thread reads its part of the bias once.
extern "C" __global__ void __launch_bounds__(256)
    epilogue_forward(S* z, const S* __restrict__ bias, S* y, bool keep, Index rows, int columns) {
    const int column = (blockIdx.x * blockDim.x + threadIdx.x) * LANES, count = columns - column;
    if (count <= 0) return;
    const bool wide = is_aligned(z) && is_aligned(y) && columns % LANES == 0;
    T shift[LANES];
#pragma unroll
    for (int i = 0; i < LANES; ++i) shift[i] = bias && i < count ? get(bias, column + i) : T(0);
    const Index step = Index(gridDim.y) * blockDim.y;
    for (Index row = Index(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += ROWS * step) {
        Lanes lanes[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            if (row + r * step < rows) load(lanes[r], z + (row + r * step) * columns + column, count, wide);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (row + r * step >= rows) break;
            const Index at = (row + r * step) * columns + column;
            Lanes values;
#pragma unroll
            for (int i = 0; i < LANES; ++i) {
                if (i >= count) break;
                const T value = T(lanes[r].v[i]) + shift[i];
                lanes[r].v[i] = S(value);
                values.v[i] = S(activation(value));
            }
            if (keep) store(z + at, lanes[r], count, wide);
            store(y + at, values, count, wide);
        }
    }
}

// dz = dy * derivative(saved), null where the derivative is 1, and dbias, the sums of its columns. A block makes whole
// columns of both, a strip of them, so that no other block adds to its sums.
extern "C" __global__ void __launch_bounds__(512)
    epilogue_backward(const S* __restrict__ dy, const S* __restrict__ saved, S* __restrict__ dz, S* __restrict__ dbias,
                      Index rows, int columns) {
    __shared__ T sums[THREADS / 32][STRIP][LANES];
    const int pack = threadIdx.x % STRIP, column = (blockIdx.x * STRIP + pack) * LANES, count = columns - column;
    const bool wide = is_aligned(dy) && is_aligned(saved) && is_aligned(dz) && columns % LANES == 0;
    const Index step = THREADS / STRIP, end = count > 0 ? rows : 0;
    T total[LANES] = {};
    for (Index row = threadIdx.x / STRIP; row < end; row += ROWS * step) {
        Lanes lanes[ROWS], kept[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const Index at = (row + r * step) * columns + column;
            if (row + r * step < end) load(lanes[r], dy + at, count, wide);
            if (saved && row + r * step < end) load(kept[r], saved + at, count, wide);
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (row + r * step >= end) break;
#pragma unroll
            for (int i = 0; i < LANES; ++i) {
                if (i >= count) break;
                const T value = T(lanes[r].v[i]) * (saved ? derivative(T(kept[r].v[i])) : T(1));
                total[i] += value;
                lanes[r].v[i] = S(value);
            }
            if (dz) store(dz + (row + r * step) * columns + column, lanes[r], count, wide);
        }
    }
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        for (int offset = STRIP; offset < 32; offset *= 2) total[i] += __shfl_xor_sync(0xffffffffu, total[i], offset);
        if (threadIdx.x % 32 < STRIP) sums[threadIdx.x / 32][pack][i] = total[i];
    }
    __syncthreads();
    const int i = threadIdx.x, first = blockIdx.x * STRIP * LANES;
    if (i >= STRIP * LANES || first + i >= columns) return;
    T sum = 0;
    for (int warp = 0; warp < THREADS / 32; ++warp) sum += sums[warp][i / LANES][i % LANES];
    put(dbias, first + i, sum);
}
