// Rows of a table by number, and rows added up by number; see take_rows.py.
//
// Rows are added up without atomic additions, which have no order. Positions are sorted by number, keeping their order
// (a radix sort, eight bits at a time). Then pieces of PIECE sorted positions are added up by blocks. A run of one number
// that lies within a piece is done with that. One that reaches beyond leaves a sum in each of its pieces, and the block
// in whose piece it begins adds these up. Sums are float, whatever the rows are stored as.

// ---- copies, in units of 16, 4 or 2 bytes. A number outside of the table gives NaN, of which all bits are set.

template <class Unit>
__device__ inline void copy(const Unit *table, const i64 *ids, Unit *y, i64 n, i64 rows, i64 units, Unit nothing) {
    const i64 r = team<32>();
    if (r >= n) {
        return;
    }
    const i64 id = ids[r];
    for (i64 u = threadIdx.x % 32; u < units; u += 32) {
        y[r * units + u] = id >= 0 && id < rows ? table[id * units + u] : nothing;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) copy_rows_16(
    const uint4 *table, const i64 *ids, uint4 *y, i64 n, i64 rows, i64 units) {
    const u32 all = 0xffffffffu;
    copy(table, ids, y, n, rows, units, make_uint4(all, all, all, all));
}
extern "C" __global__ void __launch_bounds__(THREADS) copy_rows_4(
    const u32 *table, const i64 *ids, u32 *y, i64 n, i64 rows, i64 units) {
    copy(table, ids, y, n, rows, units, 0xffffffffu);
}
extern "C" __global__ void __launch_bounds__(THREADS) copy_rows_2(
    const u16 *table, const i64 *ids, u16 *y, i64 n, i64 rows, i64 units) {
    copy(table, ids, y, n, rows, units, u16(0xffff));
}

// ---- the sort: a warp has a run of positions

const int RUN = 512;
const int DIGITS = 256;

// counts[digit, run] is how often a digit occurs in a run.
extern "C" __global__ void __launch_bounds__(32) sort_count(
    const u32 *keys, u32 *counts, i64 n, i64 runs, i64 shift) {
    __shared__ u32 count[DIGITS];
    for (int d = threadIdx.x; d < DIGITS; d += 32) {
        count[d] = 0;
    }
    __syncwarp();
    for (int i = threadIdx.x; i < RUN; i += 32) {
        const i64 at = i64(blockIdx.x) * RUN + i;
        if (at < n) {
            atomicAdd(&count[(keys[at] >> shift) % DIGITS], 1u);
        }
    }
    __syncwarp();
    for (int d = threadIdx.x; d < DIGITS; d += 32) {
        counts[d * runs + blockIdx.x] = count[d];
    }
}

// Turns n counts into the sums of those before each, by one block of 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) sort_scan(u32 *counts, i64 n) {
    __shared__ u32 before[1024];
    const i64 each = (n + 1023) / 1024, start = threadIdx.x * each;
    const i64 stop = start + each < n ? start + each : n;
    u32 own = 0;
    for (i64 i = start; i < stop; i++) {
        own += counts[i];
    }
    before[threadIdx.x] = own;
    __syncthreads();
    for (int apart = 1; apart < 1024; apart *= 2) {
        const u32 more = int(threadIdx.x) >= apart ? before[threadIdx.x - apart] : 0;
        __syncthreads();
        before[threadIdx.x] += more;
        __syncthreads();
    }
    u32 total = before[threadIdx.x] - own;
    for (i64 i = start; i < stop; i++) {
        const u32 count = counts[i];
        counts[i] = total;
        total += count;
    }
}

// Moves keys and values to where they come by their digit; values may be null for 0, 1, 2, ...
extern "C" __global__ void __launch_bounds__(32) sort_move(
    const u32 *keys, const u32 *values, const u32 *counts, u32 *to_keys, u32 *to_values, i64 n, i64 runs, i64 shift) {
    __shared__ u32 next[DIGITS + 1]; // the last is of no digit, for what lies beyond the end
    for (int d = threadIdx.x; d < DIGITS; d += 32) {
        next[d] = counts[d * runs + blockIdx.x];
    }
    __syncwarp();
    for (int i = threadIdx.x; i < RUN; i += 32) {
        const i64 at = i64(blockIdx.x) * RUN + i;
        const u32 key = at < n ? keys[at] : 0;
        const u32 digit = at < n ? (key >> shift) % DIGITS : DIGITS;
        const u32 equal = __match_any_sync(EVERY_LANE, digit);
        const u32 rank = __popc(equal & ((1u << threadIdx.x) - 1));
        if (at < n) {
            const u32 to = next[digit] + rank;
            to_keys[to] = key;
            to_values[to] = values ? values[at] : u32(at);
        }
        __syncwarp();
        if (rank == 0 && at < n) {
            next[digit] += __popc(equal);
        }
        __syncwarp();
    }
}

