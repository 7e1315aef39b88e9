//! An OpenSearch server.

use std::time::Duration;

use serde_json::Value;

use crate::server::Server;
use crate::{Skip, wait};

/// A real OpenSearch node of this test, through `tests/services/opensearch`, or two, through
/// `tests/services/opensearch-cluster`.
pub struct OpenSearch(Server);

impl OpenSearch {
    /// Starts a node without indices.
    pub fn start() -> Result<Self, Skip> {
        Self::start_with_heap(512)
    }

    /// The same with a heap of this many megabytes.
    pub fn start_with_heap(megabytes: u32) -> Result<Self, Skip> {
        let options = format!("-Xms{megabytes}m -Xmx{megabytes}m");
        Ok(Self(Server::start("opensearch", &[("JAVA_OPTS", &options)], 1)?))
    }

    /// Starts two nodes without indices. The second one may be killed.
    pub fn start_cluster() -> Result<Self, Skip> {
        Ok(Self(Server::start("opensearch-cluster", &[("JAVA_OPTS", "-Xms384m -Xmx384m")], 2)?))
    }

    /// The address of the second node.
    pub fn second_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port() + 2)
    }

    /// Kills the second node.
    pub fn kill_second(&mut self) {
        self.0.end_process(1, libc::SIGKILL);
    }

    /// Starts the killed node again, and waits until it has a copy of each shard.
    pub fn restart_second(&mut self) {
        self.0.start_again();
        wait::until("each shard has its replica", Duration::from_secs(120), || {
            let health = self.call("GET", "/_cluster/health", "");
            (health["status"] == "green" && health["number_of_nodes"] == 2).then_some(())
        });
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

    /// Number of documents of the indices that can be searched: a node that was started again
    /// answers with an error until its shards are recovered.
    pub fn documents(&self, indices: &str) -> u64 {
        let refreshed = self.try_call("POST", &format!("/{indices}/_refresh"), "");
        let counted = refreshed.and_then(|_| self.try_call("GET", &format!("/{indices}/_count"), ""));
        counted.map_or(0, |answer| answer["count"].as_u64().unwrap())
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
        self.try_call(method, path, body).unwrap_or_else(|answer| panic!("{method} {path} answered {answer}"))
    }

    /// Sends a request with a JSON body; an answer that is an error is returned as text.
    fn try_call(&self, method: &str, path: &str, body: &str) -> Result<Value, String> {
        let (status, answer) = self.0.call(method, path, body);
        if (200..300).contains(&status) { Ok(answer) } else { Err(format!("{status}: {answer}")) }
    }
}
