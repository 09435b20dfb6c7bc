// One step of a recurrent layer, beside the product of the carry and the weight: GATES is 1 for the plain layer, whose
// activation is the one of the program, 3 for GRU (r, z, n) and 4 for LSTM (i, f, g, o). A thread has a unit of a row of
// the batch, in all its gates.
//
// projected (batch, time, GATES * size) and hidden (batch, GATES * size) are the two products that are added; y and dy
// are (batch, time, size), and mask, null for all, tells which of (batch, time) are there. Slabs of (batch, size) lie in
// the order in which the steps are run: held has h before each step, cells c, and gates what the backward reads of it,
// (batch, SAVED * size).
constexpr int SAVED = GATES == 1 ? 1 : 4;

__device__ __forceinline__ T sigmoid(T x) { return T(1) / (T(1) + exp(-x)); }

// The new h, and c in place, of the sums before the gates: x and h are those of the two products, each of GATES values.
// `saved` gets i, f, g, o; r, z, n and the hidden part of n; or x or y as the activation keeps them.
__device__ __forceinline__ T advance(const T* x, const T* hidden, T h, T& c, T* saved) {
#if GATES == 4
    const T i = sigmoid(x[0] + hidden[0]), f = sigmoid(x[1] + hidden[1]);
    const T g = tanh(x[2] + hidden[2]), o = sigmoid(x[3] + hidden[3]);
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
    c = f * c + i * g;
    return o * tanh(c);
#elif GATES == 3
    const T r = sigmoid(x[0] + hidden[0]), z = sigmoid(x[1] + hidden[1]), n = tanh(x[2] + r * hidden[2]);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = hidden[2];
    return n + z * (h - n);
#else
    const T sum = x[0] + hidden[0], y = activation(sum);
    saved[0] = KEEPS_X ? sum : y;
    return y;
#endif
}

// The cotangents of both products from dh and dc, those of the new h and c. dh becomes what goes to the h before without
// passing through the product, and dc that of the c before, whose value c is.
__device__ __forceinline__ void retreat(const T* saved, T h, T c, T& dh, T& dc, T* dx, T* dhidden) {
#if GATES == 4
    const T i = saved[0], f = saved[1], g = saved[2], o = saved[3], squashed = tanh(f * c + i * g);
    dc += dh * o * (T(1) - squashed * squashed);
    dx[0] = dc * g * i * (T(1) - i);
    dx[1] = dc * c * f * (T(1) - f);
    dx[2] = dc * i * (T(1) - g * g);
    dx[3] = dh * squashed * o * (T(1) - o);
    for (int k = 0; k < GATES; ++k) dhidden[k] = dx[k];
    dc *= f;
    dh = T(0);
#elif GATES == 3
    const T r = saved[0], z = saved[1], n = saved[2];
    dx[2] = dh * (T(1) - z) * (T(1) - n * n);
    dx[1] = dh * (h - n) * z * (T(1) - z);
    dx[0] = dx[2] * saved[3] * r * (T(1) - r);
    dhidden[0] = dx[0], dhidden[1] = dx[1], dhidden[2] = dx[2] * r;
    dh *= z;
#else
    dx[0] = dhidden[0] = dh * derivative(saved[0]);
    dh = T(0);
#endif
}

