// hopper.cu on the CPU, for emulated.h: what the hardware would make of the same barriers, maps and descriptors.
//
// What is asked for happens as late as it may: a box arrives when nobody can go on without it, any of those under way,
// and sums are there when they are waited for. Until then there is NaN in their place. A product's operands are read
// when it is asked for and when it ends: they must be the same both times. Whoever waits for what cannot come is named.

struct TensorMap;
typedef unsigned long long Barrier64; // u64 of prelude.cu

// ---- shared memory: its numbers begin at 512, so that nobody takes the first of them for a multiple of 1,024

const unsigned SHARED_BEGIN = 512;
inline unsigned shared_address(const void *at) {
    const long place = static_cast<const unsigned char *>(at) - dynamic_rooms[rank()];
    if (place < 0 || place >= dynamic_size) {
        fail("an address that is not in dynamic shared memory");
    }
    return SHARED_BEGIN + unsigned(place);
}
inline unsigned char *shared_byte(unsigned address, int of = rank()) {
    const long place = long(address) - SHARED_BEGIN;
    if (place < 0 || place >= dynamic_size) {
        fail("shared memory has no byte %u", address);
    }
    return dynamic_rooms[of] + place;
}
// Where byte `at` lies with the pattern of 128 bytes: bits 4 to 6 are turned over by bits 7 to 9.
inline unsigned swizzled(unsigned at) { return at ^ (at >> 7 & 7) << 4; }

// ---- barriers

struct Phases { // what the 64 bits of a barrier are here
    uint64_t mark : 8, phase : 8, count : 12, pending : 12;
    int64_t bytes : 24; // that have still to come; less than none where they came before they were announced
};
static_assert(sizeof(Phases) == 8);
const unsigned MADE = 0xb5, UNFENCED = 0xa5;
static std::vector<Phases *> unfenced;

inline Phases *phases(Barrier64 *barrier) {
    shared_address(barrier);
    Phases *const found = reinterpret_cast<Phases *>(barrier);
    if (uint64_t(barrier) % 8 != 0 || (found->mark != MADE && found->mark != UNFENCED)) {
        fail("not a barrier");
    }
    return found;
}
inline void settle(Phases *p) {
    if (p->pending == 0 && p->bytes == 0) {
        p->phase++;
        p->pending = p->count;
    }
    progress++;
}
inline void barrier_init(Barrier64 *barrier, unsigned arrivals) {
    shared_address(barrier);
    Phases *const made = reinterpret_cast<Phases *>(barrier);
    *made = {UNFENCED, 0, arrivals, arrivals, 0};
    unfenced.push_back(made);
}
inline void barriers_made() {
    for (Phases *p : unfenced) {
        p->mark = MADE;
    }
    unfenced.clear();
}
inline void arrived(Phases *p) {
    if (p->pending == 0) {
        fail("more arrivals at a barrier than its %d", int(p->count));
    }
    p->pending--;
    settle(p);
}
inline void barrier_arrive(Barrier64 *barrier) { arrived(phases(barrier)); }
inline Phases *phases_at(Barrier64 *barrier, unsigned of) {
    phases(barrier); // which is to be one here too
    if (of >= CLUSTER || alive_of_block[of] == 0) {
        fail("block %u of the cluster is not there, or has ended", of);
    }
    Phases *const there = reinterpret_cast<Phases *>(shared_byte(shared_address(barrier), of));
    if (there->mark != MADE) {
        fail("no barrier in block %u of the cluster", of);
    }
    return there;
}
inline void barrier_arrive_at(Barrier64 *barrier, unsigned of) { arrived(phases_at(barrier, of)); }
inline unsigned rank_in_cluster() { return rank(); }
inline void meet_cluster() { of_cluster.wait(alive, true); }
inline void barrier_expect(Barrier64 *barrier, unsigned bytes) {
    Phases *const p = phases(barrier);
    p->bytes += bytes;
    arrived(p);
}
struct Waiting {
    const Barrier64 *barrier = nullptr;
    unsigned parity, at;
};
static Waiting waiting[MOST];
inline bool barrier_passed(Barrier64 *barrier, unsigned parity) {
    if (phases(barrier)->phase % 2 != parity) {
        waiting[current].barrier = nullptr;
        progress++;
        return true;
    }
    waiting[current] = {barrier, parity, shared_address(barrier)};
    give_way();
    return false;
}

