// Batch normalisation with its activation, of x as (rows, channels, run) units of UNIT values side by side.
//
// A block works on `width` neighbouring channels: one, or for (N, C), where run is 1, up to 32, so that a warp reads
// whole sectors. Thread t works on channel t % width; width is a power of two, so a warp holds whole sets of channels.
// Where a channel fits on the chip, one launch reads it once. Else its units are cut into chunks of `size`: one launch
// leaves sums of each chunk, and the next one merges them in each of its blocks. All sums are in a fixed order.
//
// The mean is kept as origin + offset. The origin is the channel's first value: what is left after subtracting it has
// no large common part, so that its sums do not lose what large means would cost.

typedef Pack<S, UNIT> Unit;
typedef Pack<S, LANES> Chip;  // of the largest alignment

constexpr int MOST_THREADS = 4096 / sizeof(T);         // with a multiprocessor's registers to themselves
constexpr int UNROLL = UNIT > 1 ? 2 : 16 / sizeof(S);  // loads under way in each thread: 16 bytes at least

// What a thread works on: every step-th unit of a chunk of one channel.
struct Part {
    Index channel, chunk, from, to;  // the units of the chunk
    int slot, step, count;           // the thread's first unit is from + slot; how many it has
    bool leads;                      // one thread of a channel writes its results
};

__device__ __forceinline__ Part part_of(Index block, Index units, Index size, Index channels, int width) {
    const Index groups = (channels + width - 1) / width;
    Part part;
    part.chunk = block / groups;
    const Index channel = (block - part.chunk * groups) * width + threadIdx.x % width;
    part.channel = min(channel, channels - 1);  // threads beyond the last channel read that one, and write nothing
    part.from = part.chunk * size;
    part.to = min(part.from + size, units);
    part.slot = threadIdx.x / width;
    part.step = blockDim.x / width;
    const Index left = part.to - part.from - part.slot;
    part.count = channel < channels && left > 0 ? int((left + part.step - 1) / part.step) : 0;
    part.leads = channel < channels && part.slot == 0;
    return part;
}

// The addresses of every step-th unit of a channel, without a division for each.
struct Walk {
    Index at, column, column_step, jump, run, wrap;

    __device__ __forceinline__ Walk(const Part& part, Index channels, Index run) : run(run) {
        const Index first = part.from + part.slot, row = first / run, row_step = part.step / run;
        const Index stride = channels * run;
        column = first - row * run;
        column_step = part.step - row_step * run;
        at = row * stride + part.channel * run + column;
        jump = row_step * stride + column_step;
        wrap = stride - run;
    }

    __device__ __forceinline__ void next() {
        at += jump;
        column += column_step;
        if (column >= run) {
            column -= run;
            at += wrap;
        }
    }
};

// The sums over the threads of each channel, in all of them, by all threads of the block; scratch holds N values for
// each warp and channel, and may be used again at once.
template <int N>
__device__ __forceinline__ void channel_sums(T (&values)[N], int width, T* scratch) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) {
        for (int offset = 16; offset >= width; offset /= 2)
            values[i] += __shfl_xor_sync(0xffffffffu, values[i], offset);
        if (lane < width) scratch[(i * warps + warp) * width + lane] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) {
        T total = 0;
        for (int w = lane / width; w < warps; w += 32 / width) total += scratch[(i * warps + w) * width + lane % width];
        for (int offset = 16; offset >= width; offset /= 2) total += __shfl_xor_sync(0xffffffffu, total, offset);
        values[i] = total;
    }
}

// Of a channel's values less its origin: the mean, and the sum of squares about the mean.
struct Moments {
    T mean, square;
};

