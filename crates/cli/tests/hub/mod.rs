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
    /// With this status and these header lines.
    Refuse(u16, String),
    /// Without a length, until the client goes away.
    Endless,
    /// As a part of the file, with this `Content-Range` and body.
    Part(Option<String>, Vec<u8>),
}

#[derive(Default)]
struct State {
    /// One for each request; the last one stays.
    answers: HashMap<String, Vec<Answer>>,
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
        self.answer_in_turn(name, vec![answer]);
    }

    /// From now on answers requests for `name` in these ways, one after the other, and then always in the last.
    pub(crate) fn answer_in_turn(&self, name: &str, answers: Vec<Answer>) {
        self.state.lock().unwrap().answers.insert(name.to_owned(), answers);
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

fn refuse(out: &mut TcpStream, status: u16, headers: &str) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 {status} No\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n")
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
        match state.answers.get_mut(&name) {
            Some(answers) if answers.len() > 1 => answers.remove(0),
            Some(answers) => answers[0].clone(),
            None => Answer::Whole,
        }
    };
    let mut out = stream;
    let Some(mut bytes) = routes.get(&path).cloned() else {
        return out.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    match &mode {
        Answer::Status(status) => return refuse(&mut out, *status, ""),
        Answer::Refuse(status, headers) => return refuse(&mut out, *status, headers),
        Answer::Endless => {
            out.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
            loop {
                out.write_all(&[7; 1_000])?;
            }
        }
        Answer::Part(range, body) => {
            let range =
                range.as_ref().map_or_else(String::new, |range| format!("content-range: {range}\r\n"));
            let length = body.len();
            write!(out, "HTTP/1.1 206 Part\r\n{range}content-length: {length}\r\nconnection: close\r\n\r\n")?;
            return out.write_all(body);
        }
        _ => {}
    }
    if let Answer::Other(other) = &mode {
        bytes.clone_from(other);
    }
    let from: usize =
        range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse().ok()).unwrap_or(0);
    let status = match from {
        0 => "200 OK".to_owned(),
        _ => {
            format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len())
        }
    };
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
