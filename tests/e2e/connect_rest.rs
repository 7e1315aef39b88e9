//! Kafka Connect's REST API: one client, written from Connect's documented shapes, asks a worker
//! and Kafka Connect itself.
//!
//! `connect_rest.json` has the answers of Kafka Connect 4.3.1, without what depends on the machine.
//! A worker must give the same ones, except for the differences that a case names, which
//! `docs/reference/rest.md` explains. With `TRUNKLINE_TEST_LONG=1` Kafka Connect is asked again,
//! and with `TRUNKLINE_UPDATE_CONNECT=1` its answers are written to the file.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Map, Value, json};
use trunkline_tests::{Case, Kafka, KafkaConnect, LogWriter, need, repository, wait};

use crate::status::address;
use crate::{LONG, SOURCE, stop};

/// How the answer of a worker relates to that of Kafka Connect.
enum Relation {
    /// Equal: status, shape and values.
    Same,
    /// Equal but for the text of the message.
    OtherWords,
    /// Another status, for a reason that rest.md gives.
    Differs(u16),
}

use Relation::{Differs, OtherWords, Same};

/// A request, or a state to wait for.
enum Step {
    Ask(&'static str, &'static str, &'static str, Relation),
    /// Until `/status` of a connector has this state and these states of tasks.
    Await(&'static str, &'static str, &'static [&'static str]),
    /// Until this path has this answer.
    Until(&'static str, &'static str),
}

use Step::{Ask, Await, Until};

