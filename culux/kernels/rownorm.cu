// Over rows of `size` elements: y = activation((x - mean) * inverse * scale + bias), inverse = 1 / sqrt(var + epsilon).
// CENTRED 1 is LayerNorm; CENTRED 0 is RMSNorm: the same with the mean 0 and no bias. scale and bias may be null.

constexpr int HELD = 64 / sizeof(T);                // elements of a row in a thread's registers, backward, four times
constexpr int MOST_IN_GROUP = CENTRED ? 384 : 512;  // threads of a block there, by the registers that they take

__device__ __forceinline__ void parameters(
    const P* scale, const P* bias, int i, int size, bool wide, T (&gain)[LANES], T (&shift)[LANES]) {
#pragma unroll
    for (int j = 0; j < LANES; ++j) {
        gain[j] = T(1);
        shift[j] = T(0);
    }
    if (scale != nullptr) load_lanes(scale, i, size, wide, gain);
    if (CENTRED && bias != nullptr) load_lanes(bias, i, size, wide, shift);
}

// y of LANES elements from column i on.
__device__ __forceinline__ void finish(
    const T* x, T mean, T inverse, const P* scale, const P* bias, int i, int size, bool wide, S* y) {
    T gain[LANES], shift[LANES];
    parameters(scale, bias, i, size, wide, gain, shift);
#pragma unroll
    for (int j = 0; j < LANES; ++j) gain[j] = activation((x[j] - mean) * inverse * gain[j] + shift[j]);
    store_lanes(y, i, size, wide, gain);
}

__device__ __forceinline__ void save(T mean, T inverse, T* means, T* inverses, Index row) {
    if (means != nullptr) means[row] = mean;
    if (inverses != nullptr) inverses[row] = inverse;
}

// A warp for each row, which is in its registers, COUNT elements a lane, between the one load and the one store.
template <int COUNT>
__device__ __forceinline__ void forward_in_warp(
    const S* x, const P* scale, const P* bias, S* y, T* means, T* inverses, Index rows, int size, T epsilon) {
    const bool wide =
        size % LANES == 0 && is_aligned(x) && is_aligned(y) && is_aligned(scale) && is_aligned(bias);
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (Index row = Index(blockIdx.x) * warps + threadIdx.x / 32; row < rows; row += Index(gridDim.x) * warps) {
        T v[COUNT] = {}, mean = 0, squares = 0;
        load_row(x + row * size, size, wide, lane, 32, v);
#pragma unroll
        for (int k = 0; CENTRED && k < COUNT; ++k) mean += v[k];
        mean = CENTRED ? warp_sum(mean) / size : T(0);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            const int i = k / LANES * LANES * 32 + lane * LANES + k % LANES;
            if (i < size) squares += (v[k] - mean) * (v[k] - mean);
        }
        const T inverse = T(1) / sqrt(warp_sum(squares) / size + epsilon);
#pragma unroll
        for (int k = 0; k < COUNT; k += LANES) {
            const int i = k * 32 + lane * LANES;
            if (i < size) finish(v + k, mean, inverse, scale, bias, i, size, wide, y + row * size);
        }
        if (lane == 0) save(mean, inverse, means, inverses, row);
    }
}

extern "C" __global__ void __launch_bounds__(128, 1) rownorm_forward_short(
    const S* __restrict__ x, const P* __restrict__ scale, const P* __restrict__ bias, S* __restrict__ y,
    T* __restrict__ means, T* __restrict__ inverses, Index rows, int size, T epsilon) {
    forward_in_warp<8>(x, scale, bias, y, means, inverses, rows, size, epsilon);
}

extern "C" __global__ void __launch_bounds__(128, 1) rownorm_forward_warp(
    const S* __restrict__ x, const P* __restrict__ scale, const P* __restrict__ bias, S* __restrict__ y,
    T* __restrict__ means, T* __restrict__ inverses, Index rows, int size, T epsilon) {
    forward_in_warp<32>(x, scale, bias, y, means, inverses, rows, size, epsilon);
}

