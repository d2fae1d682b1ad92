// Small kernels that ask the card what only it can answer. They need compute capability 9.0 and build on nothing.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct __align__(64) TensorMap {
    unsigned char bytes[128];
};

__device__ inline u32 shared_address(const void *at) { return u32(__cvta_generic_to_shared(at)); }

// How many of its arguments arrive as they were passed.
extern "C" __global__ void arguments(i64 *right, i64 a, float b, int c, double d, const void *e) {
    *right = (a == -(i64(1) << 40)) + (b == 0.1f) + (c == -7) + (d == 0.1) + (e == nullptr);
}

extern "C" __global__ void nothing(float *) {}

extern "C" __global__ void add_one(float *x, i64 n) {
    const i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) {
        x[i] += 1.f;
    }
}

// The last byte of the dynamic shared memory, written and read again by another thread.
extern "C" __global__ void last_byte(i64 *out, i64 bytes) {
    extern __shared__ unsigned char dynamic[];
    if (threadIdx.x == 0) {
        dynamic[bytes - 1] = 77;
    }
    __syncthreads();
    if (threadIdx.x == 32) {
        *out = dynamic[bytes - 1];
    }
}

// Each block's place in a cluster of two, and how many its cluster has.
extern "C" __global__ void __cluster_dims__(2, 1, 1) clusters(i64 *place, i64 *count) {
    u32 rank, blocks;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    if (threadIdx.x == 0) {
        place[blockIdx.x] = rank;
        count[blockIdx.x] = blocks;
    }
}

// A box of 64x64 16-bit values by a tensor map, as it lies in shared memory; -1 in `done` if it did not come.
extern "C" __global__ void box(const __grid_constant__ TensorMap map, u16 *out, i64 *done, int column, int row) {
    __shared__ __align__(1024) u16 tile[64 * 64];
    __shared__ __align__(8) u64 barrier;
    const u32 at = shared_address(&barrier);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 8192;" ::"r"(at) : "memory");
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%2, %3}], [%4];"
                     :
                     : "r"(shared_address(tile)), "l"(&map), "r"(column), "r"(row), "r"(at)
                     : "memory");
    }
    u32 came = 0;
    for (int tries = 0; tries < 100000 && !came; tries++) {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                     : "=r"(came)
                     : "r"(at)
                     : "memory");
    }
    for (int i = threadIdx.x; i < 64 * 64; i += blockDim.x) {
        out[i] = came ? tile[i] : u16(0xffff);
    }
    if (threadIdx.x == 0) {
        *done = came ? 1 : -1;
    }
}

// ---- wgmma

#define FIRST_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NEXT_64 \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define EIGHT(d, i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define SIXTY_FOUR(d, i) \
    EIGHT(d, i), EIGHT(d, i + 8), EIGHT(d, i + 16), EIGHT(d, i + 24), EIGHT(d, i + 32), EIGHT(d, i + 40), \
        EIGHT(d, i + 48), EIGHT(d, i + 56)

// D += A B, 64x16 by 16x128, where an operand is TURNED if the axis that is not summed over is contiguous.
template <int A_TURNED, int B_TURNED> __device__ inline void multiply_128(float (&d)[64], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FIRST_64 "}, %64, %65, 1, 1, 1, %66, %67;"
                 : SIXTY_FOUR(d, 0)
                 : "l"(a), "l"(b), "n"(A_TURNED), "n"(B_TURNED));
}
__device__ inline void multiply_256(float (&d)[128], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" FIRST_64 ", " NEXT_64
                 "}, %128, %129, 1, 1, 1, 0, 0;"
                 : SIXTY_FOUR(d, 0), SIXTY_FOUR(d, 64)
                 : "l"(a), "l"(b));
}
__device__ inline void begin_multiplying() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void end_multiplying() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// Rows of 128 bytes whose 16-byte chunks are swizzled.
__device__ inline u64 descriptor(u32 at, u32 leading, u32 stride) {
    return u64(at >> 4 & 0x3fff) | u64(leading >> 4) << 16 | u64(stride >> 4) << 32 | u64(1) << 62;
}

// D = A B, 64x64 by 64x128, of images of shared memory (8 and 16 KB) by descriptors with these offsets, in bytes; a
// step of 16 adds to where an operand begins.
template <int A_TURNED, int B_TURNED>
__device__ inline void try_offsets(const uint4 *a, const uint4 *b, float *d, i64 a_leading, i64 a_stride, i64 a_step,
                                   i64 b_leading, i64 b_stride, i64 b_step) {
    __shared__ __align__(1024) uint4 operands[40960 / 16]; // more than the operands: wrong offsets lead beyond them
    for (int i = threadIdx.x; i < 512; i += 128) {
        operands[i] = a[i];
    }
    for (int i = threadIdx.x; i < 1024; i += 128) {
        operands[512 + i] = b[i];
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const u32 at = shared_address(operands);
    float sum[64];
    for (int i = 0; i < 64; i++) {
        sum[i] = 0.f;
    }
    begin_multiplying();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        multiply_128<A_TURNED, B_TURNED>(sum, descriptor(at + k * u32(a_step), u32(a_leading), u32(a_stride)),
                                         descriptor(at + 8192 + k * u32(b_step), u32(b_leading), u32(b_stride)));
    }
    end_multiplying();
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int j = 0; j < 16; j++) {
        for (int half = 0; half < 2; half++) {
            float *to = d + (row + 8 * half) * 128 + 8 * j + column;
            to[0] = sum[4 * j + 2 * half];
            to[1] = sum[4 * j + 2 * half + 1];
        }
    }
}

