//! `metal-candle pull`.

use serde_json::json;

use crate::args::PullArgs;
use crate::fetch::{self, Options};
use crate::session::{Session, print_line};

pub(crate) fn run(args: &PullArgs, session: &Session) -> anyhow::Result<()> {
    let model = fetch::resolve(
        &args.model,
        Options { route: args.from, force: args.force, thorough: true },
        session,
    )?;
    if args.json {
        return print_line(
            &json!({"model": args.model, "path": model.path, "fetched": model.fetched}).to_string(),
        );
    }
    if !model.fetched {
        session.note(format!("{} is already here", args.model));
    }
    print_line(&model.path.display().to_string())
}
