// What every .cu of this folder begins with: it is put before their text, so that nothing is included.
//
// Values are stored as float, float16 or bfloat16, and computed with as float. A row belongs to a team of 32 or more
// threads. All sums have one order, which depends on sizes alone: the same bits come out every time. Sizes that Python
// passes are 64 bits wide, as it passes all whole numbers so.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

[[maybe_unused]] const int THREADS = 256; // in a block, unless a kernel says otherwise
const u32 EVERY_LANE = 0xffffffffu;

struct float16 {
    u16 bits;
};
struct bfloat16 {
    u16 bits;
};

__device__ inline float infinity() { return __uint_as_float(0x7f800000u); }
__device__ inline float not_a_number() { return __uint_as_float(0x7fffffffu); }

// ---- what has a name of its own in the machine: types to float and back, to the nearest, ties to even; wide accesses

#ifndef EMULATED
__device__ inline float half_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ inline u16 float_to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ inline u16 float_to_brain(float x) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// 2^x within 2 units in the last place; 0 for minus infinity.
__device__ inline float exp2_near(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// In one instruction each: left to itself the compiler may take an access apart in a loop.
__device__ inline uint4 load_16_bytes(const void *from) {
    uint4 w;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "l"(__cvta_generic_to_global(from))
                 : "memory");
    return w;
}
// The same where a condition holds, else zeros; without a branch, so that many are under way at once.
__device__ inline uint4 load_16_bytes_if(bool present, const void *from) {
    uint4 w = {0, 0, 0, 0};
    asm volatile("{ .reg .pred present; setp.ne.u32 present, %5, 0; "
                 "@present ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(w.x), "+r"(w.y), "+r"(w.z), "+r"(w.w)
                 : "l"(__cvta_generic_to_global(from)), "r"(u32(present))
                 : "memory");
    return w;
}
__device__ inline uint2 load_8_bytes(const void *from) {
    uint2 w;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
                 : "=r"(w.x), "=r"(w.y)
                 : "l"(__cvta_generic_to_global(from))
                 : "memory");
    return w;
}
__device__ inline void store_8_bytes(void *to, uint2 w) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(w.x), "r"(w.y)
                 : "memory");
}
__device__ inline void store_16_bytes(void *to, uint4 w) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w)
                 : "memory");
}
#endif

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(float16 x) { return half_to_float(x.bits); }
__device__ inline float wide(bfloat16 x) { return __uint_as_float(u32(x.bits) << 16); }

__device__ inline void narrow(float x, float &y) { y = x; }
__device__ inline void narrow(float x, float16 &y) { y.bits = float_to_half(x); }
__device__ inline void narrow(float x, bfloat16 &y) { y.bits = float_to_brain(x); }

// The value that storing it leaves.
template <class T> __device__ inline float rounded(float x) {
    T stored;
    narrow(x, stored);
    return wide(stored);
}

// ---- several values at once, in words of 32 bits

template <class T> struct Fits { // values of a type in one access of 16 bytes
    static const int count = 16 / sizeof(T);
};

__device__ inline void unpack(u32 word, float *x, float) { x[0] = __uint_as_float(word); }
__device__ inline void unpack(u32 word, float *x, float16) {
    x[0] = half_to_float(u16(word));
    x[1] = half_to_float(u16(word >> 16));
}
__device__ inline void unpack(u32 word, float *x, bfloat16) {
    x[0] = __uint_as_float(word << 16);
    x[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ inline u32 pack(const float *x, float) { return __float_as_uint(x[0]); }
__device__ inline u32 pack(const float *x, float16) {
    return u32(float_to_half(x[0])) | u32(float_to_half(x[1])) << 16;
}
__device__ inline u32 pack(const float *x, bfloat16) {
    return u32(float_to_brain(x[0])) | u32(float_to_brain(x[1])) << 16;
}

template <class T, int N> __device__ inline void unpack(uint4 w, float (&x)[N]) {
    const int each = 4 / sizeof(T);
    if constexpr (N > 1) {
        unpack(w.x, x, T());
        unpack(w.y, x + each, T());
        unpack(w.z, x + 2 * each, T());
        unpack(w.w, x + 3 * each, T());
    }
}

// N values from one address: one value, or 8 or 16 bytes, of which the address is a multiple.
template <int N, class T> __device__ inline void load(const T *from, float (&x)[N]) {
    if constexpr (N == 1) {
        x[0] = wide(*from);
    } else if constexpr (N * sizeof(T) == 8) {
        const uint2 w = load_8_bytes(from);
        unpack(w.x, x, T());
        unpack(w.y, x + 4 / sizeof(T), T());
    } else {
        static_assert(N * sizeof(T) == 16, "one value, 8 bytes or 16");
        unpack<T>(load_16_bytes(from), x);
    }
}

template <int N, class T> __device__ inline void store(T *to, const float (&x)[N]) {
    const int each = 4 / sizeof(T);
    if constexpr (N == 1) {
        narrow(x[0], *to);
    } else if constexpr (N * sizeof(T) == 8) {
        uint2 w;
        w.x = pack(x, T());
        w.y = pack(x + each, T());
        store_8_bytes(to, w);
    } else {
        static_assert(N * sizeof(T) == 16, "one value, 8 bytes or 16");
        uint4 w;
        w.x = pack(x, T());
        w.y = pack(x + each, T());
        w.z = pack(x + 2 * each, T());
        w.w = pack(x + 3 * each, T());
        store_16_bytes(to, w);
    }
}

// ---- who does what

template <int N> struct Count {
    static const int value = N;
};

// One thread for each N values, and for each of those left over: f(Count<N>(), place). Python passes how many groups of
// N there are: none where an address does not allow it.
template <int N, class F> __device__ inline void each_value(i64 n, i64 groups, F f) {
    const i64 i = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (i < groups) {
        f(Count<N>(), i * N);
    } else if (i + groups * (N - 1) < n) {
        f(Count<1>(), i + groups * (N - 1));
    }
}

// One lane's share of so many groups of a row: f(k, v) for group v, which it may hold as its k-th in registers if HELD,
// the most that a lane has, is not 0.
template <int LANES, int HELD, class F> __device__ inline void each_group(int count, F f) {
    const int lane = threadIdx.x % LANES;
    if constexpr (HELD > 0) {
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            const int v = lane + k * LANES;
            if (v < count) {
                f(k, v);
            }
        }
    } else {
#pragma unroll 2
        for (int v = lane; v < count; v += LANES) {
            f(0, v);
        }
    }
}

// A lane's groups of a row, if it holds them, all asked for at once: between one and the next it would wait for memory.
// Groups that are not there are zeros.
template <int LANES, int HELD, class T, int ROOM>
__device__ inline void ask(const T *row, int count, uint4 (&found)[ROOM]) {
    if constexpr (HELD > 0) {
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            const int v = threadIdx.x % LANES + k * LANES;
            found[k] = load_16_bytes_if(v < count, row + i64(v) * Fits<T>::count);
        }
    }
}

