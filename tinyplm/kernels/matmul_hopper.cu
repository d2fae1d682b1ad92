// after: tensor_cores hopper gelu_curve matmul_result
// The product of two matrices of 16-bit values on Hopper; see matmul_hopper.py.
//
// A block stays, and computes one tile after the other: a group of four warps, of which one thread works, brings boxes of
// both operands into a ring of stages; two groups multiply and store. Together, each has half of a tile's rows, and while
// they store, the next tile's boxes arrive. By turns, each has every second tile, and one stores while the other multiplies.
// A stage is full when all its bytes are there, and empty when every warp that wants it is done with it. Two paired blocks
// have tiles one above the other, and each brings half of the operand that both want to both.

const int CONSUMERS = 2, STEP = 64, RUN = 8; // groups that multiply; terms of a stage; sums of a row that a lane finishes
const int BOX = 64 * BOX_ROW;                // bytes of 64 rows of a box
const int GROUP_OF_TILES = 8;                // rows of tiles that are walked together, as in matmul_plan.py
const u16 BOTH = 3;                          // of a pair of blocks
const int OWN_REGISTERS = 240, LEFT_REGISTERS = 24; // of a thread that multiplies, and of one that does not

struct Work {
    u32 down, across, batch, parts; // tiles (of a pair: two, one above the other), matrices, parts of each sum
    int steps, steps_of_part;       // of all terms, and of a part but the last
    int a_moves, b_moves;           // 1, or 0 where all matrices are the same one
};

struct Place { // of a piece of work
    int part, matrix, row, column; // where the tile begins
    int first, last;               // its steps
};

template <int ROWS, int COLUMNS> __device__ inline Place place(u32 number, const Work &w) {
    const u32 tile = number % (w.down * w.across), others = number / (w.down * w.across);
    const u32 group = tile / (GROUP_OF_TILES * w.across), within = tile % (GROUP_OF_TILES * w.across);
    const u32 left = w.down - group * GROUP_OF_TILES, high = left < GROUP_OF_TILES ? left : GROUP_OF_TILES;
    Place found;
    found.part = int(others / w.batch);
    found.matrix = int(others % w.batch);
    found.row = int(group * GROUP_OF_TILES + within % high) * ROWS;
    found.column = int(within / high) * COLUMNS;
    found.first = found.part * w.steps_of_part;
    const int end = found.first + w.steps_of_part;
    found.last = end < w.steps ? end : w.steps;
    return found;
}

// Boxes of 64 terms of an operand: one that is 64 terms wide, or as many as it has 64 rows or columns. If it is SHARED by
// a pair, each block brings half of it, of the one box or of their number, to both.
template <bool TURNED, int COUNT, bool SHARED>
__device__ inline void bring(unsigned char *to, const TensorMap *map, u64 *full, int line, int term, int matrix, u32 rank) {
    const int PARTS = SHARED ? 2 : 1, own = SHARED ? rank : 0;
    static_assert(COUNT % (64 * PARTS) == 0, "each brings as much");
    const auto copy = [&](int at, int x, int y) {
        if constexpr (SHARED) {
            copy_box_to(BOTH, to + at * BOX_ROW, map, full, x, y, matrix);
        } else {
            copy_box(to + at * BOX_ROW, map, full, x, y, matrix);
        }
    };
    if constexpr (TURNED) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 64 * PARTS) {
            copy(i + own * 64, line + i + own * 64, term);
        }
    } else {
        copy(own * (COUNT / PARTS), term, line + own * (COUNT / PARTS));
    }
}

// Where 16-byte piece c of row r of a warp's table of 16 rows of 32 sums lies, in floats: neither a warp's writes (pieces
// 2 q and 2 q + 1 of rows 0 to 3) nor its reads (pieces 0, 2, 4 and 6 of two rows) find two in one bank. From piece c on,
// piece c + 2 q is at ^ 8 q; and from an even one, the next is at ^ 4. Eight rows on is at + EIGHT.
__device__ inline int of_table(int r, int c) { return r * 32 + (c ^ (2 * (r % 4) + r % 2)) * 4; }
const int EIGHT = 8 * 32, TABLE = 16 * 32;

