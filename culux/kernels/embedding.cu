// y = weight[ids], and the sum of the rows of dy by id. The sum takes no atomics: ids are sorted with their positions,
// chunks of CHUNK sorted positions are added up in order, and runs of an id that cross chunks are joined in order. Every
// chunk is the same work however the ids are distributed, and a padding id in every second place costs no more.
#if ID_BYTES == 4
typedef int Id;
#else
typedef long long Id;
#endif
typedef unsigned long long Word;  // of the sort: the row in the high half, the position in the low one

constexpr int CHUNK = 32;

__device__ __forceinline__ int row_of(Word word) { return int(word >> 32); }

// Ids that no row has come last, as row `rows`.
__device__ __forceinline__ Word word_of(const Id* ids, Index at, int rows) {
    const Id id = ids[at];
    return Word(id < 0 || id >= rows ? rows : int(id)) << 32 | Word(at);
}

template <int WIDTH>
__device__ __forceinline__ void gather(const S* weight, const Id* ids, S* y, Index n, int dims, int rows) {
    typedef Pack<S, WIDTH> Lanes;
    const int packs = dims / WIDTH;
    for (Index i = Index(blockIdx.x) * blockDim.y + threadIdx.y; i < n; i += Index(gridDim.x) * blockDim.y) {
        const Id id = ids[i];
        const bool known = id >= 0 && id < rows;
        for (int k = threadIdx.x; k < packs; k += blockDim.x) {
            Lanes lanes;
            if (known) {
                lanes = reinterpret_cast<const Lanes*>(weight + Index(id) * dims)[k];
            } else {
                for (int j = 0; j < WIDTH; ++j) lanes.v[j] = S(T(__int_as_float(0x7fc00000)));  // NaN
            }
            reinterpret_cast<Lanes*>(y + i * dims)[k] = lanes;
        }
    }
}

// alarm: 0, or 1 once an id had no row; then that id, its position, and the number of rows.
extern "C" __global__ void __launch_bounds__(256) embedding_gather(
    const S* __restrict__ weight, const Id* __restrict__ ids, S* __restrict__ y, Index* __restrict__ alarm, Index n,
    int dims, int rows) {
    if (dims % LANES == 0 && is_aligned(weight) && is_aligned(y)) {
        gather<LANES>(weight, ids, y, n, dims, rows);
    } else {
        gather<1>(weight, ids, y, n, dims, rows);
    }
    if (threadIdx.x != 0) return;
    for (Index i = Index(blockIdx.x) * blockDim.y + threadIdx.y; i < n; i += Index(gridDim.x) * blockDim.y) {
        const Id id = ids[i];
        if (id >= 0 && id < rows) continue;
        if (atomicCAS(reinterpret_cast<Word*>(alarm), Word(0), Word(1)) != 0) return;  // another thread has told
        alarm[1] = id;
        alarm[2] = i;
        alarm[3] = rows;
    }
}

__device__ __forceinline__ void clear(S* p, Index size) {
    typedef Pack<S, LANES> Lanes;
    const Index step = Index(gridDim.x) * blockDim.x, first = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    Lanes zeros;
    for (int j = 0; j < LANES; ++j) zeros.v[j] = S(T(0));
    for (Index i = first; i < size / LANES; i += step) reinterpret_cast<Lanes*>(p)[i] = zeros;
    for (Index i = size / LANES * LANES + first; i < size; i += step) p[i] = zeros.v[0];
}

// The sorted words by counting: a word's place is the number of smaller ones. n^2 comparisons are faster than a sort of
// many launches up to tens of thousands, and can be captured. A block has 32 words to place, and a warp an eighth of
// those to compare with. dweight is cleared on the way.
extern "C" __global__ void __launch_bounds__(256) embedding_rank(
    const Id* __restrict__ ids, unsigned long long* __restrict__ sorted, S* __restrict__ dweight, int n, int rows,
    Index size) {
    __shared__ Word strips[8][32];
    __shared__ int counts[8][32];
    clear(dweight, size);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, mine = blockIdx.x * 32 + lane;
    if (blockIdx.x * 32 >= n) return;  // a block that only clears
    const Word own = mine < n ? word_of(ids, mine, rows) : ~Word(0);
    int smaller = 0;
    for (int first = warp * 32; first < n; first += 256) {
        __syncwarp();
        strips[warp][lane] = first + lane < n ? word_of(ids, first + lane, rows) : ~Word(0);
        __syncwarp();
#pragma unroll 8
        for (int k = 0; k < 32; ++k) smaller += strips[warp][k] < own;
    }
    counts[warp][lane] = smaller;
    __syncthreads();
    if (warp != 0 || mine >= n) return;
    for (int k = 1; k < 8; ++k) smaller += counts[k][lane];
    sorted[smaller] = own;
}

