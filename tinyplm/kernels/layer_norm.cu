// Layer and root-mean-square normalisation of rows, with an addition before it, and the pullbacks; see layer_norm.py.
// A pointer that is null is left out: branch and sum where nothing is added, mean and bias for root mean squares.
// Means, scales and gradients of gain and bias are float, whatever the rows are stored as.

template <class T, int N, int LANES, int HELD>
__device__ inline void forward(
    const T *x, const T *branch, const T *gain, const T *bias, float eps, T *sum, T *y, float *mean, float *scale,
    i64 rows, i64 width) {
    const i64 r = team<LANES>();
    if (r >= rows) {
        return;
    }
    const i64 start = r * width;
    const int groups = int(width / N), room = HELD > 0 ? HELD : 1;
    const float columns = float(width);
    uint4 asked[room], more[room];
    float held[room][N];
    float total = 0, square = 0;
    ask<LANES, HELD>(x + start, groups, asked);
    if (branch) {
        ask<LANES, HELD>(branch + start, groups, more);
    }
    each_group<LANES, HELD>(groups, [&](int k, int v) {
        const i64 at = start + i64(v) * N;
        take<HELD>(asked, x + start, k, v, held[k]);
        if (branch) {
            float added[N];
            take<HELD>(more, branch + start, k, v, added);
            for (int i = 0; i < N; i++) {
                held[k][i] = rounded<T>(held[k][i] + added[i]); // the pullback sees what was stored
            }
            store(sum + at, held[k]);
        }
        for (int i = 0; i < N; i++) {
            total += held[k][i];
        }
    });
    const T *given = branch ? sum : x;
    float middle = 0;
    if (mean) {
        middle = team_sum<LANES>(total) / columns;
    }
    each_group<LANES, HELD>(groups, [&](int k, int v) {
        if (HELD == 0) {
            load(given + start + i64(v) * N, held[k]);
        }
        for (int i = 0; i < N; i++) {
            const float d = held[k][i] - middle;
            square += d * d;
        }
    });
    ask<LANES, HELD>(gain, groups, asked);
    if (bias) {
        ask<LANES, HELD>(bias, groups, more);
    }
    const float s = 1.f / sqrtf(team_sum<LANES>(square) / columns + eps);
    each_group<LANES, HELD>(groups, [&](int k, int v) {
        if (HELD == 0) {
            load(given + start + i64(v) * N, held[k]);
        }
        float by[N], plus[N];
        take<HELD>(asked, gain, k, v, by);
        if (bias) {
            take<HELD>(more, bias, k, v, plus);
        }
        for (int i = 0; i < N; i++) {
            held[k][i] = (held[k][i] - middle) * s * by[i] + (bias ? plus[i] : 0.f);
        }
        store(y + start + i64(v) * N, held[k]);
    });
    if (threadIdx.x % LANES == 0) {
        scale[r] = s;
        if (mean) {
            mean[r] = middle;
        }
    }
}

