//! Rules, and what happens when one is broken.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How sure a rule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// A document of Apple's says so: breaking it panics.
    Documented,
    /// Inferred, or true of some systems only: breaking it is logged.
    Suspected,
}

/// Something that a program must do or must not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Short and stable, e.g. `encoder-left-open`.
    pub id: &'static str,
    /// What is asked.
    pub text: &'static str,
    /// How sure it is.
    pub severity: Severity,
    /// Where it comes from.
    pub source: &'static str,
}

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule's id.
    pub rule: &'static str,
    /// What happened, with names and numbers.
    pub message: String,
}

/// What is done with violations. From the environment variable `SOFTMETAL_VALIDATION`: `panic`, `log` or `off`; without
/// it documented rules panic and suspected ones are logged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    BySeverity,
    Panic,
    Log,
    Off,
}

#[derive(Default)]
struct State {
    /// Whether a capture is open, which takes all violations.
    capturing: bool,
    captured: Vec<Violation>,
    /// Violations of this process that no capture took.
    logged: Vec<Violation>,
}

static STATE: Mutex<State> = Mutex::new(State { capturing: false, captured: Vec::new(), logged: Vec::new() });
static CAPTURE_ENDED: Condvar = Condvar::new();

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mode() -> Mode {
    match std::env::var("SOFTMETAL_VALIDATION").as_deref() {
        Ok("panic") => Mode::Panic,
        Ok("log") => Mode::Log,
        Ok("off") => Mode::Off,
        _ => Mode::BySeverity,
    }
}

/// Says that a rule was broken. Returns if the program is to go on: the caller then does as little harm as it can.
pub fn report(rule: &Rule, message: impl Into<String>) {
    let violation = Violation { rule: rule.id, message: message.into() };
    let mut state = state();
    if state.capturing {
        state.captured.push(violation);
        return;
    }
    let mode = mode();
    if mode == Mode::Off {
        return;
    }
    let text = format!("softmetal: {} ({}): {}", violation.rule, rule.text, violation.message);
    state.logged.push(violation);
    // A panic with the lock held would be reported as a poisoned lock by whoever comes next.
    drop(state);
    eprintln!("{text}");
    let fatal = mode == Mode::Panic || (mode == Mode::BySeverity && rule.severity == Severity::Documented);
    if fatal && !std::thread::panicking() {
        panic!("{text}");
    }
}

/// Runs `body` and gives what it returns, with every violation that any thread reported meanwhile; none of them
/// panics. Captures of different threads wait for each other.
pub fn capture<R>(body: impl FnOnce() -> R) -> (R, Vec<Violation>) {
    let mut guard = state();
    while guard.capturing {
        guard = CAPTURE_ENDED.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    guard.capturing = true;
    drop(guard);
    /// Ends the capture when the body panics, too.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            let mut state = state();
            state.capturing = false;
            state.captured.clear();
            CAPTURE_ENDED.notify_one();
        }
    }
    let end = End;
    let result = body();
    let violations = std::mem::take(&mut state().captured);
    drop(end);
    (result, violations)
}

/// The violations that were logged so far, and forgets them.
pub fn take_logged() -> Vec<Violation> {
    std::mem::take(&mut state().logged)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule =
        Rule { id: "test-rule", text: "be good", severity: Severity::Documented, source: "this test" };

    #[test]
    fn a_documented_rule_panics_and_a_capture_takes_it_instead() {
        let ((), taken) = capture(|| report(&RULE, "planted"));
        assert_eq!(taken, [Violation { rule: "test-rule", message: "planted".into() }]);
        let panic = std::panic::catch_unwind(|| report(&RULE, "again")).unwrap_err();
        let text = panic.downcast_ref::<String>().expect("a text");
        assert!(text.contains("test-rule (be good): again"), "{text}");
        assert!(capture(|| ()).1.is_empty());
    }

    #[test]
    fn a_panic_within_a_capture_ends_it() {
        let body = || {
            report(&RULE, "before the panic");
            panic!("planted")
        };
        let _ = std::panic::catch_unwind(|| capture(body));
        // The next capture is told nothing of it.
        assert_eq!(capture(|| 7), (7, vec![]));
    }
}
