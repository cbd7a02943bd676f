// y = gate / (1 + exp(-gate)) up, and its gradient. One thread an element of contiguous rows, which the inputs may have
// at any stride.

struct SiluMulSizes {
    uint count;
    uint n;
    uint gate_stride;
    uint up_stride;
    uint dy_stride;
    uint store_gate;
    uint store_up;
};

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void silu_mul(
    device const T* gate [[buffer(0)]],
    device const T* up [[buffer(1)]],
    device T* y [[buffer(2)]],
    constant SiluMulSizes& sizes [[buffer(3)]],
    uint i [[thread_position_in_grid]]) {
    if (i >= sizes.count) {
        return;
    }
    ulong row = i / sizes.n;
    ulong column = i % sizes.n;
    float g = float(gate[row * sizes.gate_stride + column]);
    float u = float(up[row * sizes.up_stride + column]);
    y[i] = T(g / (1.0f + precise::exp(-g)) * u);
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void silu_mul_grad(
    device const T* dy [[buffer(0)]],
    device const T* gate [[buffer(1)]],
    device const T* up [[buffer(2)]],
    device T* dgate [[buffer(3)]],
    device T* dup [[buffer(4)]],
    constant SiluMulSizes& sizes [[buffer(5)]],
    uint i [[thread_position_in_grid]]) {
    if (i >= sizes.count) {
        return;
    }
    ulong row = i / sizes.n;
    ulong column = i % sizes.n;
    float d = float(dy[row * sizes.dy_stride + column]);
    float g = float(gate[row * sizes.gate_stride + column]);
    float u = float(up[row * sizes.up_stride + column]);
    float s = 1.0f / (1.0f + precise::exp(-g));
    if (sizes.store_gate == 1) {
        dgate[i] = T(d * u * s * (1.0f + g * (1.0f - s)));
    }
    if (sizes.store_up == 1) {
        dup[i] = T(d * g * s);
    }
}

#define INSTANTIATE(T)                                                                     \
    template [[host_name("silu_mul_" #T)]] [[kernel]] void silu_mul<T>(                    \
        device const T*, device const T*, device T*, constant SiluMulSizes&, uint);        \
    template [[host_name("silu_mul_grad_" #T)]] [[kernel]] void silu_mul_grad<T>(          \
        device const T*, device const T*, device const T*, device T*, device T*, constant SiluMulSizes&, uint);
FOR_FLOATS(INSTANTIATE)
