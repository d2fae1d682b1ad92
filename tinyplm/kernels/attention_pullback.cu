// after: tensor_cores attention_tiles attention_rules
// The pullback of softmax attention, for one type and size of heads; see attention_plan.py. Probabilities are made again from the
// logarithm of each row's sum. Twice: a tile of keys goes through the queries for the gradients of keys and values, a tile
// of queries through the keys for that of queries. So nothing is added by two blocks, at the price of 7 products instead of 5.

const int PIECE = 32; // columns whose scores a warp has in registers at once

// exp(score - log_sum); but for a dense bias log_sum is one of powers of two.
template <int RULES> __device__ inline float probability(float score, float log_sum, float factor) {
    return exp2_near(is_scaled(RULES) ? apart<RULES>(score, log_sum, factor) : score * factor - log_sum);
}

// `numbers` are two of each query, (2, batch rows, heads, pitch): the logarithm of its sum, and the sum of its result times
// the gradient. The pitch is a whole number of tiles; behind the last query there are infinity and 0.
template <class T, int WIDTH, int M, int QUERIES, int PARTS, int RULES>
__device__ inline void pullback_of_keys(
    const T *g, const T *q, const T *k, const T *v, const T *bias, const float *table, const u32 *mask,
    const u32 *bounds, const float *numbers, T *gk, T *gv, u64 seed, const Problem &p) {
    constexpr int KEYS = 64 * M, N = PIECE / 8, C = WIDTH / 8 / PARTS;
    const int warp = threadIdx.x / 32, tiles = (p.keys + KEYS - 1) / KEYS;
    const Turn turn = turn_of<false>(p, p.batch * p.heads, tiles * PARTS);
    const int b = turn.head / p.heads, h = turn.head % p.heads, s = turn.tile / PARTS * KEYS, shift = p.keys - p.queries;
    const int c = turn.tile % PARTS * C; // the first group of 8 columns that this block has
    g += b * p.g.batch + h * p.g.head;
    q += b * p.q.batch + h * p.q.head;
    k += b * p.k.batch + h * p.k.head;
    v += b * p.v.batch + h * p.v.head;
    mask = mask ? mask + b * p.mask.batch + h * p.mask.head : nullptr;
    bias += b * p.bias.batch + h * p.bias.head;
    table += i64(h) * (p.keys + p.queries - 1);

    DYNAMIC_SHARED(shared);
    unsigned char *room = shared;
    T *const keys = take<T>(room, KEYS * WIDTH), *const values = take<T>(room, KEYS * WIDTH);
    T *const tiles_of_queries = take<T>(room, 4 * QUERIES * WIDTH);       // queries and gradients, twice
    float *const numbers_of_queries = take<float>(room, 2 * 2 * QUERIES); // twice
    float *const left_room = take<float>(room, sizeof(T) == 4 ? 2 * 64 * M * PITCH : 0) + 2 * 16 * M * PITCH * warp;
    float *const differences = take<float>(room, 2 * (QUERIES + KEYS)); // twice, where there is such a bias
    const int s_warp = s + 16 * M * warp, s_end = s_warp + 16 * M;

    const Span visible = visible_keys(p, bounds, b), seen = queries_of(p, visible, s, smaller(s + KEYS, p.keys));
    const int first = seen.begin / QUERIES, last = seen.end > seen.begin ? (seen.end - 1) / QUERIES : -1;
    auto fetch_queries = [&](int tile) {
        T *const to = tiles_of_queries + tile % 2 * (2 * QUERIES * WIDTH);
        fetch<RULES, QUERIES, WIDTH>(to, q, p.q.row, tile * QUERIES, p.queries, p);
        fetch<RULES, QUERIES, WIDTH>(to + QUERIES * WIDTH, g, p.g.row, tile * QUERIES, p.queries, p);
        if (threadIdx.x < QUERIES / 2) { // four numbers each
            const int kind = threadIdx.x / (QUERIES / 4), four = threadIdx.x % (QUERIES / 4) * 4;
            const i64 row = i64(kind) * p.batch * p.heads + turn.head;
            float *const into = numbers_of_queries + tile % 2 * (2 * QUERIES) + kind * QUERIES + four;
            copy_async(into, numbers + row * p.pitch + tile * QUERIES + four, true);
        }
        if constexpr (RULES & BY_DIFFERENCE) {
            fetch_differences<QUERIES, KEYS>(differences + tile % 2 * (QUERIES + KEYS), table, p, tile * QUERIES, s);
        }
        close_copies();
    };
    auto left_keys = [&](int m, int step, auto &a) { load_left<WIDTH>(a, keys, 16 * (M * warp + m), step); };
    auto left_values = [&](int m, int step, auto &a) { load_left<WIDTH>(a, values, 16 * (M * warp + m), step); };

    const float factor = factor_of<RULES>(p);
    const Draw draw = {{u32(seed), u32(seed >> 32)}, u32(turn.head), p.threshold};
    float of_keys[M][C][4], of_values[M][C][4];
    clear(of_keys);
    clear(of_values);
    if (last >= first) {
        fetch<RULES, KEYS, WIDTH>(keys, k, p.k.row, s, p.keys, p);
        fetch<RULES, KEYS, WIDTH>(values, v, p.v.row, s, p.keys, p);
        fetch_queries(first);
    }
    for (int tile = first; tile <= last; tile++) {
        const T *const queries = tiles_of_queries + tile % 2 * (2 * QUERIES * WIDTH), *const gradients = queries + QUERIES * WIDTH;
        const float *const sums = numbers_of_queries + tile % 2 * (2 * QUERIES);
        wait_for_copies<0>();
        __syncthreads(); // the tile is there, and nobody reads the other one any more
        if (tile < last) {
            fetch_queries(tile + 1);
        }
#pragma unroll 1
        for (int part = 0; part < QUERIES; part += PIECE) {
            const int t = tile * QUERIES + part, t_end = smaller(t + PIECE, p.queries);
            if (s_warp >= p.keys || s_warp >= t_end + shift - 1 + p.ahead || s_end <= t + shift - p.back + 1) {
                continue; // none of these queries sees any of the warp's keys
            }
            float x[M][N][4];
            clear(x);
            times_rows<WIDTH, 2>(x, left_keys, queries, part);
            if constexpr (is_scaled(RULES)) {
                const float *const of_tile = differences + tile % 2 * (QUERIES + KEYS);
                adjust<RULES, true>(x, p, bias, of_tile, QUERIES - 1 + 16 * M * warp - part, t, s_warp);
            }
            if (!all_seen(p, t, t_end, s_warp, s_end) || (mask && !all_shown<16 * M>(p, mask, s_warp))) {
                hide<true>(x, p, mask, t, s_warp);
            }
            Stays<true, M, N> stays;
            if constexpr (RULES & DROPPED) {
                stays.draw(draw, t, s_warp);
            }
            each_score<M, N>([&](int m, int n, int i, int, int column) {
                x[m][n][i] = probability<RULES>(x[m][n][i], sums[part + column], factor);
            });
            Left<T, M, N> weights(left_room); // kept so, they leave room for the scores' gradients
            weights.put(x);
            if constexpr (RULES & DROPPED) {
                each_score<M, N>([&](int m, int n, int i, int, int) { x[m][n][i] = stays.at(m, n, i) ? x[m][n][i] : 0.f; });
                Left<T, M, N> some(left_room + 16 * M * PITCH);
                some.put(x);
                times_columns<WIDTH>(of_values, some, gradients, part, c);
            } else {
                times_columns<WIDTH>(of_values, weights, gradients, part, c);
            }
            clear(x);
            times_rows<WIDTH, 2>(x, left_values, gradients, part);
            each_score<M, N>([&](int m, int n, int i, int, int column) {
                if constexpr (RULES & DROPPED) {
                    x[m][n][i] = stays.at(m, n, i) ? x[m][n][i] * p.more : 0.f;
                }
                x[m][n][i] = weights.at(m, n, i) * (x[m][n][i] - sums[QUERIES + part + column]);
            });
            weights.put(x);
            times_columns<WIDTH>(of_keys, weights, queries, part, c);
        }
    }
    each_score<M, C>([&](int m, int n, int i, int, int) {
        of_keys[m][n][i] *= p.scale;
        of_values[m][n][i] *= p.more;
    });
    // A warp's keys and values are read by itself alone: their places are free.
    gk += b * p.gk.batch + h * p.gk.head;
    gv += b * p.gv.batch + h * p.gv.head;
    write_rows<RULES, WIDTH>(keys + 16 * M * warp * WIDTH, of_keys, gk, p.gk.row, s_warp, p.keys, c, p);
    write_rows<RULES, WIDTH>(values + 16 * M * warp * WIDTH, of_values, gv, p.gv.row, s_warp, p.keys, c, p);
}

