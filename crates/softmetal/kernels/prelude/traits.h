// The part of <metal_type_traits> and <metal_limits> that kernels use, without a C++ library.
namespace metal {
template <class A, class B> inline constexpr bool is_same_v = __is_same(A, B);
template <class A, class B> struct is_same : bool_constant<__is_same(A, B)> {};

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
