// The part of <metal_type_traits> and <metal_limits> that kernels use, without a C++ library.
namespace metal {
template <class T, T V> struct integral_constant {
  static constexpr T value = V;
  using value_type = T;
  using type = integral_constant;
  constexpr operator T() const { return V; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <class A, class B> inline constexpr bool is_same_v = __is_same(A, B);
template <class A, class B> struct is_same : bool_constant<__is_same(A, B)> {};

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
template <class T> T &&declval() noexcept;

template <class T>
inline constexpr bool is_floating_point_v = __is_floating_point(T) || is_same_v<__remove_cv(T), half> || is_same_v<__remove_cv(T), bfloat>;
template <class T> inline constexpr bool is_integral_v = __is_integral(T);
template <class T> inline constexpr bool is_arithmetic_v = is_floating_point_v<T> || is_integral_v<T>;
template <class T> inline constexpr bool is_signed_v = is_floating_point_v<T> || __is_signed(T);
template <class T> inline constexpr bool is_unsigned_v = __is_unsigned(T);
template <class T> inline constexpr bool is_pointer_v = __is_pointer(T);
template <class T> inline constexpr bool is_void_v = __is_void(T);
template <class T> inline constexpr bool is_class_v = __is_class(T);
template <class T> inline constexpr bool is_enum_v = __is_enum(T);
template <class T> inline constexpr bool is_reference_v = __is_reference(T);
template <class T> inline constexpr bool is_const_v = __is_const(T);
template <class A, class B> inline constexpr bool is_convertible_v = __is_convertible(A, B);
template <class T> struct is_floating_point : bool_constant<is_floating_point_v<T>> {};
template <class T> struct is_integral : bool_constant<is_integral_v<T>> {};
template <class T> struct is_arithmetic : bool_constant<is_arithmetic_v<T>> {};
template <class T> struct is_signed : bool_constant<is_signed_v<T>> {};
template <class T> struct is_unsigned : bool_constant<is_unsigned_v<T>> {};
template <class T> struct is_pointer : bool_constant<is_pointer_v<T>> {};
template <class T> struct is_class : bool_constant<is_class_v<T>> {};
template <class A, class B> struct is_convertible : bool_constant<is_convertible_v<A, B>> {};

template <class T> struct softmetal_float_limits {
  static constexpr bool is_integer = false, is_signed = true, has_infinity = true;
  static constexpr T infinity() { return T(__builtin_inff()); }
  static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }
};
template <class T> struct softmetal_integer_limits {
  static constexpr bool is_integer = true, is_signed = T(-1) < T(0), has_infinity = false;
  static constexpr int digits = 8 * sizeof(T) - (is_signed ? 1 : 0);
  static constexpr T min() { return is_signed ? T(ulong(1) << digits) : T(0); }
  static constexpr T max() { return is_signed ? T((ulong(1) << digits) - 1) : T(~ulong(0)); }
  static constexpr T lowest() { return min(); }
  static constexpr T infinity() { return T(0); }
};
// The names that MLX's headers specialise and derive from.
template <class T> struct _numeric_limits_impl : softmetal_integer_limits<T> {};
template <> struct _numeric_limits_impl<bool> {
  static constexpr bool min() { return false; }
  static constexpr bool max() { return true; }
  static constexpr bool lowest() { return false; }
};
#define SOFTMETAL_LIMITS(T, Max, Min, Epsilon, Digits) \
  template <> struct _numeric_limits_impl<T> : softmetal_float_limits<T> { \
    static constexpr T max() { return T(Max); } \
    static constexpr T lowest() { return T(-Max); } \
    static constexpr T min() { return T(Min); } \
    static constexpr T epsilon() { return T(Epsilon); } \
    static constexpr int digits = Digits; \
  };
SOFTMETAL_LIMITS(float, __FLT_MAX__, __FLT_MIN__, __FLT_EPSILON__, 24)
SOFTMETAL_LIMITS(double, __DBL_MAX__, __DBL_MIN__, __DBL_EPSILON__, 53)
SOFTMETAL_LIMITS(half, 65504.0f, 0x1p-14f, 0x1p-10f, 11)
SOFTMETAL_LIMITS(bfloat, 0x1.fep127f, 0x1p-126f, 0x1p-7f, 8)
#undef SOFTMETAL_LIMITS
template <class T> struct numeric_limits : _numeric_limits_impl<T> {};

template <class To, class From> METAL_FUNC constexpr To as_type(From from) { return __builtin_bit_cast(To, from); }

template <class T, size_t N> struct array {
  T softmetal_elements[N];
  constexpr T &operator[](size_t i) { return softmetal_elements[i]; }
  constexpr const T &operator[](size_t i) const { return softmetal_elements[i]; }
  constexpr size_t size() const { return N; }
};
} // namespace metal
using metal::as_type;

#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define FLT_EPSILON __FLT_EPSILON__
#define HALF_MAX 65504.0f16
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
