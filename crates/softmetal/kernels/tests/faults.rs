//! Planted faults, each beside a legal sequence that must not be one.

mod harness;

use harness::*;
use softmetal_kernels::{Argument, CompileOptions, Fault, Library};

const COPY: &str = "kernel void copy(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
    constant int& by [[buffer(2)]], uint i [[thread_position_in_grid]]) { y[i] = x[int(i) + by]; }";

#[test]
fn reads_and_writes_out_of_range() {
    let p = kernel(COPY, "copy");
    let mut x = numbers(64, 1);
    // Room on both sides, so that a missed check corrupts nothing.
    let mut y = vec![0f32; 64];
    let inner = |a: &mut [f32], n: usize| Argument::Buffer { start: a[16..].as_mut_ptr().cast(), len: n * 4 };
    let mut go = |n, by: i32, threads| {
        run_with(&p, &[inner(&mut x, n), inner(&mut y, 32), bytes(by)], &[], [threads, 1, 1], [8, 1, 1], 0)
    };
    go(32, 0, 32).unwrap();
    let read = go(16, 0, 32).unwrap_err();
    assert!(
        matches!(
            &read,
            Fault::Access {
                argument: Some(0),
                thread: [16, 0, 0],
                distance: 4,
                size: 4,
                write: Some(false),
                ..
            }
        ),
        "{read}"
    );
    assert!(read.to_string().ends_with("4 bytes beyond the end of argument 0 `x`"), "{read}");
    let before = go(32, -2, 32).unwrap_err();
    assert!(
        matches!(
            before,
            Fault::Access { argument: Some(0), thread: [0, 0, 0], distance: -8, write: Some(false), .. }
        ),
        "{before}"
    );
    let write = go(48, 0, 33).unwrap_err();
    assert!(
        matches!(
            write,
            Fault::Access { argument: Some(1), thread: [32, 0, 0], distance: 4, write: Some(true), .. }
        ),
        "{write}"
    );
}

/// A GPU would skip the dispatch; here it is a fault, whether the number is written or a template's parameter.
#[test]
fn threadgroups_above_the_declared_maximum() {
    let source = "[[kernel, max_total_threads_per_threadgroup(64)]] void plain(
          device uint* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = i; }
        template <uint N> [[kernel, max_total_threads_per_threadgroup(2 * N)]] void sized(
          device uint* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = i; }
        template [[host_name(\"sized_32\")]] [[kernel]] void sized<32>(device uint*, uint);
        kernel void undeclared(device uint* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = i; }";
    let library = library(source);
    for (name, limit) in [("plain", Some(64)), ("sized_32", Some(64)), ("undeclared", None)] {
        let p = pipeline(&library, name, &[]);
        assert_eq!(p.max_threads(), limit, "{name}");
        let mut y = vec![7_u32; 96];
        run_with(&p, &[buffer(&mut y)], &[], [96, 1, 1], [64, 1, 1], 0).unwrap();
        assert_eq!(y[95], 95, "{name}");
        y.fill(7);
        let more = run_with(&p, &[buffer(&mut y)], &[], [96, 1, 1], [48, 2, 1], 0);
        match (limit, more) {
            (None, more) => assert!(more.is_ok(), "{name}"),
            (Some(_), more) => {
                let text = more.unwrap_err().to_string();
                assert!(text.contains("96 threads: the kernel declares at most 64"), "{name}: {text}");
                assert_eq!(y, [7; 96], "{name}: nothing ran");
            }
        }
    }
}

#[test]
fn write_through_a_read_only_argument() {
    let p = kernel("kernel void k(device const int* x [[buffer(0)]]) { *(device int*)(x) = 1; }", "k");
    let mut x = [0i32];
    let fault = run_with(&p, &[buffer(&mut x)], &[], [1, 1, 1], [1, 1, 1], 0).unwrap_err();
    assert_eq!(fault.to_string().split(": ").last(), Some("argument 0 `x` is read-only"));
    assert_eq!(x, [0]);
}

#[test]
fn unset_argument_only_where_it_is_used() {
    let p = kernel(
        "kernel void k(device const int* x [[buffer(0)]], device int* y [[buffer(1)]], threadgroup int* t [[threadgroup(0)]],
           constant int& which [[buffer(2)]]) { y[0] = which == 1 ? x[-5] : which == 2 ? t[0] : 3; }",
        "k",
    );
    let mut y = [0i32];
    let mut go = |which: i32| {
        run_with(&p, &[Argument::Unset, buffer(&mut y), bytes(which)], &[], [1, 1, 1], [1, 1, 1], 0)
    };
    go(0).unwrap();
    let fault = go(1).unwrap_err();
    assert_eq!(
        fault,
        Fault::UnsetArgument { kernel: "k".into(), argument: 0, name: "x".into(), thread: [0, 0, 0] }
    );
    assert!(matches!(go(2).unwrap_err(), Fault::UnsetArgument { argument: 2, .. }));
    assert_eq!(y, [3]);
}

#[test]
fn writes_beyond_threadgroup_memory() {
    let p = kernel(
        "kernel void k(device int* y [[buffer(0)]], constant int& n [[buffer(1)]], threadgroup int* d [[threadgroup(0)]],
           constant bool& dynamic [[buffer(2)]]) {
           threadgroup int t[16];
           if (dynamic) d[n] = 1; else t[n] = 1;
           y[0] = dynamic ? d[n] : t[n];
         }",
        "k",
    );
    let mut y = [0i32];
    let mut go = |n: i32, dynamic| {
        run_with(&p, &[buffer(&mut y), bytes(n), bytes(dynamic)], &[64], [1, 1, 1], [1, 1, 1], 0)
    };
    for dynamic in [false, true] {
        go(15, dynamic).unwrap();
        let fault = go(16, dynamic).unwrap_err();
        assert!(matches!(fault, Fault::Access { size: 4, write: Some(true), .. }), "{fault}");
    }
}

