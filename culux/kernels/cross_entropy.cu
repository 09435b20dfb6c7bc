// Softmax cross entropy with integer labels, over `classes` logits x: with sum = sum of exp(x - largest),
//   loss = log(sum) - (1 - smoothing) * (x_label - largest) - smoothing * mean(x - largest),
// 0 where the label is `ignored` (with `ignores`), and NaN, its gradient too, where it is no class. No digits are lost
// where all logits are large. Both directions read the logits once.
#if LABEL_BYTES == 8
typedef long long Label;
#else
typedef int Label;
#endif

// What the label of a row is instead of a class.
constexpr int IGNORED = -1, INVALID = -2;

__device__ __forceinline__ int class_of(Label label, int classes, Index ignored, bool ignores) {
    return ignores && label == ignored ? IGNORED : label >= 0 && label < classes ? int(label) : INVALID;
}

__device__ __forceinline__ T clamped(T x) { return x < -LARGEST ? -LARGEST : x > LARGEST ? LARGEST : x; }

// The loss of row `at`, which is also stored; `differences` is the sum of x - anchor.
__device__ __forceinline__ T save_row(
    Exponentials found, T picked, int target, T differences, T anchor, int classes, T smoothing, Index at, S* losses,
    T* largests, T* logs) {
    const T log_sum = log(found.sum);
    T loss = log_sum - (picked - found.largest) * (T(1) - smoothing);
    if (smoothing > 0) loss -= smoothing * (anchor - found.largest + differences / classes);
    if (target < 0) loss = target == IGNORED ? T(0) : infinity() - infinity();
    if (losses != nullptr) put(losses, at, loss);
    if (largests != nullptr) {
        largests[at] = found.largest;
        logs[at] = log_sum;
    }
    return loss;
}

// The sums over the first row of the block's threads (y = 0) of losses and of labels that count.
__device__ __forceinline__ void save_block(T loss, T counted, T* partials) {
    __shared__ T losses[32], counts[32];
    if (partials == nullptr) return;
    loss = warp_sum(loss);
    counted = warp_sum(counted);
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    if (threadIdx.y == 0 && lane == 0) {
        losses[threadIdx.x / 32] = loss;
        counts[threadIdx.x / 32] = counted;
    }
    __syncthreads();
    if (threadIdx.y != 0 || threadIdx.x >= 32) return;
    loss = warp_sum(lane < warps ? losses[lane] : T(0));
    counted = warp_sum(lane < warps ? counts[lane] : T(0));
    if (lane == 0) {
        partials[blockIdx.x] = loss;
        partials[gridDim.x + blockIdx.x] = counted;
    }
}

// A group of threads for each row: a warp, or the block.
extern "C" __global__ void __launch_bounds__(512, 1) cross_entropy_rows(
    const S* __restrict__ x, const Label* __restrict__ labels, S* __restrict__ losses, T* __restrict__ largests,
    T* __restrict__ logs, T* __restrict__ partials, Index rows, int classes, int group, T smoothing, Index ignored,
    bool ignores) {
    __shared__ T scratch[32];
    const bool wide = classes % LANES == 0 && is_aligned(x), whole = group > 32;
    const int thread = threadIdx.x % group, groups = blockDim.x / group;
    T total = 0, counted = 0;
    for (Index row = Index(blockIdx.x) * groups + threadIdx.x / group; row < rows; row += Index(gridDim.x) * groups) {
        const S* from = x + row * classes;
        const int target = class_of(labels[row], classes, ignored, ignores);
        const T picked = target < 0 ? T(0) : get(from, target), anchor = classes == 0 ? T(0) : clamped(get(from, 0));
        Exponentials found;
        T values[LANES], differences = 0;
#pragma unroll 2
        for (int i = thread * LANES; i < classes; i += group * LANES) {
            load_lanes(from, i, classes, wide, values);
            found.add(values, classes - i);
#pragma unroll
            for (int j = 0; j < LANES; ++j)
                if (i + j < classes) differences += values[j] - anchor;
        }
        const T largest = whole ? block_max(found.largest, scratch) : warp_max(found.largest);
        found.raise(largest);
        found.sum = whole ? block_sum(found.sum, scratch) : warp_sum(found.sum);
        differences = whole ? block_sum(differences, scratch) : warp_sum(differences);
        if (thread != 0) continue;
        total += save_row(found, picked, target, differences, anchor, classes, smoothing, row, losses, largests, logs);
        counted += T(target != IGNORED);
    }
    save_block(total, counted, partials);
}

