// One AdamW update of a buffer (see adam.py), and the sum of squares of buffers (see many.py).
// Parameters and moments are float; gradients are stored as any type.

struct Numbers {
    float shrink, decay, beta_1, beta_2, rest_1, rest_2, step_size, root, eps;
};

template <class T>
__device__ inline void update(float *p, const T *g, float *m, float *v, i64 n, i64 groups, Numbers by) {
    each_value<4>(n, groups, [&](auto count, i64 at) {
        const int N = decltype(count)::value;
        float value[N], given[N], mean[N], square[N];
        load(p + at, value);
        load(g + at, given);
        load(m + at, mean);
        load(v + at, square);
        for (int i = 0; i < N; i++) {
            const float s = given[i] * by.shrink;
            mean[i] = by.beta_1 * mean[i] + by.rest_1 * s;
            square[i] = by.beta_2 * square[i] + by.rest_2 * (s * s);
            value[i] = value[i] * by.decay - by.step_size * mean[i] / (sqrtf(square[i]) * by.root + by.eps);
        }
        store(p + at, value);
        store(m + at, mean);
        store(v + at, square);
    });
}

// Each block adds up what it meets in steps of the whole grid, in double, as the squares of float may be infinite.
template <class T> __device__ inline void squares(const T *x, i64 n, i64 groups, double *sums) {
    const int N = Fits<T>::count;
    const i64 step = i64(gridDim.x) * THREADS, rest = n - groups * N;
    const i64 start = i64(blockIdx.x) * THREADS + threadIdx.x;
    double total = 0;
    for (i64 i = start; i < groups; i += step) {
        float a[N];
        load(x + i * N, a);
        for (int j = 0; j < N; j++) {
            total += double(a[j]) * double(a[j]);
        }
    }
    for (i64 i = start; i < rest; i += step) {
        const double a = wide(x[groups * N + i]);
        total += a * a;
    }
    total = team_sum<THREADS>(total);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = total;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) add_up(const double *sums, double *total, i64 n) {
    double own = 0;
    for (i64 i = threadIdx.x; i < n; i += THREADS) {
        own += sums[i];
    }
    own = team_sum<THREADS>(own);
    if (threadIdx.x == 0) {
        *total = own;
    }
}

#define MAKE(T, name) \
    extern "C" __global__ void __launch_bounds__(THREADS) adamw_update_##name( \
        float *p, const T *g, float *m, float *v, i64 n, i64 groups, float shrink, float decay, float beta_1, \
        float beta_2, float rest_1, float rest_2, float step_size, float root, float eps) { \
        const Numbers by = {shrink, decay, beta_1, beta_2, rest_1, rest_2, step_size, root, eps}; \
        update(p, g, m, v, n, groups, by); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS) squares_##name( \
        const T *x, i64 n, i64 groups, double *sums) { \
        squares(x, n, groups, sums); \
    }
EACH_TYPE(MAKE)