// The moments of `values` values, of which this thread has `count` units from where the walk stands, which moves on.
// They stay on the chip: the thread's units in every blockDim.x-th place of `kept`.
__device__ __forceinline__ Moments moments(const S* __restrict__ x, Walk& walk, int count, T origin, T values,
                                           Unit* kept, int width, T* scratch) {
    T sum[1] = {0}, square[1] = {0};
#pragma unroll UNROLL
    for (int k = 0; k < count; ++k, walk.next()) {
        const Unit unit = reinterpret_cast<const Unit*>(x)[walk.at];
        kept[k * blockDim.x] = unit;
#pragma unroll
        for (int e = 0; e < UNIT; ++e) sum[0] += T(unit.v[e]) - origin;
    }
    channel_sums(sum, width, scratch);
    const T mean = sum[0] / values;
#pragma unroll UNROLL
    for (int k = 0; k < count; ++k) {
        const Unit unit = kept[k * blockDim.x];
#pragma unroll
        for (int e = 0; e < UNIT; ++e) {
            const T centred = T(unit.v[e]) - origin - mean;
            square[0] += centred * centred;
        }
    }
    channel_sums(square, width, scratch);
    return {mean, square[0]};
}

// The moments of a channel from those of its chunks.
__device__ __forceinline__ Moments merged(const T* __restrict__ partials, const Part& part, Index units, Index size,
                                          Index channels, int width, T* scratch) {
    const Index chunks = (units + size - 1) / size;
    const T* squares = partials + chunks * channels;
    T sum[1] = {0}, square[1] = {0};
    for (Index i = part.slot; i < chunks; i += part.step)
        sum[0] += T(min(size, units - i * size)) * partials[i * channels + part.channel];
    channel_sums(sum, width, scratch);
    const T mean = sum[0] / T(units);
    for (Index i = part.slot; i < chunks; i += part.step) {
        const T apart = partials[i * channels + part.channel] - mean;
        square[0] += squares[i * channels + part.channel] + T(min(size, units - i * size) * UNIT) * apart * apart;
    }
    channel_sums(square, width, scratch);
    return {mean, square[0]};
}

// How a channel is normalised: z = (x - origin - offset) * factor + bias.
struct Normal {
    T origin, offset, inverse, factor, bias;

    __device__ __forceinline__ Normal(T origin, T offset, T inverse, const P* scale, const P* biases, Index channel)
        : origin(origin), offset(offset), inverse(inverse), factor(scale ? inverse * get(scale, channel) : inverse),
          bias(biases ? get(biases, channel) : T(0)) {}

    __device__ __forceinline__ T centred(S x) const { return T(x) - origin - offset; }
    __device__ __forceinline__ S y(S x) const { return S(activation(centred(x) * factor + bias)); }
    __device__ __forceinline__ T dz(S x, S dy) const {
        const T z = centred(x) * factor + bias;
        return T(dy) * derivative(KEEPS_Y ? activation(z) : z);
    }
};

// Leave what the backward reads, and the running statistics after the batch.
__device__ __forceinline__ void keep(const Normal& normal, T unbiased, T momentum, Index channel, Index channels,
                                     const P* running_mean, const P* running_var, T* saved, P* moved_mean,
                                     P* moved_var) {
    saved[channel] = normal.origin;
    saved[channels + channel] = normal.offset;
    saved[2 * channels + channel] = normal.inverse;
    if (moved_mean == nullptr) return;
    const T old = T(1) - momentum, mean = normal.origin + normal.offset;
    put(moved_mean, channel, old * get(running_mean, channel) + momentum * mean);
    put(moved_var, channel, old * get(running_var, channel) + momentum * unbiased);
}

__device__ __forceinline__ Normal kept_normal(const T* saved, const P* scale, const P* bias, Index channel,
                                              Index channels) {
    return Normal(saved[channel], saved[channels + channel], saved[2 * channels + channel], scale, bias, channel);
}

