// Tiles of attention: how they lie in shared memory, which keys a query sees, what is added to scores and what is dropped.
//
// A block has four warps and a tile of rows, which it shares out in order; each warp has M times 16 of them. It goes
// through tiles of columns. Rows are queries and columns keys, or, where a name says TURNED, rows are keys and columns
// queries. A thread's part of a tile of scores is s[m][n][i]: row 16 m + 8 (i / 2) + lane / 4, column 8 n + 2 (lane % 4)
// + i % 2, as tensor_cores.cu has it.

const int BLOCK = 128;

// What a kernel can do besides, as bits of its last number; as in attention_cuda.py. Without a bias, scores are scaled by
// the exponential.
const int DENSE = 1, BY_DIFFERENCE = 2, DROPPED = 4, ODD = 8, SCALED = 16;
__device__ constexpr bool is_scaled(int rules) { return (rules & (DENSE | BY_DIFFERENCE | SCALED)) != 0; }

const float LOG2_E = 1.44269504f;

struct Place { // values from one to the next
    i64 batch, head, row;
};

// As in attention_cuda.py. Queries and keys are counted within a batch row; query t stands at t + keys - queries and sees
// keys from `back` before its position to `ahead` after it, neither included.
struct Problem {
    Place q, k, v, y, g, gq, gk, gv, mask, bias;
    int batch, heads, queries, keys, width, back, ahead;
    int words;     // of a row of the mask
    int pitch;     // of the numbers of a head's queries
    int bias_key;  // values from the bias of a key to that of the next: 0 or 1
    int together;  // batch rows that add to one gradient of the bias
    int cluster;   // heads whose tiles come one after the other, so that what they read stays in the cache
    float scale, more;
    u32 threshold; // of dropout; 0 for none
};

__device__ inline int smaller(int a, int b) { return a < b ? a : b; }
__device__ inline int larger(int a, int b) { return a > b ? a : b; }

// ---- rows in shared memory

template <int WIDTH> struct Groups { // of 8 values: 16 bytes
    static const int count = WIDTH / 8;
    static const int apart = count % 8 == 0 ? 8 : count % 4 == 0 ? 4 : 2; // there is an even number of them
};

// Where a group of a row begins, in rows of WIDTH values. Groups change places by a rule that depends on the row, so that
// the same group of 8 rows one below the other lies in all 32 banks.
template <int WIDTH> __device__ inline int place(int row, int group) {
    constexpr int count = Groups<WIDTH>::count, apart = Groups<WIDTH>::apart;
    return (row * count + (group ^ (row / (8 / apart) % apart))) * 8;
}
// The place 2 k groups after that of one of the first two.
template <int WIDTH> __device__ inline int place_after(int place, int k) {
    constexpr int pairs = Groups<WIDTH>::apart / 2;
    return (place ^ (k % pairs * 16)) + k / pairs * (pairs * 16);
}

// COUNT rows of global memory from row `first` on, those before `end`; zeros for others, and beyond their width.
template <int COUNT, int WIDTH, class T>
__device__ inline void fetch(T *to, const T *from, i64 apart, int first, int end, int width) {
    constexpr int groups = Groups<WIDTH>::count, rows = BLOCK / groups; // rows at once
    if constexpr (BLOCK % groups == 0 && COUNT % rows == 0) {
        const int row = threadIdx.x / groups, group = threadIdx.x % groups;
        const int present = group * 8 < width ? end - first - row : 0;
        const T *source = from + (first + row) * apart + group * 8;
#pragma unroll
        for (int i = 0; i < COUNT; i += rows) {
            copy_async(to + place<WIDTH>(row + i, group), source, i < present);
            source += rows * apart;
        }
    } else {
        for (int at = threadIdx.x; at < COUNT * groups; at += BLOCK) {
            const int row = at / groups, group = at % groups;
            const bool present = first + row < end && group * 8 < width;
            copy_async(to + place<WIDTH>(row, group), from + i64(first + row) * apart + group * 8, present);
        }
    }
}
// The same value by value, for rows that begin anywhere or end within a group; nothing is under way afterwards.
template <int COUNT, int WIDTH, class T>
__device__ inline void fetch_singly(T *to, const T *from, i64 apart, int first, int end, int width) {
    constexpr int groups = Groups<WIDTH>::count;
    for (int at = threadIdx.x; at < COUNT * groups; at += BLOCK) {
        const int row = at / groups, group = at % groups;
        T *const into = to + place<WIDTH>(row, group);
        for (int i = 0; i < 8; i++) {
            const bool present = first + row < end && group * 8 + i < width;
            into[i].bits = present ? from[i64(first + row) * apart + group * 8 + i].bits : u16(0);
        }
    }
}
template <int RULES, int COUNT, int WIDTH, class T>
__device__ inline void fetch(T *to, const T *from, i64 apart, int first, int end, const Problem &p) {
    if constexpr (RULES & ODD) {
        fetch_singly<COUNT, WIDTH>(to, from, apart, first, end, p.width);
    } else {
        fetch<COUNT, WIDTH>(to, from, apart, first, end, p.width);
    }
}

