// Kernels with one defect each, on the line marked with its name. The test-suite finds the marks.

extern "C" __global__ void out_of_bounds(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) y[i] = 2.0f;  // MARK out_of_bounds
}

extern "C" __global__ void shared_overrun(const float* x, float* y, int n) {
    extern __shared__ float tile[];
    tile[threadIdx.x + 1] = x[threadIdx.x];  // MARK shared_overrun
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + 1];
}

extern "C" __global__ void static_overrun(const float* x, float* y, int n) {
    __shared__ float tile[31];
    tile[threadIdx.x] = x[threadIdx.x];  // MARK static_overrun
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void misaligned(const float* x, float* y, int n) {
    if (threadIdx.x > 0) return;
    const float4 v = *reinterpret_cast<const float4*>(x + 1);  // MARK misaligned
    for (int i = 0; i < n; ++i) y[i] = v.x;
}

extern "C" __global__ void unwritten_output(const float* x, float* y, int n) {
    if (threadIdx.x < n - 1) y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void unwritten_shared(const float* x, float* y, int n) {
    __shared__ float tile[33];  // MARK unwritten_shared
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = fmaxf(tile[threadIdx.x], tile[threadIdx.x + 1]);
}

extern "C" __global__ void reads_output(const float* x, float* y, int n) { y[threadIdx.x] += x[threadIdx.x]; }

extern "C" __global__ void divergent_barrier(const float* x, float* y, int n) {
    if (threadIdx.x < 16) {
        __syncthreads();  // MARK divergent_barrier
    } else {
        __syncthreads();
    }
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void early_return(const float* x, float* y, int n) {
    if (threadIdx.x >= 16) return;
    y[threadIdx.x] = x[threadIdx.x];
    __syncthreads();  // MARK early_return
}

extern "C" __global__ void half_warp(const float* x, float* y, int n) {
    float value = x[threadIdx.x];
    if (threadIdx.x < 16) value += __shfl_down_sync(0xffffffffu, value, 8);  // MARK half_warp
    y[threadIdx.x] = value;
}

extern "C" __global__ void lost_update(const float* x, float* y, int n) {
    __shared__ float sum;
    if (threadIdx.x == 0) sum = 0.0f;
    __syncthreads();
    sum += x[threadIdx.x];  // MARK lost_update
    __syncthreads();
    y[threadIdx.x] = sum;
}

extern "C" __global__ void never_ends(const float* x, float* y, int n) {
    volatile int forever = 1;
    while (forever) y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void no_syncwarp(const float* x, float* y, int n) {
    __shared__ float tile[32];
    tile[threadIdx.x] = x[threadIdx.x];  // MARK no_syncwarp
    y[threadIdx.x] = tile[threadIdx.x ^ 1];
}

extern "C" __global__ void warp_write_after_read(const float* x, float* y, int n) {
    __shared__ float tile[32];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    const float other = tile[threadIdx.x ^ 1];
    tile[threadIdx.x] = other;  // MARK warp_write_after_read
    __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x];
}
