// Low-rank adapters on slots (ranges of output columns) of a linear layer, and their gradients. Up to 4 slots a launch.
// Sums over tokens are taken in the same order at every run.

#define SLOTS 4

struct Slots {
    uint count;
    uint total;         // ranks of all slots of the layer: the row length of h and t
    uint start[SLOTS];  // first column
    uint len[SLOTS];    // columns
    uint rank[SLOTS];
    uint first[SLOTS];  // where the slot's ranks begin within h and t
    uint from;          // the first rank of this launch, and how many
    uint ranks;
    float scale[SLOTS];
};

// The slot of a rank.
inline uint slot_of(constant Slots& slots, uint rank) {
    uint slot = 0;
    for (uint i = 1; i < slots.count; i++) {
        slot = rank >= slots.first[i] ? i : slot;
    }
    return slot;
}

template <typename A>
inline device A* pick(device A* p0, device A* p1, device A* p2, device A* p3, uint slot) {
    return slot == 0 ? p0 : (slot == 1 ? p1 : (slot == 2 ? p2 : p3));
}

struct LoraSizes {
    uint m;
    uint k;        // columns of x
    uint x_stride;
    uint y_stride;
    uint columns;  // lora_up: columns of all slots; lora_db: of the longest
    uint add;      // lora_dx: the result is added
    Slots slots;
};

