//! The rules of Apple's compiler: each planted fault is reported by its rule, and its nearest legal neighbor by none. Then
//! the project's own kernels and, as the control, candle's, which run on Macs.

mod harness;
mod sources;

use harness::{candle_folder, options};
use softmetal_kernels::msl::rules::{Finding, RULES};
use softmetal_kernels::{CompileOptions, Requirements, check_rules};
use sources::{Source, ours};

/// What is wrong, and what is nearly that but legal: whole libraries, or parameters and a body of one kernel.
struct Case {
    rule: &'static str,
    fault: &'static str,
    legal: &'static str,
}

const fn case(rule: &'static str, fault: &'static str, legal: &'static str) -> Case {
    Case { rule, fault, legal }
}

/// All of them are complete libraries without their first two lines.
const CASES: &[Case] = &[
    // Positions and sizes.
    case(
        "position-width",
        "kernel void k(uint3 a [[threadgroup_position_in_grid]], uint b [[thread_position_in_threadgroup]]) {}",
        "kernel void k(uint3 a [[threadgroup_position_in_grid]], uint b [[thread_index_in_threadgroup]]) {}",
    ),
    case(
        "position-width",
        "kernel void k(uint2 a [[thread_position_in_grid]], uint3 b [[threads_per_threadgroup]]) {}",
        "kernel void k(uint2 a [[thread_position_in_grid]], uint2 b [[threads_per_threadgroup]]) {}",
    ),
    case(
        "position-width",
        "kernel void k(uint a [[thread_position_in_grid]], ushort2 b [[threads_per_grid]]) {}",
        "kernel void k(uint a [[thread_position_in_grid]], ushort b [[threads_per_grid]]) {}",
    ),
    case(
        "position-width",
        "template <typename T> kernel void k(device T* x [[buffer(0)]], uint3 a [[threadgroup_position_in_grid]], uint b \
         [[threadgroups_per_grid]]) {}\ntemplate [[host_name(\"k_f\")]] [[kernel]] void k<float>(device float*, uint3, uint);",
        "template <typename T> kernel void k(device T* x [[buffer(0)]], uint3 a [[threadgroup_position_in_grid]], uint3 b \
         [[threadgroups_per_grid]]) {}\ntemplate [[host_name(\"k_f\")]] [[kernel]] void k<float>(device float*, uint3, uint3);",
    ),
    // Types of what the GPU supplies.
    case(
        "builtin-type",
        "kernel void k(int i [[thread_position_in_grid]]) {}",
        "kernel void k(ushort i [[thread_position_in_grid]]) {}",
    ),
    case(
        "builtin-type",
        "kernel void k(uint4 i [[thread_position_in_grid]]) {}",
        "kernel void k(uint3 i [[thread_position_in_grid]]) {}",
    ),
    case(
        "builtin-type",
        "kernel void k(uint2 i [[thread_index_in_simdgroup]]) {}",
        "kernel void k(uint i [[thread_index_in_simdgroup]]) {}",
    ),
    case(
        "builtin-type",
        "kernel void k(size_t i [[simdgroups_per_threadgroup]]) {}",
        "kernel void k(metal::uint32_t i [[simdgroups_per_threadgroup]]) {}",
    ),
    case(
        "builtin-by-value",
        "kernel void k(constant uint& i [[thread_position_in_grid]]) {}",
        "kernel void k(const uint i [[thread_position_in_grid]]) {}",
    ),
    // bfloat: no number of another floating-point type becomes one without a cast.
    case(
        "bfloat-conversion",
        "kernel void k(device bfloat* y [[buffer(0)]], device const float* x [[buffer(1)]]) { y[0] = x[0]; }",
        "kernel void k(device bfloat* y [[buffer(0)]], device const float* x [[buffer(1)]]) { y[0] = bfloat(x[0]); }",
    ),
    case(
        "bfloat-conversion",
        "kernel void k(device bfloat* y [[buffer(0)]]) { bfloat zero = 0.0f; y[0] = zero; }",
        "kernel void k(device half* y [[buffer(0)]]) { half zero = 0.0f; y[0] = zero; }",
    ),
    case(
        "bfloat-conversion",
        "template <typename T> kernel void k(device T* y [[buffer(0)]], constant float& x [[buffer(1)]]) { y[0] += x; }\n\
         template [[host_name(\"k_bf\")]] [[kernel]] void k<bfloat>(device bfloat*, constant float&);",
        "template <typename T> kernel void k(device T* y [[buffer(0)]], constant float& x [[buffer(1)]]) { y[0] += T(x); }\n\
         template [[host_name(\"k_bf\")]] [[kernel]] void k<bfloat>(device bfloat*, constant float&);",
    ),
    case(
        "bfloat-conversion",
        "template <typename T> T twice(T x) { return 2.0f * x; }\nkernel void k(device bfloat* y [[buffer(0)]]) { y[0] = \
         twice(y[1]); }",
        "template <typename T> T twice(T x) { return T(2.0f * x); }\nkernel void k(device bfloat* y [[buffer(0)]]) { y[0] = \
         twice(y[1]); }",
    ),
    case(
        "bfloat-conversion",
        "kernel void k(device bfloat* y [[buffer(0)]]) { y[0] = exp(y[0]); }",
        "kernel void k(device bfloat* y [[buffer(0)]]) { y[0] = bfloat(exp(y[0])); }",
    ),
    case(
        "bfloat-conversion",
        "kernel void k(device bfloat* y [[buffer(0)]], device const half* x [[buffer(1)]]) { y[0] *= float(x[0]); }",
        "kernel void k(device bfloat* y [[buffer(0)]], device const half* x [[buffer(1)]]) { bfloat z = y[0]; z *= z; \
         float w = z; w *= x[0]; y[0] = bfloat(w); }",
    ),
    // Attributes together.
    case(
        "one-role",
        "kernel void k(device float* x [[buffer(0), threadgroup(0)]]) {}",
        "kernel void k(device float* x [[buffer(0)]]) {}",
    ),
    case(
        "attribute-twice",
        "kernel void k(device float* x [[buffer(0)]] [[buffer(1)]]) {}",
        "kernel void k(device float* x [[buffer(0)]], device float* y [[buffer(1)]]) {}",
    ),
    case(
        "attribute-twice",
        "[[max_total_threads_per_threadgroup(32)]] [[max_total_threads_per_threadgroup(64)]] kernel void k() {}",
        "[[max_total_threads_per_threadgroup(64)]] kernel void k() {}",
    ),
    case(
        "kernel-attribute",
        "kernel void k() [[max_total_threads_per_threadgroup(64)]] {}",
        "[[kernel, max_total_threads_per_threadgroup(64)]] void k() {}",
    ),
    case(
        "kernel-attribute",
        "kernel [[max_total_threads_per_threadgroup(64)]] void k() {}",
        "[[max_total_threads_per_threadgroup(64)]] kernel void k() {}",
    ),
    case("kernel-attribute", "[[threads_per_threadgroup(64)]] kernel void k() {}", "[[kernel]] void k() {}"),
    case(
        "readable",
        "kernel void k(uint i [[vertex_id]]) {}",
        "kernel void k(uint i [[thread_position_in_grid]]) {}",
    ),
    case("readable", "kernel void k(uint n) {}", "kernel void k(constant uint& n [[buffer(0)]]) {}"),
    case("readable", "kernel int k() { return 0; }", "kernel void k() {}"),
    // Buffers.
    case(
        "buffer-index",
        "kernel void k(device float* x [[buffer(31)]]) {}",
        "kernel void k(device float* x [[buffer(30)]]) {}",
    ),
    case(
        "buffer-unique",
        "kernel void k(device float* x [[buffer(1)]], device float* y [[buffer(1)]]) {}",
        "kernel void k(device float* x [[buffer(1)]], device float* y [[buffer(2)]]) {}",
    ),
    case(
        "buffer-space",
        "kernel void k(threadgroup float* x [[buffer(0)]]) {}",
        "kernel void k(threadgroup float* x [[threadgroup(0)]]) {}",
    ),
    case(
        "buffer-space",
        "kernel void k(float* x [[buffer(0)]]) {}",
        "kernel void k(constant float* x [[buffer(0)]]) {}",
    ),
    case(
        "buffer-space",
        "kernel void k(thread float& x [[buffer(0)]]) {}",
        "kernel void k(device float& x [[buffer(0)]]) {}",
    ),
    case(
        "buffer-by-value",
        "kernel void k(uint n [[buffer(0)]]) {}",
        "kernel void k(constant uint& n [[buffer(0)]]) {}",
    ),
    case(
        "pointer-to-pointer",
        "kernel void k(device float* device* x [[buffer(0)]]) {}",
        "kernel void k(device float* x [[buffer(0)]]) {}",
    ),
    // Threadgroup memory.
    case(
        "threadgroup-index",
        "kernel void k(threadgroup float* x [[threadgroup(31)]]) {}",
        "kernel void k(threadgroup float* x [[threadgroup(30)]]) {}",
    ),
    case(
        "threadgroup-unique",
        "kernel void k(threadgroup float* x [[threadgroup(0)]], threadgroup int* y [[threadgroup(0)]]) {}",
        "kernel void k(threadgroup float* x [[threadgroup(0)]], device int* y [[buffer(0)]]) {}",
    ),
    case(
        "threadgroup-space",
        "kernel void k(device float* x [[threadgroup(0)]]) {}",
        "kernel void k(threadgroup float& x [[threadgroup(0)]]) {}",
    ),
    case(
        "threadgroup-binding",
        "kernel void k(threadgroup float* x) {}",
        "kernel void k(device float* x) {}",
    ),
    case(
        "threadgroup-scope",
        "inline float f(float x) { threadgroup float s[4]; s[0] = x; return s[0]; } kernel void k() {}",
        "inline float f(threadgroup float* s, float x) { s[0] = x; return s[0]; } kernel void k() { threadgroup float s[4]; \
         f(s, 1.0f); }",
    ),
    case(
        "threadgroup-initializer",
        "kernel void k() { threadgroup float s[2] = {1, 2}; }",
        "kernel void k() { threadgroup float s[2]; s[0] = 1; }",
    ),
    case(
        "threadgroup-memory",
        "kernel void k() { threadgroup float s[8193]; s[0] = 1; }",
        "kernel void k() { threadgroup float s[8192]; s[0] = 1; }",
    ),
    case(
        "threadgroup-memory",
        "template <int N> kernel void k(device float* x [[buffer(0)]]) { threadgroup float s[N]; threadgroup half t[N]; x[0] = s[0] \
         + t[0]; }\ntemplate [[host_name(\"k_f\")]] [[kernel]] void k<5464>(device float*);",
        "template <int N> kernel void k(device float* x [[buffer(0)]]) { threadgroup float s[N]; threadgroup half t[N]; x[0] = s[0] \
         + t[0]; }\ntemplate [[host_name(\"k_f\")]] [[kernel]] void k<5456>(device float*);",
    ),
    // Function constants.
    case(
        "condition",
        "kernel void k(device float* x [[buffer(0), function_constant(has_x)]]) {}",
        "constant bool has_x [[function_constant(0)]];\n\
         kernel void k(device float* x [[buffer(0), function_constant(has_x)]]) {}",
    ),
    case(
        "condition",
        "constant int has_x [[function_constant(0)]];\n\
         kernel void k(device float* x [[buffer(0), function_constant(has_x)]]) {}",
        "constant int n [[function_constant(0)]]; constant bool has_x = n > 1;\n\
         kernel void k(device float* x [[buffer(0), function_constant(has_x)]]) {}",
    ),
    case(
        "constant-index",
        "constant bool a [[function_constant(3)]]; constant bool b [[function_constant(3)]]; kernel void k() {}",
        "constant bool a [[function_constant(3)]]; constant bool b [[function_constant(4)]]; kernel void k() {}",
    ),
    case(
        "constant-type",
        "struct S { int x; }; constant S a [[function_constant(0)]]; kernel void k() {}",
        "constant int2 a [[function_constant(0)]]; kernel void k() {}",
    ),
    case(
        "constant-initializer",
        "constant int a; kernel void k() {}",
        "constant int a = 3; kernel void k() {}",
    ),
    // Names and instantiations.
    case(
        "host-name",
        "template <typename T> kernel void k(device T* x [[buffer(0)]]) {}\n\
         template [[host_name(\"\")]] [[kernel]] void k<float>(device float*);",
        "template <typename T> kernel void k(device T* x [[buffer(0)]]) {}\n\
         template [[host_name(\"k\" \"_f\")]] [[kernel]] void k<float>(device float*);",
    ),
    case(
        "readable",
        "template <typename T> kernel void k(device T* x [[buffer(0)]]) {}\n\
         template [[host_name(\"k_f\")]] [[kernel]] void k<float>(device float*);\n\
         template [[host_name(\"k_f\")]] [[kernel]] void k<int>(device int*);",
        "template <typename T> kernel void k(device T* x [[buffer(0)]]) {}\n\
         template [[host_name(\"k_f\")]] [[kernel]] void k<float>(device float*);\n\
         template [[host_name(\"k_i\")]] [[kernel]] void k<int>(device int*);",
    ),
    case(
        "instantiated",
        "template <typename T> kernel void k(device T* x [[buffer(0)]]) {}",
        "template <typename T> kernel void k(device T* x [[buffer(0)]]) {}\n\
         template [[host_name(\"k_f\")]] [[kernel]] decltype(k<float>) k<float>;",
    ),
    case(
        "types",
        "template <typename T> kernel void k(device T* x [[buffer(0)]]) {}\n\
         template [[host_name(\"k_f\")]] [[kernel]] void k<float>(device float);",
        "template <typename T> kernel void k(device T* x [[buffer(0)]]) {}\n\
         template [[host_name(\"k_f\")]] [[kernel]] void k<float>(device float*);",
    ),
    case("main", "void main() {} kernel void k() {}", "void main0() {} kernel void k() {}"),
    // Threads.
    case(
        "max-threads",
        "[[max_total_threads_per_threadgroup(1025)]] kernel void k() {}",
        "[[max_total_threads_per_threadgroup(1024)]] kernel void k() {}",
    ),
    case(
        "max-threads",
        "template <int N> [[max_total_threads_per_threadgroup(N * 32)]] kernel void k(device float* x [[buffer(0)]]) {}\n\
         template [[host_name(\"k_f\")]] [[kernel]] void k<33>(device float*);",
        "template <int N> [[max_total_threads_per_threadgroup(N * 32)]] kernel void k(device float* x [[buffer(0)]]) {}\n\
         template [[host_name(\"k_f\")]] [[kernel]] void k<32>(device float*);",
    ),
    // Scopes.
    case(
        "program-scope",
        "constexpr int n = 4; kernel void k() {}",
        "constexpr constant int n = 4; kernel void k() {}",
    ),
    case(
        "local-static",
        "kernel void k() { static int n = 4; n += 1; }",
        "kernel void k() { int n = 4; n += 1; }",
    ),
    case(
        "local-space",
        "kernel void k(device float* x [[buffer(0)]]) { device float y = x[0]; x[1] = y; }",
        "kernel void k(device float* x [[buffer(0)]]) { device float* y = x; x[1] = y[0]; }",
    ),
    case(
        "pointer-space",
        "inline float f(float* x) { return x[0]; } kernel void k() {}",
        "inline float f(thread float* x) { return x[0]; } kernel void k() {}",
    ),
    case(
        "pointer-space",
        "kernel void k(device float* x [[buffer(0)]]) { float* y = x + 1; y[0] = 1; }",
        "kernel void k(device float* x [[buffer(0)]]) { auto y = x + 1; y[0] = 1; }",
    ),
    case(
        "pointer-space",
        "kernel void k(device float* x [[buffer(0)]]) { x[0] = ((int*)x)[1]; }",
        "kernel void k(device float* x [[buffer(0)]]) { x[0] = ((device int*)x)[1]; }",
    ),
    case(
        "pointer-space",
        "inline float& f(device float* x) { return x[0]; } kernel void k() {}",
        "inline device float& f(device float* x) { return x[0]; } kernel void k() {}",
    ),
    // Address spaces as types, in plain functions and in templates.
    case(
        "address-space",
        "kernel void k(device float* x [[buffer(0)]]) { thread float* y = x; y[0] = 1; }",
        "kernel void k(device float* x [[buffer(0)]]) { float v = 1; thread float* y = &v; y[0] = x[0]; }",
    ),
    case(
        "address-space",
        "template <typename T> kernel void k(device T* x [[buffer(0)]]) { threadgroup T s[4]; device T* y = s; y[0] = x[0]; }\n\
         template [[host_name(\"k_f\")]] [[kernel]] void k<float>(device float*);",
        "template <typename T> kernel void k(device T* x [[buffer(0)]]) { threadgroup T s[4]; threadgroup T* y = s; y[0] = x[0]; }\n\
         template [[host_name(\"k_f\")]] [[kernel]] void k<float>(device float*);",
    ),
    case(
        "address-space",
        "template <typename T> kernel void k(device T* x [[buffer(0)]], constant uint& n [[buffer(1)]]) { x[0] = \
         ((device T*)&n)[0]; }\ntemplate [[host_name(\"k_f\")]] [[kernel]] void k<float>(device float*, constant uint&);",
        "template <typename T> kernel void k(device T* x [[buffer(0)]], constant uint& n [[buffer(1)]]) { x[0] = \
         ((constant T*)&n)[0]; }\ntemplate [[host_name(\"k_f\")]] [[kernel]] void k<float>(device float*, constant uint&);",
    ),
    case(
        "address-space",
        "struct S { float x; float get() { return x; } };\n\
         kernel void k(device S* s [[buffer(0)]]) { s[0].x = s[1].get(); }",
        "struct S { float x; float get() device { return x; } };\n\
         kernel void k(device S* s [[buffer(0)]]) { s[0].x = s[1].get(); }",
    ),
    case(
        "types",
        "inline float f(threadgroup float* x) { return x[0]; }\n\
         kernel void k(device float* x [[buffer(0)]]) { x[0] = f(x); }",
        "inline float f(device float* x) { return x[0]; }\n\
         kernel void k(device float* x [[buffer(0)]]) { x[0] = f(x); }",
    ),
    case(
        "types",
        "template <typename T> kernel void k(constant T* x [[buffer(0)]]) { x[0] = T(1); }\n\
         template [[host_name(\"k_f\")]] [[kernel]] void k<float>(constant float*);",
        "template <typename T> kernel void k(device T* x [[buffer(0)]]) { x[0] = T(1); }\n\
         template [[host_name(\"k_f\")]] [[kernel]] void k<float>(device float*);",
    ),
    case(
        "types",
        "kernel void k(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] = max(x[i], 0); }",
        "kernel void k(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] = max(x[i], 0.0f); }",
    ),
    // The language.
    case("language", "kernel void k() { goto end; end: return; }", "kernel void k() { return; }"),
    case(
        "language",
        "kernel void k(device float* x [[buffer(0)]]) { double y = 1; x[0] = y; }",
        "kernel void k(device float* x [[buffer(0)]]) { float y = 1; x[0] = y; }",
    ),
    case(
        "language",
        "struct S { virtual void f(); }; kernel void k() {}",
        "struct S { void f(); }; kernel void k() {}",
    ),
    case(
        "lambda",
        "kernel void k(device float* x [[buffer(0)]]) { auto f = [](float y) { return y; }; x[0] = f(x[1]); }",
        "kernel void k(device float* x [[buffer(0)]]) { auto f = x[1]; x[0] = f; }",
    ),
    case(
        "newer",
        "#include <metal_cooperative_tensor>\nkernel void k() {}",
        "#include <metal_simdgroup_matrix>\nkernel void k() {}",
    ),
    case(
        "newer",
        "kernel void k(device coherent(device) float* x [[buffer(0)]]) {}",
        "kernel void k(device volatile float* x [[buffer(0)]]) {}",
    ),
];

