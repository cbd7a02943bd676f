// Declarations of Metal's standard library for a check of types in C++ for OpenCL, whose address spaces are Metal's: distinct,
// without a generic one. Nothing here has a body that matters; nothing is compiled to code.
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable
#define device __global
// What is there cannot be written.
#define constant __constant const
#define threadgroup __local
#define thread __private
#define METAL_FUNC inline
#define METAL_CONST constant
// OpenCL has types of these names.
#define atomic_uint softmetal_atomic_uint
#define atomic_int softmetal_atomic_int
#define atomic_float softmetal_atomic_float
#define atomic_bool softmetal_atomic_bool

namespace metal {
using ::size_t; using ::ptrdiff_t; using ::int8_t; using ::uint8_t; using ::int16_t; using ::uint16_t;
using ::int32_t; using ::uint32_t; using ::int64_t; using ::uint64_t;

// A vector of bool is one of char here, as the translation says: OpenCL has none. Sizes and alignments are the same.
template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));
#define SOFTMETAL_VECTORS(T) \
  typedef T T##2 __attribute__((ext_vector_type(2))); typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
} // namespace metal
SOFTMETAL_VECTORS(char) SOFTMETAL_VECTORS(uchar) SOFTMETAL_VECTORS(short) SOFTMETAL_VECTORS(ushort)
SOFTMETAL_VECTORS(int) SOFTMETAL_VECTORS(uint) SOFTMETAL_VECTORS(long) SOFTMETAL_VECTORS(ulong)
SOFTMETAL_VECTORS(float) SOFTMETAL_VECTORS(half) SOFTMETAL_VECTORS(bfloat)
#undef SOFTMETAL_VECTORS
typedef char bool2 __attribute__((ext_vector_type(2)));
typedef char bool3 __attribute__((ext_vector_type(3)));
typedef char bool4 __attribute__((ext_vector_type(4)));

// What a vector's constructor becomes: `float2(a, b)`. Each of its arguments must be a number or a vector of numbers.
template <class V, class... A> constexpr V softmetal_make(A...) { return V{}; }
// What a threadgroup variable becomes a reference to.
template <class T> threadgroup T &softmetal_threadgroup();
template <class T> bool softmetal_is_defined(T);

