//! An idempotent sink: posts records as JSON lines to an HTTP endpoint.
//!
//! Every line has an id that is the same in each delivery of the record, so the endpoint can ignore
//! repetitions. The endpoint answers with one JSON line for each record that it refuses: `{"id":
//! "..", "error": ".."}`.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::{
    Delivery, Error, IdempotentSink, Reason, RecordRef, Result, Sink, SinkConnector, SinkContext, SinkSpec,
};

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::required("url", "string", "Address of the endpoint.", "\"http://collector:8080/records\""),
    OptionSpec::with_default("timeout", "duration", "\"30s\"", "Limit on one request."),
];

/// The connector: its name and its options.
pub struct HttpConnector;

impl SinkConnector for HttpConnector {
    fn name(&self) -> &'static str {
        "http"
    }

    fn summary(&self) -> &'static str {
        "Records as JSON lines, posted to an HTTP endpoint"
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn configure(&self, section: &Section<'_>, _template_variables: &[&str]) -> Option<Box<dyn SinkSpec>> {
        section.declare(OPTIONS);
        let problems = section.report.len();
        let url = section.required("url");
        let timeout = section.value("timeout");
        // Each problem was reported with its place in the pipeline file.
        if section.report.len() > problems {
            return None;
        }
        Some(Box::new(HttpSpec { url: url?, timeout }))
    }
}

/// A configured sink.
struct HttpSpec {
    url: String,
    timeout: Duration,
}

impl SinkSpec for HttpSpec {
    fn open(&self, context: SinkContext) -> Result<Sink> {
        let client = reqwest::Client::builder().timeout(self.timeout).build();
        let client =
            client.map_err(|error| Error::config("http.client", format!("cannot make an HTTP client: {error}")))?;
        Ok(Sink::Idempotent(Box::new(HttpSink { url: self.url.clone(), client, runtime: context.runtime })))
    }
}

/// A running sink.
struct HttpSink {
    url: String,
    client: reqwest::Client,
    runtime: tokio::runtime::Handle,
}

/// A record that the endpoint refuses.
#[derive(Deserialize)]
struct Refused {
    id: String,
    error: String,
}

impl IdempotentSink for HttpSink {
    fn deliver(&self, delivery: &mut Delivery) -> Result<()> {
        let (mut body, mut indexes) = (Vec::new(), HashMap::new());
        for pending in delivery.pending() {
            let id = id_of(pending.record);
            let value = String::from_utf8_lossy(pending.record.value().unwrap_or(b"null"));
            body.extend_from_slice(serde_json::json!({ "id": id, "value": value }).to_string().as_bytes());
            body.push(b'\n');
            indexes.insert(id, pending.index);
        }
        let answer = self
            .runtime
            .block_on(async { self.client.post(&self.url).body(body).send().await?.error_for_status()?.text().await });
        // An external error: the runtime delivers the same records again, with backoff.
        let answer =
            answer.map_err(|error| Error::external("http.failed", format!("cannot post to {}: {error}", self.url)))?;
        for line in answer.lines() {
            let refused: Refused = serde_json::from_str(line)
                .map_err(|error| Error::external("http.answer", format!("{} answered {line:?}: {error}", self.url)))?;
            if let Some(index) = indexes.get(&refused.id) {
                delivery.reject(*index, Reason::new("http.refused", refused.error));
            }
        }
        Ok(())
    }
}

/// The identity of a record: its place in Kafka.
fn id_of(record: RecordRef<'_>) -> String {
    format!("{}-{}-{}", record.topic(), record.entry().partition, record.entry().offset)
}
