//! A sink on the stand-in for Redshift, records, and a proxy that breaks connections.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::datatypes::{DataType, Field, Fields, Schema as ArrowSchema};
use serde_json::Value as Json;
use tempfile::TempDir;
use trunkline_connector::config::{Report, Section};
use trunkline_connector::conformance::read_toml;
use trunkline_connector::{
    Batch, ErasedTwoPhaseSink, MemoryBudget, PreflightIssue, Rejections, Result, Schema, SchemaId, SchemaLookup, Sink,
    SinkConnector, SinkContext, SinkSpec, TopicPartition, headers,
};
use trunkline_redshift::RedshiftConnector;
use trunkline_tests::{Redshift, RowChange, S3, Skip};

/// A schema of the stand-in, and sinks that load it.
pub(crate) struct Bench {
    pub(crate) redshift: &'static Redshift,
    /// The schema's name, also that of the bucket.
    pub(crate) name: &'static str,
    schemas: Arc<Schemas>,
    runtime: tokio::runtime::Runtime,
    scratch: TempDir,
}

#[derive(Default)]
struct Schemas(Mutex<HashMap<SchemaId, Arc<Schema>>>);

impl SchemaLookup for Schemas {
    fn schema(&self, id: SchemaId) -> Result<Option<Arc<Schema>>> {
        Ok(self.0.lock().unwrap().get(&id).cloned())
    }
}

impl Bench {
    pub(crate) fn new(name: &'static str) -> Result<Self, Skip> {
        let (s3, redshift) = (S3::shared()?, Redshift::shared()?);
        s3.bucket(name);
        redshift.run(&format!("CREATE SCHEMA \"{name}\""));
        Ok(Self {
            redshift,
            name,
            schemas: Arc::default(),
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
            scratch: tempfile::tempdir().unwrap(),
        })
    }

    /// A sink, as a task that just started has it.
    pub(crate) fn open(&self, options: &str) -> Box<dyn ErasedTwoPhaseSink> {
        self.open_at(self.redshift.port(), options).unwrap()
    }

    /// A sink that reaches the stand-in at this port.
    pub(crate) fn open_at(&self, port: u16, options: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        self.open_with(&format!("{}{options}", self.redshift.sink_options(port, self.name, self.name)))
    }

    /// A sink whose options have `to` in place of `from`.
    pub(crate) fn open_changed(&self, from: &str, to: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        self.open_changed_at(self.redshift.port(), from, to)
    }

    /// The same, at this port.
    pub(crate) fn open_changed_at(&self, port: u16, from: &str, to: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        let options = self.redshift.sink_options(port, self.name, self.name);
        assert!(options.contains(from));
        self.open_with(&options.replace(from, to))
    }

    /// What `validate --check` reports with `to` in place of `from`.
    pub(crate) fn preflight(&self, from: &str, to: &str) -> Vec<PreflightIssue> {
        let options = self.redshift.sink_options(self.redshift.port(), self.name, self.name);
        assert!(options.contains(from));
        spec(&options.replace(from, to)).preflight("pipeline.check", self.runtime.handle())
    }

    fn open_with(&self, toml: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        let context = SinkContext {
            name: format!("{}.dw", self.name),
            replay: None,
            budget: MemoryBudget::new(1 << 30),
            runtime: self.runtime.handle().clone(),
            scratch: tempfile::tempdir_in(self.scratch.path()).unwrap().keep(),
            schemas: self.schemas.clone(),
        };
        match spec(toml).open(context)? {
            Sink::TwoPhase(sink) => Ok(sink),
            Sink::Idempotent(_) => panic!("the sink is not a two-phase sink"),
        }
    }

    /// Publishes the schema of change events with rows of these fields.
    pub(crate) fn publish(&self, fields: Vec<Field>, key: &str) -> String {
        let row = DataType::Struct(Fields::from(fields));
        let text = |name: &str| Field::new(name, DataType::Utf8, false);
        let envelope = vec![Field::new("before", row.clone(), true), Field::new("after", row, true), text("op")];
        let metadata = HashMap::from([("primary_key".to_owned(), key.to_owned())]);
        let schema = Schema::new(Arc::new(ArrowSchema::new_with_metadata(envelope, metadata))).unwrap();
        let id = schema.id();
        self.schemas.0.lock().unwrap().insert(id, Arc::new(schema));
        id.to_string()
    }