// h = x A^T: a SIMD group an element, 8 ranks a threadgroup.
template <typename T, typename A>
kernel void lora_down(
    device const T* x [[buffer(0)]],
    device const A* a0 [[buffer(1)]],
    device const A* a1 [[buffer(2)]],
    device const A* a2 [[buffer(3)]],
    device const A* a3 [[buffer(4)]],
    device float* h [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    uint index = 8 * block.x + group;
    if (index >= sizes.slots.ranks) {
        return;
    }
    uint rank = sizes.slots.from + index;
    uint slot = slot_of(sizes.slots, rank);
    device const A* a = pick(a0, a1, a2, a3, slot) + ulong(rank - sizes.slots.first[slot]) * sizes.k;
    device const T* row = x + ulong(block.y) * sizes.x_stride;
    float sum = 0.0f;
    for (uint i = lane; i < sizes.k; i += LANES) {
        sum = fma(float(row[i]), float(a[i]), sum);
    }
    sum = simd_sum(sum);
    if (lane == 0) {
        h[ulong(block.y) * sizes.slots.total + rank] = sum;
    }
}

// y[:, slot] += scale h B^T: a thread an element of the slots' columns.
template <typename T, typename A>
kernel void lora_up(
    device const float* h [[buffer(0)]],
    device const A* b0 [[buffer(1)]],
    device const A* b1 [[buffer(2)]],
    device const A* b2 [[buffer(3)]],
    device const A* b3 [[buffer(4)]],
    device T* y [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint index [[thread_position_in_grid]]) {
    uint row = index / sizes.columns;
    uint column = index % sizes.columns;
    if (row >= sizes.m) {
        return;
    }
    uint slot = 0;
    while (slot + 1 < sizes.slots.count && column >= sizes.slots.len[slot]) {
        column -= sizes.slots.len[slot];
        slot++;
    }
    uint rank = sizes.slots.rank[slot];
    device const A* b = pick(b0, b1, b2, b3, slot) + ulong(column) * rank;
    device const float* from = h + ulong(row) * sizes.slots.total + sizes.slots.first[slot];
    float sum = 0.0f;
    for (uint r = 0; r < rank; r++) {
        sum = fma(from[r], float(b[r]), sum);
    }
    ulong at = ulong(row) * sizes.y_stride + sizes.slots.start[slot] + column;
    y[at] = T(fma(sizes.slots.scale[slot], sum, float(y[at])));
}

// t = scale dy[:, slot] B: a SIMD group an element, 8 ranks a threadgroup.
template <typename T, typename A>
kernel void lora_t(
    device const T* dy [[buffer(0)]],
    device const A* b0 [[buffer(1)]],
    device const A* b1 [[buffer(2)]],
    device const A* b2 [[buffer(3)]],
    device const A* b3 [[buffer(4)]],
    device float* t [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    uint index = 8 * block.x + group;
    if (index >= sizes.slots.ranks) {
        return;
    }
    uint rank = sizes.slots.from + index;
    uint slot = slot_of(sizes.slots, rank);
    device const A* b = pick(b0, b1, b2, b3, slot) + (rank - sizes.slots.first[slot]);
    device const T* row = dy + ulong(block.y) * sizes.y_stride + sizes.slots.start[slot];
    float sum = 0.0f;
    for (uint i = lane; i < sizes.slots.len[slot]; i += LANES) {
        sum = fma(float(row[i]), float(b[ulong(i) * sizes.slots.rank[slot]]), sum);
    }
    sum = simd_sum(sum);
    if (lane == 0) {
        t[ulong(block.y) * sizes.slots.total + rank] = sizes.slots.scale[slot] * sum;
    }
}

// dx = t A, or dx += t A: a thread an element.
template <typename T, typename A>
kernel void lora_dx(
    device const float* t [[buffer(0)]],
    device const A* a0 [[buffer(1)]],
    device const A* a1 [[buffer(2)]],
    device const A* a2 [[buffer(3)]],
    device const A* a3 [[buffer(4)]],
    device T* dx [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint index [[thread_position_in_grid]]) {
    uint row = index / sizes.k;
    uint column = index % sizes.k;
    if (row >= sizes.m) {
        return;
    }
    float sum = sizes.add == 1 ? float(dx[index]) : 0.0f;
    for (uint slot = 0; slot < sizes.slots.count; slot++) {
        device const A* a = pick(a0, a1, a2, a3, slot) + column;
        device const float* from = t + ulong(row) * sizes.slots.total + sizes.slots.first[slot];
        for (uint r = 0; r < sizes.slots.rank[slot]; r++) {
            sum = fma(from[r], float(a[ulong(r) * sizes.k]), sum);
        }
    }
    dx[index] = T(sum);
}

// The sum of 8 groups of tokens, in the first group's threads.
inline float over_tokens(float sum, threadgroup float* shared, uint2 thread_at) {
    shared[32 * thread_at.y + thread_at.x] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_at.y == 0) {
        for (uint part = 1; part < 8; part++) {
            sum += shared[32 * part + thread_at.x];
        }
    }
    return sum;
}

// dA[r, :] = sum over tokens of t[:, r] x: 32 columns by 8 groups of tokens a threadgroup.
template <typename T>
kernel void lora_da(
    device const float* t [[buffer(0)]],
    device const T* x [[buffer(1)]],
    device float* a0 [[buffer(2)]],
    device float* a1 [[buffer(3)]],
    device float* a2 [[buffer(4)]],
    device float* a3 [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint2 thread_at [[thread_position_in_threadgroup]]) {
    threadgroup float shared[256];
    uint column = 32 * block.x + thread_at.x;
    uint rank = sizes.slots.from + block.y;
    float sum = 0.0f;
    if (column < sizes.k) {
        for (uint row = thread_at.y; row < sizes.m; row += 8) {
            float factor = t[ulong(row) * sizes.slots.total + rank];
            sum = fma(factor, float(x[ulong(row) * sizes.x_stride + column]), sum);
        }
    }
    sum = over_tokens(sum, shared, thread_at);
    if (thread_at.y == 0 && column < sizes.k) {
        uint slot = slot_of(sizes.slots, rank);
        pick(a0, a1, a2, a3, slot)[ulong(rank - sizes.slots.first[slot]) * sizes.k + column] = sum;
    }
}

// dB[:, r] = scale times the sum over tokens of dy[:, slot] h[:, r]: as above.
template <typename T>
kernel void lora_db(
    device const float* h [[buffer(0)]],
    device const T* dy [[buffer(1)]],
    device float* b0 [[buffer(2)]],
    device float* b1 [[buffer(3)]],
    device float* b2 [[buffer(4)]],
    device float* b3 [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint2 thread_at [[thread_position_in_threadgroup]]) {
    threadgroup float shared[256];
    uint column = 32 * block.x + thread_at.x;
    uint rank = sizes.slots.from + block.y;
    uint slot = slot_of(sizes.slots, rank);
    bool inside = column < sizes.slots.len[slot];
    float sum = 0.0f;
    if (inside) {
        for (uint row = thread_at.y; row < sizes.m; row += 8) {
            float factor = h[ulong(row) * sizes.slots.total + rank];
            sum = fma(factor, float(dy[ulong(row) * sizes.y_stride + sizes.slots.start[slot] + column]), sum);
        }
    }
    sum = over_tokens(sum, shared, thread_at);
    if (thread_at.y == 0 && inside) {
        ulong at = ulong(column) * sizes.slots.rank[slot] + rank - sizes.slots.first[slot];
        pick(b0, b1, b2, b3, slot)[at] = sizes.slots.scale[slot] * sum;
    }
}

#define INSTANTIATE_PAIR(T, A)                                                                                  \
    template [[host_name("lora_down_" #T "_" #A)]] [[kernel]] void lora_down<T, A>(                             \
        device const T*, device const A*, device const A*, device const A*, device const A*, device float*,     \
        constant LoraSizes&, uint2, uint, uint);                                                                \
    template [[host_name("lora_up_" #T "_" #A)]] [[kernel]] void lora_up<T, A>(                                 \
        device const float*, device const A*, device const A*, device const A*, device const A*, device T*,     \
        constant LoraSizes&, uint);                                                                             \
    template [[host_name("lora_t_" #T "_" #A)]] [[kernel]] void lora_t<T, A>(                                   \
        device const T*, device const A*, device const A*, device const A*, device const A*, device float*,     \
        constant LoraSizes&, uint2, uint, uint);                                                                \
    template [[host_name("lora_dx_" #T "_" #A)]] [[kernel]] void lora_dx<T, A>(                                 \
        device const float*, device const A*, device const A*, device const A*, device const A*, device T*,     \
        constant LoraSizes&, uint);
#define INSTANTIATE(T)         \
    INSTANTIATE_PAIR(T, float) \
    INSTANTIATE_PAIR(T, half)  \
    INSTANTIATE_PAIR(T, bfloat) \
    template [[host_name("lora_da_" #T)]] [[kernel]] void lora_da<T>(                                           \
        device const float*, device const T*, device float*, device float*, device float*, device float*,       \
        constant LoraSizes&, uint2, uint2);                                                                     \
    template [[host_name("lora_db_" #T)]] [[kernel]] void lora_db<T>(                                           \
        device const float*, device const T*, device float*, device float*, device float*, device float*,       \
        constant LoraSizes&, uint2, uint2);
FOR_FLOATS(INSTANTIATE)
