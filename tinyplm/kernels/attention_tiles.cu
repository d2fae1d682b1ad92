// Tiles of attention: how rows lie in shared memory, and how a warp multiplies them. Of halves tensor cores do it, of floats
// each thread for itself, and both leave scores in the same places.
//
// A block has four warps and a tile of rows, which it shares out in order; each warp has M times 16 of them. It goes
// through tiles of columns. A thread's part of a tile of scores is s[m][n][i]: row 16 m + 8 (i / 2) + lane / 4, column
// 8 n + 2 (lane % 4) + i % 2, as tensor_cores.cu has it.

const int BLOCK = 128;

// What a kernel can do besides, as bits of its last number; as in attention_plan.py. Plain scores are scaled by the
// exponential; others before, to powers of two, or with a dense bias, which may be near infinity, to those of e.
[[maybe_unused]] const int DENSE = 1, BY_DIFFERENCE = 2, DROPPED = 4, ODD = 8, SCALED = 16;
__device__ constexpr bool is_scaled(int rules) { return (rules & (DENSE | BY_DIFFERENCE | SCALED)) != 0; }

struct Place { // values from one to the next
    i64 batch, head, row;
};

// As in attention_plan.py. Queries and keys are counted within a batch row; query t stands at t + keys - queries and sees
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

// ---- rows in shared memory

template <class T> __device__ inline T *take(unsigned char *&room, int count) {
    T *const taken = reinterpret_cast<T *>(room);
    room += count * sizeof(T);
    return taken;
}

template <int WIDTH, class T> struct Groups { // of 16 bytes
    static const int size = Fits<T>::count, count = WIDTH / size;
    static const int apart = count % 8 == 0 ? 8 : count % 4 == 0 ? 4 : 2; // there is an even number of them
};

// Where a group of a row begins, in rows of WIDTH values. Groups change places by a rule that depends on the row, so that
// the same group of 8 rows one below the other lies in all 32 banks.
template <int WIDTH, class T> __device__ inline int place(int row, int group) {
    constexpr int count = Groups<WIDTH, T>::count, apart = Groups<WIDTH, T>::apart;
    return (row * count + (group ^ (row / (8 / apart) % apart))) * Groups<WIDTH, T>::size;
}
// Of halves, the place 2 k groups after that of one of the first two.
template <int WIDTH, class T> __device__ inline int place_after(int place, int k) {
    constexpr int pairs = Groups<WIDTH, T>::apart / 2;
    return (place ^ (k % pairs * 16)) + k / pairs * (pairs * 16);
}