// ---- boxes

struct Map { // the 128 bytes, as tests/gpu/emulator.py fills them
    uint64_t address, strides[4];
    uint32_t dims[5], box[5], rank, itemsize, swizzle, mark;
};
static_assert(sizeof(Map) <= 128);

struct Box {
    Map map;
    int of; // the block that gets it
    unsigned to;
    Phases *barrier;
    long from[3];
};
static std::vector<Box> boxes;

inline const Map *map_of(const TensorMap *given) {
    const Map *const map = reinterpret_cast<const Map *>(given);
    if (map->mark != 0x7e9504) {
        fail("not a tensor map");
    }
    return map;
}
inline void prefetch_map(const TensorMap *map) { map_of(map); }

inline unsigned bytes_of(const Map *map) {
    unsigned bytes = map->itemsize;
    for (unsigned i = 0; i < map->rank; i++) {
        bytes *= map->box[i];
    }
    return bytes;
}
inline void copy_box_to(unsigned short ranks, void *to, const TensorMap *given, Barrier64 *barrier, int x, int y, int z) {
    const Map *const map = map_of(given);
    const unsigned place = shared_address(to);
    if (map->rank != 3 || map->swizzle != 128 || map->box[0] * map->itemsize != 128 || place % 1024 != 0) {
        fail("a box of rank %u, %u bytes a row, to %u", map->rank, map->box[0] * map->itemsize, place);
    }
    if (phases(barrier)->mark != MADE) {
        fail("a box for a barrier before its fence");
    }
    for (int of = 0; of < CLUSTER; of++) {
        if (ranks >> of & 1) {
            boxes.push_back({*map, of, place, phases_at(barrier, of), {x, y, z}});
            shared_byte(place + bytes_of(map) - 1);
            std::memset(shared_byte(place, of), 0xff, bytes_of(map));
        }
    }
    progress++;
}
inline void copy_box(void *to, const TensorMap *given, Barrier64 *barrier, int x, int y, int z) {
    copy_box_to(1 << rank(), to, given, barrier, x, y, z);
}
inline void arrive(const Box &box) {
    const Map &m = box.map;
    unsigned at = box.to;
    if (alive_of_block[box.of] == 0) {
        fail("a box for a block that has ended");
    }
    for (unsigned z = 0; z < m.box[2]; z++) {
        for (unsigned y = 0; y < m.box[1]; y++) {
            for (unsigned x = 0; x < m.box[0]; x++, at += m.itemsize) {
                const long place[3] = {box.from[0] + x, box.from[1] + y, box.from[2] + z};
                bool inside = true;
                uint64_t from = m.address + place[0] * m.itemsize;
                for (int i = 0; i < 3; i++) {
                    inside &= place[i] >= 0 && place[i] < long(m.dims[i]);
                    from += i ? place[i] * m.strides[i - 1] : 0;
                }
                if (inside) {
                    std::memcpy(shared_byte(swizzled(at), box.of), reinterpret_cast<const void *>(from), m.itemsize);
                } else {
                    std::memset(shared_byte(swizzled(at), box.of), 0, m.itemsize);
                }
            }
        }
    }
    box.barrier->bytes -= bytes_of(&m);
    settle(box.barrier);
}

