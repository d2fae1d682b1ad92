// The .cu files as plain C++: a thread of a block is a coroutine, and one block runs after the other. A warp runs until all
// of it wait for the block, and only then the next: where a barrier is missing, one warp is far ahead of another.
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define EMULATED
#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)

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
static void (*job)();

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
        while (mine == lap) {
            if (arrived >= present) {
                arrived = 0;
                lap++;
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
static Barrier of_block, of_warp[MOST / 32];

inline void __syncthreads() { of_block.wait(alive, true); }
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

static void begin() {
    job();
    finished[current] = true;
    alive--;
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
void launch(void (*kernel)(P...), long blocks, int threads, void **from, std::index_sequence<I...>) {
    Call<P...>::kernel = kernel;
    Call<P...>::arguments = std::tuple<P...>(*static_cast<P *>(from[I])...);
    job = Call<P...>::run;
    gridDim = {unsigned(blocks), 1, 1};
    blockDim = {unsigned(threads), 1, 1};
    for (long block = 0; block < blocks; block++) {
        blockIdx = {unsigned(block), 0, 0};
        alive = threads;
        for (int i = 0; i < threads; i++) {
            alive_of_warp[i / 32] = 32; // all of ours are whole
            started[i] = finished[i] = stuck[i] = false;
            getcontext(&contexts[i]);
            contexts[i].uc_stack.ss_sp = stacks[i];
            contexts[i].uc_stack.ss_size = STACK;
            contexts[i].uc_link = nullptr;
            makecontext(&contexts[i], begin, 0);
        }
        while (alive > 0) {
            for (int warp = 0; warp < threads; warp += 32) {
                for (bool goes_on = true; goes_on;) {
                    goes_on = false;
                    for (int i = warp; i < warp + 32; i++) {
                        if (!finished[i] && !stuck[i]) {
                            goes_on = true;
                            current = i;
                            threadIdx = {unsigned(i), 0, 0};
                            give_turn();
                        }
                    }
                }
            }
        }
    }
}
template <class... P> constexpr size_t count_of(void (*)(P...)) { return sizeof...(P); }
#define LAUNCH(name) \
    extern "C" void emulate_##name(long blocks, int threads, void **from) { \
        launch(name, blocks, threads, from, std::make_index_sequence<count_of(name)>()); \
    }
