// after: tensor_cores gelu_curve matmul_result matmul_given
// Products of float32 matrices, exactly so: no tensor cores, whose float32 has 10 bits behind the point; see
// matmul_plan.py.
//
// A block makes one tile of the result, a thread HIGH by WIDE sums of it, in groups of four by four that lie apart, so
// that the threads of a warp read all banks of shared memory. DEPTH terms of both operands at a time are copied there value
// by value, some stages ahead, which turns an operand on the way and needs no alignment.

const int DEPTH = 8; // terms of a stage

// The part of an operand's tile that a thread copies. ALONG: terms lie side by side in a stored row; else its rows or
// columns do. In shared memory rows or columns of one term lie side by side.
template <int EXTENT, bool ALONG, int LANES> struct Copies {
    static const int PITCH = EXTENT + 4, FLOATS = DEPTH * PITCH; // 4 more: eight terms of four rows meet all banks
    static const int APART = ALONG ? LANES / DEPTH : LANES / EXTENT; // stored rows from one copy to the next
    static const int COUNT = EXTENT * DEPTH / LANES;

    const float *from;
    i64 pitch;
    int terms, lines; // that are present from where this thread begins
    int to;

    // The tile begins at `start` of `extent` rows or columns, and at term `first` of those before `last`.
    __device__ inline Copies(const Operand &o, i64 one, int start, int extent, int first, int last) {
        const int line = ALONG ? threadIdx.x / DEPTH : threadIdx.x % EXTENT;
        const int term = ALONG ? threadIdx.x % DEPTH : threadIdx.x / EXTENT;
        terms = last - first - term;
        lines = extent - start - line;
        pitch = o.pitch;
        from = static_cast<const float *>(o.at) + one * o.step + i64(ALONG ? start + line : first + term) * pitch +
               (ALONG ? first + term : start + line);
        to = term * PITCH + line;
    }

    // Bring the next terms to a stage.
    __device__ inline void bring(float *stage) {
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            const bool present = (ALONG ? 0 : j * APART) < terms && (ALONG ? j * APART : 0) < lines;
            copy_async_word(stage + to + j * APART * (ALONG ? 1 : PITCH), from + j * APART * pitch, present);
        }
        terms -= DEPTH;
        from += ALONG ? DEPTH : DEPTH * pitch;
    }
};

// N values of one term, by fours that lie `apart`.
template <int N> __device__ inline void read(const float *from, int apart, float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        const uint4 w = *reinterpret_cast<const uint4 *>(from + i / 4 * apart);
        x[i] = __uint_as_float(w.x);
        x[i + 1] = __uint_as_float(w.y);
        x[i + 2] = __uint_as_float(w.z);
        x[i + 3] = __uint_as_float(w.w);
    }
}

template <int ROWS, int COLUMNS, int HIGH, int WIDE, int STAGES, bool A_TURNED, bool B_TURNED, class Last>
__device__ inline void product(const Given &p) {
    const int ACROSS = COLUMNS / WIDE, LANES = ROWS / HIGH * ACROSS; // threads
    const int DOWN_APART = ROWS / (HIGH / 4), ACROSS_APART = COLUMNS / (WIDE / 4); // from group to group
    using CopiesA = Copies<ROWS, !A_TURNED, LANES>;
    using CopiesB = Copies<COLUMNS, B_TURNED, LANES>;
    const int STAGE = CopiesA::FLOATS + CopiesB::FLOATS;
    DYNAMIC_SHARED(bytes);
    float *const room = reinterpret_cast<float *>(bytes);

    const Place here = place(p);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32; // a warp is four threads down and eight across
    const int down = 4 * (warp / (ACROSS / 8) * 4 + lane / 8), across = 4 * (warp % (ACROSS / 8) * 8 + lane % 8);
    const int top = here.row * ROWS, left = here.column * COLUMNS;
    const int first = int(here.part) * p.chunk, last = p.terms - first < p.chunk ? p.terms : first + p.chunk;
    const int steps = (last - first + DEPTH - 1) / DEPTH;
    CopiesA copies_a(p.a, here.one, top, p.result.rows, first, last);
    CopiesB copies_b(p.b, here.one, left, p.result.columns, first, last);
    float sums[HIGH][WIDE] = {};

    auto bring = [&](int step) { // behind the last one: zeros, which nobody reads
        float *stage = room + step % STAGES * STAGE;
        copies_a.bring(stage);
        copies_b.bring(stage + CopiesA::FLOATS);
        close_copies();
    };
    for (int step = 0; step < STAGES - 1; step++) {
        bring(step);
    }
    for (int step = 0; step < steps; step++) {
        wait_for_copies<STAGES - 2>();
        __syncthreads(); // all may read this stage, and write over the one before
        bring(step + STAGES - 1);
        const float *a = room + step % STAGES * STAGE + down;
        const float *b = room + step % STAGES * STAGE + CopiesA::FLOATS + across;
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float x[HIGH], y[WIDE];
            read(a + k * CopiesA::PITCH, DOWN_APART, x);
            read(b + k * CopiesB::PITCH, ACROSS_APART, y);
#pragma unroll
            for (int i = 0; i < HIGH; i++) {
#pragma unroll
                for (int j = 0; j < WIDE; j++) {
                    sums[i][j] += x[i] * y[j];
                }
            }
        }
    }
    wait_for_copies<0>();

#pragma unroll 1
    for (int now = 0; now < HIGH; now++) { // a row at a time, as finishing is long
        float own[WIDE] = {};
#pragma unroll
        for (int i = 0; i < HIGH; i++) {
#pragma unroll
            for (int j = 0; j < WIDE; j++) {
                own[j] = i == now ? sums[i][j] : own[j];
            }
        }
        const int row = top + down + now / 4 * DOWN_APART + now % 4;
#pragma unroll
        for (int j = 0; j < WIDE; j += 4) {
            const int column = left + across + j / 4 * ACROSS_APART;
            float x[4] = {own[j], own[j + 1], own[j + 2], own[j + 3]};
            if (row < p.result.rows && column < p.result.columns) {
                if (p.result.parts) {
                    keep_part(p.result, row, column, here.part * p.batch + here.one, x);
                } else {
                    finish<float, Last>(p.result, row, column, here.one, x);
                }
            }
        }
    }
}

#define MAKE(ROWS, COLUMNS, HIGH, WIDE, STAGES, RESIDENT, A, B, LAST) \
    extern "C" __global__ void __launch_bounds__((ROWS / HIGH) * (COLUMNS / WIDE), RESIDENT) \
        product_float32_##ROWS##x##COLUMNS##_##A##B##_##LAST(Given p) { \
        product<ROWS, COLUMNS, HIGH, WIDE, STAGES, turned_##A, turned_##B, LAST>(p); \
    }
