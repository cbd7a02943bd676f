//! Libraries as people write them, read and compared with what they say.

use msl::{AddressSpace, Builtin, Library, Passing, Role};

#[test]
fn plain_kernel_with_every_kind_of_argument() {
    let text = r#"
        struct Sizes { uint n; };
        [[max_total_threads_per_threadgroup(256)]]
        kernel void add(const device float* a [[buffer(0)]], device float *out [[buffer(3)]],
                        constant Sizes& sizes, threadgroup metal::vec<float, 4>* shared [[threadgroup(1)]],
                        uint3 at [[thread_position_in_grid]], ushort lane [[thread_index_in_simdgroup]]) {
            threadgroup float rows[4][2 * 8], one;
            threadgroup float* alias = rows[0];
            for (;;) { threadgroup metal::array<int, 3> inner[1]; }
        }"#;
    let library = Library::read(text).unwrap();
    let kernel = library.kernel("add").unwrap();
    let roles: Vec<_> = kernel.arguments.iter().map(|a| (a.name.as_str(), a.ty.as_str(), a.role)).collect();
    assert_eq!(
        roles,
        [
            ("a", "float", Role::Buffer(0)),
            ("out", "float", Role::Buffer(3)),
            ("sizes", "Sizes", Role::Buffer(1)),
            ("shared", "metal::vec<float, 4>", Role::Threadgroup(1)),
            ("at", "uint3", Role::Builtin(Builtin::ThreadPositionInGrid)),
            ("lane", "ushort", Role::Builtin(Builtin::ThreadIndexInSimdgroup)),
        ]
    );
    let passed: Vec<_> = kernel.arguments.iter().map(|a| (a.address_space, a.is_const, a.passing)).collect();
    assert_eq!(
        passed[..4],
        [
            (Some(AddressSpace::Device), true, Passing::Pointer),
            (Some(AddressSpace::Device), false, Passing::Pointer),
            (Some(AddressSpace::Constant), true, Passing::Reference),
            (Some(AddressSpace::Threadgroup), false, Passing::Pointer),
        ]
    );
    let shared: Vec<_> = kernel
        .threadgroup_variables
        .iter()
        .map(|v| (v.name.as_str(), v.ty.as_str(), v.extents.join("x")))
        .collect();
    assert_eq!(
        shared,
        [
            ("rows", "float", "4x2 * 8".to_string()),
            ("one", "float", String::new()),
            ("inner", "metal::array<int, 3>", "1".to_string()),
        ]
    );
    assert_eq!(kernel.location.line, 4);
    assert_eq!(kernel.max_threads.as_deref(), Some("256"));
}

#[test]
fn instantiations_in_all_forms() {
    let text = r#"
        template <typename T, int N = 4, bool = (1 > 0)>
        [[kernel, max_total_threads_per_threadgroup(N * 32)]] void f(device T* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] = N; }
        namespace deep { template <typename T> kernel void g(device T* x [[buffer(0)]]) { x[0] = 1; } }
        typedef decltype(f<float, 1>) f_t;
        template [[host_name("a" "b")]] [[kernel]] decltype(f<float, 8>) f<float, 8>;
        template [[host_name("c")]] [[kernel]] void f<metal::vec<half, 2>>(device metal::vec<half, 2>*, uint);
        template [[host_name("d")]] kernel f_t f<float, 1, (2 > 1)>;
        template [[host_name("e")]] kernel void deep::g<int>(device int* x [[buffer(0)]]);
        [[host_name("named")]] kernel void h() {}
    "#;
    let library = Library::read(text).unwrap();
    let found: Vec<_> = library.kernels.iter().map(|k| (k.name.as_str(), k.expression.as_str())).collect();
    assert_eq!(
        found,
        [
            ("named", "h"),
            ("ab", "f<float, 8>"),
            ("c", "f<metal::vec<half, 2>>"),
            ("d", "f<float, 1, (2 > 1)>"),
            ("e", "deep::g<int>"),
        ]
    );
    let f = library.kernel("ab").unwrap();
    let parameters: Vec<_> = f
        .template_parameters
        .iter()
        .map(|p| (p.ty.as_str(), p.name.as_str(), p.default.as_deref()))
        .collect();
    assert_eq!(parameters, [("typename", "T", None), ("int", "N", Some("4")), ("bool", "", Some("(1 > 0)"))]);
    assert_eq!(f.template_arguments, ["float", "8"]);
    assert_eq!(f.max_threads.as_deref(), Some("N * 32"));
    assert_eq!(library.kernel("named").unwrap().max_threads, None);
    assert_eq!(library.instantiations.len(), 4);
}

#[test]
fn function_constants_and_what_follows_from_them() {
    let text = "constant bool has [[function_constant(7)]];\n\
                constant int plain = 3;\n\
                static constant int n = has ? 2 : 1;\n\
                constant int m = n + 1;\n\
                kernel void k(device int* x [[buffer(0), function_constant(has)]], device int* y [[function_constant(n)]]) {}";
    let library = Library::read(text).unwrap();
    assert_eq!(library.function_constants.len(), 1);
    assert_eq!(
        (library.function_constants[0].name.as_str(), library.function_constants[0].index),
        ("has", 7)
    );
    let derived: Vec<_> =
        library.derived_constants.iter().map(|c| (c.name.as_str(), c.expression.as_str())).collect();
    assert_eq!(derived, [("n", "has ? 2 : 1"), ("m", "n + 1")]);
    let conditions: Vec<_> = library.kernels[0].arguments.iter().map(|a| a.condition.as_deref()).collect();
    assert_eq!(conditions, [Some("has"), Some("n")]);
    assert_eq!(library.kernels[0].arguments[1].role, Role::Buffer(1));
}

#[test]
fn errors_name_line_and_construct() {
    let reads = |text: &str| Library::read(text).unwrap_err().to_string();
    assert_eq!(
        reads("\n# 30 \"add.metal\"\nkernel void add(device float* x [[buffer(zero)]]) {}"),
        "add.metal:30: kernel `add`: [[buffer]] of `device float* x [[buffer(zero)]]` needs a number, not `zero`"
    );
    assert_eq!(
        reads("kernel void k(uint n) {}"),
        "line 1: kernel `k`: argument `uint n` is passed by value but has no attribute"
    );
    assert_eq!(
        reads("kernel void k(uint n [[color(0)]]) {}"),
        "line 1: kernel `k`: attribute [[color]] of argument `uint n [[color(0)]]` is not supported"
    );
    assert_eq!(
        reads("\ntemplate [[host_name(\"x\")]] [[kernel]] decltype(f<int>) f<int>;"),
        "line 2: instantiation `x`: there is no kernel template `f`"
    );
    assert_eq!(reads("kernel float k() {}"), "line 1: kernel `k`: a kernel returns void");
    assert_eq!(
        reads("kernel void k() {}\nkernel void k() {}"),
        "line 2: kernel `k`: another kernel has this name"
    );
}
