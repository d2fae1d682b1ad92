// An array times a number that lies on the device, in place; see scale.py.

template <class T> __device__ inline void scale(T *x, i64 n, i64 groups, const float *factor) {
    const float by = *factor;
    if (by == 1.f) {
        return;
    }
    each_value<Fits<T>::count>(n, groups, [&](auto count, i64 at) {
        const int N = decltype(count)::value;
        float a[N];
        load(x + at, a);
        for (int i = 0; i < N; i++) {
            a[i] *= by;
        }
        store(x + at, a);
    });
}

#define MAKE(T, name) \
    extern "C" __global__ void __launch_bounds__(THREADS) scale_##name( \
        T *x, i64 n, i64 groups, const float *factor) { \
        scale(x, n, groups, factor); \
    }
EACH_TYPE(MAKE)
