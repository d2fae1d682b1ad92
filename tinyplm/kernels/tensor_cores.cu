// Tensor cores as every card since compute capability 8.0 has them: a warp multiplies a 16x16 by a 16x8 tile of 16-bit
// values and adds up in float. A file that wants this says so in its first line: "// after: tensor_cores".
//
// Where things lie in a warp, with g = lane / 4 and t = lane % 4:
//   A (16x16), four words: rows g, g + 8, g, g + 8; columns 2t and 2t + 1, the last two words 8 columns on.
//   B (16x8), two words: column g; rows 2t and 2t + 1, the second word 8 rows on.
//   C (16x8), four floats: row g, columns 2t and 2t + 1; then row g + 8.
// C of one product, packed by twos, is A of the next one: two tiles side by side make 16 columns.

#ifndef EMULATED

// Bytes of shared memory whose number the launch says; its beginning is a multiple of 1024.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

__device__ inline u32 shared_address(const void *at) { return u32(__cvta_generic_to_shared(at)); }

// Four 8x8 tiles of 16-bit values from shared memory: lane l gives where row l % 8 of tile l / 8 begins, a multiple of 16
// bytes. A lane gets row g, columns 2t and 2t + 1 of each; turned: rows 2t and 2t + 1 of column g.
__device__ inline void load_tiles(u32 (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void load_tiles_turned(u32 (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// C += A B.
__device__ inline void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, float16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes from global to shared memory while the thread goes on; zeros where they are not present. Both addresses are
// multiples of 16.
__device__ inline void copy_async(void *to, const void *from, bool present) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(present ? 16 : 0)
                 : "memory");
}
// The same of 4 bytes, of which both addresses are multiples.
__device__ inline void copy_async_word(void *to, const void *from, bool present) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(present ? 4 : 0)
                 : "memory");
}
// What this thread has asked for since the last call is one group.
__device__ inline void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until at most so many of this thread's groups are under way; others see them after a barrier.
template <int UNDER_WAY> __device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(UNDER_WAY) : "memory");
}

__device__ inline u32 pair_as(float first, float second, bfloat16) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}
__device__ inline u32 pair_as(float first, float second, float16) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

#else

template <class T> __device__ inline u32 pair_as(float first, float second, T) {
    const float both[2] = {first, second};
    return pack(both, T());
}

#endif

// Two values side by side, as a tile wants them: the first in the lower half. In one instruction: a thread's other use of
// one of them would have the compiler convert each for itself, at a quarter of the rate.
template <class T> __device__ inline u32 pair_of(float first, float second) { return pair_as(first, second, T()); }
