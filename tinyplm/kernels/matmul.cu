// after: tensor_cores gelu_curve matmul_result matmul_given
// Products by tensor cores as every card since compute capability 8.0 has them; see matmul_plan.py.
//
// A block makes one tile of the result. DEPTH terms of both operands at a time are copied to shared memory, some stages
// ahead of the products. An operand is stored by rows of terms, or turned: by rows of what its rows or columns are. Its
// tile lies in shared memory as it is stored, in chunks of 16 bytes, of which a row's are exchanged so that neither
// copies nor the reads of tensor cores meet in one bank.

const int DEPTH = 32; // terms of a stage
const int RUN = 8; // sums side by side that are finished together

// The part of an operand's tile that a thread copies: one chunk of some stored rows, again and again. ALONG says that
// terms lie side by side in a stored row; else its rows or columns do. WHOLE: stored rows begin at multiples of 16 bytes.
template <class T, int EXTENT, bool ALONG, bool WHOLE, int LANES> struct Copies {
    static const int CHUNKS = (ALONG ? DEPTH : EXTENT) / 8, STORED = ALONG ? EXTENT : DEPTH; // chunks of a row; rows
    static const int APART = LANES / CHUNKS; // rows from one copy to the next
    static const int BYTES = EXTENT * DEPTH * sizeof(T);
    static_assert(APART % 8 == 0 && STORED % APART == 0, "all rows of a thread are exchanged alike");

    const T *from;
    i64 pitch;
    int rows, values; // stored ones that are present from where this thread begins
    u32 to;

    // Chunk c of row r lies at chunk c ^ exchange(r): eight rows of a chunk, or eight chunks of a row, meet all banks.
    static __device__ inline u32 exchange(u32 r) { return CHUNKS == 4 ? r / 2 % 4 : r % 8; }
    static __device__ inline u32 place(u32 r, u32 c) { return (r * CHUNKS + (c ^ exchange(r))) * 16; }

    // The tile begins at `start` of `extent` rows or columns, and at term `first` of those before `last`.
    __device__ inline Copies(const Operand &o, i64 one, int start, int extent, int first, int last) {
        const int row = threadIdx.x / CHUNKS, value = threadIdx.x % CHUNKS * 8;
        to = place(row, value / 8);
        rows = (ALONG ? extent - start : last - first) - row;
        values = (ALONG ? last - first : extent - start) - value;
        pitch = o.pitch;
        from = static_cast<const T *>(o.at) + one * o.step + (i64(ALONG ? start : first) + row) * pitch +
               (ALONG ? first : start) + value;
    }

    // Bring the next terms to a stage. Of a chunk that is partly present all is copied: behind it is the same stored row.
    __device__ inline void bring(unsigned char *stage) {
#pragma unroll
        for (int j = 0; j < STORED / APART; j++) {
            const int count = j * APART < rows ? values : 0;
            const T *source = from + j * APART * pitch;
            unsigned char *target = stage + to + j * APART * CHUNKS * 16;
            if constexpr (WHOLE) {
                copy_async(target, source, count > 0);
            } else {
                u32 w[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 low = 2 * i < count ? source[2 * i].bits : 0;
                    w[i] = low | (2 * i + 1 < count ? u32(source[2 * i + 1].bits) << 16 : 0);
                }
                *reinterpret_cast<uint4 *>(target) = make_uint4(w[0], w[1], w[2], w[3]);
            }
        }
        (ALONG ? values : rows) -= DEPTH;
        from += ALONG ? DEPTH : DEPTH * pitch;
    }

    // Clear what this thread copied from behind so many terms of a stage. Rows and columns behind the last may hold anything.
    __device__ inline void trim(unsigned char *stage, int terms) const {
        const int value = threadIdx.x % CHUNKS * 8;
        if (ALONG && WHOLE && terms > value && terms < value + 8) {
#pragma unroll 1
            for (int j = 0; j < STORED / APART; j++) {
                T *chunk = reinterpret_cast<T *>(stage + to + j * APART * CHUNKS * 16);
#pragma unroll 1
                for (int i = terms - value; i < 8; i++) {
                    chunk[i].bits = 0;
                }
            }
        }
    }
};

