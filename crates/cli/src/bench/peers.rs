//! Single operations of peers: the same shapes, types and values, and the proof that they were computed.
//!
//! A ratio is given only if the peer's result is ours, if elements of every result of a timed run are ours too, and if
//! its results were there when its clock stopped: after a timed part the peer looks at all of them twice. A lazy library
//! that had computed one of eight needs longer for the first look than for the second, by the time of the seven that were
//! not computed.

use std::process::Command;

use metal_candle::bench::{COPIES, Case, Kind, Reading, SAMPLES};
use metal_candle::tensor::DType;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bench::process::{Library, Missing, Process, python};

/// The script of the Python peers, which the tool carries with it.
const SCRIPT: &str = include_str!("../../../../compare/peers.py");

/// A peer that computes operations.
pub(crate) struct Peer {
    process: Process,
}

/// What a peer says when a case is ready.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Ready {
    /// Where its result is.
    pub(crate) device: String,
    /// Which of its forms is the fastest, and is timed.
    pub(crate) form: String,
    /// What it waits for before its clock stops.
    pub(crate) synchronised: String,
    #[serde(skip)]
    pub(crate) result: Vec<f64>,
}

/// Seconds of a peer's three forms, whole.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Timed {
    latency: f64,
    throughput: f64,
    chain: Option<f64>,
    /// The least of the throughput's runs, and of looking at all their results twice afterwards: what others do at the
    /// same time only adds to a time.
    least: f64,
    after: f64,
    again: f64,
}

/// Seconds a result, of the plan's benchmark and of right ones.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Explained {
    /// Each evaluated before the next is asked for.
    pub(crate) each: f64,
    /// All kept, and evaluated together.
    pub(crate) together: f64,
    /// Only the last evaluated, and the time divided by all.
    pub(crate) flawed: f64,
}

impl Timed {
    /// Checks that the results existed when the clock stopped.
    pub(crate) fn computed(&self) -> Result<Reading, String> {
        let late = self.after - self.again;
        // A quarter of the timed part, and a look once more, are more than caches explain.
        let allowed = 0.25 * self.least + self.again;
        if late > allowed {
            return Err(format!(
                "refused: results were not computed when the clock stopped (it ran {:.0} µs, looking at them took {:.0} µs, \
                 again {:.0} µs)",
                1e6 * self.least,
                1e6 * self.after,
                1e6 * self.again
            ));
        }
        let each = |seconds: f64| seconds / COPIES as f64;
        Ok(Reading { latency: self.latency, throughput: each(self.throughput), chain: self.chain.map(each) })
    }
}

/// What rounding may change, relative to the greatest element.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-4 } else { 3e-2 }
}

/// The greatest difference relative to the greatest element.
fn apart(ours: &[f64], theirs: &[f64]) -> f64 {
    let scale = ours.iter().fold(0.0_f64, |a, x| a.max(x.abs())).max(1e-30);
    let apart = ours.iter().zip(theirs).fold(0.0_f64, |a, (x, y)| {
        let apart = (x - y).abs();
        if apart.is_nan() { f64::INFINITY } else { a.max(apart) }
    });
    apart / scale
}

/// The greatest difference of two results relative to the greatest element; an error if it is more than rounding.
pub(crate) fn difference(ours: &[f64], theirs: &[f64], case: &Case) -> Result<f64, String> {
    if ours.len() != theirs.len() {
        return Err(format!("refused: its result has {} elements, ours {}", theirs.len(), ours.len()));
    }
    let relative = apart(ours, theirs);
    if relative > tolerance(case.dtype) {
        return Err(format!(
            "refused: its result differs from ours by {relative:.1e} of the greatest element"
        ));
    }
    Ok(relative)
}

/// Checks that the elements of every timed result equal ours; those of a chain have gone through it [`COPIES`] times.
pub(crate) fn same_samples(ours: &[Vec<f64>], theirs: &[f64], case: &Case) -> Result<(), String> {
    if theirs.len() != ours.len() * SAMPLES {
        return Err(format!(
            "refused: its timed run gave {} results, ours {}",
            theirs.len() / SAMPLES,
            ours.len()
        ));
    }
    for (index, (ours, theirs)) in ours.iter().zip(theirs.chunks(SAMPLES)).enumerate() {
        let relative = apart(ours, theirs);
        if relative > COPIES as f64 * tolerance(case.dtype) {
            return Err(format!(
                "refused: result {index} of its timed run differs from ours by {relative:.1e}"
            ));
        }
    }
    Ok(())
}