fn check(name: &str, text: &str, requirements: Requirements) -> Vec<Finding> {
    let options = CompileOptions { name: name.into(), ..options() };
    check_rules(text, &options, requirements).unwrap_or_else(|e| panic!("{name}: {e}\n{}", e.details))
}

/// What is asked of the cases.
fn requirements() -> Requirements {
    Requirements { instantiated: true, ..Requirements::default() }
}

/// What is asked of our own kernels.
fn strict() -> Requirements {
    Requirements { max_threads: true, ..requirements() }
}

#[test]
fn planted_faults() {
    assert!(CASES.len() >= 40, "{} planted faults", CASES.len());
    let failures: Vec<String> = std::thread::scope(|scope| {
        let halves = CASES.chunks(CASES.len().div_ceil(2));
        let workers: Vec<_> =
            halves.map(|cases| scope.spawn(|| cases.iter().flat_map(run).collect::<Vec<_>>())).collect();
        workers.into_iter().flat_map(|w| w.join().expect("no panic")).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for rule in RULES.iter().chain(&["address-space", "types", "threadgroup-memory", "bfloat-conversion"]) {
        assert!(CASES.iter().any(|case| case.rule == *rule), "no fault is planted for the rule {rule}");
    }
    println!("{} planted faults, each with its legal neighbor", CASES.len());
}

/// What is wrong with the verdicts on a case.
fn run(case: &Case) -> Vec<String> {
    let library = |text: &str| format!("#include <metal_stdlib>\nusing namespace metal;\n{text}\n");
    let found = check("fault.metal", &library(case.fault), requirements());
    let mut wrong = Vec::new();
    if !found.iter().any(|finding| finding.rule == case.rule) {
        let others: Vec<_> = found.iter().map(ToString::to_string).collect();
        wrong.push(format!("{} was not found in: {}\n  {}", case.rule, case.fault, others.join("\n  ")));
    }
    let found = check("legal.metal", &library(case.legal), requirements());
    wrong.extend(found.iter().map(|finding| format!("{finding}, which is wrong, in: {}", case.legal)));
    wrong
}

#[test]
fn our_kernels() {
    let sources = ours();
    assert!(sources.len() >= 22, "{} libraries", sources.len());
    let mut findings = Vec::new();
    for Source { name, text } in &sources {
        findings.extend(check(&format!("{name}.metal"), text, strict()));
    }
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

/// The line that no Mac compiled, in the real text.
#[test]
fn a_scalar_position_beside_a_vector_in_attention() {
    let source = ours().into_iter().find(|source| source.name == "attention").expect("attention");
    let mended = source.text.replace(
        "uint thread_index [[thread_position_in_threadgroup]]",
        "uint thread_index [[thread_index_in_threadgroup]]",
    );
    assert_eq!(check("attention.metal", &mended, strict()), []);
    let put_back = mended.replacen(
        "uint thread_index [[thread_index_in_threadgroup]]",
        "uint thread_index [[thread_position_in_threadgroup]]",
        1,
    );
    assert_ne!(mended, put_back);
    let found = check("attention.metal", &put_back, strict());
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].rule, found[0].construct.as_str()), ("position-width", "kernel `attention_rows`"));
}