// The sums of a group, 64 OWN rows of a tile, pass through a table of each warp's own, 32 columns at a time, so that a lane
// has runs of a row.
template <class T, class Last, int OWN, int COLUMNS>
__device__ inline void finish_tile(const float (&c)[OWN][COLUMNS / 2], float *table, const Result &r, const Place &at,
                                   int first_row, u32 batch) {
    const int WIDE = COLUMNS / 32, lane = threadIdx.x % 32;
    const int to = of_table(lane / 4, lane % 4 / 2) + lane % 2 * 2, from = of_table(lane / 4, lane % 4 * 2);
    first_row += threadIdx.x % 128 / 32 * 16 + lane / 4;
    const auto row_of = [&](int j) { return first_row + j / WIDE * 64; };
    const auto column_of = [&](int j) { return at.column + j % WIDE * 32 + lane % 4 * RUN; };
    // Where there are registers for it, runs of `other` are asked for while the sums before them are finished.
    const bool asks = OWN * COLUMNS <= 256 && r.other && r.vectors && !r.parts;
    const auto ask = [&](int j, int down) {
        const int row = row_of(j) + down, column = column_of(j);
        const T *const run = static_cast<const T *>(r.other) + (i64(at.matrix) * r.rows + row) * r.columns + column;
        return load_16_bytes_if(asks && j < OWN * WIDE && row < r.rows && column < r.columns, run);
    };
    uint4 one = ask(0, 0), next = ask(0, 8);
#pragma unroll 1
    for (int j = 0; j < OWN * WIDE; j++) {
        const uint4 later = ask(j + 1, 0), last = ask(j + 1, 8);
#pragma unroll
        for (int k = 0; k < OWN * WIDE; k++) { // registers have no numbers at run time
            if (j == k) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float *const two = c[k / WIDE] + k % WIDE * 16 + i / 2 * 4 + i % 2 * 2;
                    const uint2 w = {__float_as_uint(two[0]), __float_as_uint(two[1])};
                    *reinterpret_cast<uint2 *>(table + (to ^ i / 2 * 8) + i % 2 * EIGHT) = w;
                }
            }
        }
        __syncwarp();
#pragma unroll 1
        for (int half = 0; half < 2; half++) {
            const int row = row_of(j) + 8 * half, column = column_of(j);
            if (row >= r.rows || column >= r.columns) {
                break;
            }
            float x[RUN], four[4];
#pragma unroll
            for (int i = 0; i < RUN; i += 4) {
                unpack<float>(*reinterpret_cast<const uint4 *>(table + (from ^ i) + half * EIGHT), four);
                x[i] = four[0];
                x[i + 1] = four[1];
                x[i + 2] = four[2];
                x[i + 3] = four[3];
            }
            if (r.parts) {
                keep_part(r, row, column, i64(at.part) * batch + at.matrix, x);
            } else {
                finish<T, Last>(r, row, column, at.matrix, x, asks, one);
            }
            one = next;
        }
        __syncwarp();
        one = later;
        next = last;
    }
}

