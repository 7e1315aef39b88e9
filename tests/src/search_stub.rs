//! A search server in this process that has too little room: it answers a share of the documents
//! with 429.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::Random;

/// Answers `_bulk` requests as OpenSearch does, over HTTP without compression. It ends with the
/// process.
pub struct SearchStub {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    /// The share of documents that are answered with 429, in percent.
    busy_percent: u64,
    /// Number of documents that were accepted.
    accepted: AtomicU64,
    requests: AtomicU64,
    /// `None`: documents are discarded.
    indices: Option<Mutex<Indices>>,
}

/// Documents by index and id.
#[derive(Default)]
struct Indices {
    documents: BTreeMap<(String, String), Stored>,
    /// The index, and the write.
    regressions: Vec<(String, String)>,
}

struct Stored {
    version: Option<u64>,
    document: Value,
}

/// The answers for a document that was written, that is there in a newer version, and that found
/// the server busy.
const WRITTEN: &str = r#"{"index":{"status":201}}"#;
const CONFLICT: &str =
    r#"{"index":{"status":409,"error":{"type":"version_conflict_engine_exception","reason":"version conflict"}}}"#;
const BUSY: &str =
    r#"{"index":{"status":429,"error":{"type":"rejected_execution_exception","reason":"the queue is full"}}}"#;

impl SearchStub {
    /// A server that discards what it accepts.
    pub fn discarding(busy_percent: u64) -> Self {
        Self::start(busy_percent, None)
    }

    /// A server that keeps documents, and compares external versions.
    pub fn storing(busy_percent: u64) -> Self {
        Self::start(busy_percent, Some(Mutex::default()))
    }

    fn start(busy_percent: u64, indices: Option<Mutex<Indices>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Shared { busy_percent, accepted: AtomicU64::new(0), requests: AtomicU64::new(0), indices };
        let shared = Arc::new(shared);
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for (seed, stream) in (1..).zip(listener.incoming()) {
                let (shared, stream) = (Arc::clone(&accepting), stream.unwrap());
                std::thread::spawn(move || serve(stream, &shared, Random::new(seed)));
            }
        });
        Self { address, shared }
    }

    /// Its address for the option `url`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Number of documents that it accepted; repeated ones count again.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Number of `_bulk` requests.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// The field `n` of the documents of an index, by id.
    pub fn numbers(&self, index: &str) -> BTreeMap<String, i64> {
        let indices = self.indices();
        let of_index = indices.documents.iter().filter(|((name, _), _)| name == index);
        of_index.map(|((_, id), stored)| (id.clone(), stored.document["n"].as_i64().unwrap())).collect()
    }

    /// Writes to an index that replaced a document by one with a lower `n`.
    pub fn regressions(&self, index: &str) -> Vec<String> {
        let indices = self.indices();
        indices.regressions.iter().filter(|(name, _)| name == index).map(|(_, write)| write.clone()).collect()
    }

    fn indices(&self) -> std::sync::MutexGuard<'_, Indices> {
        self.shared.indices.as_ref().expect("a server that stores").lock().unwrap()
    }
}

/// Answers the requests of a connection until the client closes it.
fn serve(stream: TcpStream, shared: &Shared, mut random: Random) {
    // As servers do: otherwise a short answer waits for the acknowledgement of its head.
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        // A client that ends may reset its connections.
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let is_bulk = line.starts_with("POST /_bulk");
        let mut length = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).unwrap_or(0) == 0 {
                return;
            }
            match header.trim().to_ascii_lowercase().split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        body.resize(length, 0);
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let answer = if is_bulk {
            shared.bulk(&body, &mut random)
        } else {
            "{\"version\":{\"distribution\":\"opensearch\",\"number\":\"2.19.1\"}}".to_owned()
        };
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", answer.len());
        let stream = reader.get_mut();
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(answer.as_bytes())).is_err() {
            return;
        }
    }
}

impl Shared {
    fn bulk(&self, body: &[u8], random: &mut Random) -> String {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut is_busy = || self.busy_percent > 0 && random.below(100) < self.busy_percent;
        let items: Vec<&str> = match &self.indices {
            // An action line and a document each.
            None => {
                let count = body.iter().filter(|byte| **byte == b'\n').count() / 2;
                (0..count).map(|_| if is_busy() { BUSY } else { WRITTEN }).collect()
            }
            Some(indices) => {
                let mut indices = indices.lock().unwrap();
                let mut lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                std::iter::from_fn(|| {
                    let action: Value = serde_json::from_slice(lines.next()?).unwrap();
                    let document = serde_json::from_slice(lines.next().unwrap()).unwrap();
                    Some(if is_busy() { BUSY } else { indices.write(&action["index"], document) })
                })
                .collect()
            }
        };
        let busy = items.iter().filter(|item| **item == BUSY).count();
        self.accepted.fetch_add((items.len() - busy) as u64, Ordering::Relaxed);
        format!("{{\"errors\":{},\"items\":[{}]}}", busy > 0, items.join(","))
    }
}

impl Indices {
    fn write(&mut self, action: &Value, document: Value) -> &'static str {
        let text = |name: &str| action[name].as_str().unwrap().to_owned();
        let (place, version) = ((text("_index"), text("_id")), action["version"].as_u64());
        if let Some(stored) = self.documents.get(&place) {
            if version.is_some_and(|version| stored.version.is_some_and(|known| version <= known)) {
                return CONFLICT;
            }
            if document["n"].as_i64() < stored.document["n"].as_i64() {
                let write = format!("{}: {} after {}", place.1, document["n"], stored.document["n"]);
                self.regressions.push((place.0.clone(), write));
            }
        }
        self.documents.insert(place, Stored { version, document });
        WRITTEN
    }
}
