//! Real servers. `TRUNKLINE_TEST_OPENSEARCH` and `TRUNKLINE_TEST_ELASTICSEARCH` name running ones
//! (`host:port`, without security); otherwise a script in `tests/services` starts one; if it
//! cannot, the test skips.

use std::io::Read;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use serde_json::Value;

use super::http;

/// A running server. One that was started here ends, with its data, when the standard input of its
/// script is closed: also if the test is killed.
pub struct Server {
    pub address: String,
    _leash: Option<ChildStdin>,
}

impl Server {
    /// The server of the script `name`; `None`, with the reason printed, if it is not available.
    pub fn find(name: &str) -> Option<Self> {
        let variable = format!("TRUNKLINE_TEST_{}", name.to_uppercase());
        if let Ok(address) = std::env::var(variable) {
            return Some(Self { address, _leash: None });
        }
        match start(name) {
            Ok((port, leash)) => Some(Self { address: format!("127.0.0.1:{port}"), _leash: Some(leash) }),
            Err(reason) => {
                eprintln!("SKIP {name}: {reason}");
                None
            }
        }
    }

    pub fn call(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, answer) = http(&self.address, method, path, body);
        assert!((200..300).contains(&status), "{method} {path} answered {status}: {answer}");
        answer
    }

    /// The documents of an index as `(_id, _version, _source)`, in the order of the sort; empty if
    /// it does not exist.
    pub fn documents(&self, index: &str, sort: &[&str]) -> Vec<(String, i64, Value)> {
        http(&self.address, "POST", &format!("/{index}/_refresh"), "");
        let sort: Vec<String> = sort.iter().map(|field| format!("\"{field}\"")).collect();
        let query = format!("{{\"size\":10000,\"version\":true,\"sort\":[{}]}}", sort.join(","));
        let (status, answer) = http(&self.address, "POST", &format!("/{index}/_search"), &query);
        if status == 404 {
            return Vec::new();
        }
        assert_eq!(status, 200, "{answer}");
        let hits = answer["hits"]["hits"].as_array().unwrap();
        let document = |hit: &Value| {
            (hit["_id"].as_str().unwrap().to_owned(), hit["_version"].as_i64().unwrap(), hit["_source"].clone())
        };
        hits.iter().map(document).collect()
    }
}

fn start(name: &str) -> Result<(u16, ChildStdin), String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/services").join(name);
    // A missing JDK or download is a skip. A server that is complete and does not start is a
    // failure.
    let fetched = Command::new(&script).arg("fetch").output().map_err(|error| error.to_string())?;
    if !fetched.status.success() {
        return Err(String::from_utf8_lossy(&fetched.stderr).trim().to_owned());
    }
    let folder = tempfile::tempdir().unwrap().keep();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = Command::new(script)
        .arg(port.to_string())
        .arg(&folder)
        .env("LEASH", "1")
        .env("JAVA_OPTS", "-Xms512m -Xmx512m")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let leash = child.stdin.take().unwrap();
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(child.wait().unwrap().success() && output.starts_with("up"), "{name} does not start: {output}");
    Ok((port, leash))
}