    /// Number of files in the stage.
    pub(crate) fn staged_files(&self) -> usize {
        let folder = S3::shared().unwrap().bucket(self.name).join("stage").join("pipeline.check");
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }

    /// The rows of a query in the schema.
    pub(crate) fn rows(&self, sql: &str) -> Vec<String> {
        self.redshift.run(&sql.replace("$S", self.name))
    }
}

fn spec(toml: &str) -> Box<dyn SinkSpec> {
    let table = read_toml(toml);
    let report = Report::default();
    let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
    let spec = RedshiftConnector.configure(&section, &["table"]);
    spec.unwrap_or_else(|| panic!("{:?}", report.into_problems()))
}

/// Records of partition 0 of the topic `changes`.
#[derive(Default)]
pub(crate) struct Records {
    pub(crate) batch: Batch,
    next: i64,
}

impl Records {
    pub(crate) fn from_offset(next: i64) -> Self {
        Self { next, ..Self::default() }
    }

    pub(crate) fn push(&mut self, schema: Option<&str>, key: Option<&str>, value: Option<&str>) -> &mut Self {
        let topic = self.batch.topic_index("changes");
        let mut record = self.batch.record();
        record.timestamp(1_431_857_103_000 + self.next).read_from(topic, 0, self.next);
        self.next += 1;
        if let Some(key) = key {
            record.key(key.as_bytes());
        }
        if let Some(value) = value {
            record.value(value.as_bytes());
        }
        if let Some(schema) = schema {
            record.header(headers::SCHEMA, Some(schema.as_bytes()));
        }
        record.finish();
        self
    }

    /// A value of a source whose epoch is known.
    pub(crate) fn push_with(&mut self, schema: &str, value: &str, epoch: u64) -> &mut Self {
        let topic = self.batch.topic_index("changes");
        let mut record = self.batch.record();
        record.timestamp(1_431_857_103_000 + self.next).read_from(topic, 0, self.next);
        self.next += 1;
        record.value(value.as_bytes()).header(headers::SCHEMA, Some(schema.as_bytes()));
        record.header(headers::EPOCH, Some(epoch.to_string().as_bytes()));
        record.finish();
        self
    }

    /// A change of a history.
    pub(crate) fn change(&mut self, schema: &str, change: &RowChange) -> &mut Self {
        self.push_with(schema, &change.value(), change.epoch)
    }

    /// A change event.
    pub(crate) fn event(&mut self, schema: &str, op: &str, before: &str, after: &str) -> &mut Self {
        let time = self.next;
        let value =
            format!(r#"{{"before":{before},"after":{after},"source":{{"ts_ms":{time}000}},"op":"{op}","ts_ms":1}}"#);
        self.push(Some(schema), None, Some(&value))
    }
}

pub(crate) fn partition() -> TopicPartition {
    TopicPartition::new("changes", 0)
}

/// Writes, seals and prepares; returns the committables and the rejected records' reasons.
pub(crate) fn prepare(sink: &mut dyn ErasedTwoPhaseSink, records: &Batch) -> Result<(Vec<Json>, Vec<String>)> {
    let mut rejected = Rejections::default();
    sink.write(&partition(), records, &mut rejected)?;
    let plan = sink.seal(&partition())?.expect("something is buffered");
    let committables = sink.prepare(&[plan], &mut rejected)?;
    Ok((committables, rejected.reasons.iter().map(|reason| format!("{}: {}", reason.code, reason.message)).collect()))
}

/// Loads records; returns the rejected records' reasons.
pub(crate) fn load(sink: &mut dyn ErasedTwoPhaseSink, records: &Batch) -> Vec<String> {
    let (committables, rejected) = prepare(sink, records).unwrap();
    sink.commit(&committables).unwrap();
    rejected
}

/// Where a connection breaks.
#[derive(Debug, Clone)]
pub(crate) struct Break {
    /// The first statement that begins with this.
    pub(crate) statement: &'static str,
    pub(crate) fault: Fault,
}

/// What happens to the statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection breaks before the server gets the statement.
    Unsent,
    /// The server carries the statement out; only the reply is lost.
    ReplyLost,
    /// Redshift's error 1023, this number of times. The server does not get the statement.
    Conflict(u32),
    /// An error whose text and detail are the whole statement. The server does not get it.
    Repeated,
}

