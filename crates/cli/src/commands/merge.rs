//! `metal-candle merge`.

use std::cell::RefCell;

use metal_candle::models::ModelFiles;
use metal_candle::training::merge;
use serde_json::json;

use crate::adapter_source::{self, Chosen};
use crate::args::MergeArgs;
use crate::failure::Failure;
use crate::fetch;
use crate::session::{Session, print_line};
use crate::settings::dtype;

pub(crate) fn run(args: &MergeArgs, session: &Session) -> anyhow::Result<()> {
    let Some(folder) = &args.adapter else {
        return Err(Failure::input("merge needs an adapter", "pass one: --adapter adapters/shell").into());
    };
    let chosen = Chosen::open(folder, session)?;
    let dtype = dtype(&args.dtype)?;
    let model = adapter_source::model(args.model.as_deref(), Some(&chosen))?;
    let path = fetch::resolve(&model, fetch::Options::default(), session)?.path;
    let files = ModelFiles::open(&path)?;
    chosen.announce(&model, &files);
    let meter = RefCell::new(session.progress.count("merging", 100));
    let progress = |share: f64| meter.borrow_mut().set((share * 100.0) as u64);
    let report = merge(&files, &chosen.adapter, &args.out, dtype, &progress)?;
    drop(meter);
    if args.json {
        let result = json!({
            "out": args.out,
            "modules": report.modules,
            "worst_error": report.worst_error,
            "worst_module": report.worst_module,
            "logits_error": report.logits_error,
            "untied": report.untied,
        });
        return print_line(&result.to_string());
    }
    if report.untied {
        session.note("embedding and head shared one weight; they are two in the merged model, since the adapter is on one");
    }
    print_line(&format!(
        "{} modules merged into {}; stored as {dtype}, the greatest relative error of an update is {:.2e} ({})\nread back, \
         its logits are those of base and adapter within a relative error of {:.2e}",
        report.modules,
        args.out.display(),
        report.worst_error,
        report.worst_module,
        report.logits_error
    ))
}
