// Random numbers by Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), and dropout by
// them. Bit for bit NumPy's: four words come of counter + 1, the next four of counter + 2; a float32 number is half a
// word, the low half first. A thread makes four words at a time, 32 bytes of numbers, which keeps them in registers.
typedef unsigned long long Word;

struct Words {
    Word v[4];
};

// The counter of 256 bits, moved on.
__device__ __forceinline__ Words moved(const Word* counter, Word steps) {
    Words next;
    for (int i = 0; i < 4; ++i) {
        next.v[i] = counter[i] + steps;
        steps = next.v[i] < steps;  // the carry
    }
    return next;
}

__device__ __forceinline__ Words philox(Words c, Word key0, Word key1) {
    const Word m0 = 0xD2E7470EE14C6C93ull, m1 = 0xCA5A826395121157ull;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const Word high0 = __umul64hi(m0, c.v[0]), high1 = __umul64hi(m1, c.v[2]);
        c = {high1 ^ c.v[1] ^ key0, m1 * c.v[2], high0 ^ c.v[3] ^ key1, m0 * c.v[0]};
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
    return c;
}

__device__ __forceinline__ void write_moved(Word* after, const Word* counter, Word steps) {
    const Words next = moved(counter, steps);
    for (int i = 0; i < 4; ++i) after[i] = next.v[i];
}

__device__ __forceinline__ unsigned half_of(const Words& words, int i) {
    return unsigned(words.v[i / 2] >> (i % 2 * 32));
}

// Uniform numbers in [0, 1) of the type T, and the counter after them. x is aligned: it is new.
extern "C" __global__ void __launch_bounds__(256) philox_uniform(
    const unsigned long long* __restrict__ key, const unsigned long long* __restrict__ counter, T* __restrict__ x,
    unsigned long long* __restrict__ after, Index n) {
    constexpr int EACH = 32 / sizeof(T), PART = EACH / 2;
    const Index step = Index(gridDim.x) * blockDim.x, thread = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    const Index draws = (n + EACH - 1) / EACH;
    const Word key0 = key[0], key1 = key[1];
    for (Index draw = thread; draw < draws; draw += step) {
        const Words words = philox(moved(counter, draw + 1), key0, key1);
        Pack<T, PART> parts[2];
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            parts[i / PART].v[i % PART] = sizeof(T) == 8 ? T(words.v[i % 4] >> 11) * T(1.0 / 9007199254740992.0)
                                                         : T(half_of(words, i) >> 8) * T(1.0 / 16777216.0);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (draw * EACH + (i + 1) * PART <= n) {
                reinterpret_cast<Pack<T, PART>*>(x)[draw * 2 + i] = parts[i];
            } else {
#pragma unroll
                for (int k = 0; k < PART; ++k)
                    if (draw * EACH + i * PART + k < n) x[draw * EACH + i * PART + k] = parts[i].v[k];
            }
        }
    }
    if (thread == 0) write_moved(after, counter, draws);
}

// Bit i says whether the i-th number is >= threshold / 2^24.
__device__ __forceinline__ unsigned kept(const Words& words, unsigned threshold) {
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) bits |= unsigned((half_of(words, i) >> 8) >= threshold) << i;
    return bits;
}

// One element: a scale of 0 says that p = 1, where infinities become zero too.
__device__ __forceinline__ S dropped(S x, bool keep, T scale) {
    return scale == T(0) ? S(T(0)) : S(T(x) * (keep ? scale : T(0)));
}

// y = x * scale where the float32 number of the element is >= threshold / 2^24, else x * 0; the counter after the
// draw unless after is null. The same launch without it, on dy, is the derivative.
extern "C" __global__ void __launch_bounds__(256, 4) philox_dropout(
    const unsigned long long* __restrict__ key, const unsigned long long* __restrict__ counter,
    const S* __restrict__ x, S* __restrict__ y, unsigned long long* __restrict__ after, Index n, unsigned threshold,
    T scale) {
    typedef Pack<S, LANES> Lanes;
    constexpr int PARTS = 8 / LANES;
    const bool aligned = is_aligned(x) && is_aligned(y);
    const Index step = Index(gridDim.x) * blockDim.x, thread = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    const Index draws = (n + 7) / 8;
    const Word key0 = key[0], key1 = key[1];
    for (Index draw = thread; draw < draws; draw += step) {
        const Index first = draw * 8;
        const bool whole = aligned && first + 8 <= n;
        Lanes parts[PARTS];  // on their way while the numbers are made
#pragma unroll
        for (int i = 0; i < PARTS; ++i)
            if (whole) parts[i] = reinterpret_cast<const Lanes*>(x + first)[i];
        const unsigned bits = kept(philox(moved(counter, draw + 1), key0, key1), threshold);
        if (!whole) {
            for (int i = 0; i < 8 && first + i < n; ++i) y[first + i] = dropped(x[first + i], bits >> i & 1, scale);
            continue;
        }
#pragma unroll
        for (int i = 0; i < PARTS; ++i) {
#pragma unroll
            for (int k = 0; k < LANES; ++k)
                parts[i].v[k] = dropped(parts[i].v[k], bits >> (i * LANES + k) & 1, scale);
            reinterpret_cast<Lanes*>(y + first)[i] = parts[i];
        }
    }
    if (after != nullptr && thread == 0) write_moved(after, counter, draws);
}
