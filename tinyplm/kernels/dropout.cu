// Dropout by the place of each value, counted in row-major order; see dropout.py, with the same bits.

template <class T>
__device__ inline void drop(
    const T *x, T *y, i64 n, i64 groups, i64 seed, const i64 *seed_at, u32 threshold, float scale) {
    if (seed_at) { // drawn on the device
        seed = *seed_at;
    }
    const u32 seed_low = u32(seed), seed_high = u32(u64(seed) >> 32);
    each_value<Fits<T>::count>(n, groups, [&](auto count, i64 at) {
        const int N = decltype(count)::value;
        float a[N];
        load(x + at, a);
        for (int i = 0; i < N; i++) {
            const u64 place = u64(at) + i;
            const bool stays = mixed(seed_low, seed_high, u32(place), u32(place >> 32)) >= threshold;
            a[i] = stays ? a[i] * scale : 0.f;
        }
        store(y + at, a);
    });
}

#define MAKE(T, name) \
    extern "C" __global__ void __launch_bounds__(THREADS) dropout_##name( \
        const T *x, T *y, i64 n, i64 groups, i64 seed, const i64 *seed_at, u32 threshold, float scale) { \
        drop(x, y, n, groups, seed, seed_at, threshold, scale); \
    }
EACH_TYPE(MAKE)