/// The ratio of a peer's reading to ours, reading by reading.
pub(crate) fn ratio(theirs: Reading, ours: Reading) -> Reading {
    Reading {
        latency: theirs.latency / ours.latency,
        throughput: theirs.throughput / ours.throughput,
        chain: theirs.chain.zip(ours.chain).map(|(a, b)| a / b),
    }
}

fn request(case: &Case, out: &std::path::Path, samples: &std::path::Path) -> Value {
    let (kind, sizes) = match case.kind {
        Kind::MatMul { m, n, k } => ("matmul", json!({"m": m, "n": n, "k": k})),
        Kind::Softmax { rows, n } => ("softmax", json!({"rows": rows, "n": n})),
        Kind::SoftmaxInner { outer, n, inner } => {
            ("softmax_inner", json!({"outer": outer, "n": n, "inner": inner}))
        }
        Kind::RmsNorm { rows, n } => ("rms_norm", json!({"rows": rows, "n": n})),
        Kind::LayerNorm { rows, n } => ("layer_norm", json!({"rows": rows, "n": n})),
        Kind::Lora { rows, d } => ("lora", json!({"rows": rows, "d": d})),
        Kind::Attention { t, heads, kv_heads, d } => {
            ("attention", json!({"t": t, "heads": heads, "kv_heads": kv_heads, "d": d}))
        }
    };
    let scales: Vec<f32> = (0..case.inputs().len()).map(|index| case.scale(index)).collect();
    json!({
        "kind": kind, "sizes": sizes, "dtype": case.dtype.to_string(), "backward": case.backward,
        "inputs": case.inputs(), "scales": scales, "copies": COPIES, "chains": case.chains(), "out": out,
        "samples": samples,
    })
}

/// The case of a request.
pub(crate) fn case_of(request: &Value) -> Option<Case> {
    let size = |name: &str| request["sizes"][name].as_u64().map(|size| size as usize);
    let rows = || Some((size("rows")?, size("n")?));
    let kind = match request["kind"].as_str()? {
        "matmul" => Kind::MatMul { m: size("m")?, n: size("n")?, k: size("k")? },
        "softmax" => rows().map(|(rows, n)| Kind::Softmax { rows, n })?,
        "softmax_inner" => Kind::SoftmaxInner { outer: size("outer")?, n: size("n")?, inner: size("inner")? },
        "rms_norm" => rows().map(|(rows, n)| Kind::RmsNorm { rows, n })?,
        "layer_norm" => rows().map(|(rows, n)| Kind::LayerNorm { rows, n })?,
        "lora" => Kind::Lora { rows: size("rows")?, d: size("d")? },
        "attention" => Kind::Attention {
            t: size("t")?,
            heads: size("heads")?,
            kv_heads: size("kv_heads")?,
            d: size("d")?,
        },
        _ => return None,
    };
    let dtype = request["dtype"].as_str()?.parse().ok()?;
    Some(Case { kind, dtype, backward: request["backward"].as_bool()? })
}

