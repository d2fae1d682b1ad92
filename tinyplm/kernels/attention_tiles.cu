// Tiles of attention: how they lie in shared memory, which keys a query sees, what is added to scores and what is dropped.
//
// A block has four warps and a tile of rows, which it shares out in order; each warp has M times 16 of them. It goes
// through tiles of columns. Rows are queries and columns keys, or, where a name says TURNED, rows are keys and columns
// queries. A thread's part of a tile of scores is s[m][n][i]: row 16 m + 8 (i / 2) + lane / 4, column 8 n + 2 (lane % 4)
// + i % 2, as tensor_cores.cu has it.

const int BLOCK = 128;
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
    int bias_key;  // values from the bias of a key to that of the next: 0 or 1
    int odd;       // whether rows are read value by value, as they are not whole groups of 16 bytes
    int together;  // batch rows that add to one gradient of the bias
    int cluster;   // heads whose tiles come one after the other, so that what they read stays in the cache
    float scale, more;
    u32 threshold; // of dropout; 0 for none
};

__device__ inline int smaller(int a, int b) { return a < b ? a : b; }
__device__ inline int larger(int a, int b) { return a > b ? a : b; }

// ---- rows in shared memory

// Where a group of 8 values of a row begins, in rows of WIDTH values. Groups change places by a rule that depends on the
// row, so that the same group of 8 rows one below the other lies in all 32 banks.
template <int WIDTH> __device__ inline int place(int row, int group) {
    constexpr int groups = WIDTH / 8, apart = groups % 8 == 0 ? 8 : groups % 4 == 0 ? 4 : 2; // an even number of them
    return (row * groups + (group ^ (row / (8 / apart) % apart))) * 8;
}

// COUNT rows of global memory from row `first` on, those before `end`; zeros for others, and beyond their width.
template <int COUNT, int WIDTH, class T>
__device__ inline void fetch(T *to, const T *from, i64 apart, int first, int end, int width) {
    constexpr int groups = WIDTH / 8;
#pragma unroll
    for (int i = 0; i < COUNT * groups; i += BLOCK) {
        const int at = i + threadIdx.x, row = at / groups, group = at % groups;
        if (COUNT * groups % BLOCK == 0 || at < COUNT * groups) {
            const bool present = first + row < end && group * 8 < width;
            const T *source = from + (present ? i64(first + row) * apart + group * 8 : 0);
            copy_async(to + place<WIDTH>(row, group), source, present);
        }
    }
}
// The same value by value, for rows that begin anywhere or end within a group; nothing is under way afterwards.
template <int COUNT, int WIDTH, class T>
__device__ inline void fetch_singly(T *to, const T *from, i64 apart, int first, int end, int width) {
    constexpr int groups = WIDTH / 8;
    for (int at = threadIdx.x; at < COUNT * groups; at += BLOCK) {
        const int row = at / groups, group = at % groups;
        T *const into = to + place<WIDTH>(row, group);
        for (int i = 0; i < 8; i++) {
            const bool present = first + row < end && group * 8 + i < width;
            into[i].bits = present ? from[i64(first + row) * apart + group * 8 + i].bits : u16(0);
        }
    }
}
template <bool ANY, int COUNT, int WIDTH, class T>
__device__ inline void fetch(T *to, const T *from, i64 apart, int first, int end, const Problem &p) {
    if (ANY && p.odd) {
        fetch_singly<COUNT, WIDTH>(to, from, apart, first, end, p.width);
    } else {
        fetch<COUNT, WIDTH>(to, from, apart, first, end, p.width);
    }
}

// ---- products of a warp

// The 16 rows from `first` on and the columns of step k, as the left side of a product.
template <int WIDTH, class T> __device__ inline void load_left(u32 (&a)[4], const T *tile, int first, int k) {
    const int lane = threadIdx.x % 32;
    load_tiles(a, tile + place<WIDTH>(first + lane % 16, 2 * k + lane / 16));
}

