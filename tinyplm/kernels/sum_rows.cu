// Sums of columns over all rows, or over some of them for each block; see matmul.py. A lane has N columns side by side, and
// each of eight warps every eighth row; then the warps' sums are added in their order.

template <class T, int N>
__device__ inline void sum_rows(const T *g, float *out, i64 rows, i64 columns, i64 rows_of_part) {
    const int WARPS = THREADS / 32;
    __shared__ float sums_of[WARPS][32 * N];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const i64 slabs = (columns + 32 * N - 1) / (32 * N), slab = blockIdx.x % slabs, part = blockIdx.x / slabs;
    const i64 first = part * rows_of_part, end = first + rows_of_part, last = end < rows ? end : rows;
    const i64 column = (slab * 32 + lane) * N;
    float sums[N] = {};
    if (column < columns) {
#pragma unroll 4
        for (i64 r = first + warp; r < last; r += WARPS) {
            float x[N];
            load(g + r * columns + column, x);
#pragma unroll
            for (int i = 0; i < N; i++) {
                sums[i] += x[i];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        sums_of[warp][32 * i + lane] = sums[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * N; i += THREADS) {
        float total = sums_of[0][i];
        for (int w = 1; w < WARPS; w++) {
            total += sums_of[w][i];
        }
        const i64 own = slab * 32 * N + i % 32 * N + i / 32;
        if (own < columns) {
            out[part * columns + own] = total;
        }
    }
}

#define MAKE_SUMS(T, name, N, how) \
    extern "C" __global__ void __launch_bounds__(THREADS) sum_rows_##name##_##how( \
        const T *g, float *out, i64 rows, i64 columns, i64 rows_of_part) { \
        sum_rows<T, N>(g, out, rows, columns, rows_of_part); \
    }
#define MAKE(T, name) \
    MAKE_SUMS(T, name, Fits<T>::count, groups) \
    MAKE_SUMS(T, name, 1, single)
EACH_TYPE(MAKE)
