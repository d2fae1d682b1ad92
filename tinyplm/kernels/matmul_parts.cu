// after: gelu_curve matmul_result
// Adds up the parts that the sums of a product were cut into, in their order, and finishes them; see matmul_plan.py.

const int RUN = 8; // sums side by side

template <class T, class Last> __device__ inline void add_parts(const Result &r, i64 batch, i64 parts) {
    const i64 runs = (r.columns + RUN - 1) / RUN, values = batch * r.rows * r.columns;
    const i64 run = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (run >= batch * r.rows * runs) {
        return;
    }
    const i64 row = run / runs % r.rows, column = run % runs * RUN, one = run / runs / r.rows, left = r.columns - column;
    const float *part = r.parts + (one * r.rows + row) * r.columns + column;
    const int count = left < RUN ? int(left) : RUN;
    float x[RUN] = {}, more[RUN];
#pragma unroll 4
    for (i64 i = 0; i < parts; i++) {
        load_run(part + i * values, r.columns % 4 == 0, count, more);
#pragma unroll
        for (int j = 0; j < RUN; j++) {
            x[j] += more[j];
        }
    }
    finish<T, Last>(r, row, column, one, x);
}

#define MAKE(T, LAST) \
    extern "C" __global__ void __launch_bounds__(THREADS) add_parts_##T##_##LAST(Result r, i64 batch, i64 parts) { \
        add_parts<T, LAST>(r, batch, parts); \
    }