namespace metal {
template <class T> T declval();
// The type of an object wherever it lies.
template <class T> struct softmetal_bare { using type = T; };
template <class T> struct softmetal_bare<device T> { using type = T; };
template <class T> struct softmetal_bare<constant T> { using type = T; };
template <class T> struct softmetal_bare<threadgroup T> { using type = T; };
template <class T> struct softmetal_bare<thread T> { using type = T; };

template <class T> struct softmetal_is_float : false_type {};
template <> struct softmetal_is_float<float> : true_type {};
template <> struct softmetal_is_float<half> : true_type {};
template <> struct softmetal_is_float<bfloat> : true_type {};
#define SOFTMETAL_TRAIT(name, value) \
  template <class T> constant constexpr bool name##_v = value; \
  template <class T> struct name : bool_constant<value> {};
#define SOFTMETAL_BARE __remove_cv(typename softmetal_bare<T>::type)
SOFTMETAL_TRAIT(is_floating_point, softmetal_is_float<SOFTMETAL_BARE>::value)
SOFTMETAL_TRAIT(is_integral, __is_integral(SOFTMETAL_BARE))
SOFTMETAL_TRAIT(is_arithmetic, is_floating_point<T>::value || __is_integral(SOFTMETAL_BARE))
SOFTMETAL_TRAIT(is_signed, is_floating_point<T>::value || __is_signed(SOFTMETAL_BARE))
SOFTMETAL_TRAIT(is_unsigned, __is_unsigned(SOFTMETAL_BARE))
SOFTMETAL_TRAIT(is_pointer, __is_pointer(T))
SOFTMETAL_TRAIT(is_void, __is_void(T))
SOFTMETAL_TRAIT(is_class, __is_class(T))
SOFTMETAL_TRAIT(is_enum, __is_enum(T))
SOFTMETAL_TRAIT(is_const, __is_const(T))
#undef SOFTMETAL_TRAIT
#undef SOFTMETAL_BARE
template <class A, class B> constant constexpr bool is_same_v = __is_same(A, B);
template <class A, class B> struct is_same : bool_constant<__is_same(A, B)> {};
template <class A, class B> constant constexpr bool is_convertible_v = __is_convertible(A, B);
template <class A, class B> struct is_convertible : bool_constant<__is_convertible(A, B)> {};
template <class T> struct _numeric_limits_impl {
  static constant constexpr bool is_integer = true, is_signed = true, has_infinity = true;
  static constant constexpr int digits = 8 * sizeof(T);
  static constexpr T min() { return T(); }
  static constexpr T max() { return T(); }
  static constexpr T lowest() { return T(); }
  static constexpr T infinity() { return T(); }
  static constexpr T quiet_NaN() { return T(); }
  static constexpr T epsilon() { return T(); }
};
template <class T> struct numeric_limits : _numeric_limits_impl<T> {};
template <class T, class U> constexpr T as_type(U) { return T(); }
template <class T, size_t N> struct array {
  T softmetal_elements[N];
  thread T &operator[](size_t i) thread;
  const thread T &operator[](size_t i) const thread;
  threadgroup T &operator[](size_t i) threadgroup;
  device T &operator[](size_t i) device;
  const device T &operator[](size_t i) const device;
  const constant T &operator[](size_t i) const constant;
  constexpr size_t size() const { return N; }
};

template <class T> struct vec_elements { static constant constexpr ushort value = 1; };
#define SOFTMETAL_ELEMENTS(T, N) template <> struct vec_elements<vec<T, N>> { static constant constexpr ushort value = N; };
#define SOFTMETAL_ELEMENTS_OF(T) SOFTMETAL_ELEMENTS(T, 2) SOFTMETAL_ELEMENTS(T, 3) SOFTMETAL_ELEMENTS(T, 4)
SOFTMETAL_ELEMENTS_OF(char) SOFTMETAL_ELEMENTS_OF(uchar) SOFTMETAL_ELEMENTS_OF(short) SOFTMETAL_ELEMENTS_OF(ushort)
SOFTMETAL_ELEMENTS_OF(int) SOFTMETAL_ELEMENTS_OF(uint) SOFTMETAL_ELEMENTS_OF(long) SOFTMETAL_ELEMENTS_OF(ulong)
SOFTMETAL_ELEMENTS_OF(float) SOFTMETAL_ELEMENTS_OF(half) SOFTMETAL_ELEMENTS_OF(bfloat)

// Elements one after another, aligned as one of them.
#define SOFTMETAL_PACKED_MEMBERS(T, N) \
  operator vec<T, N>() const thread; operator vec<T, N>() const device; \
  operator vec<T, N>() const constant; operator vec<T, N>() const threadgroup; \
  thread T &operator[](int i) thread; device T &operator[](int i) device; threadgroup T &operator[](int i) threadgroup; \
  const thread T &operator[](int i) const thread; const device T &operator[](int i) const device; \
  const threadgroup T &operator[](int i) const threadgroup; const constant T &operator[](int i) const constant;
template <class T, int N> struct softmetal_packed;
template <class T> struct softmetal_packed<T, 2> { T x, y; SOFTMETAL_PACKED_MEMBERS(T, 2) };
template <class T> struct softmetal_packed<T, 3> { T x, y, z; SOFTMETAL_PACKED_MEMBERS(T, 3) };
template <class T> struct softmetal_packed<T, 4> { T x, y, z, w; SOFTMETAL_PACKED_MEMBERS(T, 4) };
#define SOFTMETAL_PACKED(T) typedef softmetal_packed<T, 2> packed_##T##2; typedef softmetal_packed<T, 3> packed_##T##3; typedef softmetal_packed<T, 4> packed_##T##4;
SOFTMETAL_PACKED(char) SOFTMETAL_PACKED(uchar) SOFTMETAL_PACKED(short) SOFTMETAL_PACKED(ushort) SOFTMETAL_PACKED(int) SOFTMETAL_PACKED(uint)
SOFTMETAL_PACKED(float) SOFTMETAL_PACKED(half) SOFTMETAL_PACKED(bfloat)

template <class T, int C, int R> struct matrix {
  vec<T, R> columns[C];
  matrix() = default;
  explicit matrix(T diagonal);
  thread vec<T, R> &operator[](int i) thread;
  device vec<T, R> &operator[](int i) device;
  threadgroup vec<T, R> &operator[](int i) threadgroup;
  const thread vec<T, R> &operator[](int i) const thread;
  const device vec<T, R> &operator[](int i) const device;
  const threadgroup vec<T, R> &operator[](int i) const threadgroup;
  const constant vec<T, R> &operator[](int i) const constant;
};
template <class T, int C, int R> vec<T, C> operator*(vec<T, R> a, matrix<T, C, R> b);
template <class T, int C, int R> vec<T, R> operator*(matrix<T, C, R> a, vec<T, C> b);
template <class T, int C, int R> matrix<T, C, R> operator*(matrix<T, C, R> a, T b);
template <class T, int C, int R> matrix<T, C, R> operator*(T a, matrix<T, C, R> b);
template <class T, int C, int R> matrix<T, C, R> operator+(matrix<T, C, R> a, matrix<T, C, R> b);
#define SOFTMETAL_MATRIX(T, C) typedef matrix<T, C, 2> T##C##x2; typedef matrix<T, C, 3> T##C##x3; typedef matrix<T, C, 4> T##C##x4;
SOFTMETAL_MATRIX(float, 2) SOFTMETAL_MATRIX(float, 3) SOFTMETAL_MATRIX(float, 4)
SOFTMETAL_MATRIX(half, 2) SOFTMETAL_MATRIX(half, 3) SOFTMETAL_MATRIX(half, 4)

// Functions of floating-point numbers are overloads, so that arguments convert as they do in Metal; others are templates.
// There are none for bfloat, which converts to float.
#define SOFTMETAL_FLOATS(macro, name) \
  macro(name, float) macro(name, half) macro(name, float2) macro(name, float3) macro(name, float4) \
  macro(name, half2) macro(name, half3) macro(name, half4)
#define SOFTMETAL_ONE(name, T) constexpr T name(T x) { return x; }
#define SOFTMETAL_TWO(name, T) constexpr T name(T x, T y) { return x; }
#define SOFTMETAL_THREE(name, T) constexpr T name(T x, T y, T z) { return x; }
#define SOFTMETAL_OUT(name, T) T name(T x, thread T &y);
#define SOFTMETAL_UNARIES(macro) \
  macro(SOFTMETAL_ONE, acos) macro(SOFTMETAL_ONE, acosh) macro(SOFTMETAL_ONE, asin) macro(SOFTMETAL_ONE, asinh) macro(SOFTMETAL_ONE, atan) \
  macro(SOFTMETAL_ONE, atanh) macro(SOFTMETAL_ONE, ceil) macro(SOFTMETAL_ONE, floor) macro(SOFTMETAL_ONE, trunc) macro(SOFTMETAL_ONE, rint) \
  macro(SOFTMETAL_ONE, round) macro(SOFTMETAL_ONE, fract) macro(SOFTMETAL_ONE, cos) macro(SOFTMETAL_ONE, cosh) macro(SOFTMETAL_ONE, sin) \
  macro(SOFTMETAL_ONE, sinh) macro(SOFTMETAL_ONE, tan) macro(SOFTMETAL_ONE, tanh) macro(SOFTMETAL_ONE, cospi) macro(SOFTMETAL_ONE, sinpi) \
  macro(SOFTMETAL_ONE, exp) macro(SOFTMETAL_ONE, exp2) macro(SOFTMETAL_ONE, exp10) macro(SOFTMETAL_ONE, log) macro(SOFTMETAL_ONE, log2) \
  macro(SOFTMETAL_ONE, log10) macro(SOFTMETAL_ONE, sqrt) macro(SOFTMETAL_ONE, rsqrt) macro(SOFTMETAL_ONE, fabs) macro(SOFTMETAL_ONE, sign) \
  macro(SOFTMETAL_ONE, saturate)
#define SOFTMETAL_OTHERS(macro) \
  macro(SOFTMETAL_TWO, pow) macro(SOFTMETAL_TWO, powr) macro(SOFTMETAL_TWO, fmod) macro(SOFTMETAL_TWO, atan2) macro(SOFTMETAL_TWO, copysign) \
  macro(SOFTMETAL_TWO, fdim) macro(SOFTMETAL_TWO, divide) macro(SOFTMETAL_TWO, step) macro(SOFTMETAL_TWO, fmin) macro(SOFTMETAL_TWO, fmax) \
  macro(SOFTMETAL_THREE, fma) macro(SOFTMETAL_THREE, smoothstep) macro(SOFTMETAL_OUT, sincos) macro(SOFTMETAL_OUT, modf)
#define SOFTMETAL_DECLARE(macro, name) SOFTMETAL_FLOATS(macro, name)
#define SOFTMETAL_UNARY(name) template <class T> constexpr T name(T v) { return v; }
#define SOFTMETAL_BINARY(name) template <class T> constexpr T name(T a, T b) { return a; }
#define SOFTMETAL_TERNARY(name) template <class T> constexpr T name(T a, T b, T c) { return a; }
#define SOFTMETAL_FAMILY \
  SOFTMETAL_UNARIES(SOFTMETAL_DECLARE) SOFTMETAL_OTHERS(SOFTMETAL_DECLARE) \
  SOFTMETAL_UNARY(abs) SOFTMETAL_BINARY(min) SOFTMETAL_BINARY(max) SOFTMETAL_TERNARY(clamp) SOFTMETAL_TERNARY(mad) \
  SOFTMETAL_TERNARY(min3) SOFTMETAL_TERNARY(max3) SOFTMETAL_TERNARY(median3) template <class T, class U> constexpr T mix(T a, T b, U t) { return a; }
SOFTMETAL_FAMILY
namespace fast { SOFTMETAL_FAMILY }
namespace precise { SOFTMETAL_FAMILY }
SOFTMETAL_UNARY(clz) SOFTMETAL_UNARY(ctz) SOFTMETAL_UNARY(popcount) SOFTMETAL_UNARY(reverse_bits)
SOFTMETAL_BINARY(mulhi) SOFTMETAL_BINARY(mul24) SOFTMETAL_BINARY(rotate) SOFTMETAL_BINARY(addsat) SOFTMETAL_BINARY(subsat)
template <class T, class C> constexpr T select(T a, T b, C c) { return a; }
template <class T> constexpr bool isnan(T) { return false; }
template <class T> constexpr bool isinf(T) { return false; }
template <class T> constexpr bool isfinite(T) { return true; }
template <class T> constexpr bool signbit(T) { return false; }
template <class T> T ldexp(T x, int e);
template <class T> T frexp(T x, thread int &e);
template <class T> T extract_bits(T v, uint offset, uint bits);
template <class T> auto softmetal_first(T v) -> __remove_cv(__remove_reference_t(decltype(v[0])));
template <class T> auto dot(T a, T b) -> decltype(softmetal_first(a));
template <class T> auto length(T a) -> decltype(softmetal_first(a));
template <class T> bool all(T v);
template <class T> bool any(T v);

// Barriers and operations of a SIMD group.
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4, mem_threadgroup_imageblock = 8 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return a; }
enum memory_order { memory_order_relaxed };
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
#define SOFTMETAL_SIMD(name) template <class T> T name(T v);
SOFTMETAL_SIMD(simd_sum) SOFTMETAL_SIMD(simd_product) SOFTMETAL_SIMD(simd_min) SOFTMETAL_SIMD(simd_max) SOFTMETAL_SIMD(simd_and)
SOFTMETAL_SIMD(simd_or) SOFTMETAL_SIMD(simd_xor) SOFTMETAL_SIMD(simd_prefix_inclusive_sum) SOFTMETAL_SIMD(simd_prefix_exclusive_sum)
SOFTMETAL_SIMD(simd_prefix_inclusive_product) SOFTMETAL_SIMD(simd_prefix_exclusive_product) SOFTMETAL_SIMD(simd_broadcast_first)
#define SOFTMETAL_MOVE(name) template <class T> T name(T v, ushort by);
SOFTMETAL_MOVE(simd_shuffle) SOFTMETAL_MOVE(simd_broadcast) SOFTMETAL_MOVE(simd_shuffle_down) SOFTMETAL_MOVE(simd_shuffle_up)
SOFTMETAL_MOVE(simd_shuffle_xor) SOFTMETAL_MOVE(simd_shuffle_rotate_down) SOFTMETAL_MOVE(simd_shuffle_rotate_up)
SOFTMETAL_MOVE(quad_shuffle) SOFTMETAL_MOVE(quad_broadcast) SOFTMETAL_MOVE(quad_shuffle_xor)
struct simd_vote {
  explicit constexpr operator ulong() const { return 0; }
  constexpr bool all() const { return true; }
  constexpr bool any() const { return true; }
};
simd_vote simd_ballot(bool);
simd_vote simd_active_threads_mask();
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();
template <class T> struct __is_valid_simdgroup_type {
  static constant constexpr bool value = (is_integral_v<T> && sizeof(T) <= 4 && !is_same_v<T, bool>) || is_same_v<T, float> || is_same_v<T, half>;
};