// y by the statistics of the batch, of channels that fit on the chip.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) batchnorm_forward(
    const S* __restrict__ x, const P* __restrict__ scale, const P* __restrict__ bias,
    const P* __restrict__ running_mean, const P* __restrict__ running_var, S* __restrict__ y, T* __restrict__ saved,
    P* __restrict__ moved_mean, P* __restrict__ moved_var, Index rows, Index channels, Index run, int width, T epsilon,
    T momentum) {
    extern __shared__ Chip chip[];
    T* scratch = reinterpret_cast<T*>(chip);
    Unit* kept = reinterpret_cast<Unit*>(scratch + blockDim.x / 32 * width) + threadIdx.x;
    const Index units = rows * run;
    const Part part = part_of(blockIdx.x, units, units, channels, width);
    const Walk start(part, channels, run);
    const T origin = get(x, part.channel * run * UNIT), count = T(units * UNIT);
    Walk walk = start;
    const Moments batch = moments(x, walk, part.count, origin, count, kept, width, scratch);
    const Normal normal(origin, batch.mean, T(1) / sqrt(batch.square / count + epsilon), scale, bias, part.channel);
    if (part.leads) {
        keep(normal, batch.square / T(units * UNIT - 1), momentum, part.channel, channels, running_mean, running_var,
             saved, moved_mean, moved_var);
    }
    walk = start;
#pragma unroll UNROLL
    for (int k = 0; k < part.count; ++k, walk.next()) {
        Unit unit = kept[k * blockDim.x];
#pragma unroll
        for (int e = 0; e < UNIT; ++e) unit.v[e] = normal.y(unit.v[e]);
        reinterpret_cast<Unit*>(y)[walk.at] = unit;
    }
}

// The moments of chunks: partials is (2, chunks, channels), means and sums of squares. A chunk passes through the chip
// in tiles, so that each tile's squares are taken about its own mean.
extern "C" __global__ void __launch_bounds__(256, 1)
    batchnorm_statistics(const S* __restrict__ x, T* __restrict__ partials, Index rows, Index channels, Index run,
                         int width, Index size, int tile) {
    extern __shared__ Chip chip[];
    T* scratch = reinterpret_cast<T*>(chip);
    Unit* kept = reinterpret_cast<Unit*>(scratch + blockDim.x / 32 * width) + threadIdx.x;
    const Index units = rows * run, chunks = (units + size - 1) / size;
    const Part part = part_of(blockIdx.x, units, size, channels, width);
    Walk walk(part, channels, run);
    const T origin = get(x, part.channel * run * UNIT);
    T mean = 0, square = 0;
    Index done = 0;
    for (int k = 0; done < part.to - part.from; k += tile) {
        const Index more = min(Index(tile) * part.step, part.to - part.from - done);
        const T values = T(more * UNIT), share = values / T((done + more) * UNIT);
        const int count = min(max(part.count - k, 0), tile);
        const Moments found = moments(x, walk, count, origin, values, kept, width, scratch);
        const T apart = found.mean - mean;
        square += found.square + apart * apart * T(done * UNIT) * share;
        mean += apart * share;
        done += more;
    }
    if (part.leads) {
        partials[part.chunk * channels + part.channel] = mean;
        partials[(chunks + part.chunk) * channels + part.channel] = square;
    }
}

// y by the moments of the chunks, or without them by given statistics. The chunks that were read last come first: they
// may still be in the cache.
extern "C" __global__ void __launch_bounds__(256, 1)
    batchnorm_apply(const S* __restrict__ x, const P* __restrict__ scale, const P* __restrict__ bias,
                    const P* __restrict__ running_mean, const P* __restrict__ running_var,
                    const T* __restrict__ partials, S* __restrict__ y, T* __restrict__ saved,
                    P* __restrict__ moved_mean, P* __restrict__ moved_var, Index rows, Index channels, Index run,
                    int width, Index size, T epsilon, T momentum) {
    extern __shared__ Chip chip[];
    const Index units = rows * run;
    const Part part = part_of(Index(gridDim.x) - 1 - blockIdx.x, units, size, channels, width);
    Moments batch = {};
    if (partials) batch = merged(partials, part, units, size, channels, width, reinterpret_cast<T*>(chip));
    const T origin = partials ? get(x, part.channel * run * UNIT) : get(running_mean, part.channel);
    const T var = partials ? batch.square / T(units * UNIT) : get(running_var, part.channel);
    const Normal normal(origin, batch.mean, T(1) / sqrt(var + epsilon), scale, bias, part.channel);
    if (partials && part.leads && part.chunk == 0) {
        keep(normal, batch.square / T(units * UNIT - 1), momentum, part.channel, channels, running_mean, running_var,
             saved, moved_mean, moved_var);
    }
    Walk walk(part, channels, run);
#pragma unroll UNROLL
    for (int k = 0; k < part.count; ++k, walk.next()) {
        Unit unit = reinterpret_cast<const Unit*>(x)[walk.at];
#pragma unroll
        for (int e = 0; e < UNIT; ++e) unit.v[e] = normal.y(unit.v[e]);
        reinterpret_cast<Unit*>(y)[walk.at] = unit;
    }
}

