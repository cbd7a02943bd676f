//! `metal-candle bench`: which of its measurements, and where the result goes.

use anyhow::Context;

use crate::args::{BenchArgs, BenchWhat};
use crate::bench::{candle_peer, fill, ops};
use crate::session::{Session, print, print_line};

pub(crate) fn run(args: &BenchArgs, session: &Session) -> anyhow::Result<()> {
    match &args.what {
        BenchWhat::CandlePeer { device } => candle_peer::serve(device),
        BenchWhat::Ops(args) => {
            if let Some(path) = &args.fill {
                fill::check(path, &args.device)?;
            }
            let report = ops::run(args, session)?;
            if let Some(path) = &args.fill {
                fill::fill(path, &report)?;
            }
            if let Some(path) = &args.json {
                let text = serde_json::to_string_pretty(&report)?;
                metal_candle::atomic::write(path, format!("{text}\n").as_bytes())
                    .with_context(|| "the measurements")?;
            }
            let text = if args.markdown { report.markdown() } else { report.text() };
            print(&text)?;
            if args.json.is_some() || args.fill.is_some() { Ok(()) } else { print_line("") }
        }
    }
}