// A warp's reads of an operand's tile: 16 rows or columns by 16 terms. Of four 8x8 tiles lane l gives row l % 8 of tile
// l / 8. For a these are: rows, 8 rows on, and both 8 terms on; for b: columns, 8 terms on, and both 8 columns on.
template <class Copies, bool ALONG, bool IS_A> struct Reads {
    u32 first;

    __device__ inline Reads(int start) { // where the warp's part begins
        const int lane = threadIdx.x % 32, low = lane % 8, next = lane / 8 % 2 * 8, last = lane / 16 * 8;
        const int line = start + (IS_A ? next : last) + (ALONG ? low : 0); // a row or a column
        const int term = (IS_A ? last : next) + (ALONG ? 0 : low);
        first = ALONG ? Copies::place(line, term / 8) : Copies::place(term, line / 8);
    }

    // Those 16 i rows or columns and 16 k terms on.
    __device__ inline void operator()(u32 (&r)[4], const unsigned char *tile, int i, int k) const {
        const int sixteen = 16 * Copies::CHUNKS * 16; // stored rows, in bytes
        if constexpr (ALONG) {
            load_tiles(r, tile + (first ^ 32 * k) + i * sixteen);
        } else {
            load_tiles_turned(r, tile + (first ^ 32 * i) + k * sixteen);
        }
    }
};

// A warp's sums go through shared memory, 16 rows at a time, so that lanes store 16 bytes side by side. Groups of four
// floats are exchanged by twos, so that eight lanes that read every second one meet all banks.
template <int COLUMNS> struct Staging {
    static const int PITCH = COLUMNS + 8, FLOATS = 16 * PITCH;
    static __device__ inline int place(int row, int column) {
        const int group = column / 4;
        return row * PITCH + (group ^ ((group / 8 + row) & 1)) * 4 + column % 4;
    }
};

template <class T, int ROWS, int COLUMNS, int DOWN, int ACROSS, int STAGES, int RESIDENT, bool A_TURNED, bool B_TURNED,
          bool WHOLE, class Last>
