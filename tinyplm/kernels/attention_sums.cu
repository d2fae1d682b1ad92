// Sums around the pullback of attention; see attention_cuda.py.

struct Place { // values from one to the next
    i64 batch, head, row;
};

// Two numbers of each query, (2, batch rows, heads, pitch): its log_sum times a factor, and the sum of g times y over its
// row; behind the last query infinity and 0. Eight lanes have a row, in the order (batch, query, head) as results lie in memory.
template <class T>
__device__ inline void numbers(
    const T *g, const T *y, const float *log_sum, Place of_g, Place of_y, float factor, float *result, i64 batch,
    i64 heads, i64 queries, i64 pitch, i64 width, i64 groups) {
    const i64 r = (i64(blockIdx.x) * THREADS + threadIdx.x) / 8, rows = batch * pitch * heads;
    const int lane = threadIdx.x % 8;
    const i64 h = r % heads, t = r / heads % pitch, b = r / heads / pitch;
    const bool present = r < rows && t < queries;
    float total = 0;
    if (present) {
        g += b * of_g.batch + h * of_g.head + t * of_g.row;
        y += b * of_y.batch + h * of_y.head + t * of_y.row;
        for (i64 i = lane; i < groups; i += 8) {
            float left[Fits<T>::count], right[Fits<T>::count];
            load(g + i * Fits<T>::count, left);
            load(y + i * Fits<T>::count, right);
            for (int j = 0; j < Fits<T>::count; j++) {
                total += left[j] * right[j];
            }
        }
        for (i64 i = groups * Fits<T>::count + lane; i < width; i += 8) {
            total += wide(g[i]) * wide(y[i]);
        }
    }
    total += __shfl_xor_sync(EVERY_LANE, total, 4);
    total += __shfl_xor_sync(EVERY_LANE, total, 2);
    total += __shfl_xor_sync(EVERY_LANE, total, 1);
    if (lane == 0 && r < rows) {
        const i64 at = (b * heads + h) * pitch + t;
        result[at] = present ? log_sum[(b * heads + h) * queries + t] * factor : infinity();
        result[rows + at] = total;
    }
}

struct Sizes {
    i64 batch, heads, queries, keys;
};

// Adds up what belongs to one value of a dense bias, whose axes have the size of all scores or 1: a thread for each.
template <class T> __device__ inline void add_pairs(const float *given, T *result, Sizes from, Sizes to) {
    const i64 at = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= to.batch * to.heads * to.queries * to.keys) {
        return;
    }
    const i64 s = at % to.keys, t = at / to.keys % to.queries, h = at / to.keys / to.queries % to.heads;
    const i64 b = at / to.keys / to.queries / to.heads;
    float total = 0;
    for (i64 i = b; i < (to.batch == 1 ? from.batch : b + 1); i++) {
        for (i64 j = h; j < (to.heads == 1 ? from.heads : h + 1); j++) {
            for (i64 k = t; k < (to.queries == 1 ? from.queries : t + 1); k++) {
                for (i64 l = s; l < (to.keys == 1 ? from.keys : s + 1); l++) {
                    total += given[((i * from.heads + j) * from.queries + k) * from.keys + l];
                }
            }
        }
    }
    narrow(total, result[at]);
}

// Adds up what belongs to one difference: of runs of batch rows, and of tiles of `rows` queries. A block has 32
// differences of a head; eight threads of each take turns, and then these are added in their order.
template <class T>
__device__ inline void add_differences(const float *given, T *result, Sizes size, i64 rows) {
    __shared__ float of_turn[8][32];
    const i64 count = size.keys + size.queries - 1, tiles = (size.queries + rows - 1) / rows, pitch = size.keys + rows - 1;
    const i64 blocks = (count + 31) / 32, h = blockIdx.x / blocks, at = blockIdx.x % blocks * 32 + threadIdx.x % 32;
    const int turn = threadIdx.x / 32;
    float total = 0;
    for (i64 i = turn; i < size.batch * tiles; i += 8) {
        const i64 tile = i % tiles, place = at - size.queries + (tile + 1) * rows;
        if (at < count && place >= 0 && place < pitch) {
            total += given[((i / tiles * size.heads + h) * tiles + tile) * pitch + place];
        }
    }
    of_turn[turn][threadIdx.x % 32] = total;
    __syncthreads();
    if (turn == 0 && at < count) {
        for (int i = 1; i < 8; i++) {
            total += of_turn[i][threadIdx.x % 32];
        }
        narrow(total, result[h * count + at]);
    }
}

#define MAKE(T, name) \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_numbers_##name( \
        const T *g, const T *y, const float *log_sum, Place of_g, Place of_y, float factor, float *result, i64 batch, \
        i64 heads, i64 queries, i64 pitch, i64 width, i64 groups) { \
        numbers<T>(g, y, log_sum, of_g, of_y, factor, result, batch, heads, queries, pitch, width, groups); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_add_pairs_##name( \
        const float *given, T *result, Sizes from, Sizes to) { \
        add_pairs<T>(given, result, from, to); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_add_differences_##name( \
        const float *given, T *result, Sizes size, i64 rows) { \
        add_differences<T>(given, result, size, rows); \
    }
EACH_TYPE(MAKE)