// Step t, the one of slab `slab`. The first step starts from start_h and start_c, null in the others, and copies them to
// its slabs; the last one leaves h and c in last_h and last_c, the others in the slabs `next`. bias, added to hidden,
// and gates may be null.
extern "C" __global__ void __launch_bounds__(256) recurrent_forward(
    const S* __restrict__ projected, const S* __restrict__ hidden, const S* __restrict__ bias,
    const bool* __restrict__ mask, const S* __restrict__ start_h, const S* __restrict__ start_c, S* held, T* cells,
    S* __restrict__ gates, S* __restrict__ y, S* __restrict__ last_h, S* __restrict__ last_c, int batch, int time,
    int size, int t, int slab, int next) {
    const int unit = blockIdx.x * blockDim.x + threadIdx.x;
    if (unit >= size) return;
    const Index whole = Index(batch) * size;
    T shift[GATES];
    for (int k = 0; k < GATES; ++k) shift[k] = bias ? get(bias, Index(k) * size + unit) : T(0);
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < batch; row += gridDim.y * blockDim.y) {
        const Index at = Index(row) * size + unit, place = Index(row) * time + t;
        const T h = start_h ? get(start_h, at) : get(held, slab * whole + at);
        T c = GATES != 4 ? T(0) : start_h ? get(start_c, at) : cells[slab * whole + at];
        if (start_h) {
            put(held, slab * whole + at, h);
            if (GATES == 4) cells[slab * whole + at] = c;
        }
        T after = h, shown = T(0);
        if (!mask || mask[place]) {
            T x[GATES], sums[GATES], saved[SAVED];
#pragma unroll
            for (int k = 0; k < GATES; ++k) {
                x[k] = get(projected, (place * GATES + k) * size + unit);
                sums[k] = get(hidden, (Index(row) * GATES + k) * size + unit) + shift[k];
            }
            after = shown = advance(x, sums, h, c, saved);
#pragma unroll
            for (int k = 0; k < SAVED; ++k)
                if (gates) put(gates, (slab * Index(batch) * SAVED + Index(row) * SAVED + k) * size + unit, saved[k]);
        }
        put(y, place * size + unit, shown);
        if (last_h) {
            put(last_h, at, after);
            if (GATES == 4) put(last_c, at, c);
        } else {
            put(held, next * whole + at, after);
            if (GATES == 4) cells[next * whole + at] = c;
        }
    }
}

// Step t, the one of slab `slab`, from the last to the first. The cotangent of h is the sum of that of y, of `through`,
// which came back through the product of the step after it, and of dh, which passed by it; the last step, where through
// is null, has dlast_h and dlast_c in place of them. dh and dc are (batch, size), the steps' own; null are dy and dlast
// for zeros, dh where nothing passes by, and dc but for LSTM. dprojected is as projected, dhidden has slabs.
extern "C" __global__ void __launch_bounds__(256) recurrent_backward(
    const S* __restrict__ dy, const S* __restrict__ through, const S* __restrict__ dlast_h,
    const S* __restrict__ dlast_c, const bool* __restrict__ mask, const S* __restrict__ held,
    const T* __restrict__ cells, const S* __restrict__ gates, T* dh, T* dc, S* __restrict__ dprojected,
    S* __restrict__ dhidden, int batch, int time, int size, int t, int slab) {
    const int unit = blockIdx.x * blockDim.x + threadIdx.x;
    if (unit >= size) return;
    const Index whole = Index(batch) * size;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < batch; row += gridDim.y * blockDim.y) {
        const Index at = Index(row) * size + unit, place = Index(row) * time + t;
        T total = through ? get(through, at) : dlast_h ? get(dlast_h, at) : T(0);
        if (through && dh) total += dh[at];
        T along = GATES != 4 ? T(0) : through ? dc[at] : dlast_c ? get(dlast_c, at) : T(0);
        T dx[GATES] = {}, dsums[GATES] = {};
        if (!mask || mask[place]) {
            T saved[SAVED];
#pragma unroll
            for (int k = 0; k < SAVED; ++k)
                saved[k] = gates ? get(gates, (slab * Index(batch) * SAVED + Index(row) * SAVED + k) * size + unit) : T(0);
            if (dy) total += get(dy, place * size + unit);
            const T h = GATES == 3 ? get(held, slab * whole + at) : T(0);
            retreat(saved, h, GATES == 4 ? cells[slab * whole + at] : T(0), total, along, dx, dsums);
        }
        if (dh) dh[at] = total;
        if (GATES == 4) dc[at] = along;
#pragma unroll
        for (int k = 0; k < GATES; ++k) {
            put(dprojected, (place * GATES + k) * size + unit, dx[k]);
            put(dhidden, (slab * Index(batch) * GATES + Index(row) * GATES + k) * size + unit, dsums[k]);
        }
    }
}