// With the sums of dz and of dz * xhat over the batch: dx = factor * (dz - mean(dz) - xhat * mean(dz * xhat)).
__device__ __forceinline__ Unit unit_dx(const Normal& normal, Unit x, Unit dy, T mean_dz, T mean_along) {
    Unit dx;
#pragma unroll
    for (int e = 0; e < UNIT; ++e) {
        const T xhat = normal.centred(x.v[e]) * normal.inverse;
        dx.v[e] = S(normal.factor * (normal.dz(x.v[e], dy.v[e]) - mean_dz - xhat * mean_along));
    }
    return dx;
}

__device__ __forceinline__ void put_sums(const T (&sums)[2], P* dscale, P* dbias, Index channel) {
    if (dscale) put(dscale, channel, sums[1]);
    if (dbias) put(dbias, channel, sums[0]);
}

// The backward of channels that fit on the chip with their dy; null pointers for what is not wanted.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) batchnorm_backward(
    const S* __restrict__ dy, const S* __restrict__ x, const T* __restrict__ saved, const P* __restrict__ scale,
    const P* __restrict__ bias, S* __restrict__ dx, P* __restrict__ dscale, P* __restrict__ dbias, Index rows,
    Index channels, Index run, int width) {
    extern __shared__ Chip chip[];
    T* scratch = reinterpret_cast<T*>(chip);
    const Index units = rows * run;
    const Part part = part_of(blockIdx.x, units, units, channels, width);
    Unit* kept_x = reinterpret_cast<Unit*>(scratch + 2 * (blockDim.x / 32) * width) + threadIdx.x;
    Unit* kept_dy = kept_x + (units + part.step - 1) / part.step * blockDim.x;
    const Normal normal = kept_normal(saved, scale, bias, part.channel, channels);
    const Walk start(part, channels, run);
    Walk walk = start;
    T sums[2] = {0, 0};
#pragma unroll UNROLL
    for (int k = 0; k < part.count; ++k, walk.next()) {
        const Unit unit = reinterpret_cast<const Unit*>(x)[walk.at], above = reinterpret_cast<const Unit*>(dy)[walk.at];
        kept_x[k * blockDim.x] = unit;
        kept_dy[k * blockDim.x] = above;
#pragma unroll
        for (int e = 0; e < UNIT; ++e) {
            const T dz = normal.dz(unit.v[e], above.v[e]);
            sums[0] += dz;
            sums[1] += dz * (normal.centred(unit.v[e]) * normal.inverse);
        }
    }
    channel_sums(sums, width, scratch);
    if (part.leads) put_sums(sums, dscale, dbias, part.channel);
    if (dx == nullptr) return;
    const T count = T(units * UNIT), mean_dz = sums[0] / count, mean_along = sums[1] / count;
    walk = start;
#pragma unroll UNROLL
    for (int k = 0; k < part.count; ++k, walk.next()) {
        const Unit unit = kept_x[k * blockDim.x], above = kept_dy[k * blockDim.x];
        reinterpret_cast<Unit*>(dx)[walk.at] = unit_dx(normal, unit, above, mean_dz, mean_along);
    }
}

