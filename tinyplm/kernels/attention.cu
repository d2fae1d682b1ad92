// after: tensor_cores attention_tiles attention_rules
// Softmax attention, forward, for one type and size of heads; see attention_plan.py.


// A score that is larger than the one all are compared to takes its place only if its exponential is larger than 2 to this:
// what has been added up is seldom scaled, and far from the end of what float16 holds.
const float NEAR = 8;

// One block for each tile of queries of a head. It goes through the tiles of keys that are seen, the last one first, while
// the next one is under way. It keeps of each query a score near the largest so far, the sum of exp(score - that), and the
// values weighted with these, which shrink when a larger score comes (Milakov and Gimelshein, 2018).
template <class T, int WIDTH, int M, int KEYS, int RULES>
__device__ inline void forward(
    const T *q, const T *k, const T *v, const T *bias, const float *table, const u32 *mask, const u32 *bounds, T *y,
    float *log_sum, u64 seed, const Problem &p) {
    constexpr int QUERIES = 64 * M, N = KEYS / 8, C = WIDTH / 8;
    constexpr int STEPS = M > 1 && (RULES != 0 || WIDTH > 64) ? 2 : WIDTH / 16;
    constexpr bool HELD = sizeof(T) == 2 && M * WIDTH <= 64; // whether a warp's queries stay in registers
    const int warp = threadIdx.x / 32, tiles = (p.queries + QUERIES - 1) / QUERIES;
    const Turn turn = turn_of<true>(p, p.batch * p.heads, tiles);
    const int b = turn.head / p.heads, h = turn.head % p.heads, t = turn.tile * QUERIES, shift = p.keys - p.queries;
    q += b * p.q.batch + h * p.q.head;
    k += b * p.k.batch + h * p.k.head;
    v += b * p.v.batch + h * p.v.head;
    y += b * p.y.batch + h * p.y.head;
    mask = mask ? mask + b * p.mask.batch + h * p.mask.head : nullptr;
    bias += b * p.bias.batch + h * p.bias.head;
    table += i64(h) * (p.keys + p.queries - 1);

    DYNAMIC_SHARED(shared);
    unsigned char *room = shared;
    T *const queries = take<T>(room, QUERIES * WIDTH);
    T *const tiles_of_keys = take<T>(room, 4 * KEYS * WIDTH); // keys and values, twice
    float *const left_room = take<float>(room, sizeof(T) == 4 ? 64 * M * PITCH : 0) + 16 * M * PITCH * warp;
    float *const differences = take<float>(room, 2 * (QUERIES + KEYS)); // twice, where there is such a bias
    const int t_warp = t + 16 * M * warp, t_end = smaller(t_warp + 16 * M, p.queries);

    const Span visible = visible_keys(p, bounds, b), seen = keys_of(p, visible, t, smaller(t + QUERIES, p.queries));
    const int first = seen.begin / KEYS, last = seen.end > seen.begin ? (seen.end - 1) / KEYS : -1;
    auto fetch_keys = [&](int tile) {
        T *const to = tiles_of_keys + tile % 2 * (2 * KEYS * WIDTH);
        fetch<RULES, KEYS, WIDTH>(to, k, p.k.row, tile * KEYS, p.keys, p);
        fetch<RULES, KEYS, WIDTH>(to + KEYS * WIDTH, v, p.v.row, tile * KEYS, p.keys, p);
        if constexpr (RULES & BY_DIFFERENCE) {
            fetch_differences<QUERIES, KEYS>(differences + tile % 2 * (QUERIES + KEYS), table, p, t, tile * KEYS);
        }
        close_copies();
    };

    u32 held[HELD ? M : 1][HELD ? WIDTH / 16 : 1][4];
    auto left = [&](int m, int step, auto &a) {
        if constexpr (HELD) {
            for (int i = 0; i < 4; i++) {
                a[i] = held[m][step][i];
            }
        } else {
            load_left<WIDTH>(a, queries, 16 * (M * warp + m), step);
        }
    };

    const float factor = factor_of<RULES>(p);
    float o[M][C][4], largest[2 * M], sum[2 * M];
    clear(o);
    for (int i = 0; i < 2 * M; i++) {
        largest[i] = is_scaled(RULES) ? -3.4028234e38f : -1e30f;
        sum[i] = 0;
    }
    const Draw draw = {{u32(seed), u32(seed >> 32)}, u32(turn.head), p.threshold};

    if (last >= first) {
        fetch<RULES, QUERIES, WIDTH>(queries, q, p.q.row, t, p.queries, p);
        fetch_keys(last);
    }
    for (int tile = last; tile >= first; tile--) {
        const T *const keys = tiles_of_keys + tile % 2 * (2 * KEYS * WIDTH), *const values = keys + KEYS * WIDTH;
        const int s = tile * KEYS;
        wait_for_copies<0>();
        __syncthreads(); // the tile is there, and nobody reads the other one any more
        if (tile > first) {
            fetch_keys(tile - 1);
        }
        if constexpr (HELD) {
            if (tile == last) {
                for (int m = 0; m < M; m++) {
                    for (int step = 0; step < WIDTH / 16; step++) {
                        load_left<WIDTH>(held[m][step], queries, 16 * (M * warp + m), step);
                    }
                }
            }
        }
        if (t_warp >= p.queries || s >= t_end + shift - 1 + p.ahead || s + KEYS <= t_warp + shift - p.back + 1) {
            continue; // none of the warp's queries sees any of it
        }
        Stays<false, M, N> stays;
        if constexpr ((RULES & DROPPED) && WIDTH > 128) { // registers are scarcer behind the scores
            stays.draw(draw, t_warp, s);
        }
        float x[M][N][4];
        clear(x);
        times_rows<WIDTH, STEPS>(x, left, keys, 0);
        if constexpr (is_scaled(RULES)) {
            const float *const of_tile = differences + tile % 2 * (QUERIES + KEYS);
            adjust<RULES, false>(x, p, bias, of_tile, QUERIES - 1 - 16 * M * warp, t_warp, s);
        }
        if (!all_seen(p, t_warp, t_end, s, s + KEYS) || (mask && !all_shown<KEYS>(p, mask, s))) {
            hide<false>(x, p, mask, t_warp, s);
        }
        float shrink[2 * M];
        bool moves = false;
#pragma unroll
        for (int row = 0; row < 2 * M; row++) {
            const int m = row / 2, i = row % 2 * 2;
            float top = largest[row];
#pragma unroll
            for (int n = 0; n < N; n++) {
                top = fmaxf(top, fmaxf(x[m][n][i], x[m][n][i + 1]));
            }
            top = fmaxf(top, __shfl_xor_sync(EVERY_LANE, top, 1));
            top = fmaxf(top, __shfl_xor_sync(EVERY_LANE, top, 2));
            const float growth = apart<RULES>(top, largest[row], factor);
            const bool grows = growth > NEAR; // never for what is not a number
            shrink[row] = grows ? exp2_near(-growth) : 1.f;
            largest[row] = grows ? top : largest[row];
            moves |= grows;
        }
        if (moves) {
#pragma unroll
            for (int row = 0; row < 2 * M; row++) {
                const int m = row / 2, i = row % 2 * 2;
                sum[row] *= shrink[row];
#pragma unroll
                for (int n = 0; n < C; n++) {
                    o[m][n][i] *= shrink[row];
                    o[m][n][i + 1] *= shrink[row];
                }
            }
        }
        each_score<M, N>([&](int m, int n, int i, int, int) {
            const int row = 2 * m + i / 2;
            x[m][n][i] = exp2_near(apart<RULES>(x[m][n][i], largest[row], factor));
            sum[row] += x[m][n][i];
        });
        if constexpr (RULES & DROPPED) {
            if constexpr (WIDTH <= 128) {
                stays.draw(draw, t_warp, s);
            }
            each_score<M, N>([&](int m, int n, int i, int, int) { x[m][n][i] = stays.at(m, n, i) ? x[m][n][i] : 0.f; });
        }
        Left<T, M, N> weights(left_room);
        weights.put(x);
        times_columns<WIDTH>(o, weights, values, 0, 0);
    }

#pragma unroll
    for (int row = 0; row < 2 * M; row++) {
        const int m = row / 2, i = row % 2 * 2, query = t_warp + 8 * row + threadIdx.x % 32 / 4;
        float total = sum[row];
        total += __shfl_xor_sync(EVERY_LANE, total, 1);
        total += __shfl_xor_sync(EVERY_LANE, total, 2);
        const float share = total == 0 ? 0.f : p.more / total;
#pragma unroll
        for (int n = 0; n < C; n++) {
            o[m][n][i] *= share;
            o[m][n][i + 1] *= share;
        }
        if (threadIdx.x % 4 == 0 && query < p.queries) {
            const float top = largest[row] * (RULES & DENSE ? 1.f : is_scaled(RULES) ? 1 / LOG2_E : p.scale);
            log_sum[i64(turn.head) * p.queries + query] = total == 0 ? infinity() : top + logf(total);
        }
    }
    // A warp's queries are read by itself alone: their place is free.
    write_rows<RULES, WIDTH>(queries + 16 * M * warp * WIDTH, o, y, p.y.row, t_warp, p.queries, 0, p);
}

// For a type, values of a head at most (a multiple of 16), times 16 queries for each warp, keys of a tile, and what else it
// can do.
#define MAKE(T, WIDTH, M, KEYS, RULES) \
    extern "C" __global__ void __launch_bounds__(BLOCK, 2) attention_forward_##T( \
        const T *q, const T *k, const T *v, const T *bias, const float *table, const u32 *mask, const u32 *bounds, T *y, \
        float *log_sum, i64 seed, const i64 *seed_at, Problem p) { \
        forward<T, WIDTH, M, KEYS, RULES>( \
            q, k, v, bias, table, mask, bounds, y, log_sum, u64(seed_at ? *seed_at : seed), p); \
    }
