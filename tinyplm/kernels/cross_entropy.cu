// Cross-entropy of rows of logits with labels, and its gradient, also over the logits; see cross_entropy.py.
//
// A block has one row at a time. It visits it once for the maximum and the sum, and a second time, out of the cache, for
// the gradient. Losses, logarithms and shares are float, whatever logits are stored as. Rows of logits that become
// their gradient may lie apart: from one to the next it is `pitch` values. A label outside of the row gives
// NaN: to read there would end the process' use of the device.

const int LANES = 512;
const float LOG2_E = 1.44269504f;

// e^(x - less) in three instructions: off by 2^-24 |x - less| of itself, at most, and two units in the last place. To fold
// the factor into one fma would save one, and overflow for the least and the largest values of bfloat16.
__device__ inline float exponential(float x, float less) { return exp2_near((x - less) * LOG2_E); }

// This thread's part of a row that begins anywhere: groups from the first address that allows it, and what is left at
// both ends one by one. With `apart`, another row does not lie as this one does, and all are taken one by one.
template <class T, class F> __device__ inline void each_in_row(const T *row, i64 width, bool apart, F f) {
    const int N = Fits<T>::count;
    const i64 before = i64((16 - reinterpret_cast<u64>(row) % 16) % 16 / sizeof(T));
    const i64 lead = apart || before > width ? width : before;
    const i64 groups = (width - lead) / N, rest = width - groups * N;
    for (i64 v = threadIdx.x; v < groups; v += LANES) {
        f(Count<N>(), lead + v * N);
    }
    for (i64 i = threadIdx.x; i < rest; i += LANES) {
        f(Count<1>(), i < lead ? i : i + groups * N);
    }
}

// What a row has as a whole. The sum of exponentials is of what each value is less than the largest.
struct Row {
    float top, total, target;
};

template <class T> __device__ inline Row whole(const T *row, i64 width, i64 label, float smoothing) {
    const bool inside = label >= 0 && label < width;
    const float at_label = inside ? wide(row[label]) : not_a_number();
    float top = -infinity(), total = 0, plain = 0; // of this thread's part
    each_in_row(row, width, false, [&](auto count, i64 at) {
        const int N = decltype(count)::value;
        float a[N];
        load(row + at, a);
        float here = a[0];
        for (int i = 1; i < N; i++) {
            here = fmaxf(here, a[i]);
        }
        if (here > top) {
            total *= exponential(top, here);
            top = here;
        }
        const float base = top == -infinity() ? 0.f : top;
        for (int i = 0; i < N; i++) {
            total += exponential(a[i], base);
            plain += a[i];
        }
    });
    Row found;
    found.top = team_max<LANES>(top);
    found.total = team_sum<LANES>(top == found.top ? total : total * exponential(top, found.top));
    if (found.top == -infinity()) { // nothing is larger: no distribution
        found.total = not_a_number();
    }
    found.target = at_label;
    if (smoothing != 0) {
        const float mean = team_sum<LANES>(plain) / float(width);
        found.target = (1.f - smoothing) * at_label + smoothing * mean;
    }
    return found;
}

template <class T>
__device__ inline void forward(
    const T *logits, const i64 *labels, float smoothing, float *losses, float *log_sum, i64 width) {
    const i64 r = blockIdx.x;
    const Row row = whole(logits + r * width, width, labels[r], smoothing);
    if (threadIdx.x == 0) {
        const float log_total = logf(row.total);
        losses[r] = log_total + (row.top - row.target);
        log_sum[r] = log_total + row.top;
    }
}

template <class T>
__device__ inline void pullback(
    const float *g, const T *logits, const i64 *labels, const float *log_sum, float smoothing, T *out, i64 width) {
    const i64 r = blockIdx.x, label = labels[r];
    const T *row = logits + r * width;
    T *made = out + r * width;
    const float by = g[r], less = log_sum[r], each = smoothing / float(width), rest = 1.f - smoothing;
    const bool apart = (reinterpret_cast<u64>(row) ^ reinterpret_cast<u64>(made)) % 16 != 0;
    each_in_row(row, width, apart, [&](auto count, i64 at) {
        const int N = decltype(count)::value;
        float a[N];
        load(row + at, a);
        for (int i = 0; i < N; i++) {
            const float p = exponential(a[i], less) - each;
            a[i] = by == 0 ? 0.f : (at + i == label ? p - rest : p) * by; // 1 - 1 is 0 before it is multiplied
        }
        store(made + at, a);
    });
}

template <class T>
__device__ inline void in_place(
    T *logits, i64 pitch, float *losses, const i64 *labels, const float *shares, float smoothing, i64 gradient,
    i64 width) {
    const i64 r = blockIdx.x, label = labels[r];
    T *row = logits + r * pitch;
    const float by = shares[r], each = smoothing / float(width), rest = 1.f - smoothing;
    if (by == 0) { // whatever its logits are
        if (gradient) {
            each_in_row(row, width, false, [&](auto count, i64 at) {
                const int N = decltype(count)::value;
                float nothing[N];
                for (int i = 0; i < N; i++) {
                    nothing[i] = 0;
                }
                store(row + at, nothing);
            });
        }
        if (threadIdx.x == 0) {
            losses[r] = 0;
        }
        return;
    }
    const Row found = whole(row, width, label, smoothing);
    if (threadIdx.x == 0) {
        losses[r] = logf(found.total) + (found.top - found.target);
    }
    if (!gradient) {
        return;
    }
    const float one_over = 1.f / found.total;
    each_in_row(row, width, false, [&](auto count, i64 at) {
        const int N = decltype(count)::value;
        float a[N];
        load(row + at, a);
        for (int i = 0; i < N; i++) {
            const float p = exponential(a[i], found.top) * one_over - each;
            a[i] = (at + i == label ? p - rest : p) * by;
        }
        store(row + at, a);
    });
}

// The sum of losses, each times its share, by one block, added up in double.
extern "C" __global__ void __launch_bounds__(LANES) cross_entropy_total(
    const float *losses, const float *shares, float *total, i64 n) {
    double own = 0;
    for (i64 r = threadIdx.x; r < n; r += LANES) {
        own += double(losses[r]) * double(shares[r]);
    }
    own = team_sum<LANES>(own);
    if (threadIdx.x == 0) {
        *total = float(own);
    }
}

#define MAKE(T, name) \
    extern "C" __global__ void __launch_bounds__(LANES) cross_entropy_forward_##name( \
        const T *logits, const i64 *labels, float smoothing, float *losses, float *log_sum, i64 width) { \
        forward(logits, labels, smoothing, losses, log_sum, width); \
    } \
    extern "C" __global__ void __launch_bounds__(LANES) cross_entropy_pullback_##name( \
        const float *g, const T *logits, const i64 *labels, const float *log_sum, float smoothing, T *out, \
        i64 width) { \
        pullback(g, logits, labels, log_sum, smoothing, out, width); \
    } \
    extern "C" __global__ void __launch_bounds__(LANES) cross_entropy_in_place_##name( \
        T *logits, i64 pitch, float *losses, const i64 *labels, const float *shares, float smoothing, i64 gradient, \
        i64 width) { \
        in_place(logits, pitch, losses, labels, shares, smoothing, gradient, width); \
    }
EACH_TYPE(MAKE)
