//! A hub with one repository, on this machine.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// How the hub answers a request for a file, by the last part of its path.
#[derive(Clone)]
pub(crate) enum Answer {
    /// As it should.
    Whole,
    /// It breaks off after so many bytes.
    BreakAfter(usize),
    /// Slowly.
    Drip,
    /// Other bytes.
    Other(Vec<u8>),
    /// With this status.
    Status(u16),
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Answer>,
    /// Requests for files: name and range.
    requests: Vec<(String, String)>,
}

/// The hub; its threads end with the test's process.
pub(crate) struct FakeHub {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

impl FakeHub {
    pub(crate) fn serve(id: &str, files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let mut routes: HashMap<String, Vec<u8>> = HashMap::new();
        routes.insert(format!("/api/models/{id}/revision/main"), listing(files).into_bytes());
        routes.insert(format!("/api/datasets/{id}/revision/main"), listing(files).into_bytes());
        for (name, bytes) in files {
            routes.insert(format!("/{id}/resolve/c0ffee/{name}"), bytes.to_vec());
            routes.insert(format!("/datasets/{id}/resolve/c0ffee/{name}"), bytes.to_vec());
        }
        let (routes, shared) = (Arc::new(routes), state.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (routes, state) = (routes.clone(), shared.clone());
                // A client that goes away in the middle is what some tests are about.
                std::thread::spawn(move || drop(answer(stream, &routes, &state)));
            }
        });
        Self { url, state }
    }

    /// From now on answers requests for `name` in this way.
    pub(crate) fn answer(&self, name: &str, answer: Answer) {
        self.state.lock().unwrap().answers.insert(name.to_owned(), answer);
    }

    /// How often a file was asked for.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.ranges(name).len()
    }

    /// The range of each request for a file; empty for all of it.
    pub(crate) fn ranges(&self, name: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|(asked, _)| asked == name).map(|(_, range)| range.clone()).collect()
    }

    /// Waits until a file is asked for.
    pub(crate) fn wait_for(&self, name: &str) {
        for _ in 0..600 {
            if self.asked(name) > 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{name} was not asked for in 30 s");
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// As the hub lists a repository; it knows the sums of large files only.
fn listing(files: &[(&str, &[u8])]) -> String {
    let siblings: Vec<serde_json::Value> = files
        .iter()
        .map(|(name, bytes)| match name.ends_with(".json") {
            true => serde_json::json!({"rfilename": name, "size": bytes.len()}),
            false => {
                serde_json::json!({"rfilename": name, "size": bytes.len(), "lfs": {"sha256": sha256(bytes)}})
            }
        })
        .collect();
    serde_json::json!({"sha": "c0ffee", "siblings": siblings}).to_string()
}

fn answer(stream: TcpStream, routes: &HashMap<String, Vec<u8>>, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    let mut range = String::new();
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: ") {
            range = value.to_owned();
        }
    }
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    let mode = {
        let mut state = state.lock().unwrap();
        state.requests.push((name.clone(), range.clone()));
        state.answers.get(&name).cloned().unwrap_or(Answer::Whole)
    };
    let mut out = stream;
    let Some(mut bytes) = routes.get(&path).cloned() else {
        return out.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    if let Answer::Status(status) = mode {
        return write!(out, "HTTP/1.1 {status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    if let Answer::Other(other) = &mode {
        bytes.clone_from(other);
    }
    let from: usize =
        range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse().ok()).unwrap_or(0);
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let body = &bytes[from..];
    write!(out, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len())?;
    match mode {
        Answer::BreakAfter(count) => out.write_all(&body[..count.min(body.len())]),
        Answer::Drip => body.chunks(100).try_for_each(|piece| {
            std::thread::sleep(Duration::from_millis(50));
            out.write_all(piece)?;
            out.flush()
        }),
        _ => out.write_all(body),
    }
}
