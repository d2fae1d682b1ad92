// after: tensor_cores attention_tiles attention_rules
// Softmax attention of a few queries to many keys, as when a text is written word by word; see attention_plan.py. Keys and
// values are read once, and that decides how long it takes: keys are shared out between blocks, whose sums a second kernel
// adds up in order.

struct Steps { // bytes of a mask from one to the next: 0 along an axis of length one
    i64 batch, head, row, key;
};

// Block i has piece i % pieces, of `length` keys from `first` on, of head i / pieces. LANES threads have a key at once,
// 16 bytes of it each, and each such team every so many keys. `sums` (heads, pieces, queries, 2) are the largest score of
// a piece and the sum of exponentials below it, `means` (heads, pieces, queries, width) the values weighted with these.
template <class T, int LANES, int QUERIES, bool ODD_ROWS>
__device__ inline void decode(
    const T *q, const T *k, const T *v, const T *bias, const float *table, const bool *mask, Steps steps, float *sums,
    float *means, i64 pieces, i64 first, i64 length, const Problem &p) {
    constexpr int F = Fits<T>::count, TEAMS = BLOCK / LANES, AT_ONCE = 4;
    const int lane = threadIdx.x % LANES, team = threadIdx.x / LANES, column = lane * F;
    const int piece = int(blockIdx.x % pieces), head = int(blockIdx.x / pieces), b = head / p.heads, h = head % p.heads;
    const int begin = int(first + piece * length), end = smaller(int(begin + length), p.keys);
    q += b * p.q.batch + h * p.q.head;
    k += b * p.k.batch + h * p.k.head;
    v += b * p.v.batch + h * p.v.head;
    auto read = [&](const T *from, i64 row, bool present, uint4 &into) {
        present = present && column < p.width;
        if constexpr (ODD_ROWS) {
            T values[F];
            for (int i = 0; i < F; i++) {
                values[i] = present && column + i < p.width ? from[row + column + i] : T();
            }
            into = *reinterpret_cast<uint4 *>(values);
        } else {
            into = load_16_bytes_if(present, from + row + column);
        }
    };

    float own[QUERIES][F], o[QUERIES][F], largest[QUERIES], sum[QUERIES];
    for (int t = 0; t < QUERIES; t++) {
        uint4 raw;
        read(q, t * p.q.row, t < p.queries, raw);
        unpack<T>(raw, own[t]);
        for (int i = 0; i < F; i++) {
            own[t][i] *= p.scale;
            o[t][i] = 0;
        }
        largest[t] = -3.4028234e38f;
        sum[t] = 0;
    }
    for (int start = begin; start < end; start += TEAMS * AT_ONCE) {
        uint4 keys[AT_ONCE], values[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int s = start + j * TEAMS + team;
            read(k, s * p.k.row, s < end, keys[j]);
            read(v, s * p.v.row, s < end, values[j]);
        }
        float x[AT_ONCE][QUERIES];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int s = start + j * TEAMS + team;
            float row[F];
            unpack<T>(keys[j], row);
#pragma unroll
            for (int t = 0; t < QUERIES; t++) {
                float total = 0;
#pragma unroll
                for (int i = 0; i < F; i++) {
                    total += own[t][i] * row[i];
                }
#pragma unroll
                for (int apart = LANES / 2; apart > 0; apart /= 2) {
                    total += __shfl_xor_sync(EVERY_LANE, total, apart);
                }
                const int position = t + p.keys - p.queries;
                bool seen = t < p.queries && s < end && s > position - p.back && s < position + p.ahead;
                if (seen && mask) {
                    seen = mask[b * steps.batch + h * steps.head + t * steps.row + s * steps.key];
                }
                if (seen && bias) {
                    total += wide(bias[b * p.bias.batch + h * p.bias.head + t * p.bias.row + s * p.bias_key]);
                }
                if (seen && table) {
                    total += table[i64(h) * (p.keys + p.queries - 1) + s - t + p.queries - 1];
                }
                x[j][t] = seen ? total : -infinity();
            }
        }
#pragma unroll
        for (int t = 0; t < QUERIES; t++) {
            float top = largest[t];
            for (int j = 0; j < AT_ONCE; j++) {
                top = fmaxf(top, x[j][t]);
            }
            const float shrink = exp2_near((largest[t] - top) * LOG2_E);
            largest[t] = top;
            sum[t] *= shrink;
            for (int i = 0; i < F; i++) {
                o[t][i] *= shrink;
            }
            for (int j = 0; j < AT_ONCE; j++) {
                x[j][t] = exp2_near((x[j][t] - top) * LOG2_E);
                sum[t] += x[j][t];
            }
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            float row[F];
            unpack<T>(values[j], row);
            for (int t = 0; t < QUERIES; t++) {
                for (int i = 0; i < F; i++) {
                    o[t][i] += x[j][t] * row[i];
                }
            }
        }
    }

    __shared__ float of_team[TEAMS][QUERIES][LANES * F], tops[TEAMS][QUERIES], totals[TEAMS][QUERIES];
    for (int t = 0; t < QUERIES; t++) {
        for (int i = 0; i < F; i++) {
            of_team[team][t][column + i] = o[t][i];
        }
        if (lane == 0) {
            tops[team][t] = largest[t];
            totals[team][t] = sum[t];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < p.queries * p.width; i += BLOCK) {
        const int t = i / p.width, place = i % p.width;
        float top = tops[0][t], total = 0, mean = 0;
        for (int j = 1; j < TEAMS; j++) {
            top = fmaxf(top, tops[j][t]);
        }
        for (int j = 0; j < TEAMS; j++) {
            const float share = exp2_near((tops[j][t] - top) * LOG2_E);
            total += share * totals[j][t];
            mean += share * of_team[j][t][place];
        }
        const i64 row = i64(blockIdx.x) * p.queries + t;
        means[row * p.width + place] = mean;
        if (place == 0) {
            sums[2 * row] = top;
            sums[2 * row + 1] = total;
        }
    }
}

