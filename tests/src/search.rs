//! An OpenSearch server.

use serde_json::Value;

use crate::Skip;
use crate::server::Server;

/// A real OpenSearch node of this test, through `tests/services/opensearch`.
pub struct OpenSearch(Server);

impl OpenSearch {
    /// Starts a node without indices.
    pub fn start() -> Result<Self, Skip> {
        Ok(Self(Server::start("opensearch", &[("JAVA_OPTS", "-Xms512m -Xmx512m")], 1)?))
    }

    /// Its address for the option `url`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port())
    }

    /// Its host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0.port())
    }

    /// Kills the node and starts it again on the same data.
    pub fn restart(&mut self) {
        self.0.end(libc::SIGKILL);
        self.0.start_again();
    }

    /// Number of documents of the indices.
    pub fn documents(&self, indices: &str) -> u64 {
        self.call("POST", &format!("/{indices}/_refresh"), "");
        self.call("GET", &format!("/{indices}/_count"), "")["count"].as_u64().unwrap()
    }

    /// Number of documents of the indices, and of different values of a keyword field, at most
    /// 60,000.
    pub fn count(&self, indices: &str, field: &str) -> (u64, u64) {
        self.call("POST", &format!("/{indices}/_refresh"), "");
        let query = format!(
            "{{\"size\":0,\"track_total_hits\":true,\"aggs\":{{\"values\":{{\"terms\":{{\"field\":\"{field}\",\"size\":60000}}}}}}}}"
        );
        let found = self.call("POST", &format!("/{indices}/_search"), &query);
        let documents = found.pointer("/hits/total/value").and_then(Value::as_u64).unwrap();
        let values = found.pointer("/aggregations/values/buckets").and_then(Value::as_array).unwrap();
        (documents, values.len() as u64)
    }

    /// Sends a request with a JSON body; panics if the answer is an error.
    pub fn call(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, answer) = self.0.call(method, path, body);
        assert!((200..300).contains(&status), "{method} {path} answered {status}: {answer}");
        answer
    }
}