/// A proxy in front of the stand-in that breaks one connection.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    next: Arc<Mutex<Option<Break>>>,
    repeated: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let next: Arc<Mutex<Option<Break>>> = Arc::default();
        let repeated: Arc<Mutex<Vec<String>>> = Arc::default();
        let (shared, seen) = (next.clone(), repeated.clone());
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", server)).unwrap());
                let (shared, seen) = (shared.clone(), seen.clone());
                std::thread::spawn(move || relay(client, server, &shared, &seen));
            }
        });
        Self { port, next, repeated }
    }

    /// The next statement that matches breaks its connection.
    pub(crate) fn break_at(&self, next: Break) {
        *self.next.lock().unwrap() = Some(next);
    }

    /// The connection broke.
    pub(crate) fn is_done(&self) -> bool {
        self.next.lock().unwrap().is_none()
    }

    /// The statements that were repeated in an error.
    pub(crate) fn repeated(&self) -> Vec<String> {
        self.repeated.lock().unwrap().clone()
    }
}

/// Relays both directions. Statements are messages `Q`, after one startup message without a type.
fn relay(mut client: TcpStream, mut server: TcpStream, next: &Mutex<Option<Break>>, repeated: &Mutex<Vec<String>>) {
    let silent = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (mut back, mut to_client, quiet) = (server.try_clone().unwrap(), client.try_clone().unwrap(), silent.clone());
    let replies = std::thread::spawn(move || {
        let mut buffer = [0; 1 << 16];
        while let Ok(read @ 1..) = back.read(&mut buffer) {
            if quiet.load(std::sync::atomic::Ordering::SeqCst) {
                // The reply to the statement: it was carried out.
                break;
            }
            if to_client.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        drop(to_client.shutdown(Shutdown::Both));
        drop(back.shutdown(Shutdown::Both));
    });
    let mut started = false;
    while let Some(message) = read_message(&mut client, started) {
        started = true;
        match fault_of(&mut next.lock().unwrap(), &message) {
            Some(Fault::Unsent) => break,
            Some(Fault::Conflict(_)) => {
                refuse(&mut client, "1023 Serializable isolation violation on table - 100");
                continue;
            }
            Some(Fault::Repeated) => {
                let statement = statement_of(&message);
                repeated.lock().unwrap().push(statement.to_owned());
                refuse(&mut client, statement);
                continue;
            }
            Some(Fault::ReplyLost) => silent.store(true, std::sync::atomic::Ordering::SeqCst),
            None => {}
        }
        if server.write_all(&message).is_err() {
            break;
        }
    }
    if !silent.load(std::sync::atomic::Ordering::SeqCst) {
        drop(server.shutdown(Shutdown::Both));
    }
    drop(replies.join());
}

/// Answers with an error. The transaction fails, and the server is ready.
fn refuse(client: &mut TcpStream, text: &str) {
    let fields = format!("SERROR\0CXX000\0M{text}\0D{text}\0\0");
    let mut answer = vec![b'E'];
    answer.extend((fields.len() as u32 + 4).to_be_bytes());
    answer.extend(fields.as_bytes());
    answer.extend(*b"Z\0\0\0\x05E");
    client.write_all(&answer).unwrap();
}

/// The SQL of a message `Q`.
fn statement_of(message: &[u8]) -> &str {
    std::str::from_utf8(&message[5..message.len() - 1]).unwrap()
}

/// The fault of this message. A fault is over after its last time.
fn fault_of(next: &mut Option<Break>, message: &[u8]) -> Option<Fault> {
    let planned = next.as_mut()?;
    let is_statement = message.first() == Some(&b'Q') && message[5..].starts_with(planned.statement.as_bytes());
    if !is_statement {
        return None;
    }
    let fault = planned.fault;
    match &mut planned.fault {
        Fault::Conflict(times) if *times > 1 => *times -= 1,
        _ => *next = None,
    }
    Some(fault)
}

fn read_message(client: &mut TcpStream, typed: bool) -> Option<Vec<u8>> {
    let mut message = vec![0; if typed { 5 } else { 4 }];
    client.read_exact(&mut message).ok()?;
    let length = u32::from_be_bytes(message[message.len() - 4..].try_into().ok()?) as usize;
    let head = message.len();
    message.resize(head + length - 4, 0);
    client.read_exact(&mut message[head..]).ok()?;
    Some(message)
}
