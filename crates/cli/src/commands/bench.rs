//! `metal-candle bench`: which of its measurements, and where the result goes.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::args::{BenchArgs, BenchModelArgs, BenchOpsArgs, BenchWhat, ExplainArgs};
use crate::bench::models::{self, Job};
use crate::bench::{candle_peer, fill, ops, plan};
use crate::failure::Failure;
use crate::session::{Session, print};

pub(crate) fn run(args: &BenchArgs, session: &Session) -> anyhow::Result<()> {
    match &args.what {
        Some(BenchWhat::CandlePeer { device }) => candle_peer::serve(device),
        Some(BenchWhat::Ops(args)) => operations(args, session),
        Some(BenchWhat::Train(args)) => model(Job::Train, args, session),
        Some(BenchWhat::Generate(args)) => model(Job::Generate, args, session),
        Some(BenchWhat::ExplainPlan(args)) => explain(args, session),
        None => explain(&ExplainArgs::default(), session),
    }
}

fn operations(args: &BenchOpsArgs, session: &Session) -> anyhow::Result<()> {
    if let Some(path) = &args.fill {
        fill::check(path, &args.device)?;
    }
    let report = ops::run(args, session)?;
    if let Some(path) = &args.fill {
        fill::fill(path, &report)?;
    }
    write(args.json.as_deref(), &report)?;
    print(&if args.markdown { report.markdown() } else { report.text() })
}

fn model(job: Job, args: &BenchModelArgs, session: &Session) -> anyhow::Result<()> {
    let (other, given) = match job {
        Job::Train => ("generate", [("--prompt", args.prompt), ("--tokens", args.tokens)]),
        Job::Generate => ("train", [("--batch-size", args.batch_size), ("--length", args.length)]),
    };
    if let Some((flag, _)) = given.iter().find(|(_, size)| size.is_some()) {
        let advice = format!("leave it out; `metal-candle bench {other}` obeys it");
        return Err(Failure::usage(format!("{flag} has no effect here"), advice).into());
    }
    let report = models::run(job, args, session)?;
    write(args.json.as_deref(), &report)?;
    print(&report.show(args.markdown))
}

fn explain(args: &ExplainArgs, session: &Session) -> anyhow::Result<()> {
    let explanation = plan::run(args, session)?;
    write(args.json.as_deref(), &explanation)?;
    print(&explanation.show(args.markdown))
}

fn write(path: Option<&Path>, report: &impl Serialize) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(report)?;
    metal_candle::atomic::write(path, format!("{text}\n").as_bytes()).with_context(|| "the measurements")
}
