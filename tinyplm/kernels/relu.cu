// What is positive, and the gradient where the result was; see relu.py.

template <class T> __device__ inline void forward(const T *x, T *y, i64 n, i64 groups) {
    each_value<Fits<T>::count>(n, groups, [&](auto count, i64 at) {
        const int N = decltype(count)::value;
        float a[N];
        load(x + at, a);
        for (int i = 0; i < N; i++) {
            a[i] = a[i] <= 0.f ? 0.f : a[i]; // NaN stays
        }
        store(y + at, a);
    });
}

template <class T> __device__ inline void pullback(const T *g, const T *y, T *out, i64 n, i64 groups) {
    each_value<Fits<T>::count>(n, groups, [&](auto count, i64 at) {
        const int N = decltype(count)::value;
        float a[N], given[N];
        load(y + at, a);
        load(g + at, given);
        for (int i = 0; i < N; i++) {
            a[i] = a[i] > 0.f ? given[i] : 0.f;
        }
        store(out + at, a);
    });
}

#define MAKE(T, name) \
    extern "C" __global__ void __launch_bounds__(THREADS) relu_forward_##name(const T *x, T *y, i64 n, i64 groups) { \
        forward(x, y, n, groups); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS) relu_pullback_##name( \
        const T *g, const T *y, T *out, i64 n, i64 groups) { \
        pullback(g, y, out, n, groups); \
    }
EACH_TYPE(MAKE)