// All steps in one launch, for a weight that fits into shared memory: a block keeps it and ROWS rows of the batch, which
// know nothing of the others, so that no block waits for another. A thread has a unit, in all its gates and rows.
constexpr int ROWS = 2;

typedef Pack<T, ROWS> Column;  // of the rows of a block: what one unit, or one gate of it, has in them

// Which of the block's rows there are at a step.
__device__ __forceinline__ void find_rows(const bool* mask, int batch, int time, int t, bool (&there)[ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int row = blockIdx.x * ROWS + r;
        there[r] = row < batch && (!mask || mask[Index(row) * time + t]);
    }
}

// recurrent_forward of every step, with the products in between. Shared memory holds h, twice, and the weight, turned so
// that neighbours read neighbours, in rows of one more, so that they are written to as many banks. held, cells and gates
// are null where no backward pass will come.
extern "C" __global__ void __launch_bounds__(512, 1) recurrent_sequence_forward(
    const S* __restrict__ projected, const S* __restrict__ weight, const S* __restrict__ bias,
    const bool* __restrict__ mask, const S* __restrict__ start_h, const S* __restrict__ start_c, S* __restrict__ held,
    T* __restrict__ cells, S* __restrict__ gates, S* __restrict__ y, S* __restrict__ last_h, S* __restrict__ last_c,
    int batch, int time, int size, bool reverse) {
    extern __shared__ uint4 memory[];
    Column* state = reinterpret_cast<Column*>(memory);
    S* factors = reinterpret_cast<S*>(state + 2 * size);
    const int unit = threadIdx.x, width = GATES * size, pitch = width + 1;
    const Index whole = Index(batch) * size;
    for (int i = threadIdx.x; i < width * size; i += blockDim.x) factors[i % size * pitch + i / size] = weight[i];
    T c[ROWS] = {}, shift[GATES] = {};
    if (unit < size) {
        Column h;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = blockIdx.x * ROWS + r;
            h.v[r] = row < batch ? get(start_h, Index(row) * size + unit) : T(0);
            if (GATES == 4 && row < batch) c[r] = get(start_c, Index(row) * size + unit);
        }
        state[unit] = h;
#pragma unroll
        for (int k = 0; k < GATES; ++k) shift[k] = bias ? get(bias, k * size + unit) : T(0);
    }
    for (int step = 0; step < time; ++step) {
        __syncthreads();
        if (unit >= size) continue;
        const Column* before = state + step % 2 * size;
        const int t = reverse ? time - 1 - step : step;
        bool there[ROWS];
        find_rows(mask, batch, time, t, there);
        T x[ROWS][GATES], sums[ROWS][GATES];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int k = 0; k < GATES; ++k) {
                const Index row = blockIdx.x * ROWS + r;
                x[r][k] = row < batch ? get(projected, ((row * time + t) * GATES + k) * size + unit) : T(0);
                sums[r][k] = shift[k];
            }
        for (int i = 0; i < size; ++i) {
            const Column h = before[i];
#pragma unroll
            for (int k = 0; k < GATES; ++k) {
                const T factor = get(factors, i * pitch + k * size + unit);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) sums[r][k] += factor * h.v[r];
            }
        }
        Column h = before[unit];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const Index row = blockIdx.x * ROWS + r, at = step * whole + row * size + unit;
            if (row >= batch) break;
            if (held) put(held, at, h.v[r]);
            if (GATES == 4 && held) cells[at] = c[r];
            T saved[SAVED];
            if (there[r]) h.v[r] = advance(x[r], sums[r], h.v[r], c[r], saved);
            put(y, (row * time + t) * size + unit, there[r] ? h.v[r] : T(0));
