// y = activation(x) and dx = dy * derivative(saved), elementwise; 16 bytes at a time where all arrays allow it.

extern "C" __global__ void __launch_bounds__(256) activation_forward(const S* __restrict__ x, S* __restrict__ y, Index n) {
    typedef Pack<S, LANES> Lanes;
    const Index step = Index(gridDim.x) * blockDim.x, first = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    const Index packs = is_aligned(x) && is_aligned(y) ? n / LANES : 0;
    for (Index i = first; i < packs; i += step) {
        Lanes lanes = reinterpret_cast<const Lanes*>(x)[i];
        for (int k = 0; k < LANES; ++k) lanes.v[k] = S(activation(T(lanes.v[k])));
        reinterpret_cast<Lanes*>(y)[i] = lanes;
    }
    for (Index i = packs * LANES + first; i < n; i += step) put(y, i, activation(get(x, i)));
}

extern "C" __global__ void __launch_bounds__(256)
    activation_backward(const S* __restrict__ dy, const S* __restrict__ saved, S* __restrict__ dx, Index n) {
    typedef Pack<S, LANES> Lanes;
    const Index step = Index(gridDim.x) * blockDim.x, first = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    const Index packs = is_aligned(dy) && is_aligned(saved) && is_aligned(dx) ? n / LANES : 0;
    for (Index i = first; i < packs; i += step) {
        const Lanes from = reinterpret_cast<const Lanes*>(saved)[i];
        Lanes lanes = reinterpret_cast<const Lanes*>(dy)[i];
        for (int k = 0; k < LANES; ++k) lanes.v[k] = S(T(lanes.v[k]) * derivative(T(from.v[k])));
        reinterpret_cast<Lanes*>(dx)[i] = lanes;
    }
    for (Index i = packs * LANES + first; i < n; i += step) put(dx, i, get(dy, i) * derivative(get(saved, i)));
}
