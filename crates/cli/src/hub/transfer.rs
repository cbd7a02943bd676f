//! One file of the hub: fetched, continued where it broke off, and checked.

use std::path::Path;
use std::time::Duration;

use ureq::http::StatusCode;

use super::answer::{Asked, ContentRange, Refusal};
use super::retry::{Retries, pause};
use super::{Hub, HubError, RemoteFile};
use crate::download::{Sink, Stopped, WRONG_FILE, disk, verify};
use crate::failure::Failure;
use crate::progress::size;
use crate::session::Session;

/// What to do after a download that broke off.
pub(crate) const CONTINUES: &str = "run the same command again: it continues where the download stopped";

/// Waits that are longer are announced.
const NOTICEABLE: Duration = Duration::from_secs(1);

/// How an attempt failed.
enum Failed {
    /// Another attempt may succeed, after this time if the server asks for one.
    Attempt(String, Option<Duration>),
    /// No other attempt will.
    All(Failure),
}

impl Hub {
    /// Fetches one file to `part`, continuing what an earlier attempt left there, checks size and sum, and returns the
    /// sum. The caller gives the finished file its name.
    pub(crate) fn fetch(
        &self,
        id: &str,
        commit: &str,
        file: &RemoteFile,
        part: &Path,
        session: &Session,
    ) -> Result<String, HubError> {
        let what = format!("{id}/{}", file.name);
        let on_disk = |e: std::io::Error| disk(&part.display().to_string(), &e);
        let mut sink = Sink::open(part, session).map_err(on_disk)?;
        if file.sha256.is_none() && sink.written() > 0 {
            // No sum would show that a crash damaged what is there; such files are small.
            sink.restart().map_err(on_disk)?;
        }
        let mut retries = Retries::default();
        loop {
            let before = sink.written();
            let (why, asked) = match self.fetch_once(id, commit, file, &mut sink) {
                Ok(()) => break,
                Err(Failed::All(failure)) => {
                    // A file that is not the one wanted must not be continued.
                    if failure.advice == WRONG_FILE {
                        drop(metal_candle::durable::remove_file(part));
                    }
                    return Err(failure.into());
                }
                Err(Failed::Attempt(why, asked)) => (why, asked),
            };
            let progress = sink.written() > before;
            // One that never answered is not there: another route may be, and nobody should wait for it.
            let Some(wait) = retries.after(progress, asked).filter(|_| self.answered.get()) else {
                return Err(self.broken_off(&what, file, part, sink.written(), &why));
            };
            tracing::debug!("{what}: {why}; again in {wait:?}");
            self.wait(wait, &why, session)?;
        }
        let found = sink.written();
        let sum = sink.finish().map_err(on_disk)?;
        let checked = verify(&what, (found, &sum), file.size, file.sha256.as_deref());
        if checked.is_err() {
            // A wrong file must not be continued by the next attempt; if it cannot be removed, its sum fails again.
            drop(metal_candle::durable::remove_file(part));
        }
        checked?;
        Ok(sum)
    }

    fn broken_off(&self, what: &str, file: &RemoteFile, part: &Path, written: u64, why: &str) -> HubError {
        if written == 0 {
            drop(metal_candle::durable::remove_file(part));
            return HubError::NotReached(why.to_owned());
        }
        let total = file.size.map_or_else(String::new, |total| format!(" of {}", size(total)));
        let cause = format!("{what} broke off after {}{total}: {why}", size(written));
        Failure::unreachable(cause, CONTINUES).into()
    }

    /// Waits before another attempt, and says so if it takes long.
    pub(super) fn wait(&self, wait: Duration, why: &str, session: &Session) -> Result<(), Failure> {
        if wait > NOTICEABLE {
            session.note(format!("{why}: trying again in {} s", wait.as_secs()));
        }
        pause(wait, session)
    }

    fn fetch_once(
        &self,
        id: &str,
        commit: &str,
        file: &RemoteFile,
        sink: &mut Sink<'_>,
    ) -> Result<(), Failed> {
        let on_disk = |e: std::io::Error| Failed::All(disk(&file.name, &e));
        let what = format!("{id}/{}", file.name);
        if file.size.is_some_and(|size| size == sink.written()) {
            return Ok(());
        }
        if file.size.is_some_and(|size| size < sink.written()) {
            sink.restart().map_err(on_disk)?;
        }
        let from = (sink.written() > 0).then(|| sink.written());
        let url = format!("{}/{id}/resolve/{commit}/{}", self.endpoint, file.name);
        let answer = self.get(&url, from).map_err(|e| Failed::Attempt(self.described(&e), None))?;
        if let Some(why) = other_part(&answer, from, file) {
            // The next attempt asks for the whole file.
            sink.restart().map_err(on_disk)?;
            return Err(Failed::Attempt(format!("{}: {why}", self.endpoint), None));
        }
        let announced = answer.body().content_length();
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            let asked = Asked { file: Some(&file.name), ..self.asked(id, commit) };
            asked.check(answer.status(), answer.headers()).map_err(|refusal| match refusal {
                Refusal::Failed(failure) => Failed::All(failure),
                Refusal::Later { why, after } => Failed::Attempt(why, after),
            })?;
            sink.restart().map_err(on_disk)?;
            if let (Some(announced), Some(listed)) = (announced, file.size)
                && announced != listed
            {
                let cause = format!("{what}: the hub lists {listed} bytes, but sends {announced}");
                return Err(Failed::All(Failure::unreachable(cause, WRONG_FILE)));
            }
        }
        let total = file.size.unwrap_or(sink.written() + announced.unwrap_or(0));
        match sink.fill(answer.into_body().into_reader(), &file.name, total, file.size) {
            Ok(()) if file.size.is_some_and(|listed| sink.written() < listed) => {
                Err(Failed::Attempt(format!("{}: the connection ended early", self.endpoint), None))
            }
            Ok(()) => Ok(()),
            Err(Stopped::Source(e)) => Err(Failed::Attempt(format!("{}: {e}", self.endpoint), None)),
            Err(Stopped::Fatal(failure)) => Err(Failed::All(failure)),
            Err(Stopped::TooLong) => {
                let cause = format!("{what}: the hub lists {total} bytes, but sends more");
                Err(Failed::All(Failure::unreachable(cause, WRONG_FILE)))
            }
        }
    }
}

/// Why an answer cannot continue a file from `from`.
fn other_part(
    answer: &ureq::http::Response<ureq::Body>,
    from: Option<u64>,
    file: &RemoteFile,
) -> Option<String> {
    if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        return Some(format!("has no bytes of {} from {} on", file.name, from.unwrap_or(0)));
    }
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return None;
    }
    let Some(range) = ContentRange::of(answer.headers()) else {
        return Some(format!("sends a part of {} without saying which", file.name));
    };
    if range.first != from.unwrap_or(0) {
        let wanted = from.unwrap_or(0);
        return Some(format!("sends {} from byte {}, asked for {wanted}", file.name, range.first));
    }
    let whole = (file.size, range.total);
    matches!(whole, (Some(listed), Some(total)) if listed != total)
        .then(|| format!("lists and sends {} in different sizes: {whole:?}", file.name))
        .or_else(|| {
            file.size
                .filter(|&listed| range.last >= listed)
                .map(|_| format!("sends {} beyond its end", file.name))
        })
}
