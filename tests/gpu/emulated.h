// The .cu files as plain C++: a thread of a block is a coroutine, and one block runs after the other. A warp runs until all
// of it wait for the block, and only then the next: where a barrier is missing, one warp is far ahead of another. The
// blocks of a cluster run together, as threads of one.
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define EMULATED
#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x, y, z;
};
struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static dim3 threadIdx, blockIdx, blockDim, gridDim;

template <class To, class From> To same_bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned pick) {
    const uint64_t both = uint64_t(y) << 32 | x;
    unsigned found = 0;
    for (int i = 0; i < 4; i++) {
        found |= unsigned(both >> (8 * (pick >> 4 * i & 7)) & 0xff) << 8 * i;
    }
    return found;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float half_to_float(unsigned short bits) { return float(same_bits<_Float16>(bits)); }
inline unsigned short float_to_half(float x) { return same_bits<unsigned short>(_Float16(x)); }
inline unsigned short float_to_brain(float x) {
    const unsigned bits = __float_as_uint(x);
    if (x != x) {
        return 0x7fff;
    }
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
inline uint4 load_16_bytes(const void *from) {
    if (uint64_t(from) % 16 != 0) {
        std::abort();
    }
    return *static_cast<const uint4 *>(from);
}
inline uint4 load_16_bytes_if(bool present, const void *from) { return present ? load_16_bytes(from) : uint4{0, 0, 0, 0}; }
inline uint2 load_8_bytes(const void *from) {
    if (uint64_t(from) % 8 != 0) {
        std::abort();
    }
    return *static_cast<const uint2 *>(from);
}
inline void store_8_bytes(void *to, uint2 w) {
    if (uint64_t(to) % 8 != 0) {
        std::abort();
    }
    *static_cast<uint2 *>(to) = w;
}
inline void store_16_bytes(void *to, uint4 w) {
    if (uint64_t(to) % 16 != 0) {
        std::abort();
    }
    *static_cast<uint4 *>(to) = w;
}
inline unsigned atomicAdd(unsigned *at, unsigned more) {
    const unsigned before = *at;
    *at += more;
    return before;
}

// ---- coroutines

const int MOST = 1024, STACK = 1 << 15;
static ucontext_t contexts[MOST]; // to begin with
static jmp_buf at_scheduler, at[MOST]; // to go on, which costs no call of the system
static char stacks[MOST][STACK];
static bool started[MOST], finished[MOST], stuck[MOST]; // stuck: until the whole block is there
static int current, alive, alive_of_warp[MOST / 32];
const int CLUSTER = 2; // blocks at most
static int alive_of_block[CLUSTER];
inline int rank() { return current / int(blockDim.x); } // of its block in a cluster
static void (*job)();
static long progress; // grows with all that others may wait for
static jmp_buf at_fault;
static char fault[4096]; // what went wrong in this launch

static void give_way() {
    if (_setjmp(at[current]) == 0) {
        _longjmp(at_scheduler, 1);
    }
}

static void give_turn() {
    if (_setjmp(at_scheduler) == 0) {
        if (started[current]) {
            _longjmp(at[current], 1);
        }
        started[current] = true;
        setcontext(&contexts[current]);
    }
}

struct Barrier { // of so many threads that have not finished
    int arrived = 0, lap = 0;
    void wait(const int &present, bool whole_block) {
        const int mine = lap;
        arrived++;
        progress++;
        while (mine == lap) {
            if (arrived >= present) {
                arrived = 0;
                lap++;
                progress++;
                if (whole_block) {
                    std::memset(stuck, 0, sizeof stuck);
                }
                return;
            }
            stuck[current] = whole_block;
            give_way();
        }
    }
};
static Barrier of_cluster, of_block[CLUSTER], of_warp[MOST / 32];

// End the launch: Python is told why.
template <class... P> [[noreturn]] inline void fail(const char *format, P... what) {
    const int begun = std::snprintf(fault, sizeof fault, "block %u, thread %d: ", blockIdx.x, current);
    std::snprintf(fault + begun, sizeof fault - begun, format, what...);
    _longjmp(at_fault, 1);
}

inline void __syncthreads() { of_block[rank()].wait(alive_of_block[rank()], true); }
inline void __syncwarp() { of_warp[current / 32].wait(alive_of_warp[current / 32], false); }

static uint64_t shown[MOST];
template <class T> T exchanged(T x, int with) {
    shown[current] = 0;
    std::memcpy(&shown[current], &x, sizeof x);
    __syncwarp();
    T y;
    std::memcpy(&y, &shown[with], sizeof y);
    __syncwarp();
    return y;
}
template <class T> T __shfl_xor_sync(unsigned, T x, int apart) { return exchanged(x, current ^ apart); }
template <class T> T __shfl_sync(unsigned, T x, int lane) { return exchanged(x, current / 32 * 32 + (lane & 31)); }
inline unsigned __match_any_sync(unsigned, unsigned x) {
    shown[current] = x;
    __syncwarp();
    unsigned equal = 0;
    for (int i = 0; i < 32; i++) {
        equal |= unsigned(shown[current / 32 * 32 + i] == x) << i;
    }
    __syncwarp();
    return equal;
}

// ---- tensor_cores.cu

alignas(1024) static unsigned char dynamic_rooms[CLUSTER][232448 + 1024];
static long dynamic_size;
#define DYNAMIC_SHARED(name) unsigned char *const name = dynamic_rooms[rank()]

static const void *rows_shown[MOST];
inline void load_tiles_as(bool turned, unsigned (&r)[4], const void *row) {
    if (uint64_t(row) % 16 != 0) {
        std::abort();
    }
    rows_shown[current] = row;
    __syncwarp();
    const int first = current / 32 * 32, g = current % 32 / 4, t = current % 4;
    for (int i = 0; i < 4; i++) {
        unsigned short pair[2];
        for (int j = 0; j < 2; j++) {
            const int r = turned ? 2 * t + j : g, c = turned ? g : 2 * t + j;
            pair[j] = static_cast<const unsigned short *>(rows_shown[first + 8 * i + r])[c];
        }
        r[i] = pair[0] | unsigned(pair[1]) << 16;
    }
    __syncwarp();
}
inline void load_tiles(unsigned (&r)[4], const void *row) { load_tiles_as(false, r, row); }
inline void load_tiles_turned(unsigned (&r)[4], const void *row) { load_tiles_as(true, r, row); }

struct float16;
struct bfloat16;
inline float lower(unsigned word, float16 *) { return half_to_float(word & 0xffff); }
inline float lower(unsigned word, bfloat16 *) { return __uint_as_float(word << 16); }

static unsigned a_shown[MOST][4], b_shown[MOST][2];
// The sum of sixteen products and c, rounded once. A tensor core cuts it towards zero, or that of eight, so that long
// sums shrink (Fasi et al., 2021, "Numerical behavior of NVIDIA tensor cores").
template <class T> void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, T) {
    std::memcpy(a_shown[current], a, sizeof a);
    b_shown[current][0] = b0;
    b_shown[current][1] = b1;
    __syncwarp();
    const int first = current / 32 * 32, g = current % 32 / 4, t = current % 4;
    for (int i = 0; i < 4; i++) {
        const int column = 2 * t + i % 2;
        double sum = c[i];
        for (int k = 0; k < 16; k++) {
            const unsigned shift = k % 2 * 16;
            const unsigned left = a_shown[first + 4 * g + k % 8 / 2][i / 2 + k / 8 * 2] >> shift;
            const unsigned right = b_shown[first + 4 * column + k % 8 / 2][k / 8] >> shift;
            sum += double(lower(left, static_cast<T *>(nullptr))) * lower(right, static_cast<T *>(nullptr));
        }
        c[i] = float(sum);
    }
    __syncwarp();
}

// A copy arrives when it is waited for; until then there is NaN.
struct Copy {
    void *to;
    const void *from;
    bool present;
    int bytes;
};
static std::vector<Copy> asked[MOST];
static std::vector<std::vector<Copy>> groups[MOST];
inline void copy_async(void *to, const void *from, bool present, int bytes = 16) {
    if (uint64_t(to) % bytes != 0 || (present && uint64_t(from) % bytes != 0)) {
        std::abort();
    }
    std::memset(to, 0xff, bytes);
    asked[current].push_back({to, from, present, bytes});
}
inline void copy_async_word(void *to, const void *from, bool present) { copy_async(to, from, present, 4); }
inline void close_copies() {
    groups[current].push_back(std::move(asked[current]));
    asked[current].clear();
}
template <int UNDER_WAY> void wait_for_copies() {
    auto &mine = groups[current];
    while (mine.size() > UNDER_WAY) {
        for (const Copy &copy : mine.front()) {
            if (copy.present) {
                std::memcpy(copy.to, copy.from, copy.bytes);
            } else {
                std::memset(copy.to, 0, copy.bytes);
            }
        }
        mine.erase(mine.begin());
    }
}

inline float exp2_near(float x) { return std::exp2(x); }
inline float __fmul_rn(float x, float y) { return x * y; } // nothing is fused here
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fdividef(float x, float y) { // as it is documented
    const float size = std::fabs(y);
    return size > 0x1p126f && size < HUGE_VALF ? x * 0.f : x / y;
}

#include "emulated_hopper.h"

static void begin() {
    job();
    finished[current] = true;
    progress++;
    alive--;
    alive_of_block[rank()]--;
    alive_of_warp[current / 32]--;
    std::memset(stuck, 0, sizeof stuck); // those who wait have one less to wait for
    give_way();
}

// The unpacked arguments of the kernel that runs.
template <class... P> struct Call {
    static void (*kernel)(P...);
    static std::tuple<P...> arguments;
    static void run() { std::apply(kernel, arguments); }
};
template <class... P> void (*Call<P...>::kernel)(P...);
template <class... P> std::tuple<P...> Call<P...>::arguments{};

template <class... P, size_t... I>
const char *launch(void (*kernel)(P...), long blocks, int threads, int cluster, long shared, void **from,
                   std::index_sequence<I...>) {
    if (_setjmp(at_fault) != 0) {
        return fault;
    }
    dynamic_size = shared;
    of_cluster = {};
    std::fill(of_block, of_block + CLUSTER, Barrier{});
    std::fill(of_warp, of_warp + MOST / 32, Barrier{});
    Call<P...>::kernel = kernel;
    Call<P...>::arguments = std::tuple<P...>(*static_cast<P *>(from[I])...);
    job = Call<P...>::run;
    gridDim = {unsigned(blocks), 1, 1};
    blockDim = {unsigned(threads), 1, 1};
    const int all = threads * cluster;
    for (long block = 0; block < blocks; block += cluster) {
        alive = all;
        for (int r = 0; r < cluster; r++) {
            alive_of_block[r] = threads;
            std::memset(dynamic_rooms[r], 0xff, shared + 1024);
        }
        for (int i = 0; i < all; i++) {
            alive_of_warp[i / 32] = 32; // all of ours are whole
            started[i] = finished[i] = stuck[i] = false;
            asked[i].clear();
            groups[i].clear();
            getcontext(&contexts[i]);
            contexts[i].uc_stack.ss_sp = stacks[i];
            contexts[i].uc_stack.ss_size = STACK;
            contexts[i].uc_link = nullptr;
            makecontext(&contexts[i], begin, 0);
        }
        begin_block(all);
        while (alive > 0) {
            const long before = progress;
            for (int warp = 0; warp < all; warp += 32) {
                for (long seen = -1; seen != progress;) {
                    seen = progress;
                    for (int i = warp; i < warp + 32; i++) {
                        if (!finished[i] && !stuck[i]) {
                            current = i;
                            threadIdx = {unsigned(i % threads), 0, 0};
                            blockIdx = {unsigned(block + i / threads), 0, 0};
                            give_turn();
                        }
                    }
                }
            }
            if (progress == before) {
                nobody_goes_on(all);
            }
        }
        end_block(all);
        for (int i = 0; i < cluster * 1024; i++) {
            if (dynamic_rooms[i / 1024][shared + i % 1024] != 0xff) {
                fail("written behind the dynamic shared memory");
            }
        }
    }
    return nullptr;
}
template <class... P> void sizes_of(void (*)(P...), long *out) { ((*out++ = sizeof(P)), ...); }
template <class... P> constexpr size_t count_of(void (*)(P...)) { return sizeof...(P); }
#define LAUNCH(name) \
    extern "C" const char *emulate_##name(long blocks, int threads, int cluster, long shared, void **from) { \
        return launch(name, blocks, threads, cluster, shared, from, std::make_index_sequence<count_of(name)>()); \
    } \
    extern "C" void sizes_of_##name(long *out) { sizes_of(name, out); }
