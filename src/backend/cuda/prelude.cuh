// Metal's types and functions for the translated kernels, in CUDA C++ without headers. Compiled with
// --device-as-default-execution-space. A SIMD group is a warp.

#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)

namespace metal {

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long long ulong;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

// Storage of 16 bits; arithmetic is in float. Rounds to nearest even.
struct half {
    ushort bits;
    half() = default;
    __forceinline__ half(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
    __forceinline__ operator float() const {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
        return x;
    }
};

struct bfloat {
    ushort bits;
    bfloat() = default;
    __forceinline__ bfloat(float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
    __forceinline__ operator float() const { return __uint_as_float(uint(bits) << 16); }
};

// Vectors hide CUDA's, which have no constructors.
#define VECTORS(T, N)                                              \
    struct __align__(2 * sizeof(T)) N##2 {                         \
        T x, y;                                                    \
        N##2() = default;                                          \
        constexpr N##2(T x, T y) : x(x), y(y) {}                   \
    };                                                             \
    struct __align__(4 * sizeof(T)) N##3 {                         \
        T x, y, z;                                                 \
        N##3() = default;                                          \
        constexpr N##3(T x, T y, T z) : x(x), y(y), z(z) {}        \
    };                                                             \
    struct __align__(4 * sizeof(T)) N##4 {                         \
        T x, y, z, w;                                              \
        N##4() = default;                                          \
        constexpr N##4(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {} \
    };
VECTORS(uint, uint)
VECTORS(int, int)
VECTORS(float, float)
#undef VECTORS

__forceinline__ float fabs(float x) { return ::fabsf(x); }
__forceinline__ float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__forceinline__ float copysign(float x, float sign) { return ::copysignf(x, sign); }
__forceinline__ bool isnan(float x) { return x != x; }
__forceinline__ bool isinf(float x) { return ::fabsf(x) == INFINITY; }
__forceinline__ bool isfinite(float x) { return ::fabsf(x) < INFINITY; }

// Of a number and NaN the result is the number.
__forceinline__ float min(float a, float b) { return ::fminf(a, b); }
__forceinline__ float max(float a, float b) { return ::fmaxf(a, b); }
__forceinline__ float clamp(float x, float low, float high) { return min(max(x, low), high); }
#define INTEGERS(T)                                                    \
    __forceinline__ T min(T a, T b) { return b < a ? b : a; }          \
    __forceinline__ T max(T a, T b) { return a < b ? b : a; }          \
    __forceinline__ T clamp(T x, T low, T high) { return min(max(x, low), high); }
INTEGERS(int)
INTEGERS(uint)
INTEGERS(long long)
INTEGERS(ulong)
#undef INTEGERS
__forceinline__ uint mulhi(uint a, uint b) { return __umulhi(a, b); }
template <typename T>
__forceinline__ T select(T no, T yes, bool condition) {
    return condition ? yes : no;
}

namespace precise {
__forceinline__ float exp(float x) { return ::expf(x); }
__forceinline__ float log(float x) { return ::logf(x); }
__forceinline__ float sqrt(float x) { return __fsqrt_rn(x); }
__forceinline__ float rsqrt(float x) { return __fdiv_rn(1.0f, __fsqrt_rn(x)); }
__forceinline__ float tanh(float x) { return ::tanhf(x); }
}  // namespace precise

__forceinline__ float exp(float x) { return ::expf(x); }
__forceinline__ float log(float x) { return ::logf(x); }
__forceinline__ float sqrt(float x) { return __fsqrt_rn(x); }
__forceinline__ float rsqrt(float x) { return precise::rsqrt(x); }
__forceinline__ float tanh(float x) { return ::tanhf(x); }

// Bits of one type as another.
template <typename To, typename From>
__forceinline__ To as_type(From from) {
    static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
__forceinline__ void threadgroup_barrier(mem_flags) { __syncthreads(); }
__forceinline__ void simdgroup_barrier(mem_flags) { __syncwarp(); }

// All lanes of a warp take part. The sum is the same number in every lane: each step adds the same two terms on both sides.
template <typename T>
__forceinline__ T simd_shuffle_xor(T x, ushort mask) {
    return __shfl_xor_sync(0xffffffffu, x, mask);
}
template <typename T>
__forceinline__ T simd_shuffle(T x, ushort lane) {
    return __shfl_sync(0xffffffffu, x, lane);
}
template <typename T>
__forceinline__ T simd_shuffle_down(T x, ushort delta) {
    return __shfl_down_sync(0xffffffffu, x, delta);
}
template <typename T>
__forceinline__ T simd_broadcast(T x, ushort lane) {
    return __shfl_sync(0xffffffffu, x, lane);
}
template <typename T>
__forceinline__ T simd_broadcast_first(T x) {
    return __shfl_sync(0xffffffffu, x, 0);
}
template <typename T>
__forceinline__ T simd_sum(T x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}
template <typename T>
__forceinline__ T simd_max(T x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
    }
    return x;
}
template <typename T>
__forceinline__ T simd_min(T x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        x = min(x, __shfl_xor_sync(0xffffffffu, x, step));
    }
    return x;
}

}  // namespace metal
