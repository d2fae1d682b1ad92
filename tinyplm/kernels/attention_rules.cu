// What attention does with scores: which keys a query sees, what is added to scores, and what is dropped. Rows of a tile are
// queries and columns keys, or, where a name says TURNED, rows are keys and columns queries.

[[maybe_unused]] const float LOG2_E = 1.44269504f;

__device__ inline int smaller(int a, int b) { return a < b ? a : b; }
__device__ inline int larger(int a, int b) { return a > b ? a : b; }

// ---- who sees whom

struct Span { // from begin to end, which is not in it
    int begin, end;
};

// Keys of a batch row that anybody may see; one mask may be that of all rows.
__device__ inline Span visible_keys(const Problem &p, const u32 *bounds, int b) {
    const u32 *const own = bounds + (p.mask.batch ? 2 * b : 0);
    return bounds ? Span{int(own[0]), int(own[1])} : Span{0, p.keys};
}
// Keys that some query of [first, end) sees, as far as positions say.
__device__ inline Span keys_of(const Problem &p, Span visible, int first, int end) {
    const int shift = p.keys - p.queries;
    return {larger(visible.begin, first + shift - p.back + 1), smaller(visible.end, end - 1 + shift + p.ahead)};
}
// Queries that see some key of [first, end).
__device__ inline Span queries_of(const Problem &p, Span visible, int first, int end) {
    const int shift = p.keys - p.queries;
    first = larger(first, visible.begin);
    end = smaller(end, visible.end);
    if (first >= end) {
        return {0, 0};
    }
    return {larger(0, first - p.ahead + 1 - shift), smaller(p.queries, end - 1 + p.back - shift)};
}
// Whether every query of [t, t_end) sees every key of [s, s_end), as far as positions say.
__device__ inline bool all_seen(const Problem &p, int t, int t_end, int s, int s_end) {
    const int shift = p.keys - p.queries;
    return s_end <= p.keys && s > t_end - 1 + shift - p.back && s_end - 1 < t + shift + p.ahead;
}

// Whether a mask of keys alone shows all of some keys, from one on that is a multiple of 32 or, of 16, of 16.
template <int COUNT> __device__ inline bool all_shown(const Problem &p, const u32 *mask, int s) {
    static_assert(COUNT == 16 || COUNT % 32 == 0, "half a word, or whole ones");
    if (p.mask.row != 0) {
        return false;
    }
    if constexpr (COUNT == 16) {
        return (mask[s / 32] >> (s % 32) & 0xffff) == 0xffff;
    } else {
        bool all = true;
#pragma unroll
        for (int i = 0; i < COUNT / 32; i++) {
            all = all && mask[s / 32 + i] == ~0u;
        }
        return all;
    }
}

// Which of keys 32 word, 32 word + 1, ... a query sees: a bit for each. `mask` begins at the batch row and head.
__device__ inline u32 seen_by(const Problem &p, const u32 *mask, int query, int word) {
    const int position = query + p.keys - p.queries;
    const int begin = position - p.back + 1 - 32 * word;
    const int end = smaller(p.keys, position + p.ahead) - 32 * word;
    const u32 before = u32((u64(1) << smaller(larger(end, 0), 32)) - 1);
    u32 bits = before & u32(~u64(0) << smaller(larger(begin, 0), 32));
    if (mask) {
        bits &= query < p.queries && word < p.words ? mask[i64(query) * p.mask.row + word] : 0u;
    }
    return bits;
}