// ---- products of a warp

// The 16 rows from `first` on and the columns of step k, as the left side of a product.
template <int WIDTH, class T> __device__ inline void load_left(u32 (&a)[4], const T *tile, int first, int k) {
    const int lane = threadIdx.x % 32;
    load_tiles(a, tile + first * WIDTH + place_after<WIDTH>(place<WIDTH>(lane % 16, lane / 16), k));
}

// s += left times the rows of a tile from `first` on: left(m, k, a) gives the left side's 16 rows m and columns of step k.
// AT_ONCE steps are one stretch of code: few where registers are scarce.
template <int WIDTH, int AT_ONCE, class T, int M, int N, class F>
__device__ inline void times_rows(float (&s)[M][N][4], F left, const T *tile, int first) {
    const int lane = threadIdx.x % 32, own = place<WIDTH>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll AT_ONCE
    for (int k = 0; k < WIDTH / 16; k++) {
        const T *const from = tile + first * WIDTH + place_after<WIDTH>(own, k);
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            left(m, k, a[m]);
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 b[4];
            load_tiles(b, from + 8 * n * WIDTH);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(s[m][n], a[m], b[0], b[1], T());
                multiply_add(s[m][n + 1], a[m], b[2], b[3], T());
            }
        }
    }
}

// Scores as the left side of a product: a[m][k] has columns 16 k to 16 k + 15.
template <class T, int M, int N> __device__ inline void pack_left(u32 (&a)[M][N / 2][4], const float (&x)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < 2 * N; i++) {
            const float *from = &x[m][i / 2][i % 2 * 2];
            a[m][i / 4][i % 4] = pair_of<T>(from[0], from[1]);
        }
    }
}

// o += a times as many rows of a tile as a has columns, from `first` on; of their groups of columns those from c on, a
// multiple of 8.
template <int WIDTH, class T, int M, int K, int C>
__device__ inline void times_columns(float (&o)[M][C][4], const u32 (&a)[M][K][4], const T *tile, int first, int c) {
    const int lane = threadIdx.x % 32, own = place<WIDTH>(lane % 16, lane / 16);
    const T *const from = tile + first * WIDTH + 8 * c;
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int n = 0; n < C; n += 2) {
            u32 b[4];
            load_tiles_turned(b, from + 16 * k * WIDTH + place_after<WIDTH>(own, n / 2));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(o[m][n], a[m][k], b[0], b[1], T());
                multiply_add(o[m][n + 1], a[m][k], b[2], b[3], T());
            }
        }
    }
}

template <int M, int N> __device__ inline void clear(float (&s)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[m][n][i] = 0;
            }
        }
    }
}

// f(m, n, i, row, column) for each value that a thread has of a tile.
template <int M, int N, class F> __device__ inline void each_score(F f) {
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                f(m, n, i, row + 16 * m + i / 2 * 8, column + 8 * n + i % 2);
            }
        }
    }
}

// Write a warp's rows, 16 M from `first` on, where they are below `end`: through shared memory, of which the warp has as
// many rows for itself, so that 16 bytes are written at once.
template <int RULES, int WIDTH, class T, int M, int C>
__device__ inline void write_rows(
    T *room, const float (&o)[M][C][4], T *to, i64 apart, int first, int end, int c, const Problem &p) {
    const int lane = threadIdx.x % 32;
    __syncwarp(); // nobody still reads what was there
    each_score<M, C>([&](int m, int n, int i, int row, int column) {
        if (i % 2 == 0) {
            T *const into = room + place<WIDTH>(row, c + n) + column % 8;
            *reinterpret_cast<u32 *>(into) = pair_of<T>(o[m][n][i], o[m][n][i + 1]);
        }
    });
    __syncwarp();
    for (int at = lane; at < 16 * M * C; at += 32) {
        const int row = at / C, group = c + at % C;
        if (first + row < end && group * 8 < p.width) {
            const T *from = room + place<WIDTH>(row, group);
            T *const into = to + i64(first + row) * apart + group * 8;
            if constexpr (RULES & ODD) {
                for (int i = 0; i < 8 && group * 8 + i < p.width; i++) {
                    into[i] = from[i];
                }
            } else {
                store_16_bytes(into, *reinterpret_cast<const uint4 *>(from));
            }
        }
    }
    __syncwarp();
}

// ---- who sees whom

struct Span { // from begin to end, which is not in it
    int begin, end;
};

