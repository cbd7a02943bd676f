//! Command buffers that the system ends while they run: for holding the GPU too long, or for another's fault.

use candle_core::Device as CandleDevice;
use metal_candle::CustomMetalOps;
use metal_candle::backend::Device;
use metal_candle::error::DeviceFault;
use metal_candle::tensor::{HostTensor, TensorSpec};
use softmetal::counters;
use softmetal::faults::{Kill, Victims, kill};

use super::{
    assert_case, assert_losses, border, cases, chain, device_error, expected, generate, train_after,
};

fn run(program: &metal_candle::backend::Program) -> metal_candle::Result<HostTensor> {
    Ok(program.run(&[&HostTensor::zeros(TensorSpec::f32([8]))])?.remove(0))
}

/// Whichever command buffer is killed, and however far it came, the run is repeated and gives the same numbers.
#[test]
fn a_run_without_updates_is_repeated_after_every_kill() {
    let _alone = crate::alone();
    for how in Kill::ALL {
        let device = Device::metal().unwrap();
        let program = chain(&device).unwrap();
        counters::take();
        assert_eq!(run(&program).unwrap().as_slice::<f32>().unwrap(), [1.0; 8]);
        let buffers = counters::take().command_buffers as u32;
        for skipped in 0..buffers {
            for commands in [0, 1, 7] {
                let killing = kill(how, Victims::Next { skipped, commands });
                let found = run(&program);
                drop(killing);
                assert_eq!(counters::take().killed, 1, "{how:?} of {skipped}");
                assert_eq!(found.unwrap().as_slice::<f32>().unwrap(), [1.0; 8], "{how:?} of {skipped}");
            }
        }
    }
}

#[test]
fn command_buffers_that_hold_the_gpu_too_long_are_halved_until_they_pass() {
    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let program = chain(&device).unwrap();
    let _killing = kill(Kill::ImpactingInteractivity, Victims::Longer(12));
    counters::take();
    assert_eq!(run(&program).unwrap().as_slice::<f32>().unwrap(), [1.0; 8]);
    assert!(counters::take().killed > 0, "the first ones were too long");
    assert_eq!(run(&program).unwrap().as_slice::<f32>().unwrap(), [1.0; 8]);
    assert_eq!(counters::take().killed, 0, "the size that passed is kept");
}

/// A neighbor's fault says nothing of our command buffers' size.
#[test]
fn after_a_neighbors_fault_command_buffers_keep_their_size() {
    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let program = chain(&device).unwrap();
    counters::take();
    run(&program).unwrap();
    let before = counters::take().command_buffers;
    let killing = kill(Kill::InnocentVictim, Victims::Next { skipped: 0, commands: 0 });
    assert_eq!(run(&program).unwrap().as_slice::<f32>().unwrap(), [1.0; 8]);
    drop(killing);
    counters::take();
    run(&program).unwrap();
    assert_eq!(counters::take().command_buffers, before);
}

#[test]
fn generation_ends_with_the_same_tokens_after_every_kill() {
    let _alone = crate::alone();
    let tokens = &expected().tokens;
    for how in Kill::ALL {
        for (skipped, commands) in [(0, 0), (1, 3), (5, 1)] {
            counters::take();
            let killing = kill(how, Victims::Next { skipped, commands });
            let found = generate(&Device::metal().unwrap()).unwrap();
            drop(killing);
            assert_eq!(counters::take().killed, 1, "{how:?}");
            assert_eq!(&found, tokens, "{how:?} of {skipped}");
        }
    }
    let _killing = kill(Kill::ImpactingInteractivity, Victims::Longer(16));
    assert_eq!(&generate(&Device::metal().unwrap()).unwrap(), tokens);
}

/// A step of training that was killed has either been repeated, or the error says what happened: an update is never
/// done twice.
#[test]
fn training_gives_the_same_losses_or_a_timeout_after_every_kill() {
    let _alone = crate::alone();
    for how in Kill::ALL {
        for (skipped, commands) in [(0, 0), (0, 9), (1, 3), (2, 40)] {
            counters::take();
            let mut killing = None;
            let device = Device::metal().unwrap();
            let found = train_after(&device, || {
                killing = Some(kill(how, Victims::Next { skipped, commands }));
            });
            drop(killing);
            assert_eq!(counters::take().killed, 1, "{how:?} of {skipped}");
            match found {
                Ok(losses) => assert_losses(&losses),
                failed => assert_told(how, failed),
            }
        }
    }
}

