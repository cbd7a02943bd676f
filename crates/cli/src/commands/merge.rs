//! `metal-candle merge`.

use std::cell::RefCell;

use metal_candle::backend::Device;
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::DType;
use metal_candle::training::merge_until;
use serde_json::json;

use crate::adapter_source::{self, Chosen};
use crate::args::MergeArgs;
use crate::failure::Failure;
use crate::fetch;
use crate::session::{Session, print_line};
use crate::settings::dtype;
use metal_candle::counts::counted;

pub(crate) fn run(args: &MergeArgs, session: &Session) -> anyhow::Result<()> {
    let Some(folder) = &args.adapter else {
        return Err(
            Failure::input("merge needs an adapter", "pass one: --adapter adapters/appointments").into()
        );
    };
    let chosen = Chosen::open(folder, session)?;
    let dtype = dtype(&args.dtype)?;
    let model = adapter_source::model(args.model.as_deref(), Some(&chosen), session)?;
    let fetched = fetch::resolve(&model, fetch::Options::default(), session);
    let path = fetched.map_err(|failure| match args.model {
        Some(_) => failure.into(),
        None => chosen.base_not_reached(failure.into()),
    })?;
    let files = ModelFiles::open(&path.path)?;
    chosen.announce(&model, &files, &|dtype| content(&files, dtype))?;
    let meter = RefCell::new(session.progress.count("merging", 100));
    let progress = |share: f64| meter.borrow_mut().set((share * 100.0) as u64);
    let stop = session.interrupt.flag();
    let report = merge_until(&files, &chosen.adapter, &args.out, dtype, &stop, &progress)?;
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
        "{} merged into {}; stored as {dtype}, the greatest relative error of an update is {:.2e} ({})\nread back, \
         its logits are those of base and adapter within a relative error of {:.2e}",
        counted(report.modules, "module"),
        args.out.display(),
        report.worst_error,
        report.worst_module,
        report.logits_error
    ))
}

/// Returns the hash of a base's content as a run with this dtype recorded it.
fn content(files: &ModelFiles, dtype: &str) -> metal_candle::Result<Option<String>> {
    let types = [DType::F32, DType::BF16, DType::F16];
    let Some(dtype) = types.into_iter().find(|known| known.to_string() == dtype) else { return Ok(None) };
    let decoder = Decoder::load(files.config.clone(), &files.weights, &Device::cpu(0)?, dtype, &|_| ())?;
    decoder.content_hash().map(Some)
}