#[test]
fn a_kernel_of_ours_without_a_maximum_of_threads() {
    let source = ours().into_iter().find(|source| source.name == "silu_mul").expect("silu_mul");
    let planted =
        source.text.replacen("[[kernel, max_total_threads_per_threadgroup(256)]] void", "[[kernel]] void", 1);
    assert_ne!(planted, source.text);
    let found = check("silu_mul.metal", &planted, strict());
    assert_eq!(found.iter().map(|f| f.rule).collect::<Vec<_>>(), ["max-threads"]);
}

/// Constants are those that kernels are computed with: the two readings share them.
#[test]
fn constants_have_the_values_of_the_specification() {
    let text = "#include <metal_stdlib>\nusing namespace metal;\n\
        static_assert(HUGE_VALF == INFINITY && HUGE_VALF > FLT_MAX && MAXFLOAT == FLT_MAX, \"floats\");\n\
        static_assert(HALF_MAX == half(65504.0f) && sizeof(HALF_MAX) == 2, \"half\");\n\
        static_assert(INT_MIN < 0 && UINT_MAX == 4294967295u, \"integers\");\n\
        kernel void k(device float* y [[buffer(0)]]) { y[0] = HUGE_VALF; y[1] = float(HALF_MAX); }\n";
    assert_eq!(check("constants.metal", text, requirements()), []);
    let library = harness::library(text);
    let mut y = [0.0_f32; 2];
    harness::run(&harness::pipeline(&library, "k", &[]), &[harness::buffer(&mut y)], [1, 1, 1], [1, 1, 1]);
    assert_eq!(y, [f32::INFINITY, 65504.0]);
}

