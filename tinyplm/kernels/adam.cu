// One AdamW update of many buffers (see adam.py); the sum of squares of many, and what clipping makes of it (many.py).
// Parameters and moments are float; gradients are stored as any type, and so is a copy of the parameter.
// A block has one piece of one buffer.

const int PIECE = 4096;   // values, as in pieces.py
const int ARRAYS = 448;   // buffers of a launch, as in pieces.py
const int SUMMING = 1024; // threads of the one block that adds up

struct Addresses { // that are new at each launch; the two highest bits are 0, 1 or 2 for float, float16, bfloat16
    u64 at[ARRAYS];
};
struct Row { // of the table, for each buffer
    i64 size, first; // values, and the number of its first piece
    float *values, *mean, *square;
    void *copy; // or null
    i64 kind;   // of the copy, as above
    i64 decays;
};
struct Numbers {
    float decay, beta_1, beta_2, rest_1, rest_2, step_size, root, eps;
};

// Calls f with a pointer of the type that the values there are stored as.
template <class F> __device__ inline void typed(u64 address, u64 kind, F f) {
    if (kind == 0) {
        f(reinterpret_cast<float *>(address));
    } else if (kind == 1) {
        f(reinterpret_cast<float16 *>(address));
    } else {
        f(reinterpret_cast<bfloat16 *>(address));
    }
}
template <class F> __device__ inline void typed(u64 address, F f) {
    typed(address & ~(u64(3) << 62), address >> 62, f);
}

// Whether values from here on can be read four at a time.
template <class T> __device__ inline bool is_aligned(const T *x) { return u64(x) % 16 == 0; }

template <int N, class G, class C>
__device__ inline void update(const Row &row, const G *gradient, C *copy, i64 at, float shrink, const Numbers &by) {
    float value[N], given[N], mean[N], square[N];
    load(row.values + at, value);
    load(gradient + at, given);
    load(row.mean + at, mean);
    load(row.square + at, square);
    for (int i = 0; i < N; i++) {
        const float s = given[i] * shrink;
        mean[i] = by.beta_1 * mean[i] + by.rest_1 * s;
        square[i] = by.beta_2 * square[i] + by.rest_2 * (s * s);
        value[i] = value[i] * by.decay - by.step_size * mean[i] / (sqrtf(square[i]) * by.root + by.eps);
    }
    store(row.values + at, value);
    store(row.mean + at, mean);
    store(row.square + at, square);
    if (copy != nullptr) {
        store(copy + at, value);
    }
}

// A factor of 0 leaves everything as it is: the norm was not finite.
extern "C" __global__ void __launch_bounds__(THREADS) adamw_update_many(
    const Addresses gradients, const i64 *rows, const u32 *row_of, i64 first_row, i64 first_piece,
    const float *numbers, const float *factor) {
    const float shrink = factor[0];
    if (shrink == 0) {
        return;
    }
    const i64 piece = first_piece + blockIdx.x, number = row_of[piece];
    const Row row = reinterpret_cast<const Row *>(rows)[number];
    Numbers by = {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], numbers[7]};
    by.decay = row.decays ? by.decay : 1;
    const i64 start = (piece - row.first) * PIECE;
    const int n = int(row.size - start < PIECE ? row.size - start : PIECE);
    typed(gradients.at[number - first_row], [&](auto *g) {
        typed(u64(row.copy), u64(row.kind), [&](auto *copy) {
            const bool together = is_aligned(row.values) && is_aligned(g) && is_aligned(row.mean) &&
                                  is_aligned(row.square) && is_aligned(copy);
            const int groups = together ? n / 4 : 0;
            for (int i = threadIdx.x; i < groups; i += THREADS) {
                update<4>(row, g, copy, start + 4 * i, shrink, by);
            }
            for (int i = 4 * groups + threadIdx.x; i < n; i += THREADS) {
                update<1>(row, g, copy, start + i, shrink, by);
            }
        });
    });
}

template <class T> __device__ inline double squares(const T *x, int n) {
    const int N = Fits<T>::count, groups = is_aligned(x) ? n / N : 0;
    double total = 0;
    for (int i = threadIdx.x; i < groups; i += THREADS) {
        float a[N];
        load(x + N * i, a);
        for (int j = 0; j < N; j++) {
            total += double(a[j]) * double(a[j]);
        }
    }
    for (int i = N * groups + threadIdx.x; i < n; i += THREADS) {
        const double a = wide(x[i]);
        total += a * a;
    }
    return total;
}

// Those of a piece are added up in double, as the squares of float may be infinite.
extern "C" __global__ void __launch_bounds__(THREADS) squares_of_many(
    const Addresses arrays, const i64 *rows, const u32 *row_of, i64 first_row, i64 first_piece, double *sums) {
    const i64 piece = first_piece + blockIdx.x, number = row_of[piece];
    const Row row = reinterpret_cast<const Row *>(rows)[number];
    const i64 start = (piece - row.first) * PIECE, left = row.size - start;
    double total = 0;
    typed(arrays.at[number - first_row], [&](auto *x) { total = squares(x + start, int(left < PIECE ? left : PIECE)); });
    total = team_sum<THREADS>(total);
    if (threadIdx.x == 0) {
        sums[piece] = total;
    }
}

// One block adds up what the others found; every thread gets the sum.
__device__ inline double sum_of(const double *sums, i64 n) {
    double own = 0;
    for (i64 i = threadIdx.x; i < n; i += SUMMING) {
        own += sums[i];
    }
    return team_sum<SUMMING>(own);
}

extern "C" __global__ void __launch_bounds__(1024) add_up(const double *sums, i64 n, double *total) {
    const double all = sum_of(sums, n);
    if (threadIdx.x == 0) {
        *total = all;
    }
}

// found: loss and norm. factor: what gradients are multiplied by, and whether a step was left out; after that all are.
extern "C" __global__ void __launch_bounds__(1024) clip_by_norm(
    const double *sums, i64 n, const double *losses, i64 parts, float limit, double *found, float *factor) {
    const double norm = sqrt(sum_of(sums, n));
    if (threadIdx.x == 0) {
        double loss = 0;
        for (i64 i = 0; i < parts; i++) {
            loss += losses[i];
        }
        found[0] = loss;
        found[1] = norm;
        const bool fine = norm - norm == 0 && loss - loss == 0 && factor[1] == 0; // neither infinite nor NaN
        const double least = limit / (norm + 1e-6);
        factor[0] = fine ? float(least < 1 ? least : 1) : 0;
        factor[1] = fine ? 0 : 1;
    }
}
