//! Runs the fuzz targets over the committed corpus: seeds, and every input that was a finding once.

// The targets are public in the crate of the fuzzer.
#[path = "../fuzz/src/targets.rs"]
#[expect(unreachable_pub)]
mod targets;

use std::path::Path;
use std::time::{Duration, Instant};

/// Limit of a single input, as for the fuzzer, but without optimization.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn no_input_of_the_corpus_is_a_finding() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let folder = corpus.join(name);
        let mut inputs: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{}: no inputs", folder.display());
        for path in inputs {
            println!("{}", path.display());
            let start = Instant::now();
            target(&std::fs::read(&path).unwrap());
            assert!(start.elapsed() < LIMIT, "{}: took {:?}", path.display(), start.elapsed());
        }
    }
}
