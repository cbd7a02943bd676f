// What the translation to C++ and the check of types in C++ for OpenCL have in common of Metal's standard library. `half` is
// a type of OpenCL.
#ifdef __OPENCL_CPP_VERSION__
#define SOFTMETAL_STATIC static __constant constexpr
#else
#define SOFTMETAL_STATIC static constexpr
typedef _Float16 half;
#endif
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef unsigned long uintptr_t;
typedef __bf16 bfloat;

#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define FLT_EPSILON __FLT_EPSILON__
#define HALF_MAX half(65504.0f)
#define HUGE_VALF __builtin_huge_valf()
#define MAXFLOAT __FLT_MAX__
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define INT_MAX __INT_MAX__
#define INT_MIN (-__INT_MAX__ - 1)
#define UINT_MAX 0xffffffffu
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_1_PI_F 0.318309886183790671538f
#define M_2_PI_F 0.636619772367581343076f
#define M_E_F 2.71828182845904523536f
#define M_LN2_F 0.693147180559945309417f
#define M_LN10_F 2.30258509299404568402f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.434294481903251827651f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f
#define M_2_SQRTPI_F 1.12837916709551257390f

namespace metal {
template <class T, T V> struct integral_constant {
  SOFTMETAL_STATIC T value = V;
  using value_type = T;
  using type = integral_constant;
  constexpr operator T() const { return V; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;
template <bool B, class T, class F> struct conditional { using type = T; };
template <class T, class F> struct conditional<false, T, F> { using type = F; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;
template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <class...> using void_t = void;

#define SOFTMETAL_TRANSFORM(name, builtin) \
  template <class T> struct name { using type = builtin(T); }; \
  template <class T> using name##_t = typename name<T>::type;
SOFTMETAL_TRANSFORM(remove_cv, __remove_cv)
SOFTMETAL_TRANSFORM(remove_const, __remove_const)
SOFTMETAL_TRANSFORM(remove_volatile, __remove_volatile)
SOFTMETAL_TRANSFORM(remove_reference, __remove_reference_t)
SOFTMETAL_TRANSFORM(remove_pointer, __remove_pointer)
SOFTMETAL_TRANSFORM(decay, __decay)
SOFTMETAL_TRANSFORM(make_unsigned, __make_unsigned)
SOFTMETAL_TRANSFORM(make_signed, __make_signed)
#undef SOFTMETAL_TRANSFORM
} // namespace metal
