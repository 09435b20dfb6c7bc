// Pooling of (planes, d, h, w), the planes being samples times channels. The forward kernels have a thread for every
// output, the backward ones a thread for every input, which adds what the windows over it send: no atomics.
#if MARK_BYTES == 1
typedef unsigned char Mark;
#else
typedef int Mark;
#endif

struct Windows {
    int size[3], out[3], window[3], stride[3], before[3];
};

// The plane and the place in it of the element `thread` places after `first`, in an array with `sizes`. The division of
// 64 bits is the same for all threads of a block; theirs are of 32 bits.
__device__ __forceinline__ Index locate(Index first, unsigned thread, const int* sizes, int* at) {
    const unsigned each = unsigned(sizes[0]) * sizes[1] * sizes[2];
    const Index plane = first / each;
    unsigned rest = unsigned(first - plane * each) + thread;
    const unsigned further = rest / each;
    rest -= further * each;
    at[2] = int(rest % sizes[2]);
    rest /= sizes[2];
    at[1] = int(rest % sizes[1]);
    at[0] = int(rest / sizes[1]);
    return plane + further;
}

// Of a window along an axis: its first place, and where it begins and ends within the array.
struct Span {
    int start, begin, end;
};

__device__ __forceinline__ Span span(const Windows& g, int axis, int at) {
    const int start = at * g.stride[axis] - g.before[axis];
    return {start, max(start, 0), min(start + g.window[axis], g.size[axis])};
}

// The first and last window along an axis that a place is in.
__device__ __forceinline__ int first_over(const Windows& g, int axis, int at) {
    const int place = at + g.before[axis];
    return place < g.window[axis] ? 0 : (place - g.window[axis]) / g.stride[axis] + 1;
}

__device__ __forceinline__ int last_over(const Windows& g, int axis, int at) {
    return min((at + g.before[axis]) / g.stride[axis], g.out[axis] - 1);
}

// y, and the place of each maximum within its window unless marks is null: the first of equal ones, the last NaN.
extern "C" __global__ void __launch_bounds__(256, 4) maxpool_forward(
    const S* __restrict__ x, S* __restrict__ y, Mark* __restrict__ marks, Index planes, int d, int h, int w, int out_d,
    int out_h, int out_w, int window_d, int window_h, int window_w, int stride_d, int stride_h, int stride_w,
    int before_d, int before_h, int before_w) {
    const Windows g = {{d, h, w}, {out_d, out_h, out_w}, {window_d, window_h, window_w},
                       {stride_d, stride_h, stride_w}, {before_d, before_h, before_w}};
    const Index total = planes * out_d * out_h * out_w;
    const Index first = Index(blockIdx.x) * blockDim.x;
    if (first + threadIdx.x >= total) return;
    int at[3];
    const S* plane = x + locate(first, threadIdx.x, g.out, at) * d * h * w;
    const Span a = span(g, 0, at[0]), b = span(g, 1, at[1]), c = span(g, 2, at[2]);
    T best = -infinity();
    int mark = -1;
    for (int i = a.begin; i < a.end; ++i)
        for (int j = b.begin; j < b.end; ++j)
            for (int k = c.begin; k < c.end; ++k) {
                const T value = get(plane, (Index(i) * h + j) * w + k);
                if (value > best || value != value || mark < 0) {
                    best = value;
                    mark = ((i - a.start) * window_h + j - b.start) * window_w + k - c.start;
                }
            }
    put(y, first + threadIdx.x, best);
    if (marks != nullptr) marks[first + threadIdx.x] = Mark(mark);
}