// Nobody goes on: one box arrives, not the oldest, or those who wait are named.
static void nobody_goes_on(int threads) {
    static unsigned draw = 1;
    if (!boxes.empty()) {
        draw = draw * 1664525 + 1013904223;
        const size_t which = (draw >> 16) % boxes.size();
        const Box box = boxes[which];
        boxes.erase(boxes.begin() + which);
        arrive(box);
        return;
    }
    std::string said, before;
    for (int i = 0; i < threads; i++) {
        char line[200] = "";
        if (!finished[i] && waiting[i].barrier) {
            const Phases *const p = reinterpret_cast<const Phases *>(waiting[i].barrier);
            std::snprintf(line, sizeof line, "parity %u of the barrier at %u, with %d of %d arrivals and %d bytes to come",
                          waiting[i].parity, waiting[i].at, int(p->pending), int(p->count), int(p->bytes));
        } else if (!finished[i]) {
            std::snprintf(line, sizeof line, "its block, its warp or registers");
        }
        if (line != before && line[0]) { // who waits for the same is told once
            said += "\nthread " + std::to_string(i) + ": " + line;
        }
        before = line;
    }
    fail("nobody can go on. Waited for:%s", said.c_str());
}

// ---- products

struct Descriptor { // 64 bits as the instruction reads them
    unsigned start, leading, stride, base, swizzle;
    Descriptor(uint64_t d)
        : start((d & 0x3fff) * 16), leading((d >> 16 & 0x3fff) * 16), stride((d >> 32 & 0x3fff) * 16), base(d >> 49 & 7),
          swizzle(d >> 62) {
        if (swizzle != 1 || base != 0 || (d >> 14 & 3) || (d >> 30 & 3) || (d >> 46 & 7) || (d >> 52 & 0x3ff)) {
            fail("a descriptor %llx that is not of 128 bytes' pattern", static_cast<unsigned long long>(d));
        }
    }
    // Where value k of line mn lies. As it is: lines of 128 bytes, eight to a `stride`. Turned: lines are k, eight to
    // a `stride`, and 64 values of mn lie in each, the next 64 `leading` bytes on.
    unsigned place(bool turned, int mn, int k) const {
        if (turned) {
            return swizzled(start + mn / 64 * leading + k / 8 * stride + k % 8 * 128 + mn % 64 * 2);
        }
        return swizzled(start + mn / 8 * stride + mn % 8 * 128 + k * 2);
    }
};

struct Product {
    float *c;
    std::vector<float> sums;            // what c will be
    std::vector<unsigned short> values; // of both operands, when it was asked for
    Descriptor a, b;
    bool turned_a, turned_b;

    // What this thread has of a product of 64 x n is of rows `row` and eight on, and of columns 8 j + `column` and the next:
    // 16 values of each, as they lie in shared memory now.
    std::vector<unsigned short> read() const {
        const int row = current % 128 / 32 * 16 + current % 32 / 4, column = current % 4 * 2, n = 2 * int(sums.size());
        std::vector<unsigned short> found((2 + n / 4) * 16);
        for (int i = 0; i < 2 + n / 4; i++) {
            const int j = i - 2, line = i < 2 ? row + 8 * i : j / 2 * 8 + column + j % 2;
            for (int k = 0; k < 16; k++) {
                const unsigned at = i < 2 ? a.place(turned_a, line, k) : b.place(turned_b, line, k);
                std::memcpy(&found[i * 16 + k], shared_byte(at), 2);
            }
        }
        return found;
    }
};
typedef std::vector<Product> Series;
static Series open_series[MOST];
static std::vector<Series> series[MOST];
static bool fenced[MOST];

