// after: gelu_curve matmul_result matmul_given
// Products of at most eight float32 rows, where the time is that of reading b once; see matmul_plan.py. Where columns of b
// lie side by side, a lane has four of them and each of eight warps every eighth of eight terms; where terms do, a
// warp has eight columns and a lane four of 128 terms.

const int WARPS = 8, EIGHT = 8, SPAN = 512; // terms (or columns) that a lane reads at once; terms of a in shared memory

template <int N> __device__ inline void read_four(const float *from, float (&x)[N]) {
    unpack<float>(*reinterpret_cast<const uint4 *>(from), x);
}

template <int ROWS, bool B_TURNED, class Last> __device__ inline void product(const Given &p) {
    const int COLUMNS = B_TURNED ? WARPS * EIGHT : 128, OWN = B_TURNED ? EIGHT : 4; // columns of a block, of a lane
    const int STEP = B_TURNED ? 128 : WARPS * EIGHT, PARTS = B_TURNED ? 1 : WARPS; // terms of all lanes; sums of a column
    alignas(16) __shared__ float rows[ROWS][SPAN];
    alignas(16) __shared__ float table[PARTS][ROWS][COLUMNS];
    const Place here = place(p);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, left = here.column * COLUMNS;
    const int first = int(here.part) * p.chunk, last = p.terms - first < p.chunk ? p.terms : first + p.chunk;
    const int column = left + (B_TURNED ? warp * EIGHT : lane * 4), own = B_TURNED ? lane * 4 : warp * EIGHT;
    const float *a = static_cast<const float *>(p.a.at) + here.one * p.a.step;
    const float *b = static_cast<const float *>(p.b.at) + here.one * p.b.step;
    float sums[ROWS][OWN] = {};

    for (int start = first; start < last; start += SPAN) {
        __syncthreads(); // nobody still reads the rows of the span before
        for (int i = threadIdx.x; i < ROWS * SPAN; i += 32 * WARPS) {
            const int row = i / SPAN, k = start + i % SPAN;
            rows[row][i % SPAN] = row < p.result.rows && k < last ? a[row * p.a.pitch + k] : 0.f;
        }
        __syncthreads();
        for (int step = 0; step < SPAN && start + step < last; step += STEP) {
            const int k = step + own; // in the span
            uint4 found[EIGHT];
#pragma unroll
            for (int i = 0; i < EIGHT; i++) {
                const int term = start + k + (B_TURNED ? 0 : i), at = column + (B_TURNED ? i : 0);
                found[i] = load_16_bytes_if(term < last && at < p.result.columns,
                                            b + (B_TURNED ? at * p.b.pitch + term : term * p.b.pitch + at));
            }
#pragma unroll
            for (int i = 0; i < EIGHT; i++) {
                float w[4];
                unpack<float>(found[i], w);
#pragma unroll
                for (int m = 0; m < ROWS; m++) {
                    if constexpr (B_TURNED) {
                        float x[4];
                        read_four(&rows[m][k], x);
#pragma unroll
                        for (int c = 0; c < 4; c++) { // behind the last term may be anything
                            sums[m][i] += x[c] * (start + k + c < last ? w[c] : 0.f);
                        }
                    } else {
                        const float x = rows[m][k + i];
#pragma unroll
                        for (int c = 0; c < 4; c++) {
                            sums[m][c] += x * w[c];
                        }
                    }
                }
            }
        }
    }

#pragma unroll
    for (int m = 0; m < ROWS; m++) {
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            if constexpr (B_TURNED) {
                const float total = warp_sum(sums[m][i]);
                if (lane == 0) {
                    table[0][m][warp * EIGHT + i] = total;
                }
            } else {
                table[warp % PARTS][m][lane * 4 + i] = sums[m][i];
            }
        }
    }
    __syncthreads();
    for (int run = threadIdx.x; run < ROWS * COLUMNS / 4; run += 32 * WARPS) {
        const int row = run / (COLUMNS / 4), at = run % (COLUMNS / 4) * 4;
        float total[4] = {};
#pragma unroll
        for (int w = 0; w < PARTS; w++) {
            float x[4];
            read_four(&table[w][row][at], x);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                total[i] += x[i];
            }
        }
        if (row < p.result.rows && left + at < p.result.columns) {
            if (p.result.parts) {
                keep_part(p.result, row, left + at, here.part * p.batch + here.one, total);
            } else {
                finish<float, Last>(p.result, row, left + at, here.one, total);
            }
        }
    }
}

#define MAKE(ROWS, B, LAST) \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, 2) few_float32_##ROWS##_n##B##_##LAST(Given p) { \
        product<ROWS, turned_##B, LAST>(p); \
    }