// The results and the logarithms of their sums, of the pieces' sums: a thread for each value, in the order (head, query).
template <class T>
__device__ inline void join(const float *sums, const float *means, T *y, float *log_sum, i64 pieces, const Problem &p) {
    const i64 at = i64(blockIdx.x) * BLOCK + threadIdx.x, row = at / p.width;
    const int column = int(at % p.width);
    if (row >= i64(p.batch) * p.heads * p.queries) {
        return;
    }
    const i64 head = row / p.queries, t = row % p.queries;
    float top = -3.4028234e38f, total = 0, mean = 0;
    for (i64 i = 0; i < pieces; i++) {
        top = fmaxf(top, sums[2 * ((head * pieces + i) * p.queries + t)]);
    }
    for (i64 i = 0; i < pieces; i++) {
        const i64 from = (head * pieces + i) * p.queries + t;
        const float share = exp2_near((sums[2 * from] - top) * LOG2_E);
        total += share * sums[2 * from + 1];
        mean += share * means[from * p.width + column];
    }
    narrow(total == 0 ? 0.f : mean / total, y[head / p.heads * p.y.batch + head % p.heads * p.y.head + t * p.y.row + column]);
    if (column == 0) {
        log_sum[row] = total == 0 ? infinity() : top + logf(total);
    }
}

// For a type, threads of a key, queries at most, and whether rows are not whole groups of 16 bytes.
#define MAKE(T, LANES, QUERIES, ODD_ROWS) \
    extern "C" __global__ void __launch_bounds__(BLOCK) attention_decode_##T( \
        const T *q, const T *k, const T *v, const T *bias, const float *table, const bool *mask, Steps steps, \
        float *sums, float *means, i64 pieces, i64 first, i64 length, Problem p) { \
        decode<T, LANES, QUERIES, ODD_ROWS>( \
            q, k, v, bias, table, mask, steps, sums, means, pieces, first, length, p); \
    } \
    extern "C" __global__ void __launch_bounds__(BLOCK) attention_join_##T( \
        const float *sums, const float *means, T *y, float *log_sum, i64 pieces, Problem p) { \
        join<T>(sums, means, y, log_sum, pieces, p); \
    }