// Minus infinity for scores of keys that are not seen. The tile begins at query t and at key s: a multiple of 32, or
// TURNED of 16.
template <bool TURNED, int M, int N>
__device__ inline void hide(float (&x)[M][N][4], const Problem &p, const u32 *mask, int t, int s) {
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    if constexpr (TURNED) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const u32 bits = seen_by(p, mask, t + column + 8 * n + i, s / 32) >> (s % 32 + row);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    x[m][n][i] = bits >> (16 * m) & 1 ? x[m][n][i] : -infinity();
                    x[m][n][i + 2] = bits >> (16 * m + 8) & 1 ? x[m][n][i + 2] : -infinity();
                }
            }
        }
    } else {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
#pragma unroll
                for (int n = 0; n < N; n += 4) {
                    const u32 bits = seen_by(p, mask, t + row + 16 * m + 4 * i, s / 32 + n / 4) >> column;
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        x[m][n + k][i] = bits >> (8 * k) & 1 ? x[m][n + k][i] : -infinity();
                        x[m][n + k][i + 1] = bits >> (8 * k + 1) & 1 ? x[m][n + k][i + 1] : -infinity();
                    }
                }
            }
        }
    }
}

// ---- scores and powers of two

// What makes powers of two of a kernel's scores.
template <int RULES> __device__ inline float factor_of(const Problem &p) {
    return RULES & DENSE ? LOG2_E : is_scaled(RULES) ? 1.f : p.scale * LOG2_E;
}
// The difference of two scores as powers of two.
template <int RULES> __device__ inline float apart(float score, float other, float factor) {
    return !is_scaled(RULES) ? score * factor - other * factor : RULES & DENSE ? (score - other) * factor : score - other;
}

// ---- what is added to scores

// Scores, scaled, and a bias; `dense` begins at the batch row and head, `by_difference` holds that of key s + j and
// query t + i at j - i + from.
template <int RULES, bool TURNED, class T, int M, int N>
__device__ inline void adjust(
    float (&x)[M][N][4], const Problem &p, const T *dense, const float *by_difference, int from, int t, int s) {
    each_score<M, N>([&](int m, int n, int i, int row, int column) {
        x[m][n][i] *= RULES & DENSE ? p.scale : p.scale * LOG2_E;
    });
    if constexpr (RULES & DENSE) {
        const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
        // One query after the other, so that no more than one address is held.
#pragma unroll
        for (int one = 0; one < (TURNED ? 2 * N : 2 * M); one++) {
            const int query = t + (TURNED ? column + one / 2 * 8 + one % 2 : row + 8 * one);
            const T *const of_query = dense + i64(query) * p.bias.row;
#pragma unroll
            for (int other = 0; other < (TURNED ? 2 * M : 2 * N); other++) {
                const int key = s + (TURNED ? row + 8 * other : column + other / 2 * 8 + other % 2);
                const int m = (TURNED ? other : one) / 2, n = (TURNED ? one : other) / 2;
                const int i = TURNED ? other % 2 * 2 + one % 2 : one % 2 * 2 + other % 2;
                if (query < p.queries && key < p.keys) {
                    x[m][n][i] += wide(of_query[key * p.bias_key]);
                }
            }
        }
    }
    if constexpr (RULES & BY_DIFFERENCE) {
        each_score<M, N>([&](int m, int n, int i, int row, int column) {
            x[m][n][i] += by_difference[(TURNED ? row - column : column - row) + from];
        });
    }
}

// The bias by difference, for powers of two, of ROWS queries from t on and COLUMNS keys from s on: value ROWS - 1 + j - i for query t + i and
// key s + j. `table` begins at the head.
template <int QUERIES, int KEYS>
__device__ inline void fetch_differences(float *to, const float *table, const Problem &p, int t, int s) {
    for (int i = threadIdx.x; i < QUERIES + KEYS - 1; i += BLOCK) {
        const int at = s - t - QUERIES + i + p.queries;
        to[i] = at >= 0 && at < p.keys + p.queries - 1 ? table[at] * LOG2_E : 0.f;
    }
}

// ---- dropout

struct Draw {
    uint2 key;
    u32 head; // among those of all batch rows
    u32 threshold;
};