template <bool TURNED_A, bool TURNED_B, int HALF, class T>
void group_multiply_add(float (&c)[HALF], uint64_t a, uint64_t b, bool add, T) {
    if (!fenced[current]) {
        fail("a product without products_begin since the last wait or series");
    }
    Product p = {c, std::vector<float>(HALF), {}, a, b, TURNED_A, TURNED_B};
    const float *before = c;
    for (const Series &s : series[current]) {
        for (const Product &q : s) {
            before = q.c == c ? q.sums.data() : before;
        }
    }
    for (const Product &q : open_series[current]) {
        before = q.c == c ? q.sums.data() : before;
    }
    p.values = p.read();
    std::vector<double> wide(p.values.size());
    std::transform(p.values.begin(), p.values.end(), wide.begin(),
                   [](unsigned short x) { return lower(x, static_cast<T *>(nullptr)); });
    for (int i = 0; i < HALF; i++) {
        double sum = add ? before[i] : 0;
        for (int k = 0; k < 16; k++) {
            sum += wide[i / 2 % 2 * 16 + k] * wide[(2 + i / 4 * 2 + i % 2) * 16 + k];
        }
        p.sums[i] = float(sum);
    }
    std::memset(c, 0xff, sizeof c);
    open_series[current].push_back(std::move(p));
}
inline void products_begin() {
    fenced[current] = true;
    __syncwarp();
}
inline void products_close() {
    series[current].push_back(std::move(open_series[current]));
    open_series[current].clear();
    fenced[current] = false;
}
template <int UNDER_WAY> void products_wait() {
    __syncwarp();
    auto &mine = series[current];
    while (mine.size() > UNDER_WAY) {
        for (const Product &p : mine.front()) {
            if (p.read() != p.values) {
                fail("an operand changed before the product of it had ended");
            }
            for (size_t i = 0; i < p.sums.size(); i++) {
                if (__float_as_uint(p.c[i]) != 0xffffffff) {
                    fail("a sum was written to before it was there");
                }
            }
        }
        const Series done = std::move(mine.front());
        mine.erase(mine.begin());
        for (const Product &p : done) { // the last one of each c, unless a later series adds to it
            bool later = false;
            for (const Series &s : mine) {
                for (const Product &q : s) {
                    later |= q.c == p.c;
                }
            }
            if (!later) {
                std::memset(p.c, 0xff, 4 * p.sums.size());
                std::memcpy(p.c, p.sums.data(), 4 * p.sums.size());
            }
        }
    }
    __syncwarp();
}
template <int COUNT> void settled(float (&)[COUNT]) {}

// ---- registers: those of a block are what its warps begin with

const int ALL_REGISTERS = 65536;
static int registers_of[MOST / 32];
static int at_start(int threads) { return std::min(ALL_REGISTERS / threads / 8 * 8, 248); }
inline int registers_taken() {
    int taken = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++) {
        taken += registers_of[rank() * blockDim.x / 32 + w] * 32;
    }
    return taken;
}
template <int COUNT> void change_registers(bool more) {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256);
    __syncwarp();
    int &own = registers_of[current / 32];
    if (current % 32 == 0) {
        if (more ? own > COUNT : own < COUNT) {
            fail("%d registers are to become %d", own, COUNT);
        }
        while (registers_taken() + (COUNT - own) * 32 > at_start(blockDim.x) * int(blockDim.x)) {
            give_way();
        }
        own = COUNT;
        progress++;
    }
    __syncwarp();
}
template <int COUNT> void more_registers() { change_registers<COUNT>(true); }
template <int COUNT> void fewer_registers() { change_registers<COUNT>(false); }

static void begin_block(int threads) {
    boxes.clear();
    unfenced.clear();
    for (int i = 0; i < threads; i++) {
        waiting[i].barrier = nullptr;
        open_series[i].clear();
        series[i].clear();
        fenced[i] = false;
        registers_of[i / 32] = at_start(blockDim.x);
    }
}
static void end_block(int threads) {
    if (!boxes.empty()) {
        fail("the block ended with %d boxes under way", int(boxes.size()));
    }
    for (int i = 0; i < threads; i++) {
        if (!series[i].empty() || !open_series[i].empty()) {
            fail("the block ended with products of thread %d under way", i);
        }
    }
}
