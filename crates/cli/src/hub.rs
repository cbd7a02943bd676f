//! The Hugging Face hub: what a repository holds, and its files, by plain HTTPS.
//!
//! Honours `HF_ENDPOINT`, `HF_TOKEN` (or the token file that `hf auth login` writes), `HF_HUB_OFFLINE`, `HF_HOME`,
//! `HF_HUB_CACHE`, the proxy variables, and `SSL_CERT_FILE` for networks with certificates of their own.
//!
//! The hub's own client, hf-hub 1.0.0, would bring 136 more crates, among them tokio, reqwest and a second crypto
//! library in C, which more than doubles what this tool adds to the library's build; two kinds of request are needed.

mod answer;
mod listing;
mod retry;
mod transfer;

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http;
use ureq::tls::{PemItem, RootCerts, TlsConfig};

use crate::cache;
use crate::failure::Failure;
use crate::session::Session;
use answer::{Asked, Refusal};
use listing::Unusable;
pub(crate) use listing::{RemoteFile, Repository, is_sha256};
use retry::Retries;
pub(crate) use transfer::CONTINUES;

/// An unreachable hub must not hold anyone up.
const CONNECT: Duration = Duration::from_secs(4);
/// A hub that has accepted the connection may take this long to answer, and as long between two pieces of a file.
const STALL: Duration = Duration::from_secs(30);
/// A connection to the hub.
pub(crate) struct Hub {
    pub(crate) endpoint: String,
    token: Option<String>,
    agent: ureq::Agent,
    /// True if it has answered at all in this run.
    answered: Cell<bool>,
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

    /// Checks that the hub answers; the error contains the reason if not.
    pub(crate) fn ping(&self) -> Result<(), String> {
        self.get(&format!("{}/api/models?limit=1", self.endpoint), None)
            .map(|_| ())
            .map_err(|e| e.to_string())
    }

    /// Returns the files of a model's repository at a branch, tag or commit.
    pub(crate) fn repository(
        &self,
        id: &str,
        revision: &str,
        session: &Session,
    ) -> Result<Repository, HubError> {
        self.list(self.asked(id, revision), session)
    }

    /// Returns the files of a data set at a branch, tag or commit, those in its folders among them.
    pub(crate) fn dataset(
        &self,
        id: &str,
        revision: &str,
        session: &Session,
    ) -> Result<Repository, HubError> {
        self.list(Asked { is_data: true, ..self.asked(id, revision) }, session)
    }

    fn list(&self, asked: Asked<'_>, session: &Session) -> Result<Repository, HubError> {
        let mut retries = Retries::default();
        let text = loop {
            let (why, after) = match self.list_once(asked) {
                Ok(text) => break text,
                Err(Refusal::Failed(failure)) => return Err(failure.into()),
                Err(Refusal::Later { why, after }) => (why, after),
            };
            // One that never answered is not there, and nobody should wait for it.
            let Some(wait) = retries.after(false, after).filter(|_| self.answered.get()) else {
                return Err(HubError::NotReached(why));
            };
            self.wait(wait, &why, session)?;
        };
        listing::parse(&text, asked.is_data).map_err(|unusable| match unusable {
            Unusable::NotAList => HubError::NotReached(format!(
                "{} answered something that is not a hub's answer",
                self.endpoint
            )),
            Unusable::NoSum { file, sum } => {
                let cause = format!(
                    "{} lists {file} of '{}' with the SHA-256 '{sum}', which is none",
                    self.endpoint, asked.id
                );
                let advice = "choose another revision or another hub (HF_ENDPOINT), or pass a local file";
                Failure::unreachable(cause, advice).into()
            }
        })
    }

    fn list_once(&self, asked: Asked<'_>) -> Result<String, Refusal> {
        let kind = if asked.is_data { "datasets" } else { "models" };
        let url = format!("{}/api/{kind}/{}/revision/{}?blobs=true", self.endpoint, asked.id, asked.revision);
        let later = |e: ureq::Error| Refusal::Later { why: self.described(&e), after: None };
        let mut answer = self.get(&url, None).map_err(later)?;
        asked.check(answer.status(), answer.headers())?;
        answer.body_mut().read_to_string().map_err(later)
    }

    fn asked<'a>(&'a self, id: &'a str, revision: &'a str) -> Asked<'a> {
        let name = id.strip_prefix("datasets/");
        Asked {
            endpoint: &self.endpoint,
            id: name.unwrap_or(id),
            revision,
            file: None,
            is_data: name.is_some(),
            has_token: self.token.is_some(),
        }
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

    /// A failed request as a sentence.
    fn described(&self, error: &ureq::Error) -> String {
        match error {
            ureq::Error::TooManyRedirects => {
                format!("{} redirects in a circle; check HF_ENDPOINT and the proxy", self.endpoint)
            }
            ureq::Error::Protocol(protocol) if protocol.to_string().contains("location header") => {
                format!(
                    "{} redirects without saying where to; check HF_ENDPOINT and the proxy",
                    self.endpoint
                )
            }
            other => format!("{}: {other}", self.endpoint),
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
