// y = softmax(x) or, LOG 1, its logarithm, over `size` elements, and the way back. The maximum is bounded as the host's
// is: rows of -inf give NaN, +inf gives NaN where it stands.

// The last part of the forward: `last` is the logarithm of the sum, or its inverse.
__device__ __forceinline__ T probability(T x, T largest, T last) {
    return LOG ? x - largest - last : exp(x - largest) * last;
}

// The term of the sum over a row that its cotangents need, and dx.
__device__ __forceinline__ T term(T dy, T y) { return LOG ? dy : dy * y; }
__device__ __forceinline__ T cotangent(T dy, T y, T sum) { return LOG ? dy - exp(y) * sum : y * (dy - sum); }

// A warp for each row, which is in its registers, COUNT elements a lane, between the one load and the one store.
template <int COUNT>
__device__ __forceinline__ void forward_in_warp(const S* x, S* y, Index rows, int size) {
    const bool wide = size % LANES == 0 && is_aligned(x) && is_aligned(y);
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (Index row = Index(blockIdx.x) * warps + threadIdx.x / 32; row < rows; row += Index(gridDim.x) * warps) {
        T v[COUNT], largest = -LARGEST, sum = 0;
        load_row(x + row * size, size, wide, lane, 32, v);
#pragma unroll
        for (int k = 0; k < COUNT; k += LANES) {
            const int i = k * 32 + lane * LANES;
            if (i >= size) continue;
#pragma unroll
            for (int j = 0; j < LANES; ++j)
                if (i + j < size && (largest < v[k + j] || v[k + j] != v[k + j])) largest = v[k + j];
        }
        largest = warp_max(largest);
        largest = largest > LARGEST ? LARGEST : largest;
#pragma unroll
        for (int k = 0; k < COUNT; k += LANES) {
            const int i = k * 32 + lane * LANES;
            if (i >= size) continue;
#pragma unroll
            for (int j = 0; j < LANES; ++j) {
                const T e = exp(v[k + j] - largest);
                if (i + j < size) sum += e;
                v[k + j] = LOG ? v[k + j] - largest : e;
            }
        }
        sum = warp_sum(sum);
        const T last = LOG ? log(sum) : T(1) / sum;
#pragma unroll
        for (int k = 0; k < COUNT; k += LANES) {
            const int i = k * 32 + lane * LANES;
            if (i >= size) continue;
#pragma unroll
            for (int j = 0; j < LANES; ++j) v[k + j] = LOG ? v[k + j] - last : v[k + j] * last;
            store_lanes(y + row * size, i, size, wide, v + k);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128, 1)
    softmax_short(const S* __restrict__ x, S* __restrict__ y, Index rows, int size) {
    forward_in_warp<8>(x, y, rows, size);
}

extern "C" __global__ void __launch_bounds__(128, 1)
    softmax_warp(const S* __restrict__ x, S* __restrict__ y, Index rows, int size) {
    forward_in_warp<32>(x, y, rows, size);
}

// A block for each row, whose first `kept` elements stay in shared memory, each read by the thread that put it there.
extern "C" __global__ void __launch_bounds__(512, 1)
    softmax_block(const S* __restrict__ x, S* __restrict__ y, Index rows, int size, int kept) {
    extern __shared__ uint4 memory[];
    __shared__ T scratch[32];
    S* here = reinterpret_cast<S*>(memory);
    const bool wide = size % LANES == 0 && is_aligned(x) && is_aligned(y);
    const int first = threadIdx.x * LANES, step = blockDim.x * LANES;
    for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
        Exponentials found;
        T v[LANES];
        for (int i = first; i < size; i += step) {
            load_lanes(x + row * size, i, size, wide, v);
            if (i < kept) store_lanes(here, i, kept, true, v);
            found.add(v, size - i);
        }
        const T largest = block_max(found.largest, scratch);
        const T sum = block_sum(found.sum * exp(found.largest - largest), scratch);
        const T last = LOG ? log(sum) : T(1) / sum;
        for (int i = first; i < size; i += step) {
            load_lanes(i < kept ? here : x + row * size, i, size, wide || i < kept, v);
#pragma unroll
            for (int j = 0; j < LANES; ++j) v[j] = probability(v[j], largest, last);
            store_lanes(y + row * size, i, size, wide, v);
        }
    }
}

template <int COUNT>
__device__ __forceinline__ void backward_in_warp(const S* dy, const S* y, S* dx, Index rows, int size) {
    const bool wide = size % LANES == 0 && is_aligned(dy) && is_aligned(y) && is_aligned(dx);
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (Index row = Index(blockIdx.x) * warps + threadIdx.x / 32; row < rows; row += Index(gridDim.x) * warps) {
        T d[COUNT] = {}, v[COUNT] = {}, sum = 0;
        load_row(dy + row * size, size, wide, lane, 32, d);
        load_row(y + row * size, size, wide, lane, 32, v);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) sum += term(d[k], v[k]);  // 0 behind the end
        sum = warp_sum(sum);
#pragma unroll
        for (int k = 0; k < COUNT; k += LANES) {
            const int i = k * 32 + lane * LANES;
            if (i >= size) continue;
#pragma unroll
            for (int j = 0; j < LANES; ++j) d[k + j] = cotangent(d[k + j], v[k + j], sum);
            store_lanes(dx + row * size, i, size, wide, d + k);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128, 1) softmax_backward_short(
    const S* __restrict__ dy, const S* __restrict__ y, S* __restrict__ dx, Index rows, int size) {
    backward_in_warp<8>(dy, y, dx, rows, size);
}

extern "C" __global__ void __launch_bounds__(128, 1) softmax_backward_warp(
    const S* __restrict__ dy, const S* __restrict__ y, S* __restrict__ dx, Index rows, int size) {
    backward_in_warp<32>(dy, y, dx, rows, size);
}

extern "C" __global__ void __launch_bounds__(512, 1) softmax_backward_block(
    const S* __restrict__ dy, const S* __restrict__ y, S* __restrict__ dx, Index rows, int size, int kept) {
    extern __shared__ uint4 memory[];
    __shared__ T scratch[32];
    S *dy_here = reinterpret_cast<S*>(memory), *y_here = dy_here + kept;
    const bool wide = size % LANES == 0 && is_aligned(dy) && is_aligned(y) && is_aligned(dx);
    const int first = threadIdx.x * LANES, step = blockDim.x * LANES;
    for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
        T d[LANES], v[LANES], sum = 0;
        for (int i = first; i < size; i += step) {
            load_lanes(dy + row * size, i, size, wide, d);
            load_lanes(y + row * size, i, size, wide, v);
            if (i < kept) {
                store_lanes(dy_here, i, kept, true, d);
                store_lanes(y_here, i, kept, true, v);
            }
#pragma unroll
            for (int j = 0; j < LANES; ++j) sum += term(d[j], v[j]);
        }
        sum = block_sum(sum, scratch);
        for (int i = first; i < size; i += step) {
            load_lanes(i < kept ? dy_here : dy + row * size, i, size, wide || i < kept, d);
            load_lanes(i < kept ? y_here : y + row * size, i, size, wide || i < kept, v);
#pragma unroll
            for (int j = 0; j < LANES; ++j) d[j] = cotangent(d[j], v[j], sum);
            store_lanes(dx + row * size, i, size, wide, d);
        }
    }
}

// Another axis than the last: the elements of a column are `inner` apart. Neighbouring threads have neighbouring
// columns; the threads along y share a column. The second reading finds the block's columns in the L2 cache.
extern "C" __global__ void __launch_bounds__(1024, 1)
    softmax_columns(const S* __restrict__ x, S* __restrict__ y, Index columns, int size, Index inner) {
    __shared__ T tops[1024], sums[1024];
    const Index column = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    const Index start = column / inner * inner * size + column % inner;
    const int mine = column < columns ? size : 0;
    Exponentials found;
    for (int i = threadIdx.y; i < mine; i += blockDim.y) found.join(get(x, start + i * inner), T(1));
    tops[threadIdx.y * blockDim.x + threadIdx.x] = found.largest;
    sums[threadIdx.y * blockDim.x + threadIdx.x] = found.sum;
    __syncthreads();
    found = Exponentials();
    for (int turn = threadIdx.x; turn < blockDim.x * blockDim.y; turn += blockDim.x) found.join(tops[turn], sums[turn]);
    const T last = LOG ? log(found.sum) : T(1) / found.sum;
    for (int i = threadIdx.y; i < mine; i += blockDim.y)
        put(y, start + i * inner, probability(get(x, start + i * inner), found.largest, last));
}

extern "C" __global__ void __launch_bounds__(1024, 1) softmax_backward_columns(
    const S* __restrict__ dy, const S* __restrict__ y, S* __restrict__ dx, Index columns, int size, Index inner) {
    __shared__ T sums[1024];
    const Index column = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    const Index start = column / inner * inner * size + column % inner;
    const int mine = column < columns ? size : 0;
    T sum = 0;
    for (int i = threadIdx.y; i < mine; i += blockDim.y)
        sum += term(get(dy, start + i * inner), get(y, start + i * inner));
    sums[threadIdx.y * blockDim.x + threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (int turn = threadIdx.x; turn < blockDim.x * blockDim.y; turn += blockDim.x) sum += sums[turn];
    for (int i = threadIdx.y; i < mine; i += blockDim.y)
        put(dx, start + i * inner, cotangent(get(dy, start + i * inner), get(y, start + i * inner), sum));
}
