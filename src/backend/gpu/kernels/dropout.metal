// Dropout by Philox4x32-10: counter (i / 4, 0, stream, 0), key from the seed; one thread four elements. After
// philox.metal.

struct DropoutSizes {
    uint count;
    uint stream;
    uint threshold;
    float scale;
};

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void dropout(
    device const T* x [[buffer(0)]],
    device const uint* seed [[buffer(1)]],
    device T* y [[buffer(2)]],
    constant DropoutSizes& sizes [[buffer(3)]],
    uint block [[thread_position_in_grid]]) {
    uint first = 4 * block;
    if (first >= sizes.count) {
        return;
    }
    uint4 words = philox(uint4(block, 0, sizes.stream, 0), uint2(seed[0], seed[1]));
    for (uint i = 0; i < 4; i++) {
        if (first + i < sizes.count) {
            uint word = i == 0 ? words.x : (i == 1 ? words.y : (i == 2 ? words.z : words.w));
            // A product, so that NaN and infinities are not hidden where they are dropped.
            y[first + i] = T(float(x[first + i]) * (word >= sizes.threshold ? sizes.scale : 0.0f));
        }
    }
}

#define INSTANTIATE(T)                                                     \
    template [[host_name("dropout_" #T)]] [[kernel]] void dropout<T>(      \
        device const T*, device const uint*, device T*, constant DropoutSizes&, uint);
FOR_FLOATS(INSTANTIATE)
