// What the kernels of products get, and which tile of which product is a block's; see matmul_plan.py. Behind
// matmul_result.

const int GROUP = 8; // rows of tiles that are walked together

struct Operand {
    const void *at;
    i64 pitch; // values from one stored row to the next
    i64 step; // from one product to the next
};

// Passed by value.
struct Given {
    Operand a, b;
    Result result;
    int terms, chunk; // of a sum; of each part of it
    u32 batch, down, across; // products; rows and columns of tiles
};

struct Place { // of a block
    u32 part, one, row, column;
};

__device__ inline Place place(const Given &p) {
    const u32 tile = blockIdx.x % (p.down * p.across), others = blockIdx.x / (p.down * p.across);
    const u32 group = tile / (GROUP * p.across), within = tile % (GROUP * p.across);
    const u32 left = p.down - group * GROUP, high = left < GROUP ? left : GROUP;
    return {others / p.batch, others % p.batch, group * GROUP + within % high, within / high};
}

[[maybe_unused]] const bool turned_n = false, turned_t = true; // how MAKE names operands