__device__ inline void product(const Given &p) {
    const int LANES = 32 * DOWN * ACROSS, HIGH = ROWS / DOWN, WIDE = COLUMNS / ACROSS; // of a warp's part of the tile
    // Whether a warp has registers to read the next terms while it multiplies: sums, two times 16 terms, and 32 others.
    const bool AHEAD = WHOLE && HIGH * WIDE / 32 + 2 * (HIGH + WIDE) / 4 + 32 <= 65536 / (LANES * RESIDENT);
    using CopiesA = Copies<T, ROWS, !A_TURNED, WHOLE, LANES>;
    using CopiesB = Copies<T, COLUMNS, B_TURNED, WHOLE, LANES>;
    using Staged = Staging<WIDE>;
    const int STAGE = CopiesA::BYTES + CopiesB::BYTES;
    static_assert(DOWN * ACROSS * Staged::FLOATS * 4 <= STAGES * STAGE, "sums fit where the stages were");
    DYNAMIC_SHARED(room);

    const Place here = place(p);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int top = here.row * ROWS, left = here.column * COLUMNS;
    const int down = warp / ACROSS * HIGH, across = warp % ACROSS * WIDE; // where the warp's part begins
    const int first = int(here.part) * p.chunk, last = p.terms - first < p.chunk ? p.terms : first + p.chunk;
    const int steps = (last - first + DEPTH - 1) / DEPTH;
    CopiesA copies_a(p.a, here.one, top, p.result.rows, first, last);
    CopiesB copies_b(p.b, here.one, left, p.result.columns, first, last);
    const Reads<CopiesA, !A_TURNED, true> reads_a(down);
    const Reads<CopiesB, B_TURNED, false> reads_b(across);
    u32 a[1 + AHEAD][HIGH / 16][4], b[1 + AHEAD][WIDE / 16][4]; // 16 terms, and the next
    float sums[HIGH / 16][WIDE / 8][4] = {};

    auto bring = [&](int step) { // behind the last one: zeros, which nobody reads
        unsigned char *stage = room + step % STAGES * STAGE;
        copies_a.bring(stage);
        copies_b.bring(stage + CopiesA::BYTES);
        close_copies();
    };
    auto arrive = [&](int step) { // so that all may read it, and write over the one before
        wait_for_copies<STAGES - 2>();
        if ((last - first) % 8 != 0 && step == steps - 1) {
            unsigned char *stage = room + step % STAGES * STAGE;
            copies_a.trim(stage, last - first - step * DEPTH);
            copies_b.trim(stage + CopiesA::BYTES, last - first - step * DEPTH);
        }
        __syncthreads();
    };
    auto read = [&](int step, int k) {
        const unsigned char *stage = room + step % STAGES * STAGE;
#pragma unroll
        for (int i = 0; i < HIGH / 16; i++) {
            reads_a(a[AHEAD && k][i], stage, i, k);
        }
#pragma unroll
        for (int j = 0; j < WIDE / 16; j++) {
            reads_b(b[AHEAD && k][j], stage + CopiesA::BYTES, j, k);
        }
    };

    for (int step = 0; step < STAGES - 1; step++) {
        bring(step);
    }
    if (AHEAD) {
        arrive(0);
        read(0, 0);
    }
    for (int step = 0; step < steps; step++) {
        if (!AHEAD) {
            arrive(step);
            bring(step + STAGES - 1);
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            if (!AHEAD) {
                read(step, k);
            } else if (k == 0) {
                read(step, 1);
                bring(step + STAGES - 1);
            } else {
                arrive(step + 1);
                read(step + 1, 0);
            }
#pragma unroll
            for (int i = 0; i < HIGH / 16; i++) {
#pragma unroll
                for (int j = 0; j < WIDE / 8; j++) {
                    const u32(&two)[4] = b[AHEAD && k][j / 2];
                    multiply_add(sums[i][j], a[AHEAD && k][i], two[j % 2 * 2], two[j % 2 * 2 + 1], T());
                }
            }
        }
    }
    wait_for_copies<0>();
    __syncthreads();

    float *const staged = reinterpret_cast<float *>(room) + warp * Staged::FLOATS;
#pragma unroll 1
    for (int now = 0; now < HIGH / 16; now++) {
#pragma unroll
        for (int i = 0; i < HIGH / 16; i++) {
            if (i == now) {
#pragma unroll
                for (int j = 0; j < WIDE / 8; j++) {
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const uint2 two = {__float_as_uint(sums[i][j][2 * h]), __float_as_uint(sums[i][j][2 * h + 1])};
                        const int at = Staged::place(lane / 4 + 8 * h, 8 * j + lane % 4 * 2);
                        *reinterpret_cast<uint2 *>(staged + at) = two;
                    }
                }
            }
        }
        __syncwarp();
#pragma unroll 2
        for (int run = lane; run < 2 * WIDE; run += 32) {
            const int r = run / (WIDE / RUN), c = run % (WIDE / RUN) * RUN;
            float x[RUN];
#pragma unroll
            for (int half = 0; half < RUN; half += 4) {
                const uint4 w = *reinterpret_cast<const uint4 *>(staged + Staged::place(r, c + half));
                x[half] = __uint_as_float(w.x);
                x[half + 1] = __uint_as_float(w.y);
                x[half + 2] = __uint_as_float(w.z);
                x[half + 3] = __uint_as_float(w.w);
            }
            const int row = top + down + 16 * now + r, column = left + across + c;
            if (row < p.result.rows && column < p.result.columns) {
                if (p.result.parts) {
                    keep_part(p.result, row, column, here.part * p.batch + here.one, x);
                } else {
                    finish<T, Last>(p.result, row, column, here.one, x);
                }
            }
        }
        __syncwarp();
    }
}

[[maybe_unused]] const bool is_single = false, is_whole = true; // MAKE's how

#define MAKE(T, ROWS, COLUMNS, DOWN, ACROSS, STAGES, RESIDENT, A, B, HOW, LAST) \
    extern "C" __global__ void __launch_bounds__(32 * DOWN * ACROSS, RESIDENT) \
        product_##T##_##ROWS##x##COLUMNS##_##DOWN##x##ACROSS##_##A##B##_##HOW##_##LAST(Given p) { \
        product<T, ROWS, COLUMNS, DOWN, ACROSS, STAGES, RESIDENT, turned_##A, turned_##B, is_##HOW, LAST>(p); \
    }