// Gradients of the rows, and sums for those of gain and bias: team t adds up the rows t, t + teams, ... in registers, or
// in memory where a row does not fit into registers, and writes them to sums[t] (of gain, then of bias).
template <class T, int N, int LANES, int HELD>
__device__ inline void pullback(
    const T *g, const T *g_sum, const T *x, const float *mean, const float *scale, const T *gain, T *gx, float *sums,
    i64 rows, i64 width, i64 teams) {
    const i64 t = team<LANES>();
    if (t >= teams) {
        return;
    }
    const int groups = int(width / N), room = HELD > 0 ? HELD : 1;
    const float share = 1.f / float(width);
    float *const to_gain = sums + t * 2 * width, *const to_bias = to_gain + width;
    uint4 asked_g[room], asked_x[room], asked_due[room], asked_gain[room];
    float of_gain[room][N], of_bias[room][N];
    ask<LANES, HELD>(gain, groups, asked_gain); // the same for all rows
    for (int k = 0; k < room; k++) {
        for (int i = 0; i < N; i++) {
            of_gain[k][i] = of_bias[k][i] = 0;
        }
    }
    for (i64 r = t; r < rows; r += teams) {
        const i64 start = r * width;
        const float s = scale[r], middle = mean ? mean[r] : 0.f;
        float total = 0, along = 0;
        ask<LANES, HELD>(g + start, groups, asked_g);
        ask<LANES, HELD>(x + start, groups, asked_x);
        if (g_sum) {
            ask<LANES, HELD>(g_sum + start, groups, asked_due);
        }
        auto read = [&](int k, int v, float(&given)[N], float(&normal)[N]) {
            take<HELD>(asked_g, g + start, k, v, given);
            take<HELD>(asked_x, x + start, k, v, normal);
            for (int i = 0; i < N; i++) {
                normal[i] = (normal[i] - middle) * s;
            }
        };
        each_group<LANES, HELD>(groups, [&](int k, int v) {
            float given[N], normal[N], by[N];
            read(k, v, given, normal);
            take<HELD>(asked_gain, gain, k, v, by);
            if (HELD == 0) {
                for (int i = 0; i < N; i++) {
                    of_gain[0][i] = r == t ? 0.f : to_gain[i64(v) * N + i];
                    of_bias[0][i] = r == t ? 0.f : to_bias[i64(v) * N + i];
                }
            }
            for (int i = 0; i < N; i++) {
                total += given[i] * by[i];
                along += given[i] * by[i] * normal[i];
                of_gain[k][i] += given[i] * normal[i];
                of_bias[k][i] += given[i];
            }
            if (HELD == 0) {
                for (int i = 0; i < N; i++) {
                    to_gain[i64(v) * N + i] = of_gain[0][i];
                    to_bias[i64(v) * N + i] = of_bias[0][i];
                }
            }
        });
        along = team_sum<LANES>(along) * share;
        total = mean ? team_sum<LANES>(total) * share : 0.f;
        each_group<LANES, HELD>(groups, [&](int k, int v) {
            float given[N], normal[N], by[N], due[N];
            read(k, v, given, normal);
            take<HELD>(asked_gain, gain, k, v, by);
            if (g_sum) {
                take<HELD>(asked_due, g_sum + start, k, v, due);
            }
            for (int i = 0; i < N; i++) {
                // The product is rounded by itself, as in `total`: of a row of one value nothing remains.
                const float h = __fsub_rn(__fmul_rn(given[i], by[i]), total) - normal[i] * along;
                due[i] = h * s + (g_sum ? due[i] : 0.f);
            }
            store(gx + start + i64(v) * N, due);
        });
    }
    if (HELD > 0) {
        each_group<LANES, HELD>(groups, [&](int k, int v) {
            for (int i = 0; i < N; i++) {
                to_gain[i64(v) * N + i] = of_gain[k][i];
                to_bias[i64(v) * N + i] = of_bias[k][i];
            }
        });
    }
}

// Adds up the sums of all teams, for 32 of the 2 width columns a block: 32 runs of them, and then those.
extern "C" __global__ void __launch_bounds__(1024) norm_finish(
    const float *sums, float *gain, float *bias, i64 width, i64 teams) {
    __shared__ float of_run[32][33];
    const int column = threadIdx.x % 32, run = threadIdx.x / 32;
    const i64 c = i64(blockIdx.x) * 32 + column;
    float total = 0;
    if (c < 2 * width) {
        for (i64 t = run; t < teams; t += 32) {
            total += sums[t * 2 * width + c];
        }
    }
    of_run[run][column] = total;
    __syncthreads();
    if (run == 0 && c < 2 * width) {
        for (int i = 1; i < 32; i++) {
            total += of_run[i][column];
        }
        if (c < width) {
            gain[c] = total;
        } else {
            bias[c - width] = total;
        }
    }
}

#define MAKE_ROWS(T, name, N, LANES, HELD) \
    extern "C" __global__ void __launch_bounds__(THREADS) norm_forward_##name( \
        const T *x, const T *branch, const T *gain, const T *bias, float eps, T *sum, T *y, float *mean, float *scale, \
        i64 rows, i64 width) { \
        forward<T, N, LANES, HELD>(x, branch, gain, bias, eps, sum, y, mean, scale, rows, width); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS) norm_pullback_##name( \
        const T *g, const T *g_sum, const T *x, const float *mean, const float *scale, const T *gain, T *gx, \
        float *sums, i64 rows, i64 width, i64 teams) { \
        pullback<T, N, LANES, HELD>(g, g_sum, x, mean, scale, gain, gx, sums, rows, width, teams); \
    }
#define MAKE(T, name) EACH_SHAPE(MAKE_ROWS, T, name)
EACH_TYPE(MAKE)
