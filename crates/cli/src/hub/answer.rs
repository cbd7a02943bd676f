//! What an answer of the hub means: its status as a sentence, `Retry-After`, and `Content-Range`.

use std::time::Duration;

use ureq::http::{HeaderMap, StatusCode};

use super::retry::LONGEST_WAIT;
use crate::failure::Failure;

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) endpoint: &'a str,
    pub(super) id: &'a str,
    pub(super) revision: &'a str,
    /// A file of the repository; `None` for its list of files.
    pub(super) file: Option<&'a str>,
    pub(super) is_data: bool,
    pub(super) has_token: bool,
}

/// Why the hub gave nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It will not give it.
    Failed(Failure),
    /// It may give it later.
    Later { why: String, after: Option<Duration> },
}

impl Asked<'_> {
    /// Checks the status of an answer. The hub answers 401 both for repositories that do not exist and for those that need
    /// a token, and says in `X-Error-Code` what it means.
    pub(super) fn check(&self, status: StatusCode, headers: &HeaderMap) -> Result<(), Refusal> {
        let Self { endpoint, id, has_token, .. } = *self;
        let gated = header(headers, "x-error-code") == Some("GatedRepo");
        let status = status.as_u16();
        let failed = |cause: String, advice: &str| Err(Refusal::Failed(Failure::unreachable(cause, advice)));
        match status {
            200..=299 => Ok(()),
            300..=399 => failed(
                format!(
                    "{endpoint} redirects the request for '{id}' (status {status}) without saying where to"
                ),
                "check HF_ENDPOINT, and whether a proxy or a login page answers in its place",
            ),
            401 | 403 if gated && has_token => failed(
                format!("'{id}' is gated, and this HF_TOKEN has no access to it (status {status})"),
                "accept the terms on the model's page with the account of this token",
            ),
            401 | 403 if gated => failed(
                format!("'{id}' is gated: {endpoint} gives it only to accounts that accepted its terms"),
                "accept the terms on the model's page, create a token, and set HF_TOKEN",
            ),
            401 | 403 if !has_token => failed(
                format!(
                    "{endpoint} gives '{id}' to nobody without a token: it does not exist, is private, or is gated"
                ),
                "check the spelling, accept the license on its page, and set HF_TOKEN",
            ),
            401 => failed(
                format!("{endpoint} does not accept this HF_TOKEN (status 401), or has no '{id}'"),
                "create a new token and set HF_TOKEN, or unset it for public models; check the spelling",
            ),
            403 => failed(
                format!("{endpoint} refuses '{id}' to this HF_TOKEN (status 403)"),
                "accept the model's license on its page, or use a token that may read it",
            ),
            404 => self.missing(headers),
            429 => Err(later(format!("{endpoint} allows no more requests for now (status 429)"), headers)),
            500..=599 => Err(later(format!("{endpoint} has an error of its own (status {status})"), headers)),
            _ => failed(
                format!("{endpoint} refuses the request for '{id}' (status {status})"),
                "check the name and HF_ENDPOINT, or try again later",
            ),
        }
    }

    fn missing(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Self { endpoint, id, revision, .. } = self;
        let kind = if self.is_data { "data set" } else { "model" };
        let (cause, advice) = match (self.file, header(headers, "x-error-code")) {
            (Some(file), _) => (
                format!(
                    "{endpoint} lists the file {file} of '{id}' at revision '{revision}', but does not have it"
                ),
                "try again later, or choose another revision of it: org/name@revision",
            ),
            (None, Some("RevisionNotFound")) => (
                format!("{endpoint} has the {kind} '{id}', but not its revision '{revision}'"),
                "check the branch, tag or commit after the @",
            ),
            (None, _) if self.is_data => (
                format!("{endpoint} has no data set '{id}' at revision '{revision}'"),
                "check the spelling of org/name, or pass a folder or file of rows",
            ),
            (None, _) => (
                format!("{endpoint} has no model '{id}' at revision '{revision}'"),
                "check the spelling of org/name, or pass a local folder or file: --model /path/to/model",
            ),
        };
        Err(Refusal::Failed(Failure::unreachable(cause, advice)))
    }
}

