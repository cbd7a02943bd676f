// Rotation of the pairs (i, i + half) of a head by the angle of its position. One thread a pair; a position beyond the
// table is reported by another kernel and takes the last one here, so that nothing is read outside.

struct RopeSizes {
    uint pairs;  // tokens heads half
    uint heads;
    uint half_size;
    uint positions;
    uint token_stride;
    uint head_stride;
    float direction;  // 1, or -1 for the inverse
};

template <typename T>
kernel void rope(
    device const T* x [[buffer(0)]],
    device const float* cosines [[buffer(1)]],
    device const float* sines [[buffer(2)]],
    device const uint* positions [[buffer(3)]],
    device T* y [[buffer(4)]],
    constant RopeSizes& sizes [[buffer(5)]],
    uint index [[thread_position_in_grid]]) {
    if (index >= sizes.pairs) {
        return;
    }
    uint i = index % sizes.half_size;
    uint row = index / sizes.half_size;
    uint head = row % sizes.heads;
    uint token = row / sizes.heads;
    uint position = min(positions[token], sizes.positions - 1);
    float c = cosines[ulong(position) * sizes.half_size + i];
    float s = sines[ulong(position) * sizes.half_size + i] * sizes.direction;
    ulong from = ulong(token) * sizes.token_stride + ulong(head) * sizes.head_stride + i;
    float a = float(x[from]);
    float b = float(x[from + sizes.half_size]);
    ulong to = ulong(row) * 2 * sizes.half_size + i;
    y[to] = T(a * c - b * s);
    y[to + sizes.half_size] = T(b * c + a * s);
}

#define INSTANTIATE(T)                                                      \
    template [[host_name("rope_" #T)]] [[kernel]] void rope<T>(             \
        device const T*, device const float*, device const float*, device const uint*, device T*, \
        constant RopeSizes&, uint);
FOR_FLOATS(INSTANTIATE)