/// Faults inside the bodies of our own templates: clang must not skip them.
#[test]
fn faults_in_the_bodies_of_our_templates() {
    let sources = ours();
    let text = |name: &str| &sources.iter().find(|source| source.name == name).expect("a source").text;
    let softmax = text("softmax");
    let body = softmax.find("\n    threadgroup float ").expect("threadgroup memory");
    let planted =
        format!("{}\n    device float* wrong = (thread float*)0; {}", &softmax[..body], &softmax[body..]);
    let found = check("softmax.metal", &planted, strict());
    assert!(found.iter().any(|finding| finding.rule == "address-space"), "{found:?}");
}

/// Reports about candle's kernels, all of one kind: `attention` for float with heads of 256 elements needs more
/// threadgroup memory than there is. candle does not launch it.
#[test]
fn candles_kernels() {
    let Some(folder) = candle_folder() else {
        eprintln!("SKIPPED candles_kernels: candle-metal-kernels 0.11.1 is not in cargo's registry");
        return;
    };
    let mut libraries = 0;
    for file in std::fs::read_dir(folder).unwrap().flatten() {
        let name = file.file_name().into_string().unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        let found = check(&name, &text, Requirements::default());
        libraries += 1;
        for finding in &found {
            let explained =
                name == "scaled_dot_product_attention.metal" && finding.rule == "threadgroup-memory";
            assert!(explained, "{finding}");
        }
        assert_eq!(!found.is_empty(), name == "scaled_dot_product_attention.metal", "{name}");
    }
    assert_eq!(libraries, 17);
}
