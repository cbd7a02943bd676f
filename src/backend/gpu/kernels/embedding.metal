// Rows of a table by their numbers: one thread an element. The gradient adds rows in their order, one thread a column, so
// that it is the same at every run. A number beyond the table is reported by another kernel and read as the last row.

struct EmbeddingSizes {
    uint count;  // ids
    uint n;
    uint rows;
};

template <typename T, typename U>
[[kernel, max_total_threads_per_threadgroup(256)]] void embedding(
    device const T* table [[buffer(0)]],
    device const uint* ids [[buffer(1)]],
    device U* y [[buffer(2)]],
    constant EmbeddingSizes& sizes [[buffer(3)]],
    uint i [[thread_position_in_grid]]) {
    if (i >= sizes.count * sizes.n) {
        return;
    }
    uint row = min(ids[i / sizes.n], sizes.rows - 1);
    y[i] = U(float(table[ulong(row) * sizes.n + i % sizes.n]));
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void embedding_grad(
    device const T* dy [[buffer(0)]],
    device const uint* ids [[buffer(1)]],
    device float* table [[buffer(2)]],
    constant EmbeddingSizes& sizes [[buffer(3)]],
    uint column [[thread_position_in_grid]]) {
    if (column >= sizes.n) {
        return;
    }
    for (uint row = 0; row < sizes.rows; row++) {
        table[ulong(row) * sizes.n + column] = 0.0f;
    }
    for (uint i = 0; i < sizes.count; i++) {
        uint row = min(ids[i], sizes.rows - 1);
        table[ulong(row) * sizes.n + column] += float(dy[ulong(i) * sizes.n + column]);
    }
}

#define INSTANTIATE_PAIR(T, U)                                                        \
    template [[host_name("embedding_" #T "_" #U)]] [[kernel]] void embedding<T, U>(   \
        device const T*, device const uint*, device U*, constant EmbeddingSizes&, uint);
#define INSTANTIATE(T)         \
    INSTANTIATE_PAIR(T, float) \
    INSTANTIATE_PAIR(T, half)  \
    INSTANTIATE_PAIR(T, bfloat) \
    template [[host_name("embedding_grad_" #T)]] [[kernel]] void embedding_grad<T>( \
        device const T*, device const uint*, device float*, constant EmbeddingSizes&, uint);
FOR_FLOATS(INSTANTIATE)
