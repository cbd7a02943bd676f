//! Calls into the `tokenizers` crate, which panics over some damaged tokenizers instead of returning an error.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Number of guarded calls that this thread is in.
    static GUARDED: Cell<usize> = const { Cell::new(0) };
}

/// Runs a call and returns the message of its panic, which is not printed, as an error.
///
/// What the call changed may be incomplete after a panic, so callers discard it or only read. A program that is compiled
/// with `panic = "abort"` ends all the same.
pub(super) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let outer = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if GUARDED.get() == 0 {
                outer(info);
            }
        }));
    });
    GUARDED.set(GUARDED.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(GUARDED.get() - 1);
    result.map_err(|payload| message(&*payload))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it panicked").chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::guarded;

    #[test]
    fn panics_become_errors_with_their_message() {
        assert_eq!(guarded(|| 7), Ok(7));
        assert_eq!(guarded(|| -> u8 { panic!("no token {}", 5) }), Err("no token 5".to_owned()));
        assert_eq!(guarded(|| guarded(|| -> u8 { panic!("inner") })), Ok(Err("inner".to_owned())));
    }
}
