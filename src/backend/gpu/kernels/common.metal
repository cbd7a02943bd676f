// What all kernel files share: element types and reductions over a threadgroup of whole SIMD groups (32 lanes).
//
// The dialect: explicit [[buffer(n)]] arguments, one constant struct of scalars after them, threadgroup arrays at the
// top of a kernel, loads of elements one by one, sums in float. Apple's GPUs flush subnormal floats to zero, so results below
// 2^-126 are 0 where the CPU has digits.

#include <metal_stdlib>
using namespace metal;

#define LANES 32
// The most SIMD groups of a threadgroup.
#define GROUPS 32

// Every kernel is instantiated for the element types of tensors.
#define FOR_FLOATS(instantiate) \
    instantiate(float)          \
    instantiate(half)           \
    instantiate(bfloat)

// The sum over the threadgroup, in every thread. `shared` has GROUPS elements and may be used again after a barrier.
inline float group_sum(float x, threadgroup float* shared, uint lane, uint group, uint groups) {
    x = simd_sum(x);
    if (groups == 1) {
        return x;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) {
        shared[group] = x;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(lane < groups ? shared[lane] : 0.0f);
}

// The greatest over the threadgroup, in every thread. What simd_max returns for NaN is not specified, so no caller depends on
// it.
inline float group_max(float x, threadgroup float* shared, uint lane, uint group, uint groups) {
    x = simd_max(x);
    if (groups == 1) {
        return x;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) {
        shared[group] = x;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_max(lane < groups ? shared[lane] : -INFINITY);
}

// Where element i of a tensor with strides lies. Axes of length 1 are left out and neighbours joined where possible, so
// that a contiguous tensor has one axis.
#define AXES 6
struct Walk {
    uint axes;
    uint dims[AXES];     // from the innermost outwards
    uint strides[AXES];  // in elements
};

inline ulong walk(constant Walk& w, uint i) {
    ulong at = 0;
    for (uint axis = 0; axis + 1 < w.axes; axis++) {
        at += ulong(i % w.dims[axis]) * w.strides[axis];
        i /= w.dims[axis];
    }
    return at + ulong(i) * w.strides[w.axes - 1];
}