template <class T, int ROWS, int COLUMNS, int STAGES, bool BY_TURNS, int BLOCKS, bool TURNED_A, bool TURNED_B, class Last>
__device__ inline void product(const TensorMap *a, const TensorMap *b, const Result &result, const Work &w) {
    const int OWN_ROWS = BY_TURNS ? ROWS : ROWS / CONSUMERS, OWN = OWN_ROWS / 64; // of a group
    const int AHEAD = BY_TURNS ? 1 : 0; // steps of products under way: nobody else's fill the gaps where groups take turns
    const int BYTES_A = ROWS * BOX_ROW, BYTES = (ROWS + COLUMNS) * BOX_ROW;
    DYNAMIC_SHARED(room);
    unsigned char *const stages = room + (-shared_address(room) & 1023u);
    float *const tables = reinterpret_cast<float *>(stages + STAGES * BYTES);
    u64 *const full = reinterpret_cast<u64 *>(tables + CONSUMERS * 4 * TABLE), *const empty = full + STAGES, *const turns = empty + STAGES;
    if (threadIdx.x == 0) {
        prefetch_map(a);
        prefetch_map(b);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, (BY_TURNS ? 4 : CONSUMERS * 4) * BLOCKS);
        }
        if (BY_TURNS) {
            barrier_init(turns, 4);
            barrier_init(turns + 1, 4);
        }
        barriers_made();
    }
    u32 rank = 0; // in a pair
    if constexpr (BLOCKS == 2) {
        rank = rank_in_cluster();
        meet_cluster();
    } else {
        __syncthreads();
    }

    const u32 all = w.down * w.across * w.batch * w.parts, begin_at = blockIdx.x / BLOCKS, hop = gridDim.x / BLOCKS;
    const int group = __shfl_sync(EVERY_LANE, int(threadIdx.x / 128), 0); // the same in all of a warp, to the compiler too
    int stage = 0;
    u32 parity = 0; // of this lap through the ring
    const auto next_stage = [&] {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    };
    const auto release = [&](int stage) { // by each warp, as one's products may end before another's
        if constexpr (BLOCKS == 2) {
            if (threadIdx.x % 32 < 2) {
                barrier_arrive_at(empty + stage, threadIdx.x % 32);
            }
        } else if (threadIdx.x % 32 == 0) {
            barrier_arrive(empty + stage);
        }
    };
    const auto leave = [&](u32 number) { // the stages of a tile of the other group
        const Place its = place<ROWS * BLOCKS, COLUMNS>(number, w);
        stage += its.last - its.first;
        parity ^= stage / STAGES & 1;
        stage %= STAGES;
    };
    if (group == CONSUMERS) {
        fewer_registers<LEFT_REGISTERS>();
        if (threadIdx.x % 128 == 0) {
            for (u32 number = begin_at; number < all; number += hop) {
                const Place at = place<ROWS * BLOCKS, COLUMNS>(number, w);
                for (int step = at.first; step < at.last; step++) {
                    unsigned char *const to = stages + stage * BYTES;
                    barrier_wait(empty + stage, parity ^ 1);
                    barrier_expect(full + stage, BYTES);
                    bring<TURNED_A, ROWS, false>(to, a, full + stage, at.row + rank * ROWS, step * STEP,
                                                 at.matrix * w.a_moves, rank);
                    bring<TURNED_B, COLUMNS, BLOCKS == 2>(to + BYTES_A, b, full + stage, at.column, step * STEP,
                                                          at.matrix * w.b_moves, rank);
                    next_stage();
                }
            }
        }
    } else {
        more_registers<OWN_REGISTERS>();
        float *const table = tables + threadIdx.x / 32 * TABLE;
        const u32 begin = shared_address(stages);
        const int first_row = BY_TURNS ? 0 : group * OWN_ROWS;
        u32 number = begin_at, turn = group ^ 1; // parity of the turn that is waited for
        if (BY_TURNS && group == 1) {
            leave(number);
            number += hop;
        }
        for (; number < all; number += BY_TURNS ? 2 * hop : hop) {
            const Place at = place<ROWS * BLOCKS, COLUMNS>(number, w);
            float c[OWN][COLUMNS / 2];
            if (BY_TURNS) {
                barrier_wait(turns + group, turn);
                turn ^= 1;
            }
            for (int step = at.first; step < at.last; step++) {
                const u32 all_b = begin + stage * BYTES + BYTES_A, own_a = begin + stage * BYTES + first_row * BOX_ROW;
                barrier_wait(full + stage, parity);
                products_begin();
#pragma unroll
                for (int k = 0; k < STEP / 16; k++) {
                    const u64 of_b = operand(all_b + k * (TURNED_B ? 16 * BOX_ROW : 32), BOX);
#pragma unroll
                    for (int i = 0; i < OWN; i++) {
                        const u64 of_a = operand(own_a + i * BOX + k * (TURNED_A ? 16 * BOX_ROW : 32), BOX);
                        group_multiply_add<TURNED_A, TURNED_B>(c[i], of_a, of_b, step != at.first || k != 0, T());
                    }
                }
                products_close();
                if (BY_TURNS && step == at.last - 1 && threadIdx.x % 32 == 0) {
                    barrier_arrive(turns + (group ^ 1));
                }
                products_wait<AHEAD>();
                if (AHEAD == 0 || step != at.first) {
                    release(AHEAD == 0 ? stage : (stage == 0 ? STAGES : stage) - 1);
                }
                next_stage();
            }
            if (BY_TURNS) {
                products_wait<0>();
                release((stage == 0 ? STAGES : stage) - 1);
            }
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                settled(c[i]);
            }
            finish_tile<T, Last, OWN, COLUMNS>(c, table, result, at, at.row + rank * ROWS + first_row, w.batch);
            if (BY_TURNS) {
                leave(number + hop);
            }
        }
    }
    if constexpr (BLOCKS == 2) {
        meet_cluster(); // nobody ends while another may still reach it
    }
}

// A is (rows, terms) in rows, n, or in columns, t; so is B, (terms, columns). A box of A in rows, and one of B in columns,
// is as the products want it.
#define TURNED_A_n false
#define TURNED_A_t true
#define TURNED_B_n true
#define TURNED_B_t false
#define IS_together false
#define IS_turns true
#define CLUSTER_alone
#define CLUSTER_paired __cluster_dims__(2, 1, 1)
#define BLOCKS_alone 1
#define BLOCKS_paired 2
#define MAKE(T, ROWS, COLUMNS, STAGES, GROUPS, BLOCKS, A, B, LAST) \
    extern "C" __global__ void CLUSTER_##BLOCKS __launch_bounds__((CONSUMERS + 1) * 128, 1) \
        product_##T##_##ROWS##x##COLUMNS##_##GROUPS##_##BLOCKS##_##A##B##_##LAST( \
            const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, \
            const __grid_constant__ Result result, i64 down, i64 across, i64 batch, i64 parts, i64 steps, \
            i64 steps_of_part, i64 a_moves, i64 b_moves) { \
        const Work w = {u32(down), u32(across), u32(batch), u32(parts), \
                        int(steps), int(steps_of_part), int(a_moves), int(b_moves)}; \
        product<T, ROWS, COLUMNS, STAGES, IS_##GROUPS, BLOCKS_##BLOCKS, TURNED_A_##A, TURNED_B_##B, LAST>(&a, &b, result, w); \
    }
