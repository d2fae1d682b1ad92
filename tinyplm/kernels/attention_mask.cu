// Masks of attention as bits: 32 keys of a query in a word; see attention_cuda.py.

struct Steps { // bytes from one to the next: 0 along an axis of length one
    i64 batch, head, row, key;
};

// A warp for each row: its words, of which the lowest bit is the first key, and the first key that is seen and the one
// behind the last; 0 and 0 if none is.
extern "C" __global__ void __launch_bounds__(THREADS) attention_mask(
    const bool *mask, Steps steps, i64 rows, i64 heads, i64 queries, i64 keys, u32 *words, u32 *bounds) {
    const i64 r = team<32>();
    if (r >= rows) {
        return;
    }
    const i64 count = (keys + 31) / 32;
    const bool *const from = mask + r / queries / heads * steps.batch + r / queries % heads * steps.head + r % queries * steps.row;
    float first = float(keys), last = 0; // whole numbers, exact as there are fewer than 2^24 keys
    for (i64 i = threadIdx.x % 32; i < count; i += 32) {
        u32 word = 0;
        for (i64 j = 0; j < 32 && i * 32 + j < keys; j++) {
            if (from[(i * 32 + j) * steps.key]) {
                word |= 1u << j;
                first = fminf(first, float(i * 32 + j));
                last = float(i * 32 + j + 1);
            }
        }
        words[r * count + i] = word;
    }
    first = -warp_max(-first);
    last = warp_max(last);
    if (threadIdx.x % 32 == 0) {
        bounds[2 * r] = last > 0 ? u32(first) : 0;
        bounds[2 * r + 1] = u32(last);
    }
}
