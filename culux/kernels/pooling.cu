// Pooling of (planes, d, h, w), the planes being samples times channels. The forward kernels have a thread for every
// output, the backward ones a thread for every input, which adds what the windows over it send: no atomics.
#if MARK_BYTES == 1
typedef unsigned char Mark;
#else
typedef int Mark;
#endif

struct Windows {
    int size[3], out[3], window[3], stride[3], before[3], dilation[3];

    // The steps between the places of a window: known to be 1 unless DILATED, so that no division by it remains.
    __device__ __forceinline__ int apart(int axis) const { return DILATED ? dilation[axis] : 1; }
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

// Of a window along an axis: where it starts, the step to its next place, and which of its places are in the array.
struct Span {
    int start, step, begin, end;
};

__device__ __forceinline__ Span span(const Windows& g, int axis, int at) {
    const int start = at * g.stride[axis] - g.before[axis], step = g.apart(axis), window = g.window[axis];
    const bool inside = start + (window - 1) * step < g.size[axis];
    return {start, step, start < 0 ? (step - 1 - start) / step : 0,
            inside ? window : (g.size[axis] - start + step - 1) / step};
}

// Where place (i, j, k) of a window is in its plane.
__device__ __forceinline__ Index place(
    const Windows& g, const Span& a, const Span& b, const Span& c, int i, int j, int k) {
    const int row = b.start + j * b.step, column = c.start + k * c.step;
    return (Index(a.start + i * a.step) * g.size[1] + row) * g.size[2] + column;
}

// The first and last window along an axis that reach as far as a place.
__device__ __forceinline__ int first_over(const Windows& g, int axis, int at) {
    const int beyond = at + g.before[axis] - (g.window[axis] - 1) * g.apart(axis);
    return beyond <= 0 ? 0 : (beyond - 1) / g.stride[axis] + 1;
}

__device__ __forceinline__ int last_over(const Windows& g, int axis, int at) {
    return min((at + g.before[axis]) / g.stride[axis], g.out[axis] - 1);
}

// How far into window i a place lies; one of the window's places where the step between them divides it.
__device__ __forceinline__ int distance(const Windows& g, int axis, int at, int i) {
    return at + g.before[axis] - i * g.stride[axis];
}

// y, and the place of each maximum within its window unless marks is null: the first of equal ones, the last NaN.
extern "C" __global__ void __launch_bounds__(256, 4) maxpool_forward(
    const S* __restrict__ x, S* __restrict__ y, Mark* __restrict__ marks, Index planes, int d, int h, int w, int out_d,
    int out_h, int out_w, int window_d, int window_h, int window_w, int stride_d, int stride_h, int stride_w,
    int before_d, int before_h, int before_w, int dilation_d, int dilation_h, int dilation_w) {
    const Windows g = {{d, h, w}, {out_d, out_h, out_w}, {window_d, window_h, window_w},
                       {stride_d, stride_h, stride_w}, {before_d, before_h, before_w},
                       {dilation_d, dilation_h, dilation_w}};
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
                const T value = get(plane, place(g, a, b, c, i, j, k));
                if (value > best || value != value || mark < 0) {
                    best = value;
                    mark = (i * window_h + j) * window_w + k;
                }
            }
    put(y, first + threadIdx.x, best);
    if (marks != nullptr) marks[first + threadIdx.x] = Mark(mark);
}

