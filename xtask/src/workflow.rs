//! Checks of the CI workflow: which commands run on which machine.

/// Returns the lines of a job, from its name to the next job.
fn job(workflow: &str, name: &str) -> Vec<String> {
    let is_job =
        |line: &str| line.starts_with("  ") && !line.starts_with("   ") && line.trim_end().ends_with(':');
    let head = format!("  {name}:");
    let body = workflow.lines().skip_while(|line| *line != head).skip(1);
    body.take_while(|line| !is_job(line)).map(|line| line.trim().to_owned()).collect()
}

/// Returns the commands of a job.
fn commands(job: &[String]) -> Vec<&str> {
    job.iter().filter_map(|line| line.strip_prefix("- run: ")).collect()
}

fn workflow() -> String {
    std::fs::read_to_string(crate::root().join(".github/workflows/ci.yml")).unwrap()
}

/// A hosted runner's GPU computes wrongly, so only these commands run there: none uses the GPU beyond its compiler.
#[test]
fn the_hosted_mac_runs_nothing_on_its_gpu() {
    let job = job(&workflow(), "macos");
    assert!(job.contains(&"runs-on: macos-15".to_owned()), "{job:?}");
    assert_eq!(
        commands(&job),
        [
            "cargo xtask mac --only kernels",
            "cargo build --workspace --all-targets",
            "cargo test --lib",
            "cargo test --package xtask",
            "cargo run -p metal-candle-cli -- doctor",
        ]
    );
}

#[test]
fn the_gpu_job_is_for_labeled_requests_on_a_machine_of_our_own() {
    let job = job(&workflow(), "macos-gpu");
    assert!(job.contains(&"runs-on: [self-hosted, macOS, gpu]".to_owned()), "{job:?}");
    let condition = job.iter().find_map(|line| line.strip_prefix("if: github")).unwrap();
    assert!(
        condition.contains("workflow_dispatch") && condition.contains("label.name == 'gpu'"),
        "{condition}"
    );
    assert_eq!(commands(&job), ["cargo xtask mac"]);
}

/// Only the job on a real GPU may write figures.
#[test]
fn no_other_job_measures() {
    let workflow = workflow();
    for name in ["linux", "macos"] {
        for command in commands(&job(&workflow, name)) {
            for word in ["--fill", "tune", "bench", "--test metal"] {
                assert!(!command.contains(word), "{name}: {command}");
            }
        }
    }
}

#[test]
fn jobs_end_where_the_next_one_begins() {
    let text = "jobs:\n  a:\n    runs-on: x\n    steps:\n      - run: one\n\n  # note\n  b:\n    steps:\n      - run: two\n";
    assert_eq!(commands(&job(text, "a")), ["one"]);
    assert_eq!(commands(&job(text, "b")), ["two"]);
    assert!(job(text, "c").is_empty());
}
