//! Hubs that break off, send too much, or refuse.

use std::time::Instant;

use super::*;

/// As `tiny`, with weights large enough that a body of 100 times their size would be noticed.
fn pull(hub: &FakeHub) -> (Machine, Run) {
    let machine = Machine::with(hub);
    let run = machine.run(&["pull", "org/tiny", "--json"]);
    (machine, run)
}

#[test]
fn a_body_longer_than_listed_stops_at_once() {
    let hub = tiny();
    // Announced: nothing of it is read. Not announced: it ends with the first byte too many.
    for (answer, part) in [
        (Answer::Other(vec![7; 300_000]), "the hub lists 3000 bytes, but sends 300000"),
        (Answer::Endless, "the hub lists 3000 bytes, but sends more"),
    ] {
        hub.answer("model.safetensors", answer);
        let (machine, run) = pull(&hub);
        let (cause, advice) = run.failed(4);
        assert_eq!(cause, format!("org/tiny/model.safetensors: {part}"));
        assert!(advice.contains("changes the file"), "{advice}");
        assert_eq!(machine.files(), ["config.json", "tokenizer.json"], "nothing of it is kept");
    }
    assert_eq!(hub.asked("model.safetensors"), 2, "it is not asked for again");
}

#[test]
fn a_download_that_makes_progress_is_tried_on() {
    let hub = tiny();
    // Ten times 300 bytes: more than the four attempts that a file without progress has.
    hub.answer("model.safetensors", Answer::BreakAfter(300));
    let (_machine, run) = pull(&hub);
    assert_eq!(run.json()["fetched"], true);
    assert_eq!(hub.asked("model.safetensors"), 10);
}

#[test]
fn a_download_that_broke_off_says_that_the_same_command_continues() {
    let hub = tiny();
    hub.answer_in_turn("model.safetensors", vec![Answer::BreakAfter(1_000), Answer::BreakAfter(0)]);
    let (machine, run) = pull(&hub);
    let (cause, advice) = run.failed(4);
    assert!(cause.starts_with("org/tiny/model.safetensors broke off after 1000 B of 2.93 KiB: "), "{cause}");
    assert_eq!(advice, "run the same command again: it continues where the download stopped");
    assert_eq!(hub.asked("model.safetensors"), 5, "one that brings bytes, and four that do not");
    hub.answer("model.safetensors", Answer::Whole);
    assert_eq!(machine.run(&["pull", "org/tiny", "--json"]).json()["fetched"], true);
    assert_eq!(hub.ranges("model.safetensors")[5], "bytes=1000-");
}

#[test]
fn retry_after_is_obeyed_within_limits() {
    let hub = tiny();
    let busy = |after: &str| Answer::Refuse(429, format!("retry-after: {after}\r\n"));
    let date = "Sun, 06 Nov 1994 08:49:38 GMT\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT";
    for after in ["1", date] {
        for name in ["main", "model.safetensors"] {
            hub.answer_in_turn(name, vec![busy(after), Answer::Whole]);
            let start = Instant::now();
            let (_machine, run) = pull(&hub);
            assert_eq!(run.json()["fetched"], true);
            assert!(start.elapsed().as_secs_f64() >= 1.0, "{name} was asked for again too early");
        }
    }
    hub.answer("main", busy("3600"));
    let before = hub.asked("main");
    let (_machine, run) = pull(&hub);
    let (cause, _) = run.failed(4);
    assert!(
        cause.ends_with("allows no more requests for now (status 429); it asks to wait 3600 s"),
        "{cause}"
    );
    assert_eq!(hub.asked("main") - before, 1, "nobody waits for an hour");
}

#[test]
fn an_error_of_the_server_is_tried_again() {
    let hub = tiny();
    let broken = Answer::Status(503);
    hub.answer_in_turn("model.safetensors", vec![broken.clone(), broken, Answer::Whole]);
    let (_machine, run) = pull(&hub);
    assert_eq!(run.json()["fetched"], true);
}