extern "C" __global__ void __launch_bounds__(256, 4) maxpool_backward(
    const S* __restrict__ dy, const Mark* __restrict__ marks, S* __restrict__ dx, Index planes, int d, int h, int w,
    int out_d, int out_h, int out_w, int window_d, int window_h, int window_w, int stride_d, int stride_h, int stride_w,
    int before_d, int before_h, int before_w) {
    const Windows g = {{d, h, w}, {out_d, out_h, out_w}, {window_d, window_h, window_w},
                       {stride_d, stride_h, stride_w}, {before_d, before_h, before_w}};
    const Index total = planes * d * h * w;
    const Index first = Index(blockIdx.x) * blockDim.x;
    if (first + threadIdx.x >= total) return;
    int at[3];
    const Index plane = locate(first, threadIdx.x, g.size, at) * out_d * out_h * out_w;
    const int last_i = last_over(g, 0, at[0]), last_j = last_over(g, 1, at[1]), last_k = last_over(g, 2, at[2]);
    T sum = T(0);
    for (int i = first_over(g, 0, at[0]); i <= last_i; ++i)
        for (int j = first_over(g, 1, at[1]); j <= last_j; ++j)
            for (int k = first_over(g, 2, at[2]); k <= last_k; ++k) {
                const Index from = plane + (Index(i) * out_h + j) * out_w + k;
                const int mine = ((at[0] + before_d - i * stride_d) * window_h + at[1] + before_h - j * stride_h) *
                                     window_w + at[2] + before_w - k * stride_w;
                if (int(marks[from]) == mine) sum += get(dy, from);
            }
    put(dx, first + threadIdx.x, sum);
}

// The mean over the whole window, padding included.
extern "C" __global__ void __launch_bounds__(256, 4) meanpool_forward(
    const S* __restrict__ x, S* __restrict__ y, Index planes, int d, int h, int w, int out_d, int out_h, int out_w,
    int window_d, int window_h, int window_w, int stride_d, int stride_h, int stride_w, int before_d, int before_h,
    int before_w) {
    const Windows g = {{d, h, w}, {out_d, out_h, out_w}, {window_d, window_h, window_w},
                       {stride_d, stride_h, stride_w}, {before_d, before_h, before_w}};
    const T volume = T(Index(window_d) * window_h * window_w);
    const Index total = planes * out_d * out_h * out_w;
    const Index first = Index(blockIdx.x) * blockDim.x;
    if (first + threadIdx.x >= total) return;
    int at[3];
    const S* plane = x + locate(first, threadIdx.x, g.out, at) * d * h * w;
    const Span a = span(g, 0, at[0]), b = span(g, 1, at[1]), c = span(g, 2, at[2]);
    T sum = T(0);
    for (int i = a.begin; i < a.end; ++i)
        for (int j = b.begin; j < b.end; ++j)
            for (int k = c.begin; k < c.end; ++k) sum += get(plane, (Index(i) * h + j) * w + k);
    put(y, first + threadIdx.x, sum / volume);
}

extern "C" __global__ void __launch_bounds__(256, 4) meanpool_backward(
    const S* __restrict__ dy, S* __restrict__ dx, Index planes, int d, int h, int w, int out_d, int out_h, int out_w,
    int window_d, int window_h, int window_w, int stride_d, int stride_h, int stride_w, int before_d, int before_h,
    int before_w) {
    const Windows g = {{d, h, w}, {out_d, out_h, out_w}, {window_d, window_h, window_w},
                       {stride_d, stride_h, stride_w}, {before_d, before_h, before_w}};
    const T volume = T(Index(window_d) * window_h * window_w);
    const Index total = planes * d * h * w;
    const Index first = Index(blockIdx.x) * blockDim.x;
    if (first + threadIdx.x >= total) return;
    int at[3];
    const Index plane = locate(first, threadIdx.x, g.size, at) * out_d * out_h * out_w;
    const int last_i = last_over(g, 0, at[0]), last_j = last_over(g, 1, at[1]), last_k = last_over(g, 2, at[2]);
    T sum = T(0);
    for (int i = first_over(g, 0, at[0]); i <= last_i; ++i)
        for (int j = first_over(g, 1, at[1]); j <= last_j; ++j)
            for (int k = first_over(g, 2, at[2]); k <= last_k; ++k)
                sum += get(dy, plane + (Index(i) * out_h + j) * out_w + k);
    put(dx, first + threadIdx.x, sum / volume);
}
