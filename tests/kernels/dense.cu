// y = relu(x @ w.T + b), one block per 16 x 16 tile of y; x is (rows, inner), w is (columns, inner), row-major.
#define TILE 16

extern "C" __global__ void dense_relu(const float* __restrict__ x, const float* __restrict__ w,
                                      const float* __restrict__ b, float* __restrict__ y, int rows, int columns,
                                      int inner) {
    __shared__ float xs[TILE][TILE + 1], ws[TILE][TILE + 1];
    const int row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
    const int w_row = blockIdx.x * TILE + threadIdx.y;
    float sum = 0.0f;
    for (int start = 0; start < inner; start += TILE) {
        const int k = start + threadIdx.x;
        xs[threadIdx.y][threadIdx.x] = row < rows && k < inner ? x[row * inner + k] : 0.0f;
        ws[threadIdx.y][threadIdx.x] = w_row < columns && k < inner ? w[w_row * inner + k] : 0.0f;
        __syncthreads();
        for (int i = 0; i < TILE; ++i) sum += xs[threadIdx.y][i] * ws[threadIdx.x][i];
#ifndef NO_SECOND_BARRIER
        __syncthreads();
#endif
    }
    if (row < rows && column < columns) y[row * columns + column] = fmaxf(sum + b[column], 0.0f);
}