#define OFFSETS(name, A_TURNED, B_TURNED) \
    extern "C" __global__ void __launch_bounds__(128) \
        name(const uint4 *a, const uint4 *b, float *d, i64 a_leading, i64 a_stride, i64 a_step, i64 b_leading, \
             i64 b_stride, i64 b_step) { \
        try_offsets<A_TURNED, B_TURNED>(a, b, d, a_leading, a_stride, a_step, b_leading, b_stride, b_step); \
    }
OFFSETS(offsets_00, 0, 0)
OFFSETS(offsets_01, 0, 1)
OFFSETS(offsets_10, 1, 0)
OFFSETS(offsets_11, 1, 1)

// ---- how fast: nothing but the instruction itself, on random values

// Two warpgroups a block, each 16 products of 64x256x16 a round; 49 KB of shared memory and a KB to begin at a multiple.
extern "C" __global__ void __launch_bounds__(256, 1) wgmma_rate(const uint4 *values, float *out, i64 rounds) {
    extern __shared__ unsigned char dynamic[];
    const u32 begin = (shared_address(dynamic) + 1023) / 1024 * 1024, skip = begin - shared_address(dynamic);
    for (int i = threadIdx.x; i < 49152 / 16; i += 256) {
        reinterpret_cast<uint4 *>(dynamic + skip)[i] = values[i];
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const u64 a = descriptor(begin + threadIdx.x / 128 * 8192, 16, 1024), b = descriptor(begin + 16384, 16, 1024);
    float sum[128];
    for (int i = 0; i < 128; i++) {
        sum[i] = 0.f;
    }
    for (i64 round = 0; round < rounds; round++) {
        begin_multiplying();
#pragma unroll
        for (int k = 0; k < 16; k++) {
            multiply_256(sum, a + 2 * (k % 4), b + 2 * (k % 4));
        }
        end_multiplying();
    }
    float total = 0.f;
    for (int i = 0; i < 128; i++) {
        total += sum[i];
    }
    out[blockIdx.x * 256 + threadIdx.x] = total;
}

// Each warp 16 products of 16x8x16 a round.
extern "C" __global__ void __launch_bounds__(256, 2) mma_rate(const uint4 *values, float *out, i64 rounds) {
    const uint4 *own = values + threadIdx.x % 512;
    const uint4 a[2] = {own[0], own[512]}, b[4] = {own[1024], own[1536], own[2048], own[2560]};
    float sum[16][4] = {};
    for (i64 round = 0; round < rounds; round++) {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const uint4 left = a[i % 2], right = b[i / 2 % 4];
            const u32 first = i < 8 ? right.x : right.z, second = i < 8 ? right.y : right.w;
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                         "{%8, %9}, {%0, %1, %2, %3};"
                         : "+f"(sum[i][0]), "+f"(sum[i][1]), "+f"(sum[i][2]), "+f"(sum[i][3])
                         : "r"(left.x), "r"(left.y), "r"(left.z), "r"(left.w), "r"(first), "r"(second));
        }
    }
    float total = 0.f;
    for (int i = 0; i < 16; i++) {
        total += sum[i][0] + sum[i][1] + sum[i][2] + sum[i][3];
    }
    out[blockIdx.x * 256 + threadIdx.x] = total;
}

// Eight powers of two a round in each of 1024 threads; and the clocks that they took.
extern "C" __global__ void __launch_bounds__(1024, 2) power_rate(float *out, i64 *clocks, i64 rounds) {
    float x[8];
    for (int i = 0; i < 8; i++) {
        x[i] = threadIdx.x * 1e-3f + i;
    }
    __syncthreads();
    const i64 began = clock64();
    for (i64 round = 0; round < rounds; round++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            asm volatile("{ .reg .f32 y; neg.f32 y, %0; ex2.approx.ftz.f32 %0, y; }" : "+f"(x[i]));
        }
    }
    __syncthreads();
    clocks[blockIdx.x] = clock64() - began;
    float total = 0.f;
    for (int i = 0; i < 8; i++) {
        total += x[i];
    }
    out[blockIdx.x * 1024 + threadIdx.x] = total;
}

// Ones added to tiles of 4096 floats, in turns, by the copy engine and by threads.
extern "C" __global__ void __launch_bounds__(256) add_by_copies(float *to, i64 tiles, i64 rounds) {
    __shared__ __align__(128) float ones[4096];
    for (int i = threadIdx.x; i < 4096; i += 256) {
        ones[i] = 1.f;
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        for (i64 round = 0; round < rounds; round++) {
            const i64 tile = (blockIdx.x + round * gridDim.x) % tiles;
            asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], 16384;"
                         :
                         : "l"(__cvta_generic_to_global(to + tile * 4096)), "r"(shared_address(ones))
                         : "memory");
            asm volatile("cp.async.bulk.commit_group;" ::: "memory");
            asm volatile("cp.async.bulk.wait_group.read 3;" ::: "memory");
        }
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}
extern "C" __global__ void __launch_bounds__(256) add_by_threads(float *to, i64 tiles, i64 rounds) {
    for (i64 round = 0; round < rounds; round++) {
        const i64 tile = (blockIdx.x + round * gridDim.x) % tiles;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float *at = to + tile * 4096 + (i * 256 + threadIdx.x) * 4;
            asm volatile("red.global.add.v4.f32 [%0], {%1, %1, %1, %1};"
                         :
                         : "l"(__cvta_generic_to_global(at)), "f"(1.f)
                         : "memory");
        }
    }
}