// Group v of a row, which is a lane's k-th: out of what was asked for, or else from memory.
template <int HELD, class T, int ROOM, int N>
__device__ inline void take(const uint4 (&asked)[ROOM], const T *row, int k, int v, float (&x)[N]) {
    if constexpr (HELD > 0) {
        unpack<T>(asked[k], x);
    } else {
        load(row + i64(v) * N, x);
    }
}

// The number of this thread's team among those of all blocks.
template <int LANES> __device__ inline i64 team() {
    return i64(blockIdx.x) * (THREADS / LANES) + threadIdx.x / LANES;
}

// ---- sums and maxima over a team; every thread of it gets the same result

template <class T> __device__ inline T warp_sum(T x) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        x += __shfl_xor_sync(EVERY_LANE, x, apart);
    }
    return x;
}

__device__ inline float warp_max(float x) { // leaves out NaN
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, apart));
    }
    return x;
}

template <int LANES, class T> __device__ inline T team_sum(T x) {
    x = warp_sum(x);
    if constexpr (LANES > 32) {
        __shared__ T of_warp[LANES / 32];
        __syncthreads(); // nobody still reads those of an earlier sum
        if (threadIdx.x % 32 == 0) {
            of_warp[threadIdx.x / 32] = x;
        }
        __syncthreads();
        x = of_warp[0];
        for (int i = 1; i < LANES / 32; i++) {
            x += of_warp[i];
        }
    }
    return x;
}

template <int LANES> __device__ inline float team_max(float x) {
    x = warp_max(x);
    if constexpr (LANES > 32) {
        __shared__ float of_warp[LANES / 32];
        __syncthreads();
        if (threadIdx.x % 32 == 0) {
            of_warp[threadIdx.x / 32] = x;
        }
        __syncthreads();
        x = of_warp[0];
        for (int i = 1; i < LANES / 32; i++) {
            x = fmaxf(x, of_warp[i]);
        }
    }
    return x;
}

// ---- random bits without a state

__device__ inline u32 stirred(u32 x) {
    x = (x ^ (x >> 16)) * 0x21f0aaadu;
    x = (x ^ (x >> 15)) * 0x735a2d97u;
    return x ^ (x >> 15);
}

// As `mixed` in dropout.py, bit for bit.
__device__ inline u32 mixed(u32 seed, u32 seed_high, u32 place, u32 place_high) {
    const u32 first = stirred(seed ^ stirred(seed_high ^ 0x21f0aaadu));
    const u32 second = stirred(first + seed_high);
    u32 x = place ^ first;
    x = (x ^ (x >> 16)) * 0x21f0aaadu;
    x = x ^ (x >> 15) ^ second ^ place_high;
    x = x * 0x735a2d97u;
    x = (x ^ (x >> 15)) * 0x31848babu;
    return x ^ (x >> 14);
}

// Philox 4x32-10 (Salmon et al., 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"): 16 random bytes in the place of each
// counter. The keys of its rounds are made once for all of them.
template <int COUNT> __device__ inline void philox(uint4 (&counters)[COUNT], uint2 key) {
#pragma unroll
    for (int i = 0; i < 10; i++) {
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            uint4 &counter = counters[j];
            const u64 a = u64(0xd2511f53u) * counter.x, b = u64(0xcd9e8d57u) * counter.z;
            counter.x = u32(b >> 32) ^ counter.y ^ key.x;
            counter.y = u32(b);
            counter.z = u32(a >> 32) ^ counter.w ^ key.y;
            counter.w = u32(a);
        }
        key.x += 0x9e3779b9u;
        key.y += 0xbb67ae85u;
    }
}

// ---- one kernel for each type, and for each shape of rows

#define EACH_TYPE(MAKE) \
    MAKE(float, float32) \
    MAKE(float16, float16) \
    MAKE(bfloat16, bfloat16)

// MAKE(type, suffix, values at once, threads of a team, groups held by each). A lane holds 32 values at most.
#define EACH_SHAPE(MAKE, T, name) \
    MAKE(T, name##_warp, Fits<T>::count, 32, 32 / Fits<T>::count) \
    MAKE(T, name##_block, Fits<T>::count, 256, 32 / Fits<T>::count) \
    MAKE(T, name##_wide, Fits<T>::count, 256, 0) \
    MAKE(T, name##_narrow, 1, 32, 0) \
    MAKE(T, name##_any, 1, 256, 0)