extern "C" __global__ void __launch_bounds__(256, 4) maxpool_backward(
    const S* __restrict__ dy, const Mark* __restrict__ marks, S* __restrict__ dx, Index planes, int d, int h, int w,
    int out_d, int out_h, int out_w, int window_d, int window_h, int window_w, int stride_d, int stride_h, int stride_w,
    int before_d, int before_h, int before_w, int dilation_d, int dilation_h, int dilation_w) {
    const Windows g = {{d, h, w}, {out_d, out_h, out_w}, {window_d, window_h, window_w},
                       {stride_d, stride_h, stride_w}, {before_d, before_h, before_w},
                       {dilation_d, dilation_h, dilation_w}};
    const Index total = planes * d * h * w;
    const Index first = Index(blockIdx.x) * blockDim.x;
    if (first + threadIdx.x >= total) return;
    int at[3];
    const Index plane = locate(first, threadIdx.x, g.size, at) * out_d * out_h * out_w;
    const int last_i = last_over(g, 0, at[0]), last_j = last_over(g, 1, at[1]), last_k = last_over(g, 2, at[2]);
    T sum = T(0);
    for (int i = first_over(g, 0, at[0]); i <= last_i; ++i) {
        const int a = distance(g, 0, at[0], i);
        if (a % g.apart(0) != 0) continue;
        for (int j = first_over(g, 1, at[1]); j <= last_j; ++j) {
            const int b = distance(g, 1, at[1], j);
            if (b % g.apart(1) != 0) continue;
            for (int k = first_over(g, 2, at[2]); k <= last_k; ++k) {
                const int c = distance(g, 2, at[2], k);
                const int mine = (a / g.apart(0) * window_h + b / g.apart(1)) * window_w + c / g.apart(2);
                const Index from = plane + (Index(i) * out_h + j) * out_w + k;
                if (c % g.apart(2) == 0 && int(marks[from]) == mine) sum += get(dy, from);
            }
        }
    }
    put(dx, first + threadIdx.x, sum);
}

// The mean over the whole window, padding included.
extern "C" __global__ void __launch_bounds__(256, 4) meanpool_forward(
    const S* __restrict__ x, S* __restrict__ y, Index planes, int d, int h, int w, int out_d, int out_h, int out_w,
    int window_d, int window_h, int window_w, int stride_d, int stride_h, int stride_w, int before_d, int before_h,
    int before_w, int dilation_d, int dilation_h, int dilation_w) {
    const Windows g = {{d, h, w}, {out_d, out_h, out_w}, {window_d, window_h, window_w},
                       {stride_d, stride_h, stride_w}, {before_d, before_h, before_w},
                       {dilation_d, dilation_h, dilation_w}};
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
            for (int k = c.begin; k < c.end; ++k) sum += get(plane, place(g, a, b, c, i, j, k));
    put(y, first + threadIdx.x, sum / volume);
}

extern "C" __global__ void __launch_bounds__(256, 4) meanpool_backward(
    const S* __restrict__ dy, S* __restrict__ dx, Index planes, int d, int h, int w, int out_d, int out_h, int out_w,
    int window_d, int window_h, int window_w, int stride_d, int stride_h, int stride_w, int before_d, int before_h,
    int before_w, int dilation_d, int dilation_h, int dilation_w) {
    const Windows g = {{d, h, w}, {out_d, out_h, out_w}, {window_d, window_h, window_w},
                       {stride_d, stride_h, stride_w}, {before_d, before_h, before_w},
                       {dilation_d, dilation_h, dilation_w}};
    const T volume = T(Index(window_d) * window_h * window_w);
    const Index total = planes * d * h * w;
    const Index first = Index(blockIdx.x) * blockDim.x;
    if (first + threadIdx.x >= total) return;
    int at[3];
    const Index plane = locate(first, threadIdx.x, g.size, at) * out_d * out_h * out_w;
    const int last_i = last_over(g, 0, at[0]), last_j = last_over(g, 1, at[1]), last_k = last_over(g, 2, at[2]);
    T sum = T(0);
    for (int i = first_over(g, 0, at[0]); i <= last_i; ++i) {
        if (distance(g, 0, at[0], i) % g.apart(0) != 0) continue;
        for (int j = first_over(g, 1, at[1]); j <= last_j; ++j) {
            if (distance(g, 1, at[1], j) % g.apart(1) != 0) continue;
            for (int k = first_over(g, 2, at[2]); k <= last_k; ++k)
                if (distance(g, 2, at[2], k) % g.apart(2) == 0)
                    sum += get(dy, plane + (Index(i) * out_h + j) * out_w + k);
        }
    }
    put(dx, first + threadIdx.x, sum / volume);
}