// COUNT rows of global memory from row `first` on, those before `end`; zeros for others, and beyond their width.
template <int COUNT, int WIDTH, class T>
__device__ inline void fetch(T *to, const T *from, i64 apart, int first, int end, int width) {
    constexpr int groups = Groups<WIDTH, T>::count, size = Groups<WIDTH, T>::size, rows = BLOCK / groups; // rows at once
    if constexpr (BLOCK % groups == 0 && COUNT % rows == 0) {
        const int row = threadIdx.x / groups, group = threadIdx.x % groups;
        const int present = group * size < width ? end - first - row : 0;
        const T *source = from + i64(first + row) * apart + group * size;
#pragma unroll
        for (int i = 0; i < COUNT; i += rows) {
            copy_async(to + place<WIDTH, T>(row + i, group), source, i < present);
            source += rows * apart;
        }
    } else {
        for (int at = threadIdx.x; at < COUNT * groups; at += BLOCK) {
            const int row = at / groups, group = at % groups;
            const bool present = first + row < end && group * size < width;
            copy_async(to + place<WIDTH, T>(row, group), from + i64(first + row) * apart + group * size, present);
        }
    }
}
// The same value by value, for rows that begin anywhere or end within a group; nothing is under way afterwards.
template <int COUNT, int WIDTH, class T>
__device__ inline void fetch_singly(T *to, const T *from, i64 apart, int first, int end, int width) {
    constexpr int groups = Groups<WIDTH, T>::count, size = Groups<WIDTH, T>::size;
    for (int at = threadIdx.x; at < COUNT * groups; at += BLOCK) {
        const int row = at / groups, group = at % groups;
        T *const into = to + place<WIDTH, T>(row, group);
        for (int i = 0; i < size; i++) {
            const bool present = first + row < end && group * size + i < width;
            into[i] = present ? from[i64(first + row) * apart + group * size + i] : T();
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

// ---- products of a warp: by tensor cores of halves, thread by thread of floats

// The 16 rows from `first` on and the columns of step k, as the left side of a product: 16 of halves; 4 of floats, of
// which a thread has two rows.
template <int WIDTH, class T> __device__ inline void load_left(u32 (&a)[4], const T *tile, int first, int k) {
    const int lane = threadIdx.x % 32;
    load_tiles(a, tile + first * WIDTH + place_after<WIDTH, T>(place<WIDTH, T>(lane % 16, lane / 16), k));
}
__device__ inline void load_four(float (&a)[4], const float *from) {
    const uint4 w = *reinterpret_cast<const uint4 *>(from);
    unpack<float>(w, a);
}
template <int WIDTH> __device__ inline void load_left(float (&a)[2][4], const float *tile, int first, int k) {
    const int row = first + threadIdx.x % 32 / 4;
    load_four(a[0], tile + place<WIDTH, float>(row, k));
    load_four(a[1], tile + place<WIDTH, float>(row + 8, k));
}

// s += left times the rows of a tile from `first` on: left(m, k, a) gives the left side's 16 rows m and columns of step k.
// AT_ONCE steps are one stretch of code: few where registers are scarce.
template <int WIDTH, int AT_ONCE, class T, int M, int N, class F>
__device__ inline void times_rows(float (&s)[M][N][4], F left, const T *tile, int first) {
    const int lane = threadIdx.x % 32, own = place<WIDTH, T>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll AT_ONCE
    for (int k = 0; k < WIDTH / 16; k++) {
        const T *const from = tile + first * WIDTH + place_after<WIDTH, T>(own, k);
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
template <int WIDTH, int, int M, int N, class F>
__device__ inline void times_rows(float (&s)[M][N][4], F left, const float *tile, int first) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll 1
    for (int k = 0; k < WIDTH / 4; k++) {
        float a[M][2][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            left(m, k, a[m]);
        }
#pragma unroll
        for (int n = 0; n < 2 * N; n++) {
            float b[4];
            load_four(b, tile + place<WIDTH, float>(first + column + n / 2 * 8 + n % 2, k));
#pragma unroll
            for (int m = 0; m < 2 * M; m++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    s[m / 2][n / 2][m % 2 * 2 + n % 2] += a[m / 2][m % 2][i] * b[i];
                }
            }
        }
    }
}

// A warp's scores as the left side of a product: in registers of halves, in shared memory of floats.
[[maybe_unused]] const int PITCH = 40; // of 32 floats a row there
template <class T, int M, int N> struct Left {
    u32 words[M][N / 2][4]; // [m][k] has columns 16 k to 16 k + 15

    __device__ inline Left(float *) {}
    __device__ inline void put(const float (&x)[M][N][4]) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 2 * N; i++) {
                const float *from = &x[m][i / 2][i % 2 * 2];
                words[m][i / 4][i % 4] = pair_of<T>(from[0], from[1]);
            }
        }
    }
    __device__ inline float at(int m, int n, int i) const {
        float pair[2];
        unpack(words[m][n / 2][n % 2 * 2 + i / 2], pair, T());
        return pair[i % 2];
    }
};
template <int M, int N> struct Left<float, M, N> {
    static_assert(N == 4, "as the pitch has it");
    float *const room; // of the warp alone

    __device__ inline Left(float *room) : room(room) {}
    __device__ inline float &place_of(int m, int n, int i) const {
        const int row = threadIdx.x % 32 / 4 + 16 * m + i / 2 * 8, column = threadIdx.x % 4 * 2 + 8 * n + i % 2;
        return room[row * PITCH + column];
    }
    __device__ inline void put(const float (&x)[M][N][4]) {
        __syncwarp(); // nobody still reads what was there
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 4 * N; i++) {
                place_of(m, i / 4, i % 4) = x[m][i / 4][i % 4];
            }
        }
        __syncwarp();
    }
    __device__ inline float at(int m, int n, int i) const { return place_of(m, n, i); }
};