#[test]
fn divergent_barriers() {
    let source = |body: &str| {
        format!(
            "kernel void k(device int* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {{\n{body}\ny[i] = i; }}"
        )
    };
    let barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);";
    let mut y = [0i32; 64];
    let mut go =
        |body: &str| run_with(&kernel(&source(body), "k"), &[buffer(&mut y)], &[], [64, 1, 1], [64, 1, 1], 0);
    assert_eq!(go(barrier).unwrap().barriers, 1);
    let different =
        go(&format!("if (i < 5) {{\n{barrier} y[i]++; }} else {{\n{barrier} y[i]--; }}")).unwrap_err();
    // The harness puts two lines before the kernel.
    assert!(
        matches!(different, Fault::Barrier { line: 5, waiting: 5, other: Some(6), others: 59, .. }),
        "{different}"
    );
    let returned = go(&format!("if (i == 9) return;\n{barrier}")).unwrap_err();
    assert!(
        matches!(returned, Fault::Barrier { line: 5, waiting: 63, other: None, others: 1, .. }),
        "{returned}"
    );
}

#[test]
fn processor_faults_end_the_dispatch_alone() {
    let l = library(
        "kernel void divide(device int* y [[buffer(0)]], constant int& n [[buffer(1)]]) { y[0] = y[0] / n; }
         static int deep(int n, volatile thread int* p) { volatile int a[1000]; a[n % 1000] = *p; return n == 0 ? 0 : deep(n - 1, &a[1]) + a[n % 7]; }
         kernel void overflow(device int* y [[buffer(0)]], constant int& n [[buffer(1)]]) { volatile int a = 1; y[0] = deep(n, &a); }",
    );
    let mut y = [8i32];
    let mut go = |name, n: i32| {
        run_with(&pipeline(&l, name, &[]), &[buffer(&mut y), bytes(n)], &[], [1, 1, 1], [1, 1, 1], 0)
    };
    go("divide", 2).unwrap();
    assert_eq!(
        go("divide", 0).unwrap_err(),
        Fault::Arithmetic { kernel: "divide".into(), thread: [0, 0, 0] }
    );
    go("overflow", 3).unwrap();
    let overflow = go("overflow", 1_000_000).unwrap_err();
    assert!(matches!(overflow, Fault::Access { argument: None, .. }), "{overflow}");
    go("overflow", 3).unwrap();
}

#[test]
fn dispatches_of_impossible_shape() {
    let p = kernel(COPY, "copy");
    for (grid, threadgroup) in [([1, 1, 1], [0, 1, 1]), ([1, 1, 1], [1025, 1, 1]), ([0, 1, 1], [1, 1, 1])] {
        assert!(matches!(run_with(&p, &[], &[], grid, threadgroup, 0), Err(Fault::Dispatch { .. })));
    }
}

#[test]
fn compile_errors_name_line_and_construct() {
    let fails = |source: &str| Library::from_source(source, &harness::options()).unwrap_err().to_string();
    let text = "#include <metal_stdlib>\n\nkernel void k(device float* x [[buffer(0)]]) {\n  x[0] = y;\n}\n";
    assert_eq!(fails(text), "library.metal:4: kernel `k`: use of undeclared identifier 'y'");
    assert_eq!(
        fails("\nkernel void k(uint n) {}"),
        "library.metal:2: kernel `k`: argument `uint n` is passed by value but has no attribute"
    );
    let missing = fails("#include \"x.h\"\n");
    assert!(missing.starts_with("library.metal:1: preprocessor: 'x.h' file not found"), "{missing}");
    let options = CompileOptions { name: "mine.metal".into(), ..harness::options() };
    let error = Library::from_source("#error no\n", &options).unwrap_err().to_string();
    assert_eq!(error, "mine.metal:1: preprocessor: no");
    let l = library("kernel void k() {}");
    assert_eq!(
        l.pipeline("m", &Default::default()).unwrap_err().to_string(),
        "kernel `m`: is not in this library"
    );
}
