// What only Hopper (sm_90a) has: barriers in shared memory that count bytes, boxes of a tensor that arrive there by
// themselves, and products by four warps at once (a group of 128 threads). A file that wants this says so in its first
// line: "// after: tensor_cores hopper".
//
// A box has rows of 128 bytes, one after the other, and begins at a multiple of 1,024. Within a row, 16-byte piece c of
// row r lies at place c ^ (r % 8). A product wants both operands so, in one of two ways:
//   as it is: a row of the box is a row of A or a column of B, and runs along K, 64 values of 16 bits;
//   turned:   a row of the box is one k, and runs along rows of A or columns of B; for more than 64 of those there are
//             several boxes, `leading` bytes apart.
// Groups of eight rows of a box are `stride` bytes apart, 1,024 where nothing lies between.
//
// C of a product (64 x N): warp w of the group has rows 16 w to 16 w + 15; with g = lane / 4 and t = lane % 4, values
// 4 j and 4 j + 1 are row g, columns 8 j + 2 t and one more; 4 j + 2 and 4 j + 3 are row g + 8.

struct alignas(128) TensorMap { // what the driver made of a tensor and the box that is read of it
    u64 words[16];
};

const int BOX_ROW = 128, EIGHT_ROWS = 8 * BOX_ROW; // bytes

#ifndef EMULATED

// ---- barriers: each phase ends when all have arrived and all bytes have come; parity is 0 for the first phase

__device__ inline void barrier_init(u64 *barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// After the last of them, by who made them; then the block meets.
__device__ inline void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void barrier_arrive(u64 *barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrive, and say how many bytes will come in this phase.
__device__ inline void barrier_expect(u64 *barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}
// Whether the phase of this parity has ended; may sleep for a moment.
__device__ inline bool barrier_passed(u64 *barrier, u32 parity) {
    u32 passed;
    asm volatile("{ .reg .pred passed; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 passed, [%1], %2; "
                 "selp.u32 %0, 1, 0, passed; }"
                 : "=r"(passed)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    return passed;
}

// ---- clusters: blocks that run together and reach each other's shared memory

__device__ inline u32 rank_in_cluster() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// All threads of all its blocks.
__device__ inline void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// At a block's barrier in the same place. It says that products have read something, not that threads have written: what
// these wrote may be seen later, as telling the whole cluster of it would wait for all memory.
__device__ inline void barrier_arrive_at(u64 *barrier, u32 rank) {
    asm volatile("{ .reg .u32 there; mapa.shared::cluster.u32 there, %0, %1; "
                 "mbarrier.arrive.release.cta.shared::cluster.b64 _, [there]; }" ::"r"(shared_address(barrier)),
                 "r"(rank)
                 : "memory");
}

// ---- boxes

__device__ inline void prefetch_map(const TensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// The box that begins at column x, row y of matrix z; zeros where there is nothing. The barrier counts its bytes, all of them.
__device__ inline void copy_box(void *to, const TensorMap *map, u64 *barrier, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
// The same to each block of a cluster whose bit is set, at the same place, and for the barrier there.
__device__ inline void copy_box_to(u16 ranks, void *to, const TensorMap *map, u64 *barrier, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "h"(ranks)
                 : "memory");
}

// ---- products

// Before the first product of a series: registers written so far are seen.
__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// What was asked for since the last call is one series.
__device__ inline void products_close() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Wait until at most so many series are under way; then values may be read that `settled` names.
template <int UNDER_WAY> __device__ inline void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(UNDER_WAY) : "memory");
}
// The compiler is not to read these before the wait.
template <int COUNT> __device__ inline void settled(float (&c)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("" : "+f"(c[i])::"memory");
    }
}

#define NAMES_0 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_96 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FOUR(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
#define VALUES_0 SIXTEEN(0), SIXTEEN(16)
#define VALUES_32 VALUES_0, SIXTEEN(32), SIXTEEN(48)
#define VALUES_64 VALUES_32, SIXTEEN(64), SIXTEEN(80)
#define VALUES_96 VALUES_64, SIXTEEN(96), SIXTEEN(112)

// C = A B, or C += A B; 64 x N from 64 x 16 and 16 x N.
#define MAKE(N, T, TYPE, NAMES, VALUES, A, B, ADD, TURN_A, TURN_B) \
    template <bool TURNED_A, bool TURNED_B> \
    __device__ inline void group_multiply_add(float (&c)[N / 2], u64 a, u64 b, bool add, T) { \
        asm volatile("{ .reg .pred add; setp.ne.u32 add, " ADD ", 0; " \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" NAMES "}, " A ", " B \
                     ", add, 1, 1, " TURN_A ", " TURN_B "; }" \
                     : VALUES \
                     : "l"(a), "l"(b), "r"(u32(add)), "n"(int(TURNED_A)), "n"(int(TURNED_B))); \
    }
#define MAKE_EACH(T, TYPE) \
    MAKE(64, T, TYPE, NAMES_0, VALUES_0, "%32", "%33", "%34", "%35", "%36") \
    MAKE(128, T, TYPE, NAMES_0 NAMES_32, VALUES_32, "%64", "%65", "%66", "%67", "%68") \
    MAKE(192, T, TYPE, NAMES_0 NAMES_32 NAMES_64, VALUES_64, "%96", "%97", "%98", "%99", "%100") \
    MAKE(256, T, TYPE, NAMES_0 NAMES_32 NAMES_64 NAMES_96, VALUES_96, "%128", "%129", "%130", "%131", "%132")
MAKE_EACH(bfloat16, "bf16")
MAKE_EACH(float16, "f16")
#undef MAKE
#undef MAKE_EACH

// ---- registers move between groups of a block; all warps of a group say so, once, where their ways part

template <int COUNT> __device__ inline void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ inline void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#endif

__device__ inline void barrier_wait(u64 *barrier, u32 parity) {
    while (!barrier_passed(barrier, parity)) {
    }
}

// An operand as products want it named: where it begins in shared memory. A step of 16 along K is 32 bytes as it is, and
// 16 rows of the box turned.
__device__ inline u64 operand(u32 at, u32 leading, u32 stride = EIGHT_ROWS) {
    const u64 swizzle_of_128_bytes = 1;
    return u64((at & 0x3ffffu) >> 4) | u64(leading >> 4) << 16 | u64(stride >> 4) << 32 | swizzle_of_128_bytes << 62;
}
