//! The Hugging Face hub: what a repository holds, and its files, by plain HTTPS.
//!
//! Honours `HF_ENDPOINT`, `HF_TOKEN` (or the token file that `hf auth login` writes), `HF_HUB_OFFLINE`, `HF_HOME`,
//! `HF_HUB_CACHE`, the proxy variables, and `SSL_CERT_FILE` for networks with certificates of their own.
//!
//! The hub's own client, hf-hub 1.0.0, would bring 136 more crates, among them tokio, reqwest and a second crypto
//! library in C, which more than doubles what this tool adds to the library's build; two kinds of request are needed.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http;
use ureq::tls::{PemItem, RootCerts, TlsConfig};

use crate::cache;
use crate::download::{Sink, Stopped, disk, verify};
use crate::failure::Failure;
use crate::model_name::is_gguf;
use crate::session::Session;

/// An unreachable hub must not hold anyone up.
const CONNECT: Duration = Duration::from_secs(4);
/// A hub that has accepted the connection may take this long to answer, and as long between two pieces of a file.
const STALL: Duration = Duration::from_secs(30);
/// How often a file is asked for, if downloads break off.
const ATTEMPTS: usize = 4;

/// The folder of a model's further chat templates.
pub(crate) const TEMPLATES: &str = "additional_chat_templates/";

/// A connection to the hub.
pub(crate) struct Hub {
    pub(crate) endpoint: String,
    token: Option<String>,
    agent: ureq::Agent,
    /// Whether it has answered at all in this run.
    answered: Cell<bool>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    pub(crate) size: Option<u64>,
    /// Known for the large files only.
    pub(crate) sha256: Option<String>,
}

/// A repository at one commit.
#[derive(Debug)]
pub(crate) struct Repository {
    pub(crate) commit: String,
    pub(crate) files: Vec<RemoteFile>,
}

/// Why the hub gave nothing.
#[derive(Debug)]
pub(crate) enum HubError {
    /// Not reached, or switched off; another route may serve.
    NotReached(String),
    /// Reached, and refused or failed.
    Failed(Failure),
}

