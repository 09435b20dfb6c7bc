// What is done beside the products of a convolution. z, y, dy, saved and dz are (batch, channels, plane), row-major. A
// block has a part of a channel, and a thread packs of LANES elements of it: 16 bytes where planes are whole packs.
struct Part {
    int channel, packs;  // packs of a plane
    unsigned begin, end;

    __device__ Part(int batch, int channels, int plane, unsigned part) {
        channel = blockIdx.x % channels;
        packs = (plane + LANES - 1) / LANES;
        begin = blockIdx.x / channels * part;
        end = min(begin + part, unsigned(batch) * packs);
    }
};

// y = activation(z + bias[channel]), and z += bias where `keep`; y may be z where not. bias may be null.
extern "C" __global__ void __launch_bounds__(256)
    conv_epilogue_forward(S* z, const S* __restrict__ bias, S* y, bool keep, int batch, int channels, int plane,
                          unsigned part) {
    const Part mine(batch, channels, plane, part);
    const bool wide = is_aligned(z) && is_aligned(y) && plane % LANES == 0;
    const T shift = bias ? get(bias, mine.channel) : T(0);
#pragma unroll 2
    for (unsigned at = mine.begin + threadIdx.x; at < mine.end; at += 256) {
        const unsigned sample = at / mine.packs;
        const Index row = (Index(sample) * channels + mine.channel) * plane;
        const int i = int(at - sample * mine.packs) * LANES;
        T values[LANES];
        load_lanes(z + row, i, plane, wide, values);
#pragma unroll
        for (int j = 0; j < LANES; ++j) values[j] += shift;
        if (keep) store_lanes(z + row, i, plane, wide, values);
#pragma unroll
        for (int j = 0; j < LANES; ++j) values[j] = activation(values[j]);
        store_lanes(y + row, i, plane, wide, values);
    }
}

// dz = dy * derivative(saved), null where the derivative is 1, and its sums over batch and plane. Where a channel is
// one part, `partials` is null and the sums are dbias.
extern "C" __global__ void __launch_bounds__(256)
    conv_epilogue_backward(const S* __restrict__ dy, const S* __restrict__ saved, S* __restrict__ dz,
                           T* __restrict__ partials, S* __restrict__ dbias, int batch, int channels, int plane,
                           unsigned part) {
    __shared__ T scratch[32];
    const Part mine(batch, channels, plane, part);
    const bool wide = is_aligned(dy) && is_aligned(saved) && is_aligned(dz) && plane % LANES == 0;
    T sum = 0;
#pragma unroll 2
    for (unsigned at = mine.begin + threadIdx.x; at < mine.end; at += 256) {
        const unsigned sample = at / mine.packs;
        const Index row = (Index(sample) * channels + mine.channel) * plane;
        const int i = int(at - sample * mine.packs) * LANES;
        T values[LANES], kept[LANES];
        load_lanes(dy + row, i, plane, wide, values);
        if (saved) load_lanes(saved + row, i, plane, wide, kept);
#pragma unroll
        for (int j = 0; j < LANES; ++j) {
            if (saved && i + j < plane) values[j] *= derivative(kept[j]);
            sum += values[j];
        }
        if (dz) store_lanes(dz + row, i, plane, wide, values);
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x) return;
    if (partials)
        partials[blockIdx.x] = sum;
    else
        put(dbias, mine.channel, sum);
}