// A block for each row, whose first `kept` elements stay in shared memory, each read by the thread that put it there.
extern "C" __global__ void __launch_bounds__(512, 1) rownorm_forward_block(
    const S* __restrict__ x, const P* __restrict__ scale, const P* __restrict__ bias, S* __restrict__ y,
    T* __restrict__ means, T* __restrict__ inverses, Index rows, int size, int kept, T epsilon) {
    extern __shared__ uint4 memory[];
    __shared__ T scratch[32];
    S* here = reinterpret_cast<S*>(memory);
    const bool wide =
        size % LANES == 0 && is_aligned(x) && is_aligned(y) && is_aligned(scale) && is_aligned(bias);
    const int first = threadIdx.x * LANES, step = blockDim.x * LANES;
    for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
        const S* from = x + row * size;
        T v[LANES], mean = 0, squares = 0;
        for (int i = first; i < size; i += step) {
            load_lanes(from, i, size, wide, v);
            if (i < kept) store_lanes(here, i, kept, true, v);
#pragma unroll
            for (int j = 0; j < LANES; ++j) mean += v[j];
        }
        mean = CENTRED ? block_sum(mean, scratch) / size : T(0);
        for (int i = first; i < size; i += step) {
            load_lanes(i < kept ? here : from, i, size, wide || i < kept, v);
#pragma unroll
            for (int j = 0; j < LANES; ++j)
                if (i + j < size) squares += (v[j] - mean) * (v[j] - mean);
        }
        const T inverse = T(1) / sqrt(block_sum(squares, scratch) / size + epsilon);
        for (int i = first; i < size; i += step) {
            load_lanes(i < kept ? here : from, i, size, wide || i < kept, v);
            finish(v, mean, inverse, scale, bias, i, size, wide, y + row * size);
        }
        if (threadIdx.x == 0) save(mean, inverse, means, inverses, row);
    }
}

// The backward recomputes y from x: with g = dz * scale, dx = inverse * (g - mean(g) - xhat * mean(g * xhat)). Blocks
// stay for many rows, so that each adds up dscale = sum of dz * xhat and dbias = sum of dz of its rows.

// In place: x becomes xhat, dy becomes dz; g, and its part of both sums.
__device__ __forceinline__ void step_back(
    T* x, T* dy, T* g, T mean, T inverse, const P* scale, const P* bias, int i, int size, bool wide, T& total,
    T& along) {
    T gain[LANES], shift[LANES];
    parameters(scale, bias, i, size, wide, gain, shift);
#pragma unroll
    for (int j = 0; j < LANES; ++j) {
        x[j] = (x[j] - mean) * inverse;
        const T z = x[j] * gain[j] + shift[j];
        dy[j] = i + j < size ? dy[j] * derivative(KEEPS_Y ? activation(z) : z) : T(0);
        g[j] = dy[j] * gain[j];
        total += g[j];
        along += g[j] * x[j];
    }
}

// The means over a row of both sums, in all threads of the group: a warp, or the block with 64 values of scratch.
__device__ __forceinline__ void row_means(T& total, T& along, int group, int size, T* scratch) {
    total = warp_sum(total);
    along = warp_sum(along);
    if (group > 32) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
        __syncthreads();
        if (lane == 0) {
            scratch[warp] = total;
            scratch[32 + warp] = along;
        }
        __syncthreads();
        total = warp_sum(lane < warps ? scratch[lane] : T(0));
        along = warp_sum(lane < warps ? scratch[32 + lane] : T(0));
    }
    total = CENTRED ? total / size : T(0);
    along /= size;
}

__device__ __forceinline__ void store_dx(
    const T* g, const T* xhat, T total, T along, T inverse, S* dx, int i, int size, bool wide) {
    T out[LANES];
#pragma unroll
    for (int j = 0; j < LANES; ++j) out[j] = inverse * (g[j] - total - xhat[j] * along);
    store_lanes(dx, i, size, wide, out);
}

// The sums of the block's groups, added one after the other, to row blockIdx.x of the partial sums.
__device__ __forceinline__ void add_groups(const T (&values)[HELD], T* partials, int size, int group, T* sums) {
    const int turns = blockDim.x / group, thread = threadIdx.x % group;
    for (int turn = 0; partials != nullptr && turn < turns; ++turn) {
        __syncthreads();
        if (threadIdx.x / group != turn) continue;
        T* target = turn + 1 == turns ? partials + Index(blockIdx.x) * size : sums;
#pragma unroll
        for (int k = 0; k < HELD; ++k) {
            const int i = k / LANES * LANES * group + thread * LANES + k % LANES;
            if (i < size) target[i] = turn > 0 ? sums[i] + values[k] : values[k];
        }
    }
}