impl From<Failure> for HubError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Hub {
    /// The hub as the environment describes it.
    pub(crate) fn from_env() -> Result<Self, HubError> {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if cache::offline() || cache::flag("HF_HUB_OFFLINE") {
            return Err(HubError::NotReached(
                "the hub is switched off (HF_HUB_OFFLINE or METAL_CANDLE_OFFLINE)".to_owned(),
            ));
        }
        let config = ureq::Agent::config_builder()
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(STALL))
            .timeout_per_read(Some(STALL))
            .http_status_as_error(false)
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .user_agent(concat!("metal-candle/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(root_certificates()?).build())
            .build();
        Ok(Self { endpoint, token: token(), agent: config.into(), answered: Cell::new(false) })
    }

    /// Whether anything answers there; the error says why not.
    pub(crate) fn ping(&self) -> Result<(), String> {
        self.get(&format!("{}/api/models?limit=1", self.endpoint), None)
            .map(|_| ())
            .map_err(|e| e.to_string())
    }

    /// What a repository holds at a branch, tag or commit.
    pub(crate) fn repository(&self, id: &str, revision: &str) -> Result<Repository, HubError> {
        let url = format!("{}/api/models/{id}/revision/{revision}?blobs=true", self.endpoint);
        let mut answer = self.get(&url, None).map_err(|e| self.not_reached(&e))?;
        self.check(answer.status(), id, revision)?;
        let text = answer.body_mut().read_to_string().map_err(|e| self.not_reached(&e))?;
        parse_repository(&text).ok_or_else(|| {
            HubError::NotReached(format!("{} answered something that is not a hub's answer", self.endpoint))
        })
    }

    /// Returns the files of a data set at a branch, tag or commit, those in its folders among them.
    pub(crate) fn dataset(&self, id: &str, revision: &str) -> Result<Repository, HubError> {
        let url = format!("{}/api/datasets/{id}/revision/{revision}?blobs=true", self.endpoint);
        let mut answer = self.get(&url, None).map_err(|e| self.not_reached(&e))?;
        if answer.status() == 404 {
            let cause = format!("{} has no data set '{id}' at revision '{revision}'", self.endpoint);
            let advice = "check the spelling of org/name, or pass a folder or file of rows";
            return Err(Failure::unreachable(cause, advice).into());
        }
        self.check(answer.status(), id, revision)?;
        let text = answer.body_mut().read_to_string().map_err(|e| self.not_reached(&e))?;
        parse_listing(&text, true).ok_or_else(|| {
            HubError::NotReached(format!("{} answered something that is not a hub's answer", self.endpoint))
        })
    }

    /// Fetches one file to `part`, continuing what an earlier attempt left there, checks size and sum, and tells the
    /// sum. The caller gives the finished file its name.
    pub(crate) fn fetch(
        &self,
        id: &str,
        commit: &str,
        file: &RemoteFile,
        part: &std::path::Path,
        session: &Session,
    ) -> Result<String, HubError> {
        let url = format!("{}/{id}/resolve/{commit}/{}", self.endpoint, file.name);
        let mut sink = Sink::open(part, session).map_err(|e| disk(&part.display().to_string(), &e))?;
        let mut attempt = 1;
        loop {
            match self.fetch_once(&url, (id, commit), file, &mut sink) {
                Ok(()) => break,
                Err(Stopped::Fatal(failure)) => return Err(failure.into()),
                // One that never answered is not there: another route may be, and nobody should wait for it.
                Err(Stopped::Source(e)) if attempt == ATTEMPTS || !self.answered.get() => {
                    if sink.written() == 0 {
                        drop(metal_candle::durable::remove_file(part));
                    }
                    return Err(self.not_reached(&e));
                }
                Err(Stopped::Source(e)) => {
                    tracing::debug!("{url}: {e}; attempt {attempt} of {ATTEMPTS}");
                    attempt += 1;
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
        let size = sink.written();
        let sum = sink.finish().map_err(|e| disk(&part.display().to_string(), &e))?;
        let checked = verify(&format!("{id}/{}", file.name), (size, &sum), file.size, file.sha256.as_deref());
        if checked.is_err() {
            // A wrong file must not be continued by the next attempt; if it cannot be removed, its sum fails again.
            drop(metal_candle::durable::remove_file(part));
        }
        checked?;
        Ok(sum)
    }

    fn fetch_once(
        &self,
        url: &str,
        (id, commit): (&str, &str),
        file: &RemoteFile,
        sink: &mut Sink<'_>,
    ) -> Result<(), Stopped> {
        if file.size.is_some_and(|s| s == sink.written()) {
            return Ok(());
        }
        if file.size.is_some_and(|s| s < sink.written()) {
            sink.restart().map_err(|e| Stopped::Fatal(disk(&file.name, &e)))?;
        }
        let from = (sink.written() > 0).then(|| sink.written());
        let answer = self.get(url, from).map_err(|e| Stopped::Source(e.into_io()))?;
        let continued = answer.status() == http::StatusCode::PARTIAL_CONTENT;
        if !continued {
            match self.check(answer.status(), id, commit) {
                Err(HubError::Failed(failure)) => return Err(Stopped::Fatal(failure)),
                Err(HubError::NotReached(why)) => return Err(Stopped::Source(std::io::Error::other(why))),
                Ok(()) => sink.restart().map_err(|e| Stopped::Fatal(disk(&file.name, &e)))?,
            }
        }
        let length = answer.body().content_length().unwrap_or(0);
        let total = file.size.unwrap_or(sink.written() + length);
        sink.fill(answer.into_body().into_reader(), &file.name, total)
    }

    fn get(&self, url: &str, from: Option<u64>) -> Result<http::Response<ureq::Body>, ureq::Error> {
        tracing::debug!("GET {url}");
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        let answer = request.call()?;
        self.answered.set(true);
        Ok(answer)
    }

    fn not_reached(&self, error: &dyn std::fmt::Display) -> HubError {
        HubError::NotReached(format!("{}: {error}", self.endpoint))
    }

    /// The hub answers 401 both for repositories that do not exist and for those that need a token.
    fn check(&self, status: http::StatusCode, id: &str, revision: &str) -> Result<(), HubError> {
        let endpoint = &self.endpoint;
        match status.as_u16() {
            200..=299 => Ok(()),
            404 => Err(HubError::Failed(Failure::unreachable(
                format!("{endpoint} has no model '{id}' at revision '{revision}'"),
                "check the spelling of org/name, or pass a local folder or file: --model /path/to/model",
            ))),
            401 | 403 if self.token.is_none() => Err(HubError::Failed(Failure::unreachable(
                format!(
                    "{endpoint} gives '{id}' to nobody without a token: it does not exist, is private, or is gated"
                ),
                "check the spelling, accept the licence on its page, and set HF_TOKEN",
            ))),
            401 | 403 => Err(HubError::Failed(Failure::unreachable(
                format!("{endpoint} refuses '{id}' to this HF_TOKEN (status {status})"),
                "accept the model's licence on its page, or use a token that may read it",
            ))),
            _ => Err(HubError::NotReached(format!("{endpoint} answered with status {status}"))),
        }
    }
}

/// Where Python's tools keep what they fetched from the hub.
pub(crate) fn python_cache() -> Option<PathBuf> {
    variable("HF_HUB_CACHE").map(PathBuf::from).or_else(|| home().map(|home| home.join("hub")))
}

/// `HF_HOME`, or its default.
fn home() -> Option<PathBuf> {
    variable("HF_HOME").map(PathBuf::from).or_else(|| {
        let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
        // Python's tools use ~/.cache on every system, not the system's own cache folder.
        cache.or_else(|| dirs::home_dir().map(|h| h.join(".cache"))).map(|c| c.join("huggingface"))
    })
}

fn token() -> Option<String> {
    variable("HF_TOKEN").or_else(|| {
        let path =
            variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home().map(|h| h.join("token")))?;
        let token = std::fs::read_to_string(path).ok()?;
        Some(token.trim().to_owned()).filter(|t| !t.is_empty())
    })
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
}

/// Mozilla's roots, which need nothing on the machine, or those of `SSL_CERT_FILE`.
fn root_certificates() -> Result<RootCerts, HubError> {
    let Some(path) = variable("SSL_CERT_FILE") else { return Ok(RootCerts::WebPki) };
    let advice = "correct SSL_CERT_FILE or unset it";
    let pem =
        std::fs::read(&path).map_err(|e| Failure::input(format!("SSL_CERT_FILE {path}: {e}"), advice))?;
    let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Failure::input(format!("SSL_CERT_FILE {path}: no certificate in it"), advice).into());
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// Files in the top folder, further chat templates, and GGUF files in any folder, with names that are safe to create.
fn parse_repository(text: &str) -> Option<Repository> {
    parse_listing(text, false)
}

/// Files with names that are safe to create, with `nested` also those in folders.
fn parse_listing(text: &str, nested: bool) -> Option<Repository> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let commit =
        json.get("sha")?.as_str().filter(|s| s.chars().all(|c| c.is_ascii_alphanumeric()))?.to_owned();
    let files = json.get("siblings")?.as_array()?.iter().filter_map(|file| {
        let name = file.get("rfilename")?.as_str()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        let sound = |part: &str| !part.is_empty() && part.chars().all(plain) && !part.starts_with('.');
        let inside = name.strip_prefix(TEMPLATES).unwrap_or(name);
        let wanted = nested || !inside.contains('/') || is_gguf(name);
        (wanted && inside.split('/').all(sound)).then(|| RemoteFile {
            name: name.to_owned(),
            size: file.get("size").and_then(serde_json::Value::as_u64),
            sha256: file.pointer("/lfs/sha256").and_then(|s| s.as_str()).map(str::to_ascii_lowercase),
        })
    });
    Some(Repository { files: files.collect(), commit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_lists_safe_top_level_files() {
        let text = r#"{"sha": "abc123", "siblings": [
            {"rfilename": "config.json", "size": 10},
            {"rfilename": "onnx/model.onnx", "size": 10},
            {"rfilename": "../../etc/passwd"},
            {"rfilename": "../x.gguf"},
            {"rfilename": "Q8_0/x.gguf", "size": 30},
            {"rfilename": ".gitattributes"},
            {"rfilename": "additional_chat_templates/../x.jinja"},
            {"rfilename": "additional_chat_templates/.jinja"},
            {"rfilename": "additional_chat_templates/tool_use.jinja", "size": 5},
            {"rfilename": "model.safetensors", "size": 20, "lfs": {"sha256": "FF00", "size": 20}}]}"#;
        let repository = parse_repository(text).unwrap();
        assert_eq!(repository.commit, "abc123");
        let inner = RemoteFile { name: "Q8_0/x.gguf".into(), size: Some(30), sha256: None };
        let config = RemoteFile { name: "config.json".into(), size: Some(10), sha256: None };
        let model =
            RemoteFile { name: "model.safetensors".into(), size: Some(20), sha256: Some("ff00".into()) };
        let name = "additional_chat_templates/tool_use.jinja".to_owned();
        let template = RemoteFile { name, size: Some(5), sha256: None };
        assert_eq!(repository.files, [config, inner, template, model]);
        assert!(parse_repository("<html>").is_none());
        assert!(parse_repository(r#"{"sha": "../x", "siblings": []}"#).is_none());
    }
}