fn later(mut why: String, headers: &HeaderMap) -> Refusal {
    let after = retry_after(headers);
    if let Some(after) = after.filter(|after| *after > LONGEST_WAIT) {
        why += &format!("; it asks to wait {} s", after.as_secs());
    }
    Refusal::Later { why, after }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3). A date is compared with the server's own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = header(headers, "retry-after")?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| jiff::fmt::rfc2822::parse(text).ok().map(|date| date.timestamp().as_second());
    let now = header(headers, "date").and_then(date).unwrap_or_else(|| jiff::Timestamp::now().as_second());
    // A date that has passed asks for no wait.
    Some(Duration::from_secs(u64::try_from(date(text)? - now).unwrap_or(0)))
}

/// Which part of a file an answer has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Size of the whole file.
    pub(super) total: Option<u64>,
}

impl ContentRange {
    /// Reads the header `Content-Range: bytes 10-19/100`, whose size may be `*`.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let (range, total) = header(headers, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = if total == "*" { None } else { Some(total.parse().ok()?) };
        let range = Self { first: first.parse().ok()?, last: last.parse().ok()?, total };
        (range.first <= range.last).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn refused(status: u16, pairs: &[(&'static str, &str)], asked: Asked<'_>) -> (String, String) {
        match asked.check(StatusCode::from_u16(status).unwrap(), &headers(pairs)).unwrap_err() {
            Refusal::Failed(failure) => (failure.cause, failure.advice),
            Refusal::Later { why, after } => (why, format!("{after:?}")),
        }
    }

    const ASKED: Asked<'static> = Asked {
        endpoint: "https://hub",
        id: "org/m",
        revision: "main",
        file: None,
        is_data: false,
        has_token: false,
    };

    #[test]
    fn every_status_has_its_own_sentence() {
        let token = Asked { has_token: true, ..ASKED };
        let file = Asked { file: Some("a.json"), ..ASKED };
        let data = Asked { is_data: true, ..ASKED };
        let gated = [("x-error-code", "GatedRepo")];
        let revision = [("x-error-code", "RevisionNotFound")];
        let cases: [(u16, &[(&'static str, &str)], Asked<'_>, &str); 14] = [
            (302, &[], ASKED, "redirects the request"),
            (401, &[], ASKED, "to nobody without a token"),
            (401, &[], token, "does not accept this HF_TOKEN"),
            (403, &[], token, "refuses 'org/m' to this HF_TOKEN (status 403)"),
            (403, &gated, ASKED, "only to accounts that accepted its terms"),
            (403, &gated, token, "is gated, and this HF_TOKEN has no access"),
            (404, &[], ASKED, "has no model 'org/m' at revision 'main'"),
            (404, &[], data, "has no data set 'org/m'"),
            (404, &[], file, "lists the file a.json of 'org/m' at revision 'main', but does not have it"),
            (404, &revision, ASKED, "has the model 'org/m', but not its revision 'main'"),
            (429, &[], ASKED, "allows no more requests for now (status 429)"),
            (500, &[], ASKED, "has an error of its own (status 500)"),
            (503, &[], ASKED, "has an error of its own (status 503)"),
            (451, &[], ASKED, "refuses the request for 'org/m' (status 451)"),
        ];
        for (status, pairs, asked, part) in cases {
            let (cause, _) = refused(status, pairs, asked);
            assert!(cause.contains(part), "{status}: {cause}");
        }
        assert_eq!(ASKED.check(StatusCode::OK, &HeaderMap::new()), Ok(()));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let after =
            |pairs: &[(&'static str, &str)]| retry_after(&headers(pairs)).map(|after| after.as_secs());
        assert_eq!(after(&[("retry-after", "7")]), Some(7));
        let date = ("date", "Sun, 06 Nov 1994 08:49:30 GMT");
        assert_eq!(after(&[date, ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(7));
        assert_eq!(after(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(0), "long ago");
        assert_eq!(after(&[("retry-after", "soon")]), None);
        assert_eq!(after(&[]), None);
        let (why, _) = refused(429, &[("retry-after", "3600")], ASKED);
        assert!(why.ends_with("it asks to wait 3600 s"), "{why}");
    }

    #[test]
    fn a_content_range_is_read_or_refused() {
        let range = |text: &str| ContentRange::of(&headers(&[("content-range", text)]));
        let expected = |first, last, total| Some(ContentRange { first, last, total });
        assert_eq!(range("bytes 10-19/100"), expected(10, 19, Some(100)));
        assert_eq!(range("bytes 10-19/*"), expected(10, 19, None));
        for wrong in
            ["bytes */100", "10-19/100", "bytes 19-10/100", "bytes 10-19/x", "bytes 10-19", "bytes -19/20"]
        {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }
}