// o += a times as many rows of a tile as a has columns, from `first` on; of their columns those from 8 c on, c being a
// multiple of 8.
template <int WIDTH, class T, int M, int N, int C>
__device__ inline void times_columns(float (&o)[M][C][4], const Left<T, M, N> &a, const T *tile, int first, int c) {
    const int lane = threadIdx.x % 32, own = place<WIDTH, T>(lane % 16, lane / 16);
    const T *const from = tile + first * WIDTH + 8 * c;
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
#pragma unroll
        for (int n = 0; n < C; n += 2) {
            u32 b[4];
            load_tiles_turned(b, from + 16 * k * WIDTH + place_after<WIDTH, T>(own, n / 2));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(o[m][n], a.words[m][k], b[0], b[1], T());
                multiply_add(o[m][n + 1], a.words[m][k], b[2], b[3], T());
            }
        }
    }
}
template <int WIDTH, int M, int N, int C>
__device__ inline void times_columns(
    float (&o)[M][C][4], const Left<float, M, N> &a, const float *tile, int first, int c) {
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll 1
    for (int k = 0; k < 2 * N; k++) {
        float left[2 * M][4];
#pragma unroll
        for (int m = 0; m < 2 * M; m++) {
            load_four(left[m], a.room + (row + 8 * m) * PITCH + 4 * k);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int n = 0; n < C; n++) {
                const int group = 2 * (c + n) + column / 4;
                const float *const from = tile + place<WIDTH, float>(first + 4 * k + i, group) + column % 4;
#pragma unroll
                for (int m = 0; m < 2 * M; m++) {
                    o[m / 2][n][m % 2 * 2] += left[m][i] * from[0];
                    o[m / 2][n][m % 2 * 2 + 1] += left[m][i] * from[1];
                }
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

__device__ inline void put_pair(float *to, float first, float second) {
    to[0] = first;
    to[1] = second;
}
template <class T> __device__ inline void put_pair(T *to, float first, float second) {
    *reinterpret_cast<u32 *>(to) = pair_of<T>(first, second);
}

// Write a warp's rows, 16 M from `first` on, where they are below `end`, from column 8 c on: through shared memory, of which
// the warp has as many rows for itself, so that 16 bytes are written at once.
template <int RULES, int WIDTH, class T, int M, int C>
__device__ inline void write_rows(
    T *room, const float (&o)[M][C][4], T *to, i64 apart, int first, int end, int c, const Problem &p) {
    constexpr int size = Groups<WIDTH, T>::size, groups = C * 8 / size;
    __syncwarp(); // nobody still reads what was there
    each_score<M, C>([&](int m, int n, int i, int row, int column) {
        if (i % 2 == 0) {
            column += 8 * c;
            put_pair(room + place<WIDTH, T>(row, column / size) + column % size, o[m][n][i], o[m][n][i + 1]);
        }
    });
    __syncwarp();
    for (int at = threadIdx.x % 32; at < 16 * M * groups; at += 32) {
        const int row = at / groups, group = 8 * c / size + at % groups;
        if (first + row < end && group * size < p.width) {
            const T *from = room + place<WIDTH, T>(row, group);
            T *const into = to + i64(first + row) * apart + group * size;
            if constexpr (RULES & ODD) {
                for (int i = 0; i < size && group * size + i < p.width; i++) {
                    into[i] = from[i];
                }
            } else {
                store_16_bytes(into, *reinterpret_cast<const uint4 *>(from));
            }
        }
    }
    __syncwarp();
}