// A group of threads for each row, a warp or the block: a thread has the same columns of all its rows.
extern "C" __global__ void __launch_bounds__(MOST_IN_GROUP, 1) rownorm_backward(
    const S* __restrict__ dy, const S* __restrict__ x, const P* __restrict__ scale, const P* __restrict__ bias,
    const T* __restrict__ means, const T* __restrict__ inverses, S* __restrict__ dx, T* __restrict__ scale_partials,
    T* __restrict__ bias_partials, Index rows, int size, int group) {
    __shared__ T scratch[32 * HELD];  // the columns of a warp, or 64 sums of a row
    const bool wide = size % LANES == 0 && is_aligned(dy) && is_aligned(x) && is_aligned(dx) && is_aligned(scale) &&
                      is_aligned(bias);
    const int thread = threadIdx.x % group, groups = blockDim.x / group;
    T dscale[HELD] = {}, dbias[HELD] = {};
    for (Index row = Index(blockIdx.x) * groups + threadIdx.x / group; row < rows; row += Index(gridDim.x) * groups) {
        const T mean = CENTRED ? means[row] : T(0), inverse = inverses[row];
        T xhat[HELD], g[HELD], total = 0, along = 0;
        load_row(x + row * size, size, wide, thread, group, xhat);
        load_row(dy + row * size, size, wide, thread, group, g);
#pragma unroll
        for (int k = 0; k < HELD; k += LANES) {
            const int i = k * group + thread * LANES;
            if (i >= size) continue;
            T dz[LANES];
#pragma unroll
            for (int j = 0; j < LANES; ++j) dz[j] = g[k + j];
            step_back(xhat + k, dz, g + k, mean, inverse, scale, bias, i, size, wide, total, along);
#pragma unroll
            for (int j = 0; j < LANES; ++j) {
                dscale[k + j] += dz[j] * xhat[k + j];
                dbias[k + j] += dz[j];
            }
        }
        if (dx == nullptr) continue;
        row_means(total, along, group, size, scratch);
#pragma unroll
        for (int k = 0; k < HELD; k += LANES) {
            const int i = k * group + thread * LANES;
            if (i < size) store_dx(g + k, xhat + k, total, along, inverse, dx + row * size, i, size, wide);
        }
    }
    add_groups(dscale, scale_partials, size, group, scratch);
    if (CENTRED) add_groups(dbias, bias_partials, size, group, scratch);
}

// Rows that are too long for the registers of a block: x and dy are read twice, the second time from the L2 cache,
// where the block's row of the partial sums is too.
extern "C" __global__ void __launch_bounds__(MOST_IN_GROUP, 1) rownorm_backward_long(
    const S* __restrict__ dy, const S* __restrict__ x, const P* __restrict__ scale, const P* __restrict__ bias,
    const T* __restrict__ means, const T* __restrict__ inverses, S* __restrict__ dx, T* __restrict__ scale_partials,
    T* __restrict__ bias_partials, Index rows, int size) {
    __shared__ T scratch[64];
    const bool wide = size % LANES == 0 && is_aligned(dy) && is_aligned(x) && is_aligned(dx) && is_aligned(scale) &&
                      is_aligned(bias);
    const int first = threadIdx.x * LANES, step = blockDim.x * LANES;
    T xhat[LANES], dz[LANES], g[LANES];
    for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
        const T mean = CENTRED ? means[row] : T(0), inverse = inverses[row];
        T total = 0, along = 0, unused = 0;
        for (int i = first; i < size; i += step) {
            load_lanes(x + row * size, i, size, wide, xhat);
            load_lanes(dy + row * size, i, size, wide, dz);
            step_back(xhat, dz, g, mean, inverse, scale, bias, i, size, wide, total, along);
            for (int j = 0; j < LANES && i + j < size; ++j) {
                const Index at = Index(blockIdx.x) * size + i + j;
                const bool add = row != blockIdx.x;
                if (scale_partials) scale_partials[at] = (add ? scale_partials[at] : T(0)) + dz[j] * xhat[j];
                if (bias_partials) bias_partials[at] = (add ? bias_partials[at] : T(0)) + dz[j];
            }
        }
        if (dx == nullptr) continue;
        row_means(total, along, blockDim.x, size, scratch);
        for (int i = first; i < size; i += step) {
            load_lanes(x + row * size, i, size, wide, xhat);
            load_lanes(dy + row * size, i, size, wide, dz);
            step_back(xhat, dz, g, mean, inverse, scale, bias, i, size, wide, unused, unused);
            store_dx(g, xhat, total, along, inverse, dx + row * size, i, size, wide);
        }
    }
}

// The sums over the rows of the partial sums: a block for 32 columns, blockIdx.y 0 for the scale and 1 for the bias.
extern "C" __global__ void __launch_bounds__(1024) rownorm_parameters(
    const T* __restrict__ scale_partials, const T* __restrict__ bias_partials, P* __restrict__ dscale,
    P* __restrict__ dbias, int count, int size) {
    __shared__ T sums[32][33];
    const T* partials = blockIdx.y == 0 ? scale_partials : bias_partials;
    P* target = blockIdx.y == 0 ? dscale : dbias;
    if (target == nullptr) return;
    const int from = blockIdx.x * 32 + threadIdx.x, to = blockIdx.x * 32 + threadIdx.y;
    T sum = 0;
    for (int row = threadIdx.y; from < size && row < count; row += 32) sum += partials[Index(row) * size + from];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    sum = warp_sum(sums[threadIdx.x][threadIdx.y]);
    if (threadIdx.x == 0 && to < size) put(target, to, sum);
}