/// `$SINK` and `$SOURCE` are configurations, `$TOPIC` is the topic of the sink, `$PLUGIN` the name
/// of its plugin.
const STEPS: &[Step] = &[
    Ask("GET", "/", "", Same),
    Ask("GET", "/health", "", OtherWords),
    // Creation.
    Ask("POST", "/connectors", r#"{"name":"cmp.sink","config":$SINK}"#, Same),
    Ask("POST", "/connectors", r#"{"name":"cmp.sink","config":$SINK}"#, Same),
    Ask("PUT", "/connectors/two.source/config", "$SOURCE", Same),
    Ask("POST", "/connectors", r#"{"name":"new.sink","config":{"connector.class":"nope"}}"#, OtherWords),
    Ask("POST", "/connectors", r#"{"name":"new.sink","config":{}}"#, OtherWords),
    Ask("POST", "/connectors", r#"{"config":$SINK}"#, OtherWords),
    Ask(
        "POST",
        "/connectors",
        r#"{"name":"new.sink","config":{"name":"other.sink","connector.class":"$PLUGIN"}}"#,
        Same,
    ),
    Ask("PUT", "/connectors/cmp.sink/config", r#"{"name":"other.sink","connector.class":"$PLUGIN"}"#, Same),
    // Kafka Connect fails at bodies that it cannot read.
    Ask("POST", "/connectors", r#"{"name":"new.sink"}"#, Differs(400)),
    Ask("POST", "/connectors", "{", Differs(400)),
    Ask("POST", "/connectors", "[]", Differs(400)),
    Ask("POST", "/connectors", r#"{"name":"new.sink","config":$SINK,"bogus":1}"#, Differs(400)),
    Ask("POST", "/connectors", r#"{"name":"new.sink","config":$SINK,"initial_state":"BOGUS"}"#, Differs(400)),
    Ask("POST", "/connectors", r#"{"name":"idle.sink","config":$SINK,"initial_state":"STOPPED"}"#, Same),
    Await("idle.sink", "STOPPED", &[]),
    Ask("GET", "/connectors/idle.sink/status", "", Same),
    Ask("GET", "/connectors/idle.sink/tasks", "", Same),
    Ask("DELETE", "/connectors/idle.sink", "", Same),
    // Reading.
    Await("cmp.sink", "RUNNING", &["RUNNING"]),
    Await("two.source", "RUNNING", &["RUNNING"]),
    Ask("GET", "/connectors/cmp.sink", "", Same),
    Ask("GET", "/connectors/cmp.sink/config", "", Same),
    Ask("GET", "/connectors/cmp.sink/status", "", Same),
    Ask("GET", "/connectors/cmp.sink/tasks", "", Same),
    Ask("GET", "/connectors/cmp.sink/tasks/0/status", "", Same),
    Ask("GET", "/connectors/cmp.sink/tasks/9/status", "", Same),
    Ask("GET", "/connectors/cmp.sink/tasks/x/status", "", OtherWords),
    Until("/connectors/cmp.sink/topics", r#"{"cmp.sink":{"topics":["$TOPIC"]}}"#),
    Ask("GET", "/connectors", "", Same),
    Ask("GET", "/connectors?expand=status&expand=info", "", Same),
    Ask("GET", "/connectors?expand=nothing", "", Same),
    Ask("GET", "/connectors/no.one", "", Same),
    Ask("GET", "/connectors/no.one/config", "", Same),
    Ask("GET", "/connectors/no.one/status", "", Same),
    Ask("GET", "/connectors/no.one/tasks", "", Same),
    Ask("GET", "/connectors/no.one/tasks/0/status", "", Same),
    Ask("GET", "/connectors/no.one/topics", "", Same),
    Ask("GET", "/connectors/no.one/offsets", "", Same),
    // Changes.
    Ask("PATCH", "/connectors/cmp.sink/config", "{", Differs(400)),
    Ask("PATCH", "/connectors/no.one/config", "{}", Same),
    Ask("PATCH", "/connectors/cmp.sink/config", r#"{"tasks.max":"2"}"#, Same),
    Await("cmp.sink", "RUNNING", &["RUNNING", "RUNNING"]),
    Ask("PATCH", "/connectors/cmp.sink/config", r#"{"tasks.max":null}"#, Same),
    Await("cmp.sink", "RUNNING", &["RUNNING"]),
    Ask("PUT", "/connectors/cmp.sink/config", "$SINK", Same),
    // Pause, resume, restart.
    Ask("PUT", "/connectors/no.one/pause", "", Same),
    Ask("PUT", "/connectors/no.one/resume", "", Same),
    Ask("PUT", "/connectors/no.one/stop", "", Same),
    Ask("POST", "/connectors/no.one/restart", "", Same),
    Ask("POST", "/connectors/no.one/restart?includeTasks=true", "", Same),
    Ask("POST", "/connectors/no.one/tasks/0/restart", "", Same),
    Ask("PUT", "/connectors/cmp.sink/pause", "", Same),
    Await("cmp.sink", "PAUSED", &["PAUSED"]),
    Ask("GET", "/connectors/cmp.sink/status", "", Same),
    Ask("PUT", "/connectors/cmp.sink/pause", "", Same),
    Ask("PUT", "/connectors/cmp.sink/resume", "", Same),
    Await("cmp.sink", "RUNNING", &["RUNNING"]),
    Ask("POST", "/connectors/cmp.sink/restart?onlyFailed=true", "", Same),
    Ask("POST", "/connectors/cmp.sink/restart?includeTasks=true&onlyFailed=true", "", Same),
    Ask("POST", "/connectors/cmp.sink/restart?includeTasks=true", "", Same),
    Await("cmp.sink", "RUNNING", &["RUNNING"]),
    Ask("POST", "/connectors/cmp.sink/restart", "", Same),
    Await("cmp.sink", "RUNNING", &["RUNNING"]),
    Ask("POST", "/connectors/cmp.sink/tasks/0/restart", "", Same),
    Ask("POST", "/connectors/cmp.sink/tasks/7/restart", "", Same),
    // The topics are those of the configuration: there is nothing to forget.
    Ask("PUT", "/connectors/cmp.sink/topics/reset", "", Differs(405)),
    // Offsets.
    Ask("PATCH", "/connectors/cmp.sink/offsets", "$OFFSETS", Same),
    Ask("DELETE", "/connectors/cmp.sink/offsets", "", Same),
    Ask("PATCH", "/connectors/no.one/offsets", "$OFFSETS", Same),
    Ask("DELETE", "/connectors/no.one/offsets", "", Same),
    Await("cmp.sink", "RUNNING", &["RUNNING"]),
    Ask("PUT", "/connectors/cmp.sink/stop", "", Same),
    Await("cmp.sink", "STOPPED", &[]),
    Ask("GET", "/connectors/cmp.sink/status", "", Same),
    Ask("GET", "/connectors/cmp.sink/tasks", "", Same),
    Ask("POST", "/connectors/cmp.sink/restart?includeTasks=true", "", Same),
    Ask("PATCH", "/connectors/cmp.sink/offsets", "{}", Same),
    Ask("PATCH", "/connectors/cmp.sink/offsets", r#"{"offsets":[]}"#, Same),
    Ask("PATCH", "/connectors/cmp.sink/offsets", r#"{"offsets":null}"#, Same),
    Ask("PATCH", "/connectors/cmp.sink/offsets", r#"{"offsets":[{"partition":{},"offset":{}}]}"#, OtherWords),
    Ask("PATCH", "/connectors/cmp.sink/offsets", r#"{"offsets":[{"partition":null,"offset":null}]}"#, OtherWords),
    Ask("PATCH", "/connectors/cmp.sink/offsets", "no", Differs(400)),
    Ask("PATCH", "/connectors/cmp.sink/offsets", "$OFFSETS", Same),
    Ask("GET", "/connectors/cmp.sink/offsets", "", Same),
    Ask("PATCH", "/connectors/cmp.sink/offsets", "$TEXT_OFFSETS", Same),
    Ask("GET", "/connectors/cmp.sink/offsets", "", Same),
    Ask("DELETE", "/connectors/cmp.sink/offsets", "", Same),
    // Plugins.
    Ask("GET", "/connector-plugins", "", Same),
    Ask("GET", "/connector-plugins/$PLUGIN/config", "", Same),
    Ask("GET", "/connector-plugins/nope/config", "", Same),
    Ask("PUT", "/connector-plugins/$PLUGIN/config/validate", "$SINK", Same),
    Ask("PUT", "/connector-plugins/nope/config/validate", "$SINK", OtherWords),
    Ask("PUT", "/connector-plugins/$PLUGIN/config/validate", "{", Differs(400)),
    // Loggers.
    Ask("GET", "/admin/loggers", "", Same),
    Ask("GET", "/admin/loggers/root", "", Same),
    Ask("GET", "/admin/loggers/nope", "", Same),
    Ask("PUT", "/admin/loggers/a.b", r#"{"level":"LOUD"}"#, Same),
    Ask("PUT", "/admin/loggers/a.b", "{}", Same),
    Ask("PUT", "/admin/loggers/a.b", "{", Differs(400)),
    Ask("PUT", "/admin/loggers/root?scope=cluster", r#"{"level":"INFO"}"#, Differs(400)),
    Ask("PUT", "/admin/loggers/cmp", r#"{"level":"WARN"}"#, Same),
    Ask("GET", "/admin/loggers/cmp", "", Same),
    // Paths and methods.
    Ask("GET", "/nothing", "", Same),
    Ask("POST", "/connectors/cmp.sink/status", "", Same),
    Ask("DELETE", "/connectors", "", Same),
    // Removal.
    Ask("DELETE", "/connectors/cmp.sink", "", Same),
    Ask("DELETE", "/connectors/cmp.sink", "", Same),
    Ask("GET", "/connectors/cmp.sink", "", Same),
    Ask("DELETE", "/connectors/two.source", "", Same),
    Until("/connectors", "[]"),
];

/// A server of the API, with what its requests contain.
struct Server {
    address: String,
    words: BTreeMap<&'static str, String>,
}

type Answer = (u16, Value);

impl Server {
    fn fill(&self, text: &str) -> String {
        self.words.iter().fold(text.to_owned(), |text, (word, value)| text.replace(word, value))
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let (path, body) = (self.fill(path), self.fill(body));
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let (host, length) = (&self.address, body.len());
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: {host}\r\n{kind}Content-Length: {length}\r\n\r\n{body}")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status == 201 {
            let name = serde_json::from_str::<Value>(body).unwrap()["name"].as_str().unwrap().to_owned();
            let location = format!("location: http://{host}/connectors/{name}");
            assert!(head.lines().any(|line| line.to_lowercase() == location), "{head}");
        }
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// The answers to all requests, in their order.
    fn run(&self) -> Vec<(String, Answer)> {
        let mut answers = Vec::new();
        for step in STEPS {
            match step {
                Ask(method, path, body, _) => {
                    // Tasks of a stopped connector may still leave their group: clients ask again.
                    let is_offsets = path.ends_with("/offsets");
                    let (status, answer) = wait::until(path, LONG, || {
                        Some(self.ask(method, path, body)).filter(|(status, _)| *status != 409 || !is_offsets)
                    });
                    answers.push((format!("{method} {path} {body}"), (status, self.general(&answer))));
                }
                Await(name, state, tasks) => wait::until(&format!("{name} is {state}"), LONG, || {
                    let (_, found) = self.ask("GET", &format!("/connectors/{name}/status"), "");
                    let states = found["tasks"].as_array()?.iter().map(|task| task["state"].as_str().unwrap());
                    (found["connector"]["state"] == *state && states.eq(tasks.iter().copied())).then_some(())
                }),
                Until(path, expected) => wait::until(&format!("{path} is {expected}"), LONG, || {
                    let (_, found) = self.ask("GET", path, "");
                    (self.general(&found) == self.general(&serde_json::from_str(&self.fill(expected)).unwrap()))
                        .then_some(())
                }),
            }
        }
        answers
    }

    /// An answer without what differs between machines, products and times.
    fn general(&self, answer: &Value) -> Value {
        match answer {
            Value::Object(members) => {
                // Loggers: those of the modules differ.
                if members.contains_key("root") {
                    return json!({ "root": self.general(&members["root"]) });
                }
                Value::Object(self.general_members(members))
            }
            Value::Array(items) => self.general_items(items),
            Value::String(text) => {
                let text = text.replace(&self.words["$TOPIC"], "TOPIC").replace(&self.words["$PLUGIN"], "PLUGIN");
                json!(without_locations(&text))
            }
            other => other.clone(),
        }
    }

    fn general_members(&self, members: &Map<String, Value>) -> Map<String, Value> {
        let general = |(key, value): (&String, &Value)| {
            let value = match key.as_str() {
                "worker_id" | "version" | "commit" | "kafka_cluster_id" => json!(value.is_string()),
                "last_modified" => json!("a time, or null"),
                "error_count" => json!(value.is_u64()),
                "groups" => json!(value.is_array()),
                "configs" => json!(shape(&value[0])),
                // Of a configuration, what both products name alike.
                "config" => json!({ "name": value["name"], "topics": self.general(&value["topics"]) }),
                _ => self.general(value),
            };
            (key.clone(), value)
        };
        // The answer of `/config` is a configuration itself.
        if let Some(class) = members.get("connector.class") {
            return Map::from_iter([
                ("name".to_owned(), members["name"].clone()),
                ("connector.class".to_owned(), self.general(class)),
            ]);
        }
        members.iter().filter(|(key, _)| !key.starts_with(self.words["$OTHERS"].as_str())).map(general).collect()
    }

    fn general_items(&self, items: &[Value]) -> Value {
        match items.first() {
            // Plugins, and the options of one.
            Some(first) if first.get("class").is_some() || first.get("importance").is_some() => json!([shape(first)]),
            Some(Value::String(_)) => {
                let is_own = |item: &&Value| !item.as_str().unwrap().starts_with(self.words["$OTHERS"].as_str());
                let mut texts: Vec<Value> = items.iter().filter(is_own).map(|item| self.general(item)).collect();
                texts.sort_by_key(Value::to_string);
                json!(texts)
            }
            _ => items.iter().map(|item| self.general(item)).collect(),
        }
    }
}

/// The keys and types of a value. Values that may be null or a text have one shape.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(members) => members.iter().map(|(key, value)| (key.clone(), shape(value))).collect(),
        Value::Array(_) => json!("array"),
        Value::String(_) | Value::Null => json!("text or null"),
        Value::Number(_) => json!("number"),
        Value::Bool(_) => json!("boolean"),
    }
}

fn recorded() -> PathBuf {
    repository().join("tests/e2e/connect_rest.json")
}

fn offsets(topic: &str, offset: &Value, partition: &Value) -> String {
    let partition = json!({ "kafka_topic": topic, "kafka_partition": partition });
    json!({ "offsets": [{ "partition": partition, "offset": { "kafka_offset": offset } }] }).to_string()
}

fn words(topic: &str, plugin: &str, others: &str, sink: &Value, source: &Value) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("$TOPIC", topic.to_owned()),
        ("$PLUGIN", plugin.to_owned()),
        ("$OTHERS", others.to_owned()),
        ("$SINK", sink.to_string()),
        ("$SOURCE", source.to_string()),
        ("$OFFSETS", offsets(topic, &json!(5), &json!(0))),
        ("$TEXT_OFFSETS", offsets(topic, &json!("7"), &json!("0"))),
    ])
}

/// The text without the folders of plugins, which Kafka Connect names as `location='FOLDER'`.
fn without_locations(text: &str) -> String {
    const START: &str = "location='";
    let mut parts = text.split(START);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |kept, part| kept + START + part.find('\'').map_or(part, |end| &part[end..]))
}

/// Asks Kafka Connect.
fn ask_connect(case: &Case, topic: &str, connect: &KafkaConnect) -> Vec<(String, Answer)> {
    let file = |name: &str| case.path(name).display().to_string();
    let class = |name: &str| format!("org.apache.kafka.connect.file.FileStream{name}Connector");
    let plugin = class("Sink");
    let sink = json!({ "connector.class": plugin, "topics": topic, "file": file("theirs.out") });
    let source =
        json!({ "connector.class": class("Source"), "topic": format!("{topic}.two"), "file": file("logs/access.log") });
    let words = words(topic, &plugin, "no other connector", &sink, &source);
    Server { address: connect.address(), words }.run()
}

fn write_record(path: &Path, answers: &[(String, Answer)]) {
    let lines: Vec<String> =
        answers.iter().map(|(request, (status, body))| json!([request, status, body]).to_string()).collect();
    std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
}

fn read_record() -> Vec<(String, Answer)> {
    let text = std::fs::read_to_string(recorded()).unwrap();
    serde_json::from_str::<Vec<(String, u16, Value)>>(&text)
        .unwrap()
        .into_iter()
        .map(|(request, status, body)| (request, (status, body)))
        .collect()
}

fn write_records(kafka: &Kafka, topic: &str, records: usize) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", kafka.brokers()).create().unwrap();
    for number in 0..records {
        let value = json!({ "number": number }).to_string();
        producer.send(BaseRecord::<(), _>::to(topic).partition(0).payload(&value)).map_err(|(error, _)| error).unwrap();
    }
    wait::until("the records are sent", LONG, || {
        producer.poll(Duration::from_millis(1));
        (producer.in_flight_count() == 0).then_some(())
    });
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some()
}

#[test]
fn a_worker_answers_as_kafka_connect_does() {
    let kafka = need!(Kafka::any());
    let case = Case::new("rest", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 990);
    log.append(100);
    case.pipeline("access", &format!("{SOURCE}topic = \"$NAME-lines\"\npartitions = 1\n"));
    let worker = case.start("a", &[]);
    let topic = format!("{}-lines", case.name());
    let sink = json!({
        "connector.class": "s3", "topics": topic, "url": format!("file://{}", case.path("ours").display()),
    });
    let source = json!({
        "connector.class": "logfile", "topic": format!("{topic}.two"),
        "paths": case.path("logs/*.log").display().to_string(),
    });
    let words = words(&topic, "s3", &format!("{}.", case.name()), &sink, &source);
    let address = address(&worker);
    let server = Server { address, words };
    wait::until("the worker is connected to Kafka", LONG, || {
        server.ask("GET", "/", "").1["kafka_cluster_id"].is_string().then_some(())
    });
    let (ours, theirs) = (server.run(), read_record());
    stop(worker);
    assert_eq!(ours.len(), theirs.len(), "record the answers again: TRUNKLINE_UPDATE_CONNECT=1");
    let relations = STEPS.iter().filter_map(|step| match step {
        Ask(.., relation) => Some(relation),
        Await(..) | Until(..) => None,
    });
    let mut differences = Vec::new();
    for (((request, ours), (recorded, theirs)), relation) in ours.iter().zip(&theirs).zip(relations) {
        assert_eq!(request, recorded, "record the answers again: TRUNKLINE_UPDATE_CONNECT=1");
        let without_words = |(status, body): &Answer| {
            let mut body = body.clone();
            if let Some(message) = body.get_mut("message") {
                *message = json!(message.is_string());
            }
            (*status, body)
        };
        let is_as_expected = match relation {
            Same => ours == theirs,
            OtherWords => without_words(ours) == without_words(theirs),
            Differs(status) => ours.0 == *status && theirs.0 != *status && ours.1["error_code"] == *status,
        };
        if !is_as_expected {
            differences
                .push(format!("{request}\n  ours:   {} {}\n  theirs: {} {}", ours.0, ours.1, theirs.0, theirs.1));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn kafka_connect_answers_as_recorded() {
    if !is_set("TRUNKLINE_TEST_LONG") && !is_set("TRUNKLINE_UPDATE_CONNECT") {
        return;
    }
    let kafka = need!(Kafka::shared(trunkline_tests::BrokerKind::Apache));
    let connect = need!(KafkaConnect::start(kafka));
    let case = Case::new("connect", kafka);
    LogWriter::new(case.path("logs/access.log"), 991).append(100);
    let topic = format!("{}-lines", case.name());
    kafka.create_topic(&topic, 1);
    write_records(kafka, &topic, 100);
    let answers = ask_connect(&case, &topic, &connect);
    if is_set("TRUNKLINE_UPDATE_CONNECT") {
        write_record(&recorded(), &answers);
    }
    assert_eq!(answers, read_record());
}