// The sums of dz and of dz * xhat over chunks: partials is (2, chunks, channels), or null. By given statistics (saved
// is null), where dx needs no sums, it is written as well.
extern "C" __global__ void __launch_bounds__(256, 1)
    batchnorm_sums(const S* __restrict__ dy, const S* __restrict__ x, const T* __restrict__ saved,
                   const P* __restrict__ scale, const P* __restrict__ bias, const P* __restrict__ mean,
                   const P* __restrict__ var, S* __restrict__ dx, T* __restrict__ partials, Index rows, Index channels,
                   Index run, int width, Index size, T epsilon) {
    extern __shared__ Chip chip[];
    const Index units = rows * run, chunks = (units + size - 1) / size;
    const Part part = part_of(blockIdx.x, units, size, channels, width);
    const Index c = part.channel;
    const Normal normal = saved ? kept_normal(saved, scale, bias, c, channels)
                                : Normal(get(mean, c), T(0), T(1) / sqrt(get(var, c) + epsilon), scale, bias, c);
    Walk walk(part, channels, run);
    T sums[2] = {0, 0};
#pragma unroll UNROLL
    for (int k = 0; k < part.count; ++k, walk.next()) {
        const Unit unit = reinterpret_cast<const Unit*>(x)[walk.at], above = reinterpret_cast<const Unit*>(dy)[walk.at];
        Unit below;
#pragma unroll
        for (int e = 0; e < UNIT; ++e) {
            const T dz = normal.dz(unit.v[e], above.v[e]);
            sums[0] += dz;
            sums[1] += dz * (normal.centred(unit.v[e]) * normal.inverse);
            below.v[e] = S(dz * normal.factor);
        }
        if (dx) reinterpret_cast<Unit*>(dx)[walk.at] = below;
    }
    if (partials == nullptr) return;
    channel_sums(sums, width, reinterpret_cast<T*>(chip));
    if (part.leads) {
        partials[part.chunk * channels + part.channel] = sums[0];
        partials[(chunks + part.chunk) * channels + part.channel] = sums[1];
    }
}

// dscale, dbias and dx from the sums of the chunks; null pointers for what is not wanted.
extern "C" __global__ void __launch_bounds__(256, 1)
    batchnorm_backward_apply(const S* __restrict__ dy, const S* __restrict__ x, const T* __restrict__ saved,
                             const P* __restrict__ scale, const P* __restrict__ bias, const T* __restrict__ partials,
                             S* __restrict__ dx, P* __restrict__ dscale, P* __restrict__ dbias, Index rows,
                             Index channels, Index run, int width, Index size) {
    extern __shared__ Chip chip[];
    const Index units = rows * run, chunks = (units + size - 1) / size;
    const Part part = part_of(Index(gridDim.x) - 1 - blockIdx.x, units, size, channels, width);
    T sums[2] = {0, 0};
    for (Index i = part.slot; i < chunks; i += part.step) {
        sums[0] += partials[i * channels + part.channel];
        sums[1] += partials[(chunks + i) * channels + part.channel];
    }
    channel_sums(sums, width, reinterpret_cast<T*>(chip));
    if (part.leads && part.chunk == 0) put_sums(sums, dscale, dbias, part.channel);
    if (dx == nullptr) return;
    const Normal normal = kept_normal(saved, scale, bias, part.channel, channels);
    const T count = T(units * UNIT), mean_dz = sums[0] / count, mean_along = sums[1] / count;
    Walk walk(part, channels, run);
#pragma unroll UNROLL
    for (int k = 0; k < part.count; ++k, walk.next()) {
        const Unit unit = reinterpret_cast<const Unit*>(x)[walk.at], above = reinterpret_cast<const Unit*>(dy)[walk.at];
        reinterpret_cast<Unit*>(dx)[walk.at] = unit_dx(normal, unit, above, mean_dz, mean_along);
    }
}
