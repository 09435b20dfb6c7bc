// One update of the parameters in a flat buffer, and the sums of squares for the norm of their gradients. A block takes
// a chunk of one segment. Gradients, and parameters that are in no flat buffer yet, are read where they lie: their
// addresses come with the launch, by value, so that nothing is copied to the device and nothing is gathered.
// All this is bound by memory (Adam: 28 bytes a parameter): loads of 16 bytes, of all four arrays before the first use.

enum { KEEP, DESCENT, MOMENTUM, NESTEROV, RMSPROP, ADAM, ADAMW, LION };  // RULES in optimise.py

struct Recipe {  // how a segment is updated
    int rule;
    int norm;                             // which norm its gradients are scaled by, from 1; 0: none
    T max_norm, max_value, coefficient;  // of clip_norm, clip_value and weight_decay
    T rate, beta1, rest1, beta2, rest2, epsilon, decay;
};

struct Table {
    unsigned long long address[TENSORS];  // of gradients; where parameters are loose, theirs in the second half
    Recipe recipes[RECIPES];              // the first is KEEP
    unsigned char recipe[TENSORS];
};

struct alignas(16) Chunk {
    Index start, offset, segment, size;  // start: in the flat buffer, offset: in the segment
};

template <int N, typename E>
__device__ __forceinline__ void load(const E* p, T (&values)[N]) {
    constexpr int WIDTH = sizeof(E) * N < 16 ? N : int(16 / sizeof(E));
#pragma unroll
    for (int i = 0; i < N; i += WIDTH) {
        const Pack<E, WIDTH> pack = *reinterpret_cast<const Pack<E, WIDTH>*>(p + i);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) values[i + k] = T(pack.v[k]);
    }
}

template <int N, typename E>
__device__ __forceinline__ void store(E* p, const T (&values)[N]) {
    constexpr int WIDTH = sizeof(E) * N < 16 ? N : int(16 / sizeof(E));
#pragma unroll
    for (int i = 0; i < N; i += WIDTH) {
        Pack<E, WIDTH> pack;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) pack.v[k] = E(values[i + k]);
        *reinterpret_cast<Pack<E, WIDTH>*>(p + i) = pack;
    }
}

// The new parameter; the moments are changed. The branches are the same in all threads of a block.
__device__ __forceinline__ T updated(const Recipe& r, T factor, T x, T g, T& m, T& v) {
    g *= factor;
    g = g > r.max_value ? r.max_value : g < -r.max_value ? -r.max_value : g;  // NaN stays
    if (r.coefficient != T(0)) g += r.coefficient * x;
    switch (r.rule) {
        case DESCENT:
            return x - r.rate * g;
        case MOMENTUM:
            m = r.beta1 * m + g;
            return x - r.rate * m;
        case NESTEROV:
            m = r.beta1 * m + g;
            return x - r.rate * (g + r.beta1 * m);
        case RMSPROP:
            m = r.beta1 * m + r.rest1 * g * g;
            return x - r.rate * g / (sqrt(m) + r.epsilon);
        case LION: {
            const T direction = r.beta1 * m + r.rest1 * g;
            m = r.beta2 * m + r.rest2 * g;
            return direction > T(0) ? x - r.rate : direction < T(0) ? x + r.rate : x - direction;  // 0 and NaN
        }
        case ADAM:
        case ADAMW: {
            m = r.beta1 * m + r.rest1 * g;
            v = r.beta2 * v + r.rest2 * g * g;
            const T step = r.rate * m / (sqrt(v) + r.epsilon);
            return x - (r.rule == ADAMW ? step + r.decay * x : step);
        }
    }
    return x;
}

// What clip_norm scales the gradients by, from the sums of all blocks of optimise_norm, in a fixed order.
__device__ __forceinline__ T clip_factor(const Recipe& r, const double* partials, int count) {
    __shared__ T scratch[32];
    if (r.norm == 0) return T(1);
    T total = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) total += T(partials[Index(r.norm - 1) * count + i]);
    const T factor = r.max_norm / (sqrt(block_sum(total, scratch)) + T(1e-6));
    return factor > T(1) ? T(1) : factor;  // NaN stays
}

