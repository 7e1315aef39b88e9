//! Servers of the tests: the stand-in for Snowflake, and the S3 server that holds its stages.
//!
//! Each is started by a script in `tests/services`, which removes the server and its data when its
//! standard input is closed: also if the test is killed. Where a script cannot be run, the test
//! skips.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The value that the tests of this process share, for one test at a time: a fault of a server hits
/// every session. `None`, with the reason printed, if `start` has no server.
pub(crate) fn exclusive<T>(shared: &'static Mutex<Option<T>>, start: fn() -> Option<T>) -> Option<Exclusive<T>> {
    // A test that failed leaves nothing behind that the next one finds.
    let mut guard = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        *guard = start();
    }
    guard.is_some().then_some(Exclusive(guard))
}

/// See [`exclusive`].
pub(crate) struct Exclusive<T: 'static>(MutexGuard<'static, Option<T>>);

impl<T> std::ops::Deref for Exclusive<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().unwrap()
    }
}

/// The bucket of the stages.
const BUCKET: &str = "lake";

/// An account, and the S3 server of its stages.
pub(crate) struct Account {
    pub(crate) server: StandIn,
    pub(crate) s3: S3,
    /// The objects of the bucket.
    bucket: PathBuf,
}

impl Account {
    /// An empty account; `None`, with the reason printed, if it is not available.
    pub(crate) fn start() -> Option<Self> {
        let s3 = S3::start()?;
        let bucket = s3.bucket(BUCKET);
        Some(Self { server: StandIn::start(Some(&s3))?, s3, bucket })
    }

    /// Options of a sink that loads into the table `rows` of this schema.
    pub(crate) fn options(&self, schema: &str, mode: &str) -> String {
        format!(
            "account = \"xy12345\"\nurl = \"{}\"\nuser = \"fake\"\npassword = \"snow\"\nwarehouse = \"LOADING\"\n\
             database = \"DB\"\nschema = \"{schema}\"\ntable = \"rows\"\nmode = \"{mode}\"\ntakeover_timeout = \"300ms\"\n\
             stage = {{ url = \"s3://{BUCKET}/{schema}\", endpoint = \"{}\", path_style = true, region = \"us-east-1\", \
             access_key_id = \"AKTEST\", secret_access_key = \"SKTESTSK\" }}\n",
            self.server.origin(),
            self.s3.endpoint()
        )
    }

    /// Files in stages of the service.
    pub(crate) fn internal_files(&self) -> Vec<String> {
        files_below(&self.s3.folder.join("root/snowstage"))
    }

    /// Files that wait for a load of a sink of this schema.
    pub(crate) fn staged_files(&self, schema: &str) -> Vec<String> {
        files_below(&self.bucket.join(schema))
    }
}

fn files_below(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path.display().to_string()) }
    }
    files
}

/// The stand-in for Snowflake.
pub(crate) struct StandIn {
    pub(crate) port: u16,
    _leash: ChildStdin,
}

impl StandIn {
    /// An empty account whose external stages are on this S3 server; `None`, with the reason
    /// printed, if it is not available.
    pub(crate) fn start(s3: Option<&S3>) -> Option<Self> {
        let settings = s3.map_or_else(Vec::new, |s3| {
            vec![("S3_ROOT", s3.folder.join("root").display().to_string()), ("S3_ENDPOINT", s3.endpoint())]
        });
        let (port, _, leash) = start("snowflake", &settings)?;
        Some(Self { port, _leash: leash })
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Asks for a fault, or sets what a login is checked with.
    pub(crate) fn control(&self, body: &str) {
        let (status, answer) = self.post(body);
        assert_eq!(status, 200, "{body} answered {answer}");
    }

    /// The number of faults of statements that have not happened yet.
    pub(crate) fn faults_left(&self) -> u64 {
        let answer: serde_json::Value = serde_json::from_str(&self.post("{}").1).unwrap();
        answer["left"].as_u64().unwrap()
    }

    /// The query tags of each COPY and each COMMIT since the last call.
    pub(crate) fn take_tags(&self) -> Vec<String> {
        let answer: serde_json::Value = serde_json::from_str(&self.post("{\"tags\":true}").1).unwrap();
        serde_json::from_value(answer["tags"].clone()).unwrap()
    }

    /// The rows of a query, as texts; `None` if it fails.
    pub(crate) fn query(&self, database: &str, schema: &str, sql: &str) -> Option<Vec<Vec<Option<String>>>> {
        let body = serde_json::json!({"database": database, "schema": schema, "sql": sql});
        let (status, answer) = self.post(&body.to_string());
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        (status == 200).then(|| serde_json::from_value(answer["rows"].clone()).unwrap())
    }

    fn post(&self, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = "POST /__ctl HTTP/1.0\r\nContent-Type: application/json\r\n";
        write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

/// An S3 server. Its buckets are folders.
pub(crate) struct S3 {
    pub(crate) port: u16,
    pub(crate) folder: PathBuf,
    _leash: ChildStdin,
}

impl S3 {
    /// A server without buckets; `None`, with the reason printed, if it is not available.
    pub(crate) fn start() -> Option<Self> {
        let (port, folder, leash) = start("s3", &[])?;
        Some(Self { port, folder, _leash: leash })
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Creates a bucket; returns the folder in which its objects are plain files.
    pub(crate) fn bucket(&self, name: &str) -> PathBuf {
        let folder = self.folder.join("root").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }
}

fn start(name: &str, settings: &[(&str, String)]) -> Option<(u16, PathBuf, ChildStdin)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/services").join(name);
    // A missing program or download is a skip. A server that is complete and does not start is a
    // failure.
    let fetched = Command::new(&script).arg("fetch").output();
    match fetched {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            eprintln!("SKIP {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
            return None;
        }
        Err(error) => {
            eprintln!("SKIP {name}: {error}");
            return None;
        }
    }
    let folder = tempfile::tempdir().unwrap().keep();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = Command::new(script)
        .arg(port.to_string())
        .arg(&folder)
        .env("LEASH", "1")
        .envs(settings.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let leash = child.stdin.take().unwrap();
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(child.wait().unwrap().success() && output.starts_with("up"), "{name} does not start: {output}");
    Some((port, folder, leash))
}
