//! When a request is made again, and how long that waits.

use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::session::Session;

/// Attempts in a row that bring nothing.
const ATTEMPTS: usize = 4;
/// Attempts in all, so that a connection that breaks after every few bytes comes to an end, too.
const ATTEMPTS_IN_ALL: usize = 100;
/// Wait before the second attempt; it doubles with every attempt that brings nothing.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest wait that a server may ask for. Nobody watches a prompt for longer.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Attempts so far.
#[derive(Debug, Default)]
pub(super) struct Retries {
    in_vain: usize,
    all: usize,
}

impl Retries {
    /// Returns how long to wait after a failed attempt; `None` if it was the last. `progress` says whether it brought any
    /// bytes, and `asked` is the time that the server asks for.
    pub(super) fn after(&mut self, progress: bool, asked: Option<Duration>) -> Option<Duration> {
        self.all += 1;
        self.in_vain = if progress { 0 } else { self.in_vain + 1 };
        if self.in_vain >= ATTEMPTS || self.all >= ATTEMPTS_IN_ALL {
            return None;
        }
        let wait = asked.unwrap_or(FIRST_WAIT * (1 << self.in_vain.saturating_sub(1)));
        (wait <= LONGEST_WAIT).then_some(wait)
    }
}

/// Waits, unless the user asks to stop.
pub(super) fn pause(wait: Duration, session: &Session) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        session.check_interrupt("waiting for the hub")?;
        match wait.saturating_sub(start.elapsed()) {
            Duration::ZERO => return Ok(()),
            left => std::thread::sleep(left.min(Duration::from_millis(50))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_until_something_arrives_and_end() {
        let mut retries = Retries::default();
        let mut waits = |progress| retries.after(progress, None).map(|wait| wait.as_millis());
        assert_eq!([waits(false), waits(false), waits(false)], [Some(200), Some(400), Some(800)]);
        assert_eq!(waits(true), Some(200), "what brings bytes begins anew");
        assert_eq!(
            [waits(false), waits(false), waits(false), waits(false)],
            [Some(200), Some(400), Some(800), None]
        );
        let mut endless = Retries::default();
        assert_eq!((0..1000).take_while(|_| endless.after(true, None).is_some()).count(), 99);
    }

    #[test]
    fn a_server_decides_how_long_within_limits() {
        let mut retries = Retries::default();
        let seconds = |s| Some(Duration::from_secs(s));
        assert_eq!(retries.after(false, seconds(7)), seconds(7));
        assert_eq!(retries.after(false, seconds(3600)), None);
    }
}