impl Peer {
    /// Starts a library. The error says how it is installed.
    pub(crate) fn start(library: Library, threads: usize, device: &str) -> Result<Self, Missing> {
        if library == Library::LlamaCpp {
            let why = "it has no single operations to call; see bench generate".to_owned();
            return Err(Missing { name: library.name(), why, install: None });
        }
        let process = Process::start(library, threads, library.install(), |folder| {
            if library == Library::Candle {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["bench", "candle-peer", "--device", device]);
                return Ok(command);
            }
            let mut command = python(folder, SCRIPT)?;
            command.args([library.name(), device]);
            Ok(command)
        })?;
        Ok(Self { process })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.process.name
    }

    /// Makes a case ready.
    pub(crate) fn prepare(&mut self, case: &Case) -> Result<Ready, String> {
        let (out, samples) = (self.process.path("result"), self.process.path("samples"));
        let answer = self.process.ask(&request(case, &out, &samples))?;
        let mut ready: Ready = serde_json::from_value(answer).map_err(|error| error.to_string())?;
        ready.result = self.process.numbers("result")?;
        Ok(ready)
    }

    /// Times every form for so long.
    pub(crate) fn read(&mut self, seconds: f64) -> Result<Timed, String> {
        let answer = self.process.ask(&json!({"read": seconds}))?;
        serde_json::from_value(answer).map_err(|error| error.to_string())
    }

    /// Elements of the results of the last reading.
    pub(crate) fn samples(&self) -> Result<Vec<f64>, String> {
        self.process.numbers("samples")
    }

    /// The plan's benchmark of the prepared case, of so many results.
    pub(crate) fn explain(&mut self, results: usize) -> Result<Explained, String> {
        let answer = self.process.ask(&json!({"explain": results}))?;
        serde_json::from_value(answer).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metal_candle::backend::Device;
    use metal_candle::bench::Subject;

    const SOFTMAX: Case =
        Case { kind: Kind::Softmax { rows: 1, n: 1024 }, dtype: DType::F32, backward: false };

    #[test]
    fn what_was_computed_is_taken_and_other_results_are_not() {
        let timed = Timed {
            latency: 1e-5,
            throughput: 8e-5,
            chain: Some(1.6e-4),
            least: 7e-5,
            after: 6e-6,
            again: 5e-6,
        };
        let reading = timed.computed().unwrap();
        assert!((reading.throughput - 1e-5).abs() < 1e-12 && (reading.chain.unwrap() - 2e-5).abs() < 1e-12);
        assert!(difference(&[1.0, 2.0], &[1.0, 2.0 + 1e-5], &SOFTMAX).unwrap() < 1e-5);
        for theirs in [vec![1.0, 2.01], vec![1.0], vec![f64::NAN, 2.0]] {
            assert!(
                difference(&[1.0, 2.0], &theirs, &SOFTMAX).unwrap_err().starts_with("refused"),
                "{theirs:?}"
            );
        }
        let twice = ratio(
            Reading { latency: 2.0, throughput: 4.0, chain: Some(6.0) },
            Reading { latency: 1.0, throughput: 2.0, chain: None },
        );
        assert_eq!(twice, Reading { latency: 2.0, throughput: 2.0, chain: None });
    }

    /// A lazy library as fast as ours: eight results of 1.5 µs, asked for in 0.2 µs each, one computed.
    #[test]
    fn laziness_shows_however_fast_the_library_is() {
        let lazy = Timed {
            latency: 1.7e-6,
            throughput: 3.1e-6,
            chain: None,
            least: 3.1e-6,
            after: 12.5e-6,
            again: 2e-6,
        };
        assert!(lazy.computed().unwrap_err().starts_with("refused: results were not computed"));
    }

    #[test]
    fn elements_of_every_timed_result_are_compared() {
        let device = Device::cpu(1).unwrap();
        let mut subject = Subject::new(&SOFTMAX, &device).unwrap();
        subject.read(0.0).unwrap();
        let ours = subject.samples();
        let mut theirs: Vec<f64> = ours.iter().flatten().copied().collect();
        assert_eq!(same_samples(&ours, &theirs, &SOFTMAX), Ok(()));
        // One input's result in the place of another's.
        let (first, second) = theirs.split_at_mut(SAMPLES);
        first.copy_from_slice(&second[..SAMPLES]);
        let error = same_samples(&ours, &theirs, &SOFTMAX).unwrap_err();
        assert!(error.starts_with("refused: result 0 of its timed run differs"), "{error}");
        let error = same_samples(&ours, &theirs[SAMPLES..], &SOFTMAX).unwrap_err();
        assert_eq!(error, "refused: its timed run gave 8 results, ours 9");
    }

    #[test]
    fn every_case_goes_through_the_protocol() {
        let path = std::path::Path::new("x");
        for case in metal_candle::bench::cases(DType::BF16) {
            assert_eq!(case_of(&request(&case, path, path)), Some(case));
        }
    }
}
