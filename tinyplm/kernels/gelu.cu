// after: gelu_curve
// GELU, exact and by tanh, and the derivatives, of values in any shape; see gelu.py.

template <class Kind, class T> __device__ inline void forward(const T *x, T *y, i64 n, i64 groups) {
    each_value<Fits<T>::count>(n, groups, [&](auto count, i64 at) {
        const int N = decltype(count)::value;
        float a[N];
        load(x + at, a);
        for (int i = 0; i < N; i++) {
            a[i] = Kind::template of<T>(a[i]);
        }
        store(y + at, a);
    });
}

template <class Kind, class T> __device__ inline void pullback(const T *g, const T *x, T *out, i64 n, i64 groups) {
    each_value<Fits<T>::count>(n, groups, [&](auto count, i64 at) {
        const int N = decltype(count)::value;
        float a[N], given[N];
        load(x + at, a);
        load(g + at, given);
        for (int i = 0; i < N; i++) {
            a[i] = given[i] * Kind::template slope<T>(a[i]);
        }
        store(out + at, a);
    });
}

#define MAKE_KIND(Kind, kernel, T, name) \
    extern "C" __global__ void __launch_bounds__(THREADS) kernel##_forward_##name( \
        const T *x, T *y, i64 n, i64 groups) { \
        forward<Kind>(x, y, n, groups); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS) kernel##_pullback_##name( \
        const T *g, const T *x, T *out, i64 n, i64 groups) { \
        pullback<Kind>(g, x, out, n, groups); \
    }
#define MAKE(T, name) \
    MAKE_KIND(Exact, gelu, T, name) \
    MAKE_KIND(ByTanh, gelu_tanh, T, name)
EACH_TYPE(MAKE)
