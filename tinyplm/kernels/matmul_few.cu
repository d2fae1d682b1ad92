// after: tensor_cores gelu_curve matmul_result matmul_given
// Products of at most 16 rows by tensor cores, where the time is that of reading b once; see matmul_plan.py.
//
// Eight warps of a block share the terms of 64 columns. Each lane reads 16 bytes of b at a time straight into registers, all
// of a span before it waits for any, and its columns and terms are called what tensor cores want of it: sums do not ask
// in which order columns and terms are. So nothing is exchanged, and a is put in order for it in shared memory.

const int RUN = 8; // values of 16 bytes, and sums side by side that are finished together
const int COLUMNS = 64, WARPS = 8, SPAN = 512, SLAB = 16; // of a block; terms at a time; terms of a tile
const int OF_WARP = SPAN / WARPS; // terms
const int LOADS = OF_WARP * COLUMNS / 32 / RUN; // of a lane
const int PITCH = SPAN + RUN; // of a's rows: eight rows of a chunk meet all banks
const int TABLE = COLUMNS + 8; // of a row of sums, likewise

// Where term k of a span lies among its neighbours. If terms of b lie side by side, a lane has eight of 32, which are two
// of each of four tiles.
template <bool B_TURNED> __device__ inline int place_of_term(int k) {
    return B_TURNED ? k / 32 * 32 + k / 2 % 4 * 8 + k / 8 % 4 * 2 + k % 2 : k;
}

__device__ inline u32 first_of(u32 word, int count) { return count >= 2 ? word : count == 1 ? word & 0xffff : 0; }

__device__ inline u32 word_of(const uint4 &w, int i) { return i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w; }

// The first `count` values of eight, and zeros.
__device__ inline uint4 first_of(const uint4 &w, int count) {
    return {first_of(w.x, count), first_of(w.y, count - 2), first_of(w.z, count - 4), first_of(w.w, count - 6)};
}

template <class T, bool B_TURNED, class Last>
__device__ inline void product(const Given &p) {
    DYNAMIC_SHARED(room);
    T *const rows = reinterpret_cast<T *>(room);
    const Place here = place(p);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int left = here.column * COLUMNS, first = int(here.part) * p.chunk;
    const int last = p.terms - first < p.chunk ? p.terms : first + p.chunk;
    const T *a = static_cast<const T *>(p.a.at) + here.one * p.a.step;
    const T *b = static_cast<const T *>(p.b.at) + here.one * p.b.step;
    float sums[COLUMNS / 8][4] = {};

    for (int start = first; start < last; start += SPAN) {
        // Load i: of eight columns of one of 16 terms, or of eight of 32 terms of one of 64 columns.
        auto term = [&](int i) {
            const int own = B_TURNED ? i / 8 * 32 + t * 8 : i / 4 * SLAB + i % 4 / 2 * 8 + 2 * t + i % 2;
            return start + warp * OF_WARP + own;
        };
        uint4 found[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int k = term(i), column = left + (B_TURNED ? i % 8 * 8 + g : g * 8);
            found[i] = load_16_bytes_if(k < last && column < p.result.columns,
                                        b + (B_TURNED ? column * p.b.pitch + k : k * p.b.pitch + column));
        }
        if (B_TURNED && last - start < SPAN && last % RUN != 0) { // behind the last term may be anything
#pragma unroll
            for (int i = 0; i < LOADS; i++) {
                found[i] = first_of(found[i], last - term(i));
            }
        }
        __syncthreads(); // nobody still reads the rows of the span before
        for (int i = threadIdx.x; i < 16 * SPAN / RUN; i += 32 * WARPS) {
            const int row = i / (SPAN / RUN), k = i % (SPAN / RUN) * RUN;
            const int count = row < p.result.rows ? last - start - k : 0;
            const uint4 w = first_of(load_16_bytes_if(count > 0, a + row * p.a.pitch + start + k), count);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                *reinterpret_cast<u32 *>(rows + row * PITCH + place_of_term<B_TURNED>(k + 2 * j)) = word_of(w, j);
            }
        }
        __syncthreads();
#pragma unroll
        for (int slab = 0; slab < OF_WARP / SLAB; slab++) {
            u32 own[4];
            load_tiles(own, rows + lane % 16 * PITCH + warp * OF_WARP + slab * SLAB + lane / 16 * 8);
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
                u32 b0, b1;
                if constexpr (B_TURNED) { // eight columns from the j-th on: half of the terms that a lane has of its own
                    const uint4 w = found[slab / 2 * 8 + j];
                    b0 = slab % 2 ? w.z : w.x;
                    b1 = slab % 2 ? w.w : w.y;
                } else { // the j-th of each lane's eight columns
                    const uint4 *w = found + slab * 4;
                    const u32 pick = j % 2 ? 0x7632 : 0x5410;
                    b0 = __byte_perm(word_of(w[0], j / 2), word_of(w[1], j / 2), pick);
                    b1 = __byte_perm(word_of(w[2], j / 2), word_of(w[3], j / 2), pick);
                }
                multiply_add(sums[j], own, b0, b1, T());
            }
        }
    }

    // Each warp's sums in shared memory, and then their sums over warps, in order.
    float *const table = reinterpret_cast<float *>(room);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (g + 8 * h < p.result.rows) {
                const uint2 two = {__float_as_uint(sums[j][2 * h]), __float_as_uint(sums[j][2 * h + 1])};
                *reinterpret_cast<uint2 *>(table + (warp * 16 + g + 8 * h) * TABLE + 8 * j + 2 * t) = two;
            }
        }
    }
    __syncthreads();
    const int row = threadIdx.x / (COLUMNS / RUN), run = threadIdx.x % (COLUMNS / RUN), column = left + run * RUN;
    if (row < p.result.rows && column < p.result.columns) {
        float x[RUN] = {};
        for (int w = 0; w < WARPS; w++) {
#pragma unroll
            for (int i = 0; i < RUN; i++) { // if columns of b lie side by side, tile i has the i-th of each lane's eight
                x[i] += table[(w * 16 + row) * TABLE + (B_TURNED ? run * RUN + i : i * RUN + run)];
            }
        }
        if (p.result.parts) {
            keep_part(p.result, row, column, here.part * p.batch + here.one, x);
        } else {
            finish<T, Last>(p.result, row, column, here.one, x);
        }
    }
}

#define MAKE(T, B, LAST) \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, 2) few_##T##_n##B##_##LAST(Given p) { \
        product<T, turned_##B, LAST>(p); \
    }