// N elements at i; g is null where they are kept, m and v where the buffers have no such moments.
template <int N>
__device__ __forceinline__ void update_elements(
    Index i, const Recipe& r, T factor, const S* x, const P* g, const T* m, const T* v, S* new_x, T* new_m, T* new_v) {
    T xs[N], gs[N] = {}, ms[N] = {}, vs[N] = {};
    load(x + i, xs);
    if (g) load(g + i, gs);
    if (m) load(m + i, ms);
    if (v) load(v + i, vs);
#pragma unroll
    for (int k = 0; k < N; ++k) xs[k] = updated(r, factor, xs[k], gs[k], ms[k], vs[k]);
    store(new_x + i, xs);
    if (new_m) store(new_m + i, ms);
    if (new_v) store(new_v + i, vs);
}

__device__ __forceinline__ void update_chunk(
    const Table& table, const Chunk* chunks, int first, bool loose, const double* partials, int count, const S* x,
    const T* m, const T* v, S* new_x, T* new_m, T* new_v) {
    const Chunk chunk = chunks[blockIdx.x];
    const int k = int(chunk.segment) - first, size = int(chunk.size);
    const Recipe r = table.recipes[table.recipe[k]];
    const P* g = r.rule == KEEP ? nullptr : reinterpret_cast<const P*>(table.address[k]) + chunk.offset;
    x = loose ? reinterpret_cast<const S*>(table.address[TENSORS / 2 + k]) + chunk.offset : x + chunk.start;
    new_x += chunk.start;
    if (r.rule == KEEP && x == new_x) return;
    if (m) m += chunk.start, new_m += chunk.start;
    if (v) v += chunk.start, new_v += chunk.start;
    const T factor = clip_factor(r, partials, count);
    const bool packed = is_aligned(x) && is_aligned(g) && is_aligned(m) && is_aligned(v) && is_aligned(new_x) &&
                        is_aligned(new_m) && is_aligned(new_v);
    const int end = packed ? size / LANES * LANES : 0;
    for (int i = threadIdx.x * LANES; i < end; i += blockDim.x * LANES)
        update_elements<LANES>(i, r, factor, x, g, m, v, new_x, new_m, new_v);
    for (int i = end + threadIdx.x; i < size; i += blockDim.x)
        update_elements<1>(i, r, factor, x, g, m, v, new_x, new_m, new_v);
    constexpr int UNIT = 128 / sizeof(S);  // a segment ends in zeros up to a multiple of 128 bytes
    for (int i = size + threadIdx.x; i < (size + UNIT - 1) / UNIT * UNIT; i += blockDim.x) {
        new_x[i] = S(T(0));
        if (new_m) new_m[i] = T(0);
        if (new_v) new_v[i] = T(0);
    }
}

// The sums of squares of the gradients that the norm `norm` is of, one a block.
__device__ __forceinline__ void sum_squares(
    const Table& table, const Chunk* chunks, Index count, int first, int norm, double* partials) {
    __shared__ T scratch[32];
    T total = 0;
    Chunk next = chunks[blockIdx.x];
    for (Index c = blockIdx.x; c < count; c += gridDim.x) {
        const Chunk chunk = next;
        if (c + gridDim.x < count) next = chunks[c + gridDim.x];  // is on its way while this one is summed
        const int k = int(chunk.segment) - first, size = int(chunk.size);
        if (table.recipes[table.recipe[k]].norm != norm) continue;
        const P* g = reinterpret_cast<const P*>(table.address[k]) + chunk.offset;
        constexpr int N = 16 / sizeof(P);
        const int end = is_aligned(g) ? size / N * N : 0;
        T sum = 0;  // of this chunk first: less is lost to rounding than in one long sum
#pragma unroll 2
        for (int i = threadIdx.x * N; i < end; i += blockDim.x * N) {
            T values[N];
            load(g + i, values);
#pragma unroll
            for (int j = 0; j < N; ++j) sum += values[j] * values[j];
        }
        for (int i = end + threadIdx.x; i < size; i += blockDim.x) sum += get(g, i) * get(g, i);
        total += sum;
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = double(total);
}

extern "C" __global__ void __launch_bounds__(256) optimise_norm(
    Table table, const Chunk* __restrict__ chunks, Index count, int first, int norm, double* __restrict__ partials) {
    sum_squares(table, chunks, count, first, norm, partials);
}

// The new arrays may be the old ones.
extern "C" __global__ void __launch_bounds__(256) optimise_update(
    Table table, const Chunk* __restrict__ chunks, int first, bool loose, const double* __restrict__ partials,
    int count, const S* x, const T* m, const T* v, S* new_x, T* new_m, T* new_v) {
    update_chunk(table, chunks, first, loose, partials, count, x, m, v, new_x, new_m, new_v);
}