template <class T, int R, int C> struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "Metal has 8x8 matrices only");
  using storage_type = vec<T, 2>;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal);
  thread storage_type &thread_elements() thread;
  const thread storage_type &thread_elements() const thread;
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int C, int R = C> simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T);
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c);
template <class D, class A, class B>
void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b);
#define SOFTMETAL_MATRIX_MEMORY(space) \
  template <class T> void simdgroup_load(thread simdgroup_matrix<T, 8, 8> &d, const space T *from, ulong row = 8, ulong2 origin = 0, bool transpose = false); \
  template <class T> void simdgroup_store(simdgroup_matrix<T, 8, 8> d, space T *to, ulong row = 8, ulong2 origin = 0, bool transpose = false);
SOFTMETAL_MATRIX_MEMORY(device) SOFTMETAL_MATRIX_MEMORY(threadgroup)

template <class T> struct atomic { T softmetal_value; };
typedef atomic<uint> atomic_uint;
typedef atomic<int> atomic_int;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
#define SOFTMETAL_ATOMIC(space) \
  template <class T, class U> void atomic_store_explicit(volatile space atomic<T> *at, U value, memory_order); \
  template <class T> T atomic_load_explicit(const volatile space atomic<T> *at, memory_order); \
  template <class T, class U> T atomic_exchange_explicit(volatile space atomic<T> *at, U value, memory_order); \
  template <class T, class U> bool atomic_compare_exchange_weak_explicit(volatile space atomic<T> *at, thread T *expected, U value, memory_order, memory_order); \
  template <class T, class U> T atomic_fetch_add_explicit(volatile space atomic<T> *at, U value, memory_order); \
  template <class T, class U> T atomic_fetch_sub_explicit(volatile space atomic<T> *at, U value, memory_order); \
  template <class T, class U> T atomic_fetch_min_explicit(volatile space atomic<T> *at, U value, memory_order); \
  template <class T, class U> T atomic_fetch_max_explicit(volatile space atomic<T> *at, U value, memory_order); \
  template <class T, class U> T atomic_fetch_and_explicit(volatile space atomic<T> *at, U value, memory_order); \
  template <class T, class U> T atomic_fetch_or_explicit(volatile space atomic<T> *at, U value, memory_order);
SOFTMETAL_ATOMIC(device) SOFTMETAL_ATOMIC(threadgroup)
} // namespace metal
using metal::as_type;

