//! The example connectors pass the conformance suites.

#![allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]

#[path = "../examples/file_sink.rs"]
#[allow(unreachable_pub, reason = "an example is a crate where it is used as one")]
mod file_sink;
#[path = "../examples/http_sink.rs"]
#[allow(unreachable_pub, reason = "an example is a crate where it is used as one")]
mod http_sink;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use trunkline_connector::SinkConnector;
use trunkline_connector::conformance::{SinkFixture, check_idempotent_sink, check_options, check_two_phase_sink};

/// Records with their ids, by destination.
type Stored = Mutex<BTreeMap<String, Vec<(String, Value)>>>;

/// Numbers by partition.
type Rows = BTreeMap<i32, Vec<i64>>;

fn row(value: &Value) -> (i32, i64) {
    (value["partition"].as_i64().unwrap() as i32, value["number"].as_i64().unwrap())
}

fn bad_values() -> Vec<Option<Vec<u8>>> {
    vec![Some(b"not json".to_vec()), Some(b"{".to_vec())]
}

struct Files(tempfile::TempDir);

impl Files {
    fn names(&self, destination: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.0.path().join(destination)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

fn is_hidden(path: &std::path::Path) -> bool {
    path.file_name().unwrap().to_string_lossy().starts_with('.')
}

impl SinkFixture for Files {
    fn connector(&self) -> Box<dyn SinkConnector> {
        Box::new(file_sink::FileConnector)
    }

    fn options(&self, destination: &str) -> String {
        format!("directory = {:?}", self.0.path().join(destination))
    }

    fn bad_options(&self) -> Vec<&'static str> {
        vec!["directory = 7", "directori = \"/x\""]
    }

    fn bad_values(&self) -> Vec<Option<Vec<u8>>> {
        bad_values()
    }

    fn rows(&self, destination: &str) -> Rows {
        let visible = self.names(destination).into_iter().filter(|path| !is_hidden(path));
        let read = |path| -> Vec<(i32, i64)> {
            let text: String = std::fs::read_to_string(path).unwrap();
            text.lines().map(|line| row(&serde_json::from_str(line).unwrap())).collect()
        };
        let mut files: Vec<Vec<(i32, i64)>> = visible.map(read).collect();
        // The order of files is that of their first records.
        files.sort_by_key(|rows| rows.first().copied());
        let mut rows = Rows::new();
        for (partition, number) in files.into_iter().flatten() {
            rows.entry(partition).or_default().push(number);
        }
        rows
    }

    fn leftovers(&self, destination: &str) -> Vec<String> {
        let hidden = self.names(destination).into_iter().filter(|path| is_hidden(path));
        hidden.map(|path| path.display().to_string()).collect()
    }
}

/// An endpoint that keeps each record once, by its id; destinations are paths of the URL.
struct Endpoint {
    address: String,
    records: Arc<Stored>,
}

impl Endpoint {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let records = Arc::new(Stored::default());
        let shared = Arc::clone(&records);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream.unwrap(), &shared));
            }
        });
        Self { address, records }
    }
}

/// Answers the requests of one connection until the client closes it.
fn serve(stream: TcpStream, records: &Stored) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        let destination = request.split(' ').nth(1).unwrap().trim_matches('/').to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            if header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let mut answer = String::new();
        for line in String::from_utf8(body).unwrap().lines() {
            let posted: Value = serde_json::from_str(line).unwrap();
            let id = posted["id"].as_str().unwrap().to_owned();
            match serde_json::from_str::<Value>(posted["value"].as_str().unwrap()) {
                Ok(value) => {
                    let mut records = records.lock().unwrap();
                    let known = records.entry(destination.clone()).or_default();
                    if known.iter().all(|(other, _)| *other != id) {
                        known.push((id, value));
                    }
                }
                Err(error) => {
                    answer.push_str(&format!("{}\n", serde_json::json!({ "id": id, "error": error.to_string() })))
                }
            }
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(answer.as_bytes())).unwrap();
    }
}

impl SinkFixture for Endpoint {
    fn connector(&self) -> Box<dyn SinkConnector> {
        Box::new(http_sink::HttpConnector)
    }

    fn options(&self, destination: &str) -> String {
        format!("url = \"http://{}/{destination}\"", self.address)
    }

    fn bad_options(&self) -> Vec<&'static str> {
        vec!["url = 7", "timeout = \"5 parsecs\"", "method = \"PUT\""]
    }

    fn bad_values(&self) -> Vec<Option<Vec<u8>>> {
        bad_values()
    }

    fn rows(&self, destination: &str) -> Rows {
        let mut rows = Rows::new();
        for (_, value) in self.records.lock().unwrap().get(destination).into_iter().flatten() {
            let (partition, number) = row(value);
            rows.entry(partition).or_default().push(number);
        }
        rows
    }
}

#[test]
fn the_file_sink_passes_the_two_phase_suite() {
    check_options(file_sink::FileConnector.options());
    check_two_phase_sink(&Files(tempfile::tempdir().unwrap()));
}

#[test]
fn the_http_sink_passes_the_idempotent_suite() {
    // As the binary does at its start.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    check_options(http_sink::HttpConnector.options());
    check_idempotent_sink(&Endpoint::start());
}