#[test]
fn a_part_is_the_one_that_was_asked_for() {
    for wrong in [Some("bytes 0-1999/3000"), Some("bytes 1000-2999/4000"), Some("bytes */3000"), None] {
        let hub = tiny();
        let other = Answer::Part(wrong.map(str::to_owned), vec![9; 2_000]);
        let answers = vec![Answer::BreakAfter(1_000), other, Answer::Whole];
        hub.answer_in_turn("model.safetensors", answers);
        let (machine, run) = pull(&hub);
        let path = run.json()["path"].as_str().unwrap().to_owned();
        assert_eq!(std::fs::read(Path::new(&path).join("model.safetensors")).unwrap(), WEIGHTS);
        assert_eq!(hub.ranges("model.safetensors"), ["", "bytes=1000-", ""], "{wrong:?}");
        drop(machine);
    }
}

#[test]
fn an_empty_sum_is_refused() {
    let hub = tiny();
    let list = r#"{"sha": "c0ffee", "siblings": [{"rfilename": "config.json", "size": 2},
        {"rfilename": "tokenizer.json", "size": 2},
        {"rfilename": "model.safetensors", "size": 3000, "lfs": {"sha256": "", "size": 3000}}]}"#;
    hub.answer("main", Answer::Other(list.into()));
    let (machine, run) = pull(&hub);
    let (cause, _) = run.failed(4);
    assert!(
        cause.contains("lists model.safetensors of 'org/tiny' with the SHA-256 '', which is none"),
        "{cause}"
    );
    assert!(machine.files().is_empty());
}

#[test]
fn a_missing_file_is_not_a_missing_model() {
    let hub = tiny();
    hub.answer("tokenizer.json", Answer::Status(404));
    let (_machine, run) = pull(&hub);
    let (cause, advice) = run.failed(4);
    assert!(
        cause.ends_with(
            "lists the file tokenizer.json of 'org/tiny' at revision 'c0ffee', but does not have it"
        ),
        "{cause}"
    );
    assert!(!advice.contains("spelling"), "{advice}");
}

#[test]
fn refusals_have_their_own_sentences() {
    let hub = tiny();
    for (status, headers, cause_part, advice_part) in [
        (403, "x-error-code: GatedRepo\r\n", "only to accounts that accepted its terms", "accept the terms"),
        (401, "", "to nobody without a token", "HF_TOKEN"),
        (404, "x-error-code: RevisionNotFound\r\n", "but not its revision 'main'", "after the @"),
        (404, "", "has no model 'org/tiny' at revision 'main'", "spelling"),
        (302, "", "redirects without saying where to", "--model"),
        (302, "location: /api/models/org/tiny/revision/main\r\n", "redirects in a circle", "--model"),
        (500, "", "has an error of its own (status 500)", "--model"),
        (451, "", "refuses the request for 'org/tiny' (status 451)", "HF_ENDPOINT"),
    ] {
        hub.answer("main", Answer::Refuse(status, headers.to_owned()));
        let (_machine, run) = pull(&hub);
        let (cause, advice) = run.failed(4);
        assert!(cause.contains(cause_part) && advice.contains(advice_part), "{status}: {cause} | {advice}");
    }
}

/// A crash may leave bytes that were never written; without a sum nothing would show them.
#[test]
fn a_part_without_a_sum_is_not_continued() {
    let hub = tiny();
    let machine = Machine::with(&hub);
    let folder = machine.cache().join("models/hub/org--tiny/c0ffee");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json.part"), b"\0").unwrap();
    let path = machine.run(&["pull", "org/tiny", "--json"]).json()["path"].as_str().unwrap().to_owned();
    assert_eq!(std::fs::read(Path::new(&path).join("config.json")).unwrap(), b"{}");
}

/// What a killed process left under temporary names is removed by the next one.
#[test]
fn what_a_killed_pull_left_is_removed() {
    let hub = tiny();
    let machine = Machine::with(&hub);
    let folder = machine.cache().join("models/hub/org--tiny");
    std::fs::create_dir_all(folder.join(".pip-1")).unwrap();
    std::fs::create_dir_all(folder.join("c0ffee")).unwrap();
    for name in [".pip-1/a.whl", ".part-2", "c0ffee/.writing-3.tmp"] {
        std::fs::write(folder.join(name), b"x").unwrap();
    }
    assert_eq!(machine.run(&["pull", "org/tiny", "--json"]).json()["fetched"], true);
    for name in [".pip-1", ".part-2", "c0ffee/.writing-3.tmp"] {
        assert!(!folder.join(name).exists(), "{name}");
    }
}