// Keys of a batch row that anybody may see.
__device__ inline Span visible_keys(const Problem &p, const u32 *bounds, int b) {
    return bounds ? Span{int(bounds[2 * b]), int(bounds[2 * b + 1])} : Span{0, p.keys};
}
// Keys that some query of [first, end) sees, as far as positions say.
__device__ inline Span keys_of(const Problem &p, Span visible, int first, int end) {
    const int shift = p.keys - p.queries;
    return {larger(visible.begin, first + shift - p.back + 1), smaller(visible.end, end - 1 + shift + p.ahead)};
}
// Queries that see some key of [first, end).
__device__ inline Span queries_of(const Problem &p, Span visible, int first, int end) {
    const int shift = p.keys - p.queries;
    if (first >= visible.end || end <= visible.begin) {
        return {0, 0};
    }
    return {larger(0, first - p.ahead + 1 - shift), smaller(p.queries, end - 1 + p.back - shift)};
}
// Whether every query of [t, t_end) sees every key of [s, s_end), as far as positions say.
__device__ inline bool all_seen(const Problem &p, int t, int t_end, int s, int s_end) {
    const int shift = p.keys - p.queries;
    return s_end <= p.keys && s > t_end - 1 + shift - p.back && s_end - 1 < t + shift + p.ahead;
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

// ---- what is added to scores

// Scores times scale, and a bias; `dense` begins at the batch row and head, `by_difference` holds that of key s + j and
// query t + i at j - i + from.
template <int RULES, bool TURNED, class T, int M, int N>
__device__ inline void adjust(
    float (&x)[M][N][4], const Problem &p, const T *dense, const float *by_difference, int from, int t, int s) {
    each_score<M, N>([&](int m, int n, int i, int row, int column) {
        x[m][n][i] *= p.scale;
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

// The bias by difference of ROWS queries from t on and COLUMNS keys from s on: value ROWS - 1 + j - i for query t + i and
// key s + j. `table` begins at the head.
template <int QUERIES, int KEYS>
__device__ inline void fetch_differences(float *to, const float *table, const Problem &p, int t, int s) {
    for (int i = threadIdx.x; i < QUERIES + KEYS - 1; i += BLOCK) {
        const int at = s - t - QUERIES + i + p.queries;
        to[i] = at >= 0 && at < p.keys + p.queries - 1 ? table[at] : 0.f;
    }
}

// ---- dropout

struct Draw {
    uint2 key;
    u32 head; // among those of all batch rows
    u32 threshold;
};

// Eight decisions about query t: bit 2 i + e for key 32 group + 8 i + 2 quad + e, set if it stays.
__device__ inline u32 decisions(const Draw &draw, int t, int group, int quad) {
    const uint4 words = philox({draw.head, u32(t), u32(4 * group + quad), 0}, draw.key);
    const u32 each[4] = {words.x, words.y, words.z, words.w};
    u32 stay = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        stay |= u32((each[i] & 0xffff) >= draw.threshold) << (2 * i);
        stay |= u32((each[i] >> 16) >= draw.threshold) << (2 * i + 1);
    }
    return stay;
}

// Which of a thread's scores stay; all if nothing is drawn. The tile begins at query t and at key s: a multiple of 32, or
// TURNED of 16.
template <bool TURNED, int M, int N> struct Stays {
    u32 bits[TURNED ? N : 2 * M][TURNED ? 2 : N / 4];

    __device__ inline void draw(const Draw &draw, int t, int s) {
        const int lane = threadIdx.x % 32;
        if constexpr (TURNED) {
            // Lanes of rows side by side decide for the two columns in turn, and tell each other.
            const int row = lane / 4, own = row % 2;
#pragma unroll
            for (int n = 0; n < N; n++) {
                const u32 mine = decisions(draw, t + 8 * n + lane % 4 * 2 + own, s / 32, row / 2);
                const u32 others = __shfl_xor_sync(EVERY_LANE, mine, 4);
                const int from = s % 32 / 8 * 2 + own;
                bits[n][0] = (own ? others : mine) >> from;
                bits[n][1] = (own ? mine : others) >> from;
            }
        } else {
#pragma unroll
            for (int m = 0; m < 2 * M; m++) {
#pragma unroll
                for (int n = 0; n < N / 4; n++) {
                    bits[m][n] = decisions(draw, t + lane / 4 + 8 * m, s / 32 + n, lane % 4);
                }
            }
        }
    }

    __device__ inline bool at(int m, int n, int i) const {
        if constexpr (TURNED) {
            return bits[n][i % 2] >> (4 * m + i / 2 * 2) & 1;
        } else {
            return bits[2 * m + i / 2][n / 4] >> (n % 4 * 2 + i % 2) & 1;
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
template <int M, int N, int PITCH>
__device__ inline void add_differences(float *to, float *room, const float (&x)[M][N][4], int s, const Problem &p) {
    static_assert(N == 4, "a lane for each column");
    const int lane = threadIdx.x % 32;
    __syncwarp(); // nobody still reads what was there
    each_score<M, N>([&](int m, int n, int i, int row, int column) { room[row * PITCH + column] = x[m][n][i]; });
    __syncwarp();
    float near = 0, far = 0; // of differences number `lane` and `lane` + 32
#pragma unroll 8
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
