// What the kernels share. The text in front of this defines the types
//   S  of the data in memory, P  of parameters in memory, T  to compute in (float, or double where S is double),
// and the functions activation(T x) and derivative(T saved), where saved is x or y as KEEPS_X and KEEPS_Y say.
typedef long long Index;

constexpr int LANES = 16 / sizeof(S);  // elements of S in the largest load

template <typename E, int N>
struct alignas(sizeof(E) * N) Pack {
    E v[N];
};

template <typename E>
__device__ __forceinline__ T get(const E* p, Index i) {
    return T(p[i]);
}

template <typename E>
__device__ __forceinline__ void put(E* p, Index i, T value) {
    p[i] = E(value);
}

__device__ __forceinline__ bool is_aligned(const void* p) { return (unsigned long long)p % 16 == 0; }

__device__ __forceinline__ T infinity() { return T(__int_as_float(0x7f800000)); }

// The sum over a warp, in all its lanes; the same order of additions in every run.
__device__ __forceinline__ T warp_sum(T value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

__device__ __forceinline__ T warp_max(T value) {
    for (int offset = 16; offset > 0; offset /= 2) {
        const T other = __shfl_xor_sync(0xffffffffu, value, offset);
        value = value < other || other != other ? other : value;  // NaN stays
    }
    return value;
}

// The sum over a one-dimensional block of whole warps, in all its threads; scratch holds 32 values of shared memory
// and may be used again at once.
__device__ __forceinline__ T block_sum(T value, T* scratch) {
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : T(0));
}

__device__ __forceinline__ T block_max(T value, T* scratch) {
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    return warp_max(scratch[threadIdx.x % 32 < blockDim.x / 32 ? threadIdx.x % 32 : 0]);
}

// LANES elements of a row of `size`, from i < size on; 0 behind its end. `wide`: rows start at multiples of 16 bytes,
// and so does i.
template <typename E>
__device__ __forceinline__ void load_lanes(const E* row, int i, int size, bool wide, T* values) {
    constexpr int WIDEST = 16 / sizeof(E), STEP = LANES < WIDEST ? LANES : WIDEST;
    if (wide) {
#pragma unroll
        for (int k = 0; k < LANES; k += STEP) {
            const Pack<E, STEP> pack = *reinterpret_cast<const Pack<E, STEP>*>(row + i + k);
#pragma unroll
            for (int j = 0; j < STEP; ++j) values[k + j] = T(pack.v[j]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < LANES; ++j) values[j] = i + j < size ? get(row, i + j) : T(0);
    }
}

__device__ __forceinline__ void store_lanes(S* row, int i, int size, bool wide, const T* values) {
    if (wide) {
        Pack<S, LANES> pack;
#pragma unroll
        for (int j = 0; j < LANES; ++j) pack.v[j] = S(values[j]);
        *reinterpret_cast<Pack<S, LANES>*>(row + i) = pack;
    } else {
#pragma unroll
        for (int j = 0; j < LANES; ++j)
            if (i + j < size) put(row, i + j, values[j]);
    }
}

// A row in the registers of `threads` threads: thread t has the LANES elements from (k * threads + t) * LANES on for
// each k. All loads of one kind stand together, so that they are under way at once.
template <int COUNT>
__device__ __forceinline__ void load_row(
    const S* row, int size, bool wide, int thread, int threads, T (&values)[COUNT]) {
    if (wide) {
#pragma unroll
        for (int k = 0; k < COUNT; k += LANES)
            if (k * threads + thread * LANES < size)
                load_lanes(row, k * threads + thread * LANES, size, true, values + k);
    } else {
#pragma unroll
        for (int k = 0; k < COUNT; k += LANES)
            if (k * threads + thread * LANES < size)
                load_lanes(row, k * threads + thread * LANES, size, false, values + k);
    }
}

// The REG values that a thread multiplies in a step of a tiled product: quads, each `apart` from the one before.
template <int REG>
__device__ __forceinline__ void fetch(const T* place, int apart, T (&out)[REG]) {
    constexpr int WIDTH = REG < 4 ? REG : 4;
#pragma unroll
    for (int i = 0; i < REG; i += WIDTH) {
        const Pack<T, WIDTH> pack = *reinterpret_cast<const Pack<T, WIDTH>*>(place + i / WIDTH * apart);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) out[i + j] = pack.v[j];
    }
}

constexpr T LARGEST = sizeof(T) == 8 ? T(1.7976931348623157e308) : T(3.402823466e38f);  // the largest finite number

// The largest element seen, a finite number where that is infinite, and the sum of exp(element - largest); NaN stays.
struct Exponentials {
    T largest = -LARGEST, sum = T(0);

    // The first `count` of LANES elements.
    __device__ __forceinline__ void add(const T* values, int count) {
        T top = largest;
#pragma unroll
        for (int j = 0; j < LANES; ++j)
            if (j < count && (top < values[j] || values[j] != values[j])) top = values[j];
        raise(top);
#pragma unroll
        for (int j = 0; j < LANES; ++j)
            if (j < count) sum += exp(values[j] - largest);
    }

    // What was found elsewhere; one element is (element, 1).
    __device__ __forceinline__ void join(T other, T other_sum) {
        raise(largest < other || other != other ? other : largest);
        sum += other_sum * exp(other - largest);
    }

    __device__ __forceinline__ void raise(T top) {
        top = top > LARGEST ? LARGEST : top;
        sum *= exp(largest - top);
        largest = top;
    }
};