// The gradient of a bias, where it is wanted, comes before the scale. `g_pairs` is that of a dense one, (batch rows / together, heads,
// queries, keys), and `g_direct` the same in its own type, where no two batch rows add to one; of one by difference
// `g_table` has sums for each warp's queries, (batch rows / together, heads, queries / 16 M, keys + 16 M - 1). They begin as zeros.
template <class T, int WIDTH, int M, int KEYS, int RULES>
__device__ inline void pullback_of_queries(
    const T *g, const T *q, const T *k, const T *v, const T *bias, const float *table, const u32 *mask,
    const u32 *bounds, const float *numbers, T *gq, float *g_pairs, T *g_direct, float *g_table,
    u64 seed, const Problem &p) {
    constexpr int QUERIES = 64 * M, N = PIECE / 8, C = WIDTH / 8;
    const int warp = threadIdx.x / 32, tiles = (p.queries + QUERIES - 1) / QUERIES;
    const int together = RULES & DENSE ? p.together : 1, runs = (p.batch + together - 1) / together;
    const Turn turn = turn_of<true>(p, runs * p.heads, tiles);
    const int run = turn.head / p.heads, h = turn.head % p.heads, t = turn.tile * QUERIES, shift = p.keys - p.queries;
    const int t_warp = t + 16 * M * warp, t_end = smaller(t_warp + 16 * M, p.queries);

    DYNAMIC_SHARED(shared);
    unsigned char *room = shared;
    T *const queries = take<T>(room, QUERIES * WIDTH), *const gradients = take<T>(room, QUERIES * WIDTH);
    T *const tiles_of_keys = take<T>(room, 4 * KEYS * WIDTH); // keys and values, twice
    float *const scores = take<float>(room, sizeof(T) == 4 || RULES & BY_DIFFERENCE ? 64 * M * PITCH : 0) + 16 * M * PITCH * warp;
    float *const differences = take<float>(room, 2 * (QUERIES + KEYS)); // twice, where there is such a bias
    table += i64(h) * (p.keys + p.queries - 1);
    const i64 pairs_at = i64(turn.head) * p.queries * p.keys;
    g_table += (i64(turn.head) * ((p.queries + 16 * M - 1) / (16 * M)) + t_warp / (16 * M)) * (p.keys + 16 * M - 1);
    auto left_queries = [&](int m, int step, auto &a) { load_left<WIDTH>(a, queries, 16 * (M * warp + m), step); };
    auto left_gradients = [&](int m, int step, auto &a) { load_left<WIDTH>(a, gradients, 16 * (M * warp + m), step); };
    const float factor = factor_of<RULES>(p);

    for (int b = run * together; b < smaller((run + 1) * together, p.batch); b++) {
        const int head = b * p.heads + h; // among those of all batch rows
        const T *const own_k = k + b * p.k.batch + h * p.k.head, *const own_v = v + b * p.v.batch + h * p.v.head;
        const u32 *const own_mask = mask ? mask + b * p.mask.batch + h * p.mask.head : nullptr;
        const T *const own_bias = bias + b * p.bias.batch + h * p.bias.head;
        const Span visible = visible_keys(p, bounds, b), seen = keys_of(p, visible, t, smaller(t + QUERIES, p.queries));
        const int first = seen.begin / KEYS, last = seen.end > seen.begin ? (seen.end - 1) / KEYS : -1;
        auto fetch_keys = [&](int tile) {
            T *const to = tiles_of_keys + tile % 2 * (2 * KEYS * WIDTH);
            fetch<RULES, KEYS, WIDTH>(to, own_k, p.k.row, tile * KEYS, p.keys, p);
            fetch<RULES, KEYS, WIDTH>(to + KEYS * WIDTH, own_v, p.v.row, tile * KEYS, p.keys, p);
            if constexpr (RULES & BY_DIFFERENCE) {
                fetch_differences<QUERIES, KEYS>(differences + tile % 2 * (QUERIES + KEYS), table, p, t, tile * KEYS);
            }
            close_copies();
        };
        const Draw draw = {{u32(seed), u32(seed >> 32)}, u32(head), p.threshold};
        float sums[2 * M], due[2 * M]; // numbers of each row
#pragma unroll
        for (int row = 0; row < 2 * M; row++) {
            const int query = t_warp + 8 * row + threadIdx.x % 32 / 4;
            sums[row] = numbers[i64(head) * p.pitch + query];
            due[row] = numbers[(i64(p.batch) * p.heads + head) * p.pitch + query];
        }
        float o[M][C][4];
        clear(o);
        if (last >= first) {
            fetch<RULES, QUERIES, WIDTH>(queries, q + b * p.q.batch + h * p.q.head, p.q.row, t, p.queries, p);
            fetch<RULES, QUERIES, WIDTH>(gradients, g + b * p.g.batch + h * p.g.head, p.g.row, t, p.queries, p);
            fetch_keys(last);
        }
        for (int tile = last; tile >= first; tile--) {
            const T *const keys = tiles_of_keys + tile % 2 * (2 * KEYS * WIDTH), *const values = keys + KEYS * WIDTH;
            wait_for_copies<0>();
            __syncthreads(); // the tile is there, and nobody reads the other one any more
            if (tile > first) {
                fetch_keys(tile - 1);
            }
#pragma unroll 1
            for (int part = 0; part < KEYS; part += PIECE) {
                const int s = tile * KEYS + part;
                if (t_warp >= p.queries || s >= t_end + shift - 1 + p.ahead || s + PIECE <= t_warp + shift - p.back + 1) {
                    continue; // none of the warp's queries sees any of these keys
                }
                float x[M][N][4], gx[M][N][4];
                clear(x);
                times_rows<WIDTH, 2>(x, left_queries, keys, part);
                if constexpr (is_scaled(RULES)) {
                    const float *const of_tile = differences + tile % 2 * (QUERIES + KEYS);
                    adjust<RULES, false>(x, p, own_bias, of_tile, QUERIES - 1 - 16 * M * warp + part, t_warp, s);
                }
                if (!all_seen(p, t_warp, t_end, s, s + PIECE) || (mask && !all_shown<PIECE>(p, own_mask, s))) {
                    hide<false>(x, p, own_mask, t_warp, s);
                }
                Stays<false, M, N> stays;
                if constexpr (RULES & DROPPED) {
                    stays.draw(draw, t_warp, s);
                }
                clear(gx);
                times_rows<WIDTH, 2>(gx, left_gradients, values, part);
                if constexpr (RULES & DROPPED) {
                    each_score<M, N>([&](int m, int n, int i, int, int) {
                        gx[m][n][i] = stays.at(m, n, i) ? gx[m][n][i] * p.more : 0.f;
                    });
                }
                each_score<M, N>([&](int m, int n, int i, int, int) {
                    const int row = 2 * m + i / 2;
                    x[m][n][i] = probability<RULES>(x[m][n][i], sums[row], factor) * (gx[m][n][i] - due[row]);
                });
                if constexpr (RULES & DENSE) {
                    each_score<M, N>([&](int m, int n, int i, int row, int column) {
                        const int query = t_warp + row, key = s + column;
                        const i64 at = pairs_at + i64(query) * p.keys + key;
                        if (query < p.queries && key < p.keys) {
                            if (g_direct) {
                                narrow(x[m][n][i], g_direct[at]);
                            } else {
                                g_pairs[at] += x[m][n][i];
                            }
                        }
                    });
                }
                if constexpr (RULES & BY_DIFFERENCE) {
                    add_differences<M, N>(g_table, scores, x, s, p);
                }
                Left<T, M, N> left(scores);
                left.put(x);
                times_columns<WIDTH>(o, left, keys, part, 0);
            }
        }
        each_score<M, C>([&](int m, int n, int i, int, int) { o[m][n][i] *= p.scale; });
        // A warp's queries are read by itself alone: their place is free.
        T *const to = gq + b * p.gq.batch + h * p.gq.head;
        write_rows<RULES, WIDTH>(queries + 16 * M * warp * WIDTH, o, to, p.gq.row, t_warp, p.queries, 0, p);
        __syncthreads(); // before the next batch row comes
    }
}

