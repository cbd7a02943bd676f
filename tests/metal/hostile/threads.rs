//! Pipelines that allow fewer threads than a kernel is written for, where an oversized dispatch does nothing.

use metal_candle::Error;
use metal_candle::backend::Device;
use softmetal::counters;
use softmetal::system::{Mac, Oversized, Threads};

use super::{
    assert_border, assert_losses, assert_right, assert_rows, border_is_right, expected, generate, rows, train,
};

const LIMITS: [usize; 3] = [896, 768, 512];

fn install(threads: Threads) -> softmetal::system::Installed {
    Mac { threads, oversized: Oversized::Dropped, ..Mac::default() }.install()
}

fn assert_nothing_dropped() {
    let dropped = counters::take().dropped;
    assert!(dropped.is_empty(), "dispatches that did nothing: {dropped:?}");
}

/// Kernels that need many registers: the compiler keeps the number of threads that the source declares, so every kernel
/// that is launched with many threads declares it.
#[test]
fn kernels_declare_their_threads_so_registers_do_not_lower_the_limit() {
    let _alone = crate::alone();
    for limit in LIMITS {
        let _mac = install(Threads { undeclared: Some(limit), ..Threads::default() });
        counters::take();
        assert_right(&Device::metal().unwrap());
        border_is_right();
        assert_nothing_dropped();
    }
}

/// Checks a result, or that the error names the kernel, the threads and the limit.
fn right_or_refused<T>(result: metal_candle::Result<T>, limit: usize, right: impl FnOnce(T)) {
    match result {
        Ok(result) => right(result),
        Err(error @ Error::Device { .. }) => assert_limit(&error.to_string(), limit),
        Err(other) => panic!("another error: {other}"),
    }
}

fn assert_limit(text: &str, limit: usize) {
    assert!(text.contains("threads") && text.contains(&limit.to_string()), "{text}");
}

/// Limits that hold whatever the source declares, as under shader validation: right numbers, or an error.
#[test]
fn a_limit_below_the_declared_threads_gives_right_numbers_or_an_error() {
    let _alone = crate::alone();
    for limit in LIMITS {
        let _mac = install(Threads { every: Some(limit), ..Threads::default() });
        counters::take();
        let device = Device::metal().unwrap();
        right_or_refused(generate(&device), limit, |tokens| assert_eq!(tokens, expected().tokens));
        right_or_refused(train(&device), limit, |losses| assert_losses(&losses));
        for n in [1000, 5000] {
            right_or_refused(rows(&device, n), limit, |found| assert_rows(n, &found));
        }
        assert_border(|_, error| assert_limit(error, limit));
        assert_nothing_dropped();
    }
}

/// The same for one kernel at a time, so that an error of the first does not hide the others.
#[test]
fn a_limit_of_a_single_kernel_gives_right_numbers_or_an_error() {
    let _alone = crate::alone();
    counters::take();
    let names: Vec<String> = {
        let _mac = Mac::default().install();
        assert_rows(5000, &rows(&Device::metal().unwrap(), 5000).unwrap());
        counters::take().commands.into_keys().collect()
    };
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let _mac = install(Threads { kernels: vec![(name.clone(), 512)], ..Threads::default() });
        counters::take();
        right_or_refused(rows(&Device::metal().unwrap(), 5000), 512, |found| assert_rows(5000, &found));
        assert_nothing_dropped();
    }
}
