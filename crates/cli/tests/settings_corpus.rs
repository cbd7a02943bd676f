//! Runs the fuzz target of settings over its committed corpus.

// The target is public in the crate of the fuzzer.
#[path = "../../../fuzz/src/settings.rs"]
#[expect(unreachable_pub)]
mod settings;

use std::path::Path;
use std::time::{Duration, Instant};

/// Limit of a single input, as for the fuzzer.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn no_settings_of_the_corpus_are_a_finding() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/settings");
    let mut inputs: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 5, "{}: {} inputs", folder.display(), inputs.len());
    for path in inputs {
        println!("{}", path.display());
        let start = Instant::now();
        settings::settings(&std::fs::read(&path).unwrap());
        assert!(start.elapsed() < LIMIT, "{}: took {:?}", path.display(), start.elapsed());
    }
}
