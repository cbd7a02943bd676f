// Stores token t of new keys or values at position pos + t of a cache [heads, capacity, d]. One thread an element; tokens
// beyond the capacity are dropped.

struct KvWriteSizes {
    uint count;  // tokens heads d
    uint heads;
    uint d;
    uint capacity;
    uint token_stride;
    uint head_stride;
};

template <typename T, typename U>
[[kernel, max_total_threads_per_threadgroup(256)]] void kv_write(
    device const T* fresh [[buffer(0)]],
    device const uint* pos [[buffer(1)]],
    device U* cache [[buffer(2)]],
    constant KvWriteSizes& sizes [[buffer(3)]],
    uint i [[thread_position_in_grid]]) {
    if (i >= sizes.count) {
        return;
    }
    uint element = i % sizes.d;
    uint head = i / sizes.d % sizes.heads;
    uint token = i / sizes.d / sizes.heads;
    ulong at = ulong(pos[0]) + token;
    if (at < sizes.capacity) {
        ulong from = ulong(token) * sizes.token_stride + ulong(head) * sizes.head_stride + element;
        cache[(ulong(head) * sizes.capacity + at) * sizes.d + element] = U(float(fresh[from]));
    }
}

#define INSTANTIATE_PAIR(T, U)                                                       \
    template [[host_name("kv_write_" #T "_" #U)]] [[kernel]] void kv_write<T, U>(    \
        device const T*, device const uint*, device U*, constant KvWriteSizes&, uint);
#define INSTANTIATE(T)         \
    INSTANTIATE_PAIR(T, float) \
    INSTANTIATE_PAIR(T, half)  \
    INSTANTIATE_PAIR(T, bfloat)
FOR_FLOATS(INSTANTIATE)
