// D = alpha A B + beta C for matrices at any strides and of any mixture of types: what the library's product cannot take.
// A threadgroup of 16 x 16 threads does 32 x 32 results, 2 x 2 a thread, over tiles of 16 of the inner length.

#define TILE 32
#define DEPTH 16

struct MatMulSizes {
    uint m;
    uint n;
    uint k;
    uint a_row;
    uint a_column;
    uint b_row;
    uint b_column;
    uint d_row;
    uint a_batch;
    uint b_batch;
    uint d_batch;
    float alpha;
    float beta;  // 0: C is not read
};

template <typename A, typename B, typename D>
[[kernel, max_total_threads_per_threadgroup(256)]] void matmul(
    device const A* a [[buffer(0)]],
    device const B* b [[buffer(1)]],
    device const D* c [[buffer(2)]],
    device D* d [[buffer(3)]],
    constant MatMulSizes& sizes [[buffer(4)]],
    uint3 block [[threadgroup_position_in_grid]],
    uint3 thread_at [[thread_position_in_threadgroup]]) {
    threadgroup float left[TILE * DEPTH];
    threadgroup float right[DEPTH * TILE];
    ulong a_from = ulong(block.z) * sizes.a_batch;
    ulong b_from = ulong(block.z) * sizes.b_batch;
    ulong d_from = ulong(block.z) * sizes.d_batch;
    uint row = TILE * block.y;
    uint column = TILE * block.x;
    uint index = 16 * thread_at.y + thread_at.x;
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint from = 0; from < sizes.k; from += DEPTH) {
        for (uint i = index; i < TILE * DEPTH; i += 256) {
            uint r = row + i / DEPTH;
            uint inner = from + i % DEPTH;
            bool inside = r < sizes.m && inner < sizes.k;
            left[i] = inside ? float(a[a_from + ulong(r) * sizes.a_row + ulong(inner) * sizes.a_column]) : 0.0f;
        }
        for (uint i = index; i < DEPTH * TILE; i += 256) {
            uint inner = from + i / TILE;
            uint col = column + i % TILE;
            bool inside = inner < sizes.k && col < sizes.n;
            right[i] = inside ? float(b[b_from + ulong(inner) * sizes.b_row + ulong(col) * sizes.b_column]) : 0.0f;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint inner = 0; inner < DEPTH; inner++) {
            float x0 = left[thread_at.y * DEPTH + inner];
            float x1 = left[(thread_at.y + 16) * DEPTH + inner];
            float y0 = right[inner * TILE + thread_at.x];
            float y1 = right[inner * TILE + thread_at.x + 16];
            sums[0] = fma(x0, y0, sums[0]);
            sums[1] = fma(x0, y1, sums[1]);
            sums[2] = fma(x1, y0, sums[2]);
            sums[3] = fma(x1, y1, sums[3]);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (uint i = 0; i < 4; i++) {
        uint r = row + thread_at.y + 16 * (i / 2);
        uint col = column + thread_at.x + 16 * (i % 2);
        if (r < sizes.m && col < sizes.n) {
            ulong at = d_from + ulong(r) * sizes.d_row + col;
            float result = sizes.alpha * sums[i];
            d[at] = D(sizes.beta == 0.0f ? result : fma(sizes.beta, float(c[at]), result));
        }
    }
}

#define INSTANTIATE_TRIPLE(A, B, D)                                                            \
    template [[host_name("matmul_" #A "_" #B "_" #D)]] [[kernel]] void matmul<A, B, D>(        \
        device const A*, device const B*, device const D*, device D*, constant MatMulSizes&, uint3, uint3);
#define INSTANTIATE_PAIR(A, B)         \
    INSTANTIATE_TRIPLE(A, B, float)    \
    INSTANTIATE_TRIPLE(A, B, half)     \
    INSTANTIATE_TRIPLE(A, B, bfloat)
#define INSTANTIATE(A)         \
    INSTANTIATE_PAIR(A, float) \
    INSTANTIATE_PAIR(A, half)  \
    INSTANTIATE_PAIR(A, bfloat)
FOR_FLOATS(INSTANTIATE)