// s += left times the rows of a tile from `first` on: left(m, k, a) gives the left side's 16 rows m and columns of step k.
template <int WIDTH, class T, int M, int N, class F>
__device__ inline void times_rows(float (&s)[M][N][4], F left, const T *tile, int first) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            left(m, k, a[m]);
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 b[4];
            load_tiles(b, tile + place<WIDTH>(first + 8 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(s[m][n], a[m], b[0], b[1], T());
                multiply_add(s[m][n + 1], a[m], b[2], b[3], T());
            }
        }
    }
}

// o += x times as many rows of a tile as x has columns, from `first` on; of their columns those from group 8 c on.
template <int WIDTH, class T, int M, int N, int C>
__device__ inline void times_columns(float (&o)[M][C][4], const float (&x)[M][N][4], const T *tile, int first, int c) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *from = &x[m][2 * k + i / 2][i % 2 * 2];
                a[m][i] = pair_of<T>(from[0], from[1]);
            }
        }
#pragma unroll
        for (int n = 0; n < C; n += 2) {
            u32 b[4];
            load_tiles_turned(b, tile + place<WIDTH>(first + 16 * k + lane % 16, c + n + lane / 16));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(o[m][n], a[m], b[0], b[1], T());
                multiply_add(o[m][n + 1], a[m], b[2], b[3], T());
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
template <bool ANY, int WIDTH, class T, int M, int C>
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
            if (ANY && p.odd) {
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
__device__ inline bool all_seen(const Problem &p, Span visible, int t, int t_end, int s, int s_end) {
    const int shift = p.keys - p.queries;
    return s >= visible.begin && s_end <= visible.end && s > t_end - 1 + shift - p.back && s_end - 1 < t + shift + p.ahead;
}

// Minus infinity for scores of keys that are not seen. The tile begins at query t and key s, a multiple of 16; `mask`
// begins at the batch row and head.
template <bool TURNED, int M, int N>
__device__ inline void hide(float (&x)[M][N][4], const Problem &p, const u32 *mask, Span visible, int t, int s) {
    const int shift = p.keys - p.queries;
    each_score<M, N>([&](int m, int n, int i, int row, int column) {
        const int query = t + (TURNED ? column : row), key = s + (TURNED ? row : column);
        const int position = query + shift;
        const bool seen = key >= visible.begin && key < visible.end && key > position - p.back && key < position + p.ahead;
        x[m][n][i] = seen ? x[m][n][i] : -infinity();
    });
    if (mask) {
        each_score<M, N>([&](int m, int n, int i, int row, int column) {
            const int query = t + (TURNED ? column : row), key = s + (TURNED ? row : column);
            const int word = (s + (TURNED ? 16 * m : 8 * n)) / 32;
            const u32 bits = query < p.queries && word < p.words ? mask[i64(query) * p.mask.row + word] : 0u;
            x[m][n][i] = bits >> (key % 32) & 1 ? x[m][n][i] : -infinity();
        });
    }
}

// ---- what is added to scores

// Scores times scale, and a bias; `dense` begins at the batch row and head, `by_difference` holds that of key s + j and
// query t + i at j - i + from.
template <bool TURNED, class T, int M, int N>
__device__ inline void adjust(
    float (&x)[M][N][4], const Problem &p, const T *dense, const float *by_difference, int from, int t, int s) {
    each_score<M, N>([&](int m, int n, int i, int row, int column) {
        x[m][n][i] *= p.scale;
    });
    if (dense) {
        each_score<M, N>([&](int m, int n, int i, int row, int column) {
            const int query = t + (TURNED ? column : row), key = s + (TURNED ? row : column);
            if (query < p.queries && key < p.keys) {
                x[m][n][i] += wide(dense[i64(query) * p.bias.row + key * p.bias_key]);
            }
        });
    }
    if (by_difference) {
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
#pragma unroll
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
