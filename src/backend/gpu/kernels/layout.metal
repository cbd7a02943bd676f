// Copies between strides and dtypes: y[walk] = x[walk]. One thread an element. Numbers pass through float, unsigned
// integers to unsigned integers as they are.

struct CopySizes {
    uint count;
    Walk x;
    Walk y;
};

template <typename T, typename U, typename V>
[[kernel, max_total_threads_per_threadgroup(256)]] void copy(
    device const T* x [[buffer(0)]],
    device U* y [[buffer(1)]],
    constant CopySizes& sizes [[buffer(2)]],
    uint i [[thread_position_in_grid]]) {
    if (i < sizes.count) {
        y[walk(sizes.y, i)] = U(V(x[walk(sizes.x, i)]));
    }
}

#define INSTANTIATE(T, U, V)                                                \
    template [[host_name("copy_" #T "_" #U)]] [[kernel]] void copy<T, U, V>( \
        device const T*, device U*, constant CopySizes&, uint);
#define FROM(T)                 \
    INSTANTIATE(T, float, float)  \
    INSTANTIATE(T, half, float)   \
    INSTANTIATE(T, bfloat, float) \
    INSTANTIATE(T, uint, float)
FOR_FLOATS(FROM)
INSTANTIATE(uint, float, float)
INSTANTIATE(uint, half, float)
INSTANTIATE(uint, bfloat, float)
INSTANTIATE(uint, uint, uint)

// Zeros outside start..start + len of the middle axis of [outer, total, inner], copies inside. One thread an element.
struct UnsliceSizes {
    uint count;
    uint total;
    uint inner;
    uint start;
    uint len;
    Walk x;
};

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void unslice(
    device const T* x [[buffer(0)]],
    device T* y [[buffer(1)]],
    constant UnsliceSizes& sizes [[buffer(2)]],
    uint i [[thread_position_in_grid]]) {
    if (i >= sizes.count) {
        return;
    }
    uint middle = i / sizes.inner % sizes.total;
    bool inside = middle >= sizes.start && middle < sizes.start + sizes.len;
    uint outer = i / sizes.inner / sizes.total;
    uint from = (outer * sizes.len + middle - sizes.start) * sizes.inner + i % sizes.inner;
    y[i] = inside ? x[walk(sizes.x, from)] : T(0);
}

#define INSTANTIATE_UNSLICE(T)                                           \
    template [[host_name("unslice_" #T)]] [[kernel]] void unslice<T>(    \
        device const T*, device T*, constant UnsliceSizes&, uint);
FOR_FLOATS(INSTANTIATE_UNSLICE)
INSTANTIATE_UNSLICE(uint)
