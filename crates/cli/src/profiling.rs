//! `--profile` and `--trace`: where the time of a command went.

use std::path::PathBuf;

use clap::Args;
use metal_candle::backend::Device;
use metal_candle::backend::profile::{self, Detail, Peak, Profile};

use crate::bench::table::{Table, number};
use crate::console;
use crate::session::Session;

/// What is recorded of a run.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ProfileArgs {
    /// Show on stderr where the time went: for every operation time, bytes and operations a second, and the share of what
    /// the machine can do.
    #[arg(long)]
    pub(crate) profile: bool,
    /// Write a trace of every step to this file, for Perfetto or Chrome's about:tracing.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
}

/// A recording under way, if one was asked for.
pub(crate) struct Profiling<'a> {
    args: &'a ProfileArgs,
    device: Device,
}

impl<'a> Profiling<'a> {
    pub(crate) fn begin(args: &'a ProfileArgs, device: &Device) -> Self {
        match (args.profile, args.trace.is_some()) {
            (false, false) => {}
            (true, false) => profile::start(Detail::Totals),
            (false, true) => profile::start(Detail::Spans),
            (true, true) => profile::start(Detail::Both),
        }
        Self { args, device: device.clone() }
    }

    /// Ends the recording, writes the trace and shows the table.
    pub(crate) fn finish(self, session: &Session) -> anyhow::Result<()> {
        if !self.args.profile && self.args.trace.is_none() {
            return Ok(());
        }
        let profile = profile::stop();
        if let Some(path) = &self.args.trace {
            metal_candle::atomic::write(path, profile.trace().as_bytes())?;
            let dropped = match profile.dropped {
                0 => String::new(),
                dropped => format!("; {dropped} later ones are left out"),
            };
            session.note(format!("{} spans written to {}{dropped}", profile.spans().len(), path.display()));
        }
        if self.args.profile {
            console::note(&table(&profile, self.device.peak().as_ref()));
        }
        Ok(())
    }
}

/// The profile for a person.
fn table(profile: &Profile, peak: Option<&Peak>) -> String {
    let mut table = Table::new(["operation", "calls", "ms", "share", "GB/s", "GFLOP/s", "of the roofline"]);
    let whole: f64 = profile.ops().iter().map(|total| total.seconds).sum();
    for total in profile.ops() {
        let rate = |amount: u64| number(1e-9 * amount as f64 / total.seconds.max(1e-12));
        table.row(vec![
            total.op.to_owned(),
            total.calls.to_string(),
            number(1e3 * total.seconds),
            format!("{:.1} %", 100.0 * total.seconds / whole.max(1e-12)),
            rate(total.bytes),
            rate(total.flops),
            peak.map_or_else(|| "-".to_owned(), |peak| format!("{:.0} %", 100.0 * total.roofline(peak))),
        ]);
    }
    let mut text = format!("\n{}", table.text());
    text += &format!(
        "\n{} runs, {} ms in all; {} ms of them are no operation's: copies, encoding, waiting\n",
        profile.runs,
        number(1e3 * profile.seconds),
        number(1e3 * (profile.seconds - whole).max(0.0)),
    );
    if let Some(peak) = peak {
        text += &format!(
            "the roofline: {} GFLOP/s in f32 and {} GB/s ({}). More than 100 % means that operands came from caches, or 16-bit \
             arithmetic\n",
            number(1e-9 * peak.flops),
            number(1e-9 * peak.bytes),
            peak.source
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use metal_candle::graph::Graph;
    use metal_candle::tensor::{HostTensor, TensorSpec};

    #[test]
    fn a_profile_names_every_operation_and_what_it_did() {
        let device = Device::cpu(1).unwrap();
        let graph = Graph::new();
        let x = graph.input("x", TensorSpec::f32([8, 64]));
        let w = graph.input("w", TensorSpec::f32([16, 64]));
        let y = x.linear(&w).unwrap().softmax(1).unwrap();
        let program = device.compile(&graph, &[y], &[]).unwrap();
        let [a, b] = [[8, 64], [16, 64]].map(|shape| HostTensor::zeros(TensorSpec::f32(shape)));
        profile::start(Detail::Both);
        for _ in 0..3 {
            program.run(&[&a, &b]).unwrap();
        }
        let profile = profile::stop();
        // Other tests of this process run programs too, so that there may be more than these.
        let total = |op: &str| *profile.ops().iter().find(|total| total.op == op).unwrap();
        assert!(total("matmul").calls >= 3 && total("softmax").calls >= 3);
        assert!(total("matmul").flops >= 3 * 2 * 8 * 16 * 64);
        assert!(total("softmax").bytes >= 3 * 2 * 4 * 8 * 16 && total("softmax").seconds > 0.0);
        let peak = Peak { flops: 1e11, bytes: 1e10, source: "a test".into() };
        let text = table(&profile, Some(&peak));
        for part in ["matmul", "softmax", "100 GFLOP/s in f32 and 10.0 GB/s (a test)", "runs, "] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let trace: serde_json::Value = serde_json::from_str(&profile.trace()).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let of = |name: &str| events.iter().filter(|e| e["name"] == name && e["ph"] == "X").count();
        assert!(of("matmul") >= 3 && of("softmax") >= 3 && of("run") >= 3, "{trace}");
        assert!(events.iter().any(|e| e["ph"] == "M" && e["args"]["name"] == "host thread 0"), "{trace}");
    }
}