// Eight decisions each about queries t, t + step, ...: bit 2 i + e for key 32 group + 8 i + 2 quad + e, set if it stays.
template <int COUNT>
__device__ inline void decide(u32 (&stay)[COUNT], const Draw &draw, int t, int step, int group, int quad) {
    uint4 words[COUNT];
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
        words[j] = {draw.head, u32(t + j * step), u32(4 * group + quad), 0};
    }
    philox(words, draw.key);
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
        const u32 each[4] = {words[j].x, words[j].y, words[j].z, words[j].w};
        stay[j] = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            stay[j] |= u32(each[i] << 16 >= draw.threshold << 16) << (2 * i);
            stay[j] |= u32(each[i] >= draw.threshold << 16) << (2 * i + 1);
        }
    }
}

// Which of a thread's scores stay; all if nothing is drawn. The tile begins at query t and at key s: a multiple of 32, or
// TURNED of 16.
template <bool TURNED, int M, int N> struct Stays {
    u32 bits[TURNED ? 2 : N / 4][TURNED ? N : 2 * M];

    __device__ inline void draw(const Draw &draw, int t, int s) {
        const int lane = threadIdx.x % 32;
        if constexpr (TURNED) {
            // Lanes of rows side by side decide for the two columns in turn, and tell each other.
            const int row = lane / 4, own = row % 2, from = s % 32 / 8 * 2 + own;
            u32 mine[N];
            decide(mine, draw, t + lane % 4 * 2 + own, 8, s / 32, row / 2);
#pragma unroll
            for (int n = 0; n < N; n++) {
                const u32 others = __shfl_xor_sync(EVERY_LANE, mine[n], 4);
                bits[0][n] = (own ? others : mine[n]) >> from;
                bits[1][n] = (own ? mine[n] : others) >> from;
            }
        } else {
#pragma unroll
            for (int n = 0; n < N / 4; n++) {
                decide(bits[n], draw, t + lane / 4, 8, s / 32 + n, lane % 4);
            }
        }
    }

    __device__ inline bool at(int m, int n, int i) const {
        if constexpr (TURNED) {
            return bits[i % 2][n] >> (4 * m + i / 2 * 2) & 1;
        } else {
            return bits[n / 4][2 * m + i / 2] >> (n % 4 * 2 + i % 2) & 1;
        }
    }
};

// ---- which tile and head a block has

struct Turn {
    int tile, head; // among those of all batch rows
};

// Tiles of `cluster` heads come one after the other, of each head tile 0 first, or the last one where LAST_FIRST.
template <bool LAST_FIRST> __device__ inline Turn turn_of(const Problem &p, int heads, int tiles) {
    const int whole = p.cluster * tiles, cluster = blockIdx.x / whole, place = blockIdx.x % whole;
    const int size = smaller(p.cluster, heads - cluster * p.cluster);
    const int tile = place / size;
    return {LAST_FIRST ? tiles - 1 - tile : tile, cluster * p.cluster + place % size};
}

// ---- the gradient of a bias by difference

// Add what a warp's tile of scores, 32 columns from key s on, gives to each difference: to[s + 16 M - 1 + j - i] for row i
// and column j. `room` is the warp's own, of 16 M rows.
template <int M, int N>
__device__ inline void add_differences(float *to, float *room, const float (&x)[M][N][4], int s, const Problem &p) {
    static_assert(N == 4, "a lane for each column");
    const int lane = threadIdx.x % 32;
    __syncwarp(); // nobody still reads what was there
    each_score<M, N>([&](int m, int n, int i, int row, int column) { room[row * PITCH + column] = x[m][n][i]; });
    __syncwarp();
    float near = 0, far = 0; // of differences number `lane` and `lane` + 32
#pragma unroll 4
    for (int row = 0; row < 16 * M; row++) {
        const int column = lane + row - (16 * M - 1);
        const float found = room[row * PITCH + (column & 31)];
        near += column >= 0 ? found : 0.f;
        far += column >= 0 ? 0.f : found;
    }
    const int at = s + lane, end = p.keys + 16 * M - 1;
    if (at < end) {
        to[at] += near;
    }
    if (lane < 16 * M - 1 && at + 32 < end) {
        to[at + 32] += far;
    }
    // The next tile adds to some of these by other lanes, which the first barrier above is for.
}