#pragma unroll
            for (int k = 0; k < SAVED; ++k)
                if (gates && there[r])
                    put(gates, ((step * Index(batch) + row) * SAVED + k) * size + unit, saved[k]);
            if (step + 1 < time) continue;
            put(last_h, row * size + unit, h.v[r]);
            if (GATES == 4) put(last_c, row * size + unit, c[r]);
        }
        state[(step + 1) % 2 * size + unit] = h;
    }
}

// recurrent_backward of every step, with the products in between. Shared memory holds dhidden of a step, twice, and the
// weight. The cotangents of the first carry are null where they are not wanted.
extern "C" __global__ void __launch_bounds__(512, 1) recurrent_sequence_backward(
    const S* __restrict__ dy, const S* __restrict__ dlast_h, const S* __restrict__ dlast_c,
    const S* __restrict__ weight, const bool* __restrict__ mask, const S* __restrict__ held,
    const T* __restrict__ cells, const S* __restrict__ gates, S* __restrict__ dprojected, S* __restrict__ dhidden,
    S* __restrict__ dstart_h, S* __restrict__ dstart_c, int batch, int time, int size, bool reverse) {
    extern __shared__ uint4 memory[];
    const int unit = threadIdx.x, width = GATES * size;
    Column* sent = reinterpret_cast<Column*>(memory);
    S* factors = reinterpret_cast<S*>(sent + 2 * width);
    const Index whole = Index(batch) * size;
    for (int i = threadIdx.x; i < width * size; i += blockDim.x) factors[i] = weight[i];
    T dh[ROWS] = {}, dc[ROWS] = {};
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int row = blockIdx.x * ROWS + r;
        if (unit >= size || row >= batch) break;
        if (dlast_h) dh[r] = get(dlast_h, Index(row) * size + unit);
        if (GATES == 4 && dlast_c) dc[r] = get(dlast_c, Index(row) * size + unit);
    }
    for (int step = time - 1; step >= 0; --step) {
        Column* now = sent + step % 2 * width;
        const int t = reverse ? time - 1 - step : step;
        if (unit < size) {
            bool there[ROWS];
            find_rows(mask, batch, time, t, there);
            T dx[ROWS][GATES] = {}, dsums[ROWS][GATES] = {};
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const Index row = blockIdx.x * ROWS + r, at = step * whole + row * size + unit;
                if (row >= batch) break;
                if (there[r]) {
                    T saved[SAVED];
#pragma unroll
                    for (int k = 0; k < SAVED; ++k)
                        saved[k] = gates ? get(gates, ((step * Index(batch) + row) * SAVED + k) * size + unit) : T(0);
                    if (dy) dh[r] += get(dy, (row * time + t) * size + unit);
                    retreat(saved, GATES == 3 ? get(held, at) : T(0), GATES == 4 ? cells[at] : T(0), dh[r], dc[r],
                            dx[r], dsums[r]);
                }
#pragma unroll
                for (int k = 0; k < GATES; ++k) {
                    put(dprojected, ((row * time + t) * GATES + k) * size + unit, dx[r][k]);
                    put(dhidden, ((step * Index(batch) + row) * GATES + k) * size + unit, dsums[r][k]);
                }
            }
#pragma unroll
            for (int k = 0; k < GATES; ++k) {
                Column column;
#pragma unroll
                for (int r = 0; r < ROWS; ++r) column.v[r] = dsums[r][k];
                now[k * size + unit] = column;
            }
        }
        __syncthreads();
        if (unit >= size || (step == 0 && !dstart_h)) continue;
        for (int i = 0; i < width; ++i) {
            const Column column = now[i];
            const T factor = get(factors, i * size + unit);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) dh[r] += factor * column.v[r];
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int row = blockIdx.x * ROWS + r;
        if (!dstart_h || unit >= size || row >= batch) break;
        put(dstart_h, Index(row) * size + unit, dh[r]);
        if (GATES == 4) put(dstart_c, Index(row) * size + unit, dc[r]);
    }
}
