// Softmax of rows, from x to y or in place, and its pullback; see softmax.py. One team for each row.

// Values are multiplied by factor. Row r sees the columns up to first + r % period.
template <class T, int N, int LANES, int HELD>
__device__ inline void forward(const T *x, T *y, i64 rows, i64 width, float factor, i64 first, i64 period) {
    const i64 r = team<LANES>();
    if (r >= rows) {
        return;
    }
    const i64 limit = first + r % period;
    const int last = int(limit < width ? limit : width - 1); // below 0: nothing is seen
    const T *in = x + r * width;
    T *out = y + r * width;
    const int groups = int(width / N), room = HELD > 0 ? HELD : 1;
    uint4 asked[room];
    float held[room][N];
    ask<LANES, HELD>(in, groups, asked);
    auto score = [&](int k, int v) {
        take<HELD>(asked, in, k, v, held[k]);
        for (int i = 0; i < N; i++) {
            held[k][i] = v * N + i <= last ? held[k][i] * factor : -infinity();
        }
    };
    float top = -infinity();
    // Of a row that is held every group, as those beyond the row are beyond last too: a branch would part the loads.
    each_group<LANES, HELD>(HELD > 0 ? HELD * LANES : groups, [&](int k, int v) {
        score(k, v);
        for (int i = 0; i < N; i++) {
            top = fmaxf(top, held[k][i]);
        }
    });
    top = team_max<LANES>(top);
    const float base = top == -infinity() ? 0.f : top;
    float total = 0;
    each_group<LANES, HELD>(groups, [&](int k, int v) {
        if (HELD == 0) {
            score(k, v);
        }
        for (int i = 0; i < N; i++) {
            held[k][i] = expf(held[k][i] - base);
            total += held[k][i];
        }
    });
    total = team_sum<LANES>(total);
    const float each = total == 0 ? 1.f : 1.f / total;
    each_group<LANES, HELD>(groups, [&](int k, int v) {
        if (HELD == 0) {
            score(k, v);
        }
        for (int i = 0; i < N; i++) {
            held[k][i] = (HELD > 0 ? held[k][i] : expf(held[k][i] - base)) * each;
        }
        store(out + i64(v) * N, held[k]);
    });
}

// out = factor p (g - sum(g p)); out may be g.
template <class T, int N, int LANES, int HELD>
__device__ inline void pullback(const T *g, const T *p, T *out, i64 rows, i64 width, float factor) {
    const i64 r = team<LANES>();
    if (r >= rows) {
        return;
    }
    const i64 start = r * width;
    const int groups = int(width / N), room = HELD > 0 ? HELD : 1;
    uint4 asked_g[room], asked_p[room];
    ask<LANES, HELD>(g + start, groups, asked_g);
    ask<LANES, HELD>(p + start, groups, asked_p);
    float along = 0;
    each_group<LANES, HELD>(groups, [&](int k, int v) {
        float given[N], shares[N];
        take<HELD>(asked_g, g + start, k, v, given);
        take<HELD>(asked_p, p + start, k, v, shares);
        for (int i = 0; i < N; i++) {
            along += given[i] * shares[i];
        }
    });
    along = team_sum<LANES>(along);
    each_group<LANES, HELD>(groups, [&](int k, int v) {
        float given[N], shares[N];
        take<HELD>(asked_g, g + start, k, v, given);
        take<HELD>(asked_p, p + start, k, v, shares);
        for (int i = 0; i < N; i++) {
            given[i] = factor * shares[i] * (given[i] - along);
        }
        store(out + start + i64(v) * N, given);
    });
}

#define MAKE_ROWS(T, name, N, LANES, HELD) \
    extern "C" __global__ void __launch_bounds__(THREADS) softmax_forward_##name( \
        const T *x, T *y, i64 rows, i64 width, float factor, i64 first, i64 period) { \
        forward<T, N, LANES, HELD>(x, y, rows, width, factor, first, period); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS) softmax_pullback_##name( \
        const T *g, const T *p, T *out, i64 rows, i64 width, float factor) { \
        pullback<T, N, LANES, HELD>(g, p, out, rows, width, factor); \
    }
#define MAKE(T, name) EACH_SHAPE(MAKE_ROWS, T, name)
EACH_TYPE(MAKE)