/// The error of a killed step has the kind of its cause and the system's own words.
fn assert_told<T>(how: Kill, failed: metal_candle::Result<T>) {
    let (fault, text) = device_error(failed);
    assert_ne!(fault, DeviceFault::Internal, "{text}");
    assert!(text.contains(how.text()), "{text}");
}

/// A size that no command buffer passes ends in an error, not in endless attempts.
#[test]
fn a_gpu_that_kills_everything_ends_in_an_error() {
    let _alone = crate::alone();
    for how in Kill::ALL {
        let device = Device::metal().unwrap();
        let program = chain(&device).unwrap();
        let killing = kill(how, Victims::Longer(0));
        assert_told(how, run(&program));
        drop(killing);
        assert_eq!(run(&program).unwrap().as_slice::<f32>().unwrap(), [1.0; 8], "the next run works");
    }
}

/// A product of candle's tensors through Metal Performance Shaders has a command buffer of the library's own. Discarded
/// for another's fault, it is run again, until that has happened too often; one that held the GPU too long is not, since
/// a single call cannot be made shorter.
#[test]
fn a_discarded_call_at_candles_border_is_repeated() {
    let _alone = crate::alone();
    objc2::rc::autoreleasepool(|_| {
        let device = CandleDevice::new_metal(0).unwrap();
        let [x, w] = [(1, [6, 16]), (2, [16, 8])].map(|(seed, dims)| super::numbers(seed, &dims));
        let expected = super::values(&x.matmul(&w).unwrap()).unwrap();
        let [x, w] = [&x, &w].map(|tensor| tensor.to_device(&device).unwrap());
        let killed = |how: Kill, victims: Victims| {
            counters::take();
            let killing = kill(how, victims);
            let found = x.matmul_mps(&w);
            drop(killing);
            (found, counters::take().killed)
        };
        // The first one is candle's, which holds what it has encoded so far.
        let own = Victims::Next { skipped: 1, commands: 0 };
        let (found, count) = killed(Kill::InnocentVictim, own);
        assert_eq!(count, 1);
        for (found, expected) in super::values(&found.unwrap()).unwrap().iter().zip(&expected) {
            // 16 products of numbers below 1, each rounded to f32.
            assert!((found - expected).abs() < 16.0 * f64::from(f32::EPSILON), "{found}, not {expected}");
        }
        for how in [Kill::Hang, Kill::ImpactingInteractivity] {
            let (found, count) = killed(how, own);
            assert_eq!(count, 1, "{how:?}");
            let text = found.unwrap_err().to_string();
            assert!(text.contains(how.text()), "{text}");
        }
        let (found, count) = killed(Kill::InnocentVictim, Victims::Longer(0));
        assert!(count > 1, "{count} attempts");
        let text = found.unwrap_err().to_string();
        assert!(text.contains(Kill::InnocentVictim.text()), "{text}");
    });
}

/// candle's command buffers are candle's: its error, or the right numbers.
#[test]
fn candles_border_gives_right_numbers_or_candles_error_after_every_kill() {
    let _alone = crate::alone();
    objc2::rc::autoreleasepool(|_| {
        for how in Kill::ALL {
            let mut killed = 0;
            for case in cases::cases(true) {
                let device = CandleDevice::new_metal(0).unwrap();
                counters::take();
                let killing = kill(how, Victims::Next { skipped: 0, commands: 1 });
                let found = border(&case, &device);
                drop(killing);
                killed += counters::take().killed;
                match found {
                    Ok(found) => assert_case(&case, &found),
                    Err(error) => assert!(error.to_string().contains(how.text()), "{}: {error}", case.name),
                }
            }
            assert!(killed > 0, "nothing was killed");
        }
    });
}