// Classes that are `inner` apart: neighbouring threads have neighbouring columns; the threads along y share a column.
extern "C" __global__ void __launch_bounds__(1024, 1) cross_entropy_columns(
    const S* __restrict__ x, const Label* __restrict__ labels, S* __restrict__ losses, T* __restrict__ largests,
    T* __restrict__ logs, T* __restrict__ partials, Index columns, int classes, Index inner, T smoothing, Index ignored,
    bool ignores) {
    __shared__ T tops[1024], sums[1024], rests[1024];
    const Index column = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    const S* from = x + (column / inner * inner * classes + column % inner);
    const int mine = column < columns ? classes : 0, at = threadIdx.y * blockDim.x + threadIdx.x;
    const T anchor = mine == 0 ? T(0) : clamped(get(from, 0));
    Exponentials found;
    T differences = 0;
#pragma unroll 4
    for (int i = threadIdx.y; i < mine; i += blockDim.y) {
        const T value = get(from, i * inner);
        found.join(value, T(1));
        differences += value - anchor;
    }
    tops[at] = found.largest;
    sums[at] = found.sum;
    rests[at] = differences;
    __syncthreads();
    T loss = 0, counted = 0;
    if (threadIdx.y == 0 && column < columns) {
        for (int turn = at + blockDim.x; turn < blockDim.x * blockDim.y; turn += blockDim.x) {
            found.join(tops[turn], sums[turn]);
            differences += rests[turn];
        }
        const int target = class_of(labels[column], classes, ignored, ignores);
        const T picked = target < 0 ? T(0) : get(from, target * inner);
        loss = save_row(
            found, picked, target, differences, anchor, classes, smoothing, column, losses, largests, logs);
        counted = T(target != IGNORED);
    }
    save_block(loss, counted, partials);
}

// y = the sum of the losses, with `mean` divided by the number of those that count, which the backward reads.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy_reduce(
    const T* __restrict__ partials, S* __restrict__ y, T* __restrict__ count, Index blocks, bool mean) {
    __shared__ T losses[32], counts[32];
    T loss = 0, counted = 0;
    for (Index i = threadIdx.x; i < blocks; i += blockDim.x) {
        loss += partials[i];
        counted += partials[blocks + i];
    }
    loss = block_sum(loss, losses);
    counted = mean ? block_sum(counted, counts) : T(1);
    if (threadIdx.x != 0) return;
    put(y, 0, loss / counted);
    count[0] = counted;
}

// What a row's gradients are multiplied with: dy / count; of the losses themselves there is a dy for each and no count.
__device__ __forceinline__ T factor_of(const S* dy, const T* count, int target, Index at) {
    if (target == INVALID) return infinity() - infinity();
    return count == nullptr ? get(dy, at) : get(dy, 0) / count[0];
}

// dx of one logit, whose class is i.
__device__ __forceinline__ T slope(
    T x, T largest, T log_sum, int i, int target, int classes, T smoothing, T factor) {
    const T wanted = smoothing / classes + (i == target ? T(1) - smoothing : T(0));
    return target == IGNORED ? T(0) : factor * (exp(x - largest - log_sum) - wanted);
}

extern "C" __global__ void __launch_bounds__(512, 1) cross_entropy_backward_rows(
    const S* __restrict__ dy, const T* __restrict__ count, const S* __restrict__ x, const Label* __restrict__ labels,
    const T* __restrict__ largests, const T* __restrict__ logs, S* __restrict__ dx, Index rows, int classes, int group,
    T smoothing, Index ignored, bool ignores) {
    const bool wide = classes % LANES == 0 && is_aligned(x) && is_aligned(dx);
    const int thread = threadIdx.x % group, groups = blockDim.x / group;
    for (Index row = Index(blockIdx.x) * groups + threadIdx.x / group; row < rows; row += Index(gridDim.x) * groups) {
        const int target = class_of(labels[row], classes, ignored, ignores);
        const T factor = factor_of(dy, count, target, row), largest = largests[row], log_sum = logs[row];
        for (int i = thread * LANES; i < classes; i += group * LANES) {
            T v[LANES];
            load_lanes(x + row * classes, i, classes, wide, v);
#pragma unroll
            for (int j = 0; j < LANES; ++j)
                v[j] = slope(v[j], largest, log_sum, i + j, target, classes, smoothing, factor);
            store_lanes(dx + row * classes, i, classes, wide, v);
        }
    }
}

extern "C" __global__ void __launch_bounds__(1024, 1) cross_entropy_backward_columns(
    const S* __restrict__ dy, const T* __restrict__ count, const S* __restrict__ x, const Label* __restrict__ labels,
    const T* __restrict__ largests, const T* __restrict__ logs, S* __restrict__ dx, Index columns, int classes,
    Index inner, T smoothing, Index ignored, bool ignores) {
    const Index column = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    const Index start = column / inner * inner * classes + column % inner;
    const int target = class_of(labels[column], classes, ignored, ignores);
    const T factor = factor_of(dy, count, target, column), largest = largests[column], log_sum = logs[column];
#pragma unroll 4
    for (int i = threadIdx.y; i < classes; i += blockDim.y) {
        const T value = get(x, start + i * inner);
        put(dx, start + i * inner, slope(value, largest, log_sum, i, target, classes, smoothing, factor));
    }
}