// ---- the sums

const int PIECE = 32;
const int ASKED = 16; // sums of pieces that a thread asks for at once

template <int N> __device__ inline void put(float *to, const float (&x)[N]) {
    if constexpr (N == 1) {
        *to = x[0];
    } else {
        for (int i = 0; i < N; i += 4) {
            const float part[4] = {x[i], x[i + 1], x[i + 2], x[i + 3]};
            store(to + i, part);
        }
    }
}

// sums[piece, 0] is that of a piece's first run, sums[piece, 1] that of its last one, where they reach beyond it.
template <class T, int N>
__device__ inline void add(
    const T *g, const u32 *keys, const u32 *order, float *table, float *sums, i64 n, i64 rows, i64 width) {
    const i64 first = i64(blockIdx.x) * PIECE;
    const int count = int(n - first < PIECE ? n - first : PIECE);
    for (i64 c = i64(threadIdx.x) * N; c < width; c += THREADS * N) {
        float total[N], a[N];
        bool fresh = true, is_first = true;
        for (int j = 0; j < count; j++) {
            load(g + i64(order[first + j]) * width + c, a);
            for (int i = 0; i < N; i++) {
                total[i] = fresh ? a[i] : total[i] + a[i];
            }
            fresh = false;
            const i64 at = first + j;
            const u32 key = keys[at];
            const bool is_last = j + 1 == count;
            if (is_last || keys[at + 1] != key) {
                const bool from_before = is_first && first > 0 && keys[first - 1] == key;
                const bool goes_on = is_last && at + 1 < n && keys[at + 1] == key;
                if (from_before || goes_on) {
                    for (int i = 0; i < N; i++) {
                        sums[(2 * i64(blockIdx.x) + (is_first ? 0 : 1)) * width + c + i] = total[i];
                    }
                } else if (key < rows) {
                    put(table + i64(key) * width + c, total);
                }
                fresh = true;
                is_first = false;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) join_rows(
    const u32 *keys, float *table, const float *sums, i64 n, i64 rows, i64 width) {
    const i64 first = i64(blockIdx.x) * PIECE, next = first + PIECE;
    const u32 key = next < n ? keys[next] : 0;
    const bool goes_on = next < n && keys[next - 1] == key;
    const bool from_before = first > 0 && keys[first - 1] == key;
    if (!goes_on || from_before || key >= rows) {
        return; // no run that begins here reaches beyond
    }
    // The last piece that begins with the key: by steps that double as long as they stay within the run, then halve.
    const i64 end = (n - 1) / PIECE;
    const auto reaches = [&](i64 piece) { return piece <= end && keys[piece * PIECE] == key; };
    i64 last = blockIdx.x + 1, step = 1;
    for (; reaches(last + step); step *= 2) {
        last += step;
    }
    for (; step > 0; step /= 2) {
        last += reaches(last + step) ? step : 0;
    }
    const int own = keys[first] == key ? 0 : 1;
    for (i64 c = threadIdx.x; c < width; c += THREADS) {
        const float *next_sum = sums + 2 * i64(blockIdx.x + 1) * width + c;
        float total = sums[(2 * i64(blockIdx.x) + own) * width + c];
        for (i64 left = last - blockIdx.x; left > 0; left -= ASKED) {
            float more[ASKED]; // all under way at once; added in their order
#pragma unroll
            for (int i = 0; i < ASKED; i++) {
                more[i] = i < left ? *next_sum : 0.f;
                next_sum += 2 * width;
            }
#pragma unroll
            for (int i = 0; i < ASKED; i++) {
                total = i < left ? total + more[i] : total;
            }
        }
        table[i64(key) * width + c] = total;
    }
}

#define MAKE_ADD(T, name, N) \
    extern "C" __global__ void __launch_bounds__(THREADS) add_rows_##name( \
        const T *g, const u32 *keys, const u32 *order, float *table, float *sums, i64 n, i64 rows, i64 width) { \
        add<T, N>(g, keys, order, table, sums, n, rows, width); \
    }
#define MAKE(T, name) \
    MAKE_ADD(T, name##_groups, Fits<T>::count) \
    MAKE_ADD(T, name##_single, 1)
EACH_TYPE(MAKE)
