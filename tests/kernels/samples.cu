// Correct kernels that use what kernels use: shared memory, shuffles, votes, templates, 16-bit floats, 64-bit integers.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ __forceinline__ float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// total[b] = sum of the block's part of x; dynamic shared memory of one float per thread.
extern "C" __global__ void block_sum(const float* x, float* total, int n) {
    extern __shared__ float partial[];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    partial[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();
    for (int half_size = blockDim.x / 2; half_size > 0; half_size /= 2) {
        if (threadIdx.x < half_size) partial[threadIdx.x] += partial[threadIdx.x + half_size];
        __syncthreads();
    }
    if (threadIdx.x == 0) total[blockIdx.x] = partial[0];
}

// One block per row; the maximum and the sum meet in the same shared array, so the barrier between them matters.
extern "C" __global__ void softmax_rows(const float* x, float* y, int columns) {
    __shared__ float red[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const float* row = x + blockIdx.x * columns;
    float largest = __int_as_float(0xff800000);  // minus infinity
    for (int i = threadIdx.x; i < columns; i += blockDim.x) largest = fmaxf(largest, row[i]);
    for (int offset = 16; offset > 0; offset /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    if (lane == 0) red[warp] = largest;
    __syncthreads();
    for (int w = 0; w < warps; ++w) largest = fmaxf(largest, red[w]);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += __expf(row[i] - largest);
    sum = warp_sum(sum);
#ifndef NO_MIDDLE_BARRIER
    __syncthreads();
#endif
    if (lane == 0) red[warp] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int w = 0; w < warps; ++w) sum += red[w];
    for (int i = threadIdx.x; i < columns; i += blockDim.x)
        y[blockIdx.x * columns + i] = __expf(row[i] - largest) / sum;
}

// Philox4x64-10 as NumPy's: word i comes from counter + 1 + i / 4.
extern "C" __global__ void philox_words(unsigned long long* words, const unsigned long long* key,
                                        const unsigned long long* counter, int n) {
    const int group = blockIdx.x * blockDim.x + threadIdx.x;
    if (4 * group >= n) return;
    unsigned long long c[4], carry = 1 + (unsigned long long)group, k0 = key[0], k1 = key[1];
    for (int i = 0; i < 4; ++i) {
        c[i] = counter[i] + carry;
        carry = c[i] < carry;
    }
    for (int round = 0; round < 10; ++round) {
        const unsigned long long high0 = __umul64hi(0xD2E7470EE14C6C93ull, c[0]), low0 = 0xD2E7470EE14C6C93ull * c[0];
        const unsigned long long high1 = __umul64hi(0xCA5A826395121157ull, c[2]), low1 = 0xCA5A826395121157ull * c[2];
        const unsigned long long next[4] = {high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0};
        for (int i = 0; i < 4; ++i) c[i] = next[i];
        k0 += 0x9E3779B97F4A7C15ull;
        k1 += 0xBB67AE8584CAA73Bull;
    }
    for (int i = 0; i < 4 && 4 * group + i < n; ++i) words[4 * group + i] = c[i];
}

// y += a * x, in the type of a.
template <typename T, int step>
__global__ void axpy(T a, const T* x, T* y, int n) {
    for (int i = (blockIdx.x * blockDim.x + threadIdx.x) * step, end = min(i + step, n); i < end; ++i) y[i] += a * x[i];
}

extern "C" __global__ void scale_16bit(const __half* x, __half* y, const __nv_bfloat16* u, __nv_bfloat16* v, __half a,
                                       int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[i] = __hmul(a, x[i]);
    v[i] = __float2bfloat16(__bfloat162float(u[i]) + 1.0f);
}

// How many x are positive, by votes and one atomic a warp; how many blocks had any, by a block vote; float4 loads.
extern "C" __global__ void count_positive(const float4* x, unsigned* count, int* blocks, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float4 v = i < n ? x[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const float values[4] = {v.x, v.y, v.z, v.w};
    unsigned found = 0;
    for (int j = 0; j < 4; ++j) found += __popc(__ballot_sync(0xffffffffu, values[j] > 0.0f));
    if (threadIdx.x % 32 == 0) atomicAdd(count, found);
    const bool any = __syncthreads_or(found > 0);
    if (threadIdx.x == 0 && any) atomicAdd(blocks, 1);
}

// Each lane gets its neighbour's value, within halves of a warp that wait only for their own lanes.
extern "C" __global__ void rotate_halves(const float* x, float* y) {
    __shared__ float tile[64];
    const unsigned lane = threadIdx.x % 32, mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    tile[threadIdx.x] = x[threadIdx.x];
    __syncwarp(mask);
    y[threadIdx.x] = tile[threadIdx.x / 16 * 16 + (threadIdx.x + 1) % 16];
}

extern "C" __global__ void coordinates(int* places) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const int i = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
    places[i] = i;
}

// What a block finds in shared memory that it has not written.
extern "C" __global__ void left_behind(float* seen) {
    extern __shared__ float asked[];
    __shared__ float declared;
    seen[2 * blockIdx.x] = asked[0];
    seen[2 * blockIdx.x + 1] = declared;
    asked[0] = declared = 1.0f;
}
