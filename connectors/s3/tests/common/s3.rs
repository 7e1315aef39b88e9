//! Real S3 servers for the tests.
//!
//! `TRUNKLINE_TEST_S3` names one (key AKTEST, secret SKTESTSK); without it `tests/services/s3`
//! starts one; without that the test skips.

use std::io::Read;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use tokio::runtime::Runtime;

use super::ReadFile;

pub const KEY: &str = "AKTEST";
pub const SECRET: &str = "SKTESTSK";

/// A server, and a client to look at it from outside.
pub struct Server {
    pub endpoint: String,
    pub client: Client,
    pub runtime: Runtime,
    /// Started by this test. The server stops and its data is removed when the script's standard
    /// input closes, however the test ends.
    _leash: Option<ChildStdin>,
}

impl Server {
    /// `None`, with the reason printed, if no server is available.
    pub fn find() -> Option<Self> {
        let (endpoint, leash) = match std::env::var("TRUNKLINE_TEST_S3") {
            Ok(endpoint) => (endpoint, None),
            Err(_) => match start("versitygw") {
                Ok((port, leash)) => (format!("http://127.0.0.1:{port}"), Some(leash)),
                Err(reason) => {
                    eprintln!("SKIP no S3 server: {reason}");
                    return None;
                }
            },
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = client(&endpoint);
        Some(Self { endpoint, client, runtime, _leash: leash })
    }

    /// A server that encrypts with the KMS key `k1` and has no other one: MinIO, whose build takes
    /// minutes. `None`, with the reason printed, without `tests/run --long`.
    pub fn with_kms() -> Option<Self> {
        if std::env::var("TRUNKLINE_TEST_LONG").as_deref() != Ok("1") {
            eprintln!("SKIP a server with a KMS key: only with tests/run --long, which builds MinIO");
            return None;
        }
        let (port, leash) = match start("minio") {
            Ok(started) => started,
            Err(reason) => {
                eprintln!("SKIP no S3 server with a KMS key: {reason}");
                return None;
            }
        };
        let endpoint = format!("http://127.0.0.1:{port}");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Some(Self { client: client(&endpoint), endpoint, runtime, _leash: Some(leash) })
    }

    /// Another handle to the same server, which lives as long as the first one.
    pub fn again(&self) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { endpoint: self.endpoint.clone(), client: client(&self.endpoint), runtime, _leash: None }
    }

    /// Unfinished uploads to exactly this key.
    pub fn uploads_to(&self, bucket: &str, key: &str) -> usize {
        let listed = self.client.list_multipart_uploads().bucket(bucket).prefix(key).send();
        self.runtime.block_on(listed).unwrap().uploads().len()
    }

    /// A new, empty bucket.
    pub fn bucket(&self) -> String {
        let name = format!("test-{}", uuid::Uuid::new_v4().simple());
        self.runtime.block_on(self.client.create_bucket().bucket(&name).send()).unwrap();
        name
    }

    pub fn options(&self, bucket: &str) -> String {
        options(&self.endpoint, bucket)
    }

    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let listed = self.runtime.block_on(self.client.list_objects_v2().bucket(bucket).send()).unwrap();
        listed.contents().iter().filter_map(|object| object.key().map(str::to_owned)).collect()
    }

    pub fn read(&self, bucket: &str) -> Vec<ReadFile> {
        let get = |key: String| {
            self.runtime.block_on(async {
                let object = self.client.get_object().bucket(bucket).key(&key).send().await.unwrap();
                let bytes = object.body.collect().await.unwrap().to_vec();
                ReadFile::parse(key, bytes)
            })
        };
        self.keys(bucket).into_iter().map(get).collect()
    }

    /// Uploads that were neither completed nor aborted. (MinIO lists them only by their whole key.)
    pub fn uploads(&self, bucket: &str) -> Vec<String> {
        let listed = self.runtime.block_on(self.client.list_multipart_uploads().bucket(bucket).send()).unwrap();
        listed.uploads().iter().filter_map(|upload| upload.key().map(str::to_owned)).collect()
    }
}

pub fn options(endpoint: &str, bucket: &str) -> String {
    format!(
        "url = \"s3://{bucket}/some/prefix\"\nendpoint = \"{endpoint}\"\npath_style = true\nregion = \"us-east-1\"\n\
         access_key_id = \"{KEY}\"\nsecret_access_key = \"{SECRET}\"\n"
    )
}

pub fn client(endpoint: &str) -> Client {
    let http =
        aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http)
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .credentials_provider(Credentials::new(KEY, SECRET, None, None, "test"))
        .build();
    Client::from_conf(config)
}

fn script() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/services/s3")
}

fn start(kind: &str) -> Result<(u16, ChildStdin), String> {
    if !script().exists() {
        return Err(format!("{} does not exist, and TRUNKLINE_TEST_S3 is not set", script().display()));
    }
    // A missing prerequisite is a skip. A server that is installed but does not start is a failure.
    let fetched =
        Command::new(script()).arg("fetch").env("S3_SERVER", kind).output().map_err(|error| error.to_string())?;
    if !fetched.status.success() {
        return Err(String::from_utf8_lossy(&fetched.stderr).trim().to_owned());
    }
    let folder = tempfile::tempdir().unwrap().keep();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = Command::new(script())
        .arg(port.to_string())
        .arg(&folder)
        .env("LEASH", "1")
        .env("S3_SERVER", kind)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let leash = child.stdin.take().unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success() && said.starts_with("up"), "the S3 server does not start: {said}");
    Ok((port, leash))
}