// For a type, values of a head at most (a multiple of 16), times 16 keys for each warp, queries of a tile, blocks that share
// the columns, and what else it can do.
#define MAKE_keys(T, WIDTH, M, QUERIES, PARTS, RULES) \
    extern "C" __global__ void __launch_bounds__(BLOCK, 2) attention_pullback_keys_##T( \
        const T *g, const T *q, const T *k, const T *v, const T *bias, const float *table, const u32 *mask, \
        const u32 *bounds, const float *numbers, T *gk, T *gv, i64 seed, const i64 *seed_at, \
        Problem p) { \
        pullback_of_keys<T, WIDTH, M, QUERIES, PARTS, RULES>( \
            g, q, k, v, bias, table, mask, bounds, numbers, gk, gv, u64(seed_at ? *seed_at : seed), p); \
    }
// The same of queries.
#define MAKE_queries(T, WIDTH, M, KEYS, RULES) \
    extern "C" __global__ void __launch_bounds__(BLOCK, 2) attention_pullback_queries_##T( \
        const T *g, const T *q, const T *k, const T *v, const T *bias, const float *table, const u32 *mask, \
        const u32 *bounds, const float *numbers, T *gq, float *g_pairs, T *g_direct, \
        float *g_table, i64 seed, const i64 *seed_at, Problem p) { \
        pullback_of_queries<T, WIDTH, M, KEYS, RULES>( \
            g, q, k, v, bias, table, mask, bounds, numbers, gq, g_pairs, g_direct, g_table, \
            u64(seed_at ? *seed_at : seed), p); \
    }
#define MAKE(OF, ...) MAKE_##OF(__VA_ARGS__)