// The words for a sort by the array library; dweight is cleared on the way.
extern "C" __global__ void __launch_bounds__(256) embedding_words(
    const Id* __restrict__ ids, unsigned long long* __restrict__ words, S* __restrict__ dweight, int n, int rows,
    Index size) {
    clear(dweight, size);
    for (Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += Index(gridDim.x) * blockDim.x)
        words[i] = word_of(ids, i, rows);
}

template <int WIDTH, typename E>
__device__ __forceinline__ void write(E* p, int k, const T* sum) {
    Pack<E, WIDTH> lanes;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) lanes.v[j] = E(sum[j]);
    reinterpret_cast<Pack<E, WIDTH>*>(p)[k] = lanes;
}

// One chunk: runs within it go to dweight, one from the chunk before to partials[chunk][0], one that goes on to [1].
template <int WIDTH>
__device__ __forceinline__ void sum_chunk(
    const Word* sorted, const S* dy, S* dweight, T* partials, int chunk, int n, int dims, int rows) {
    typedef Pack<S, WIDTH> Lanes;
    const int begin = chunk * CHUNK, end = n - begin < CHUNK ? n : begin + CHUNK;
    const int before = begin > 0 ? row_of(sorted[begin - 1]) : -1, behind = end < n ? row_of(sorted[end]) : -1;
    for (int k = threadIdx.x; k < dims / WIDTH; k += blockDim.x) {
        T sum[WIDTH] = {};
        bool continued = row_of(sorted[begin]) == before;
#pragma unroll 4
        for (int at = begin; at < end; ++at) {
            const Word word = sorted[at];
            const int row = row_of(word), next = at + 1 < end ? row_of(sorted[at + 1]) : -1;
            const Lanes lanes = reinterpret_cast<const Lanes*>(dy + Index(unsigned(word)) * dims)[k];
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) sum[j] += T(lanes.v[j]);
            if (next == row) continue;
            const bool goes_on = at + 1 == end && row == behind;
            if (continued || goes_on) {
                write<WIDTH>(partials + (Index(chunk) * 2 + !continued) * dims, k, sum);
            } else if (row < rows) {
                write<WIDTH>(dweight + Index(row) * dims, k, sum);
            }
            continued = false;
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) sum[j] = T(0);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) embedding_sum(
    const unsigned long long* __restrict__ sorted, const S* __restrict__ dy, S* __restrict__ dweight,
    T* __restrict__ partials, int n, int dims, int rows) {
    const int chunks = (n + CHUNK - 1) / CHUNK;
    const bool packed = dims % LANES == 0 && is_aligned(dy);  // the others are new
    for (int chunk = blockIdx.x * blockDim.y + threadIdx.y; chunk < chunks; chunk += gridDim.x * blockDim.y) {
        if (packed) {
            sum_chunk<LANES>(sorted, dy, dweight, partials, chunk, n, dims, rows);
        } else {
            sum_chunk<1>(sorted, dy, dweight, partials, chunk, n, dims, rows);
        }
    }
}

// A run that begins in a chunk and goes on: its parts in order.
extern "C" __global__ void __launch_bounds__(256) embedding_join(
    const unsigned long long* __restrict__ sorted, const T* __restrict__ partials, S* __restrict__ dweight, int n,
    int dims, int rows) {
    const int chunks = (n + CHUNK - 1) / CHUNK;
    for (int chunk = blockIdx.x * blockDim.y + threadIdx.y; chunk < chunks - 1; chunk += gridDim.x * blockDim.y) {
        const int begin = chunk * CHUNK, row = row_of(sorted[begin + CHUNK - 1]);
        if (row >= rows || row_of(sorted[begin + CHUNK]) != row) continue;
        if (begin > 0 && row_of(sorted[begin - 1]) == row) continue;  // it began before
        int last = chunk + 1;  // the chunk in which it ends
        while ((last + 1) * CHUNK < n && row_of(sorted[(last + 1) * CHUNK]) == row) ++last;
        for (int k = threadIdx.x; k < dims; k += blockDim.x) {
            T sum = partials[(Index(chunk) * 2 + 1) * dims + k];
#pragma unroll 4
            for (int i = chunk + 1; i <= last; ++i) sum += partials[Index(i) * 2 * dims + k];
            put(dweight, Index(row) * dims + k, sum);
        }
    }
}
