//! `${vault:PATH#KEY}` and `${aws-secret:NAME#KEY}`, against servers on loopback. That of AWS
//! verifies each signature by the definition of Signature Version 4.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

/// Any part of it in any output is a leak.
const TOKEN: &str = "hvs.hunter2token";
const SECRET_KEY: &str = "hunter2secret/key";
const KEY_ID: &str = "AKIDEXAMPLE";

/// More than any wait here should take.
const LIMIT: Duration = Duration::from_secs(60);

/// A request as the server receives it; the names of headers are in lower case.
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

type Answer = Box<dyn Fn(&Request) -> (u16, String) + Send>;

/// An HTTP server on loopback.
struct Server {
    port: u16,
    requests: Arc<AtomicUsize>,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, is_stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (requests.clone(), is_stopped.clone());
        let serve = move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                counted.fetch_add(1, Ordering::Relaxed);
                // A client that breaks off gets no answer.
                let _ = answer_one(stream, &answer);
            }
        };
        Self { port, requests, is_stopped, thread: Some(std::thread::spawn(serve)) }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer_one(stream: TcpStream, answer: &Answer) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body)?;
    let request = Request { method, path, headers, body: String::from_utf8(body).unwrap() };
    let (status, text) = answer(&request);
    let length = text.len();
    write!(
        reader.into_inner(),
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
    )
}

/// The command line in `folder`, with these variables and without those of the test's environment.
fn trunkline(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    let is_other = |name: &str| ["TRUNKLINE_", "AWS_", "VAULT_"].iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_other(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command.args(arguments).current_dir(folder).env("HOME", folder).envs(variables.iter().copied());
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("TRUNKLINE_LOG_FORMAT", "text");
    command
}

/// The output of `trunkline acls` on a pipeline whose topic is `topic`; it names the topic.
fn acls(topic: &str, variables: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.toml"), pipeline(topic)).unwrap();
    trunkline(folder.path(), &["acls", "p.toml"], variables).output().unwrap()
}

fn pipeline(topic: &str) -> String {
    format!("name = \"p\"\n[sources.logs]\nconnector = \"logfile\"\npaths = [\"a.log\"]\ntopic = \"{topic}\"\n")
}

#[track_caller]
fn assert_resolved(topic: &str, variables: &[(&str, &str)], expected: &str) {
    let Output { status, stdout, stderr } = acls(topic, variables);
    let stdout = String::from_utf8(stdout).unwrap();
    assert!(status.success() && stdout.contains(expected), "{topic}: {stdout}{}", String::from_utf8_lossy(&stderr));
}

#[track_caller]
fn assert_refused(topic: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let Output { status, stdout, stderr } = acls(topic, variables);
    // Messages are wrapped.
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    let marks = |character: char| character.is_whitespace() || "│·╰─├×".contains(character);
    let words = text.split(marks).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    assert_eq!(status.code(), Some(2), "{topic}: {text}");
    assert!(expected.iter().all(|part| words.contains(part)), "{topic}: {expected:?} in {words}");
    assert!(!text.contains("hunter2"), "{topic}: a secret is shown: {text}");
}

/// Version 2 of the engine at `secret/` and `team/kv/`, version 1 at `old/`.
fn vault_answer(request: &Request) -> (u16, String) {
    if request.headers.get("x-vault-token").map(String::as_str) != Some(TOKEN) {
        return (403, r#"{"errors":["permission denied"]}"#.to_owned());
    }
    assert_eq!((request.method.as_str(), request.headers["x-vault-request"].as_str()), ("GET", "true"));
    let mount = |path: &str, version: &str| {
        format!(r#"{{"data":{{"path":"{path}","type":"kv","options":{{"version":"{version}"}}}}}}"#)
    };
    let versioned =
        |topic: &str| format!(r#"{{"data":{{"data":{{"topic":"{topic}","port":9092}},"metadata":{{"version":3}}}}}}"#);
    let path = request.path.strip_prefix("/v1/").unwrap();
    match path.strip_prefix("sys/internal/ui/mounts/") {
        Some(path) if path.starts_with("secret/") => (200, mount("secret/", "2")),
        Some(path) if path.starts_with("team/kv/") => (200, mount("team/kv/", "2")),
        Some(path) if path.starts_with("old/") => (200, mount("old/", "1")),
        Some(_) => (403, r#"{"errors":["preflight capability check returned 403"]}"#.to_owned()),
        None => match path {
            "secret/data/app" => (200, versioned("from-v2")),
            "team/kv/data/a/b" => (200, versioned("from-team")),
            "old/app" => (200, r#"{"data":{"topic":"from-v1"}}"#.to_owned()),
            "database/creds/app" => (200, r#"{"data":{"username":"dynamic"}}"#.to_owned()),
            "secret/data/other" | "denied/app" => {
                (403, r#"{"errors":["1 error occurred: permission denied"]}"#.to_owned())
            }
            "old/sealed" => (503, r#"{"errors":["Vault is sealed"]}"#.to_owned()),
            "old/app%20x" => (200, r#"{"data":{"topic":"encoded"}}"#.to_owned()),
            _ => (404, r#"{"errors":[]}"#.to_owned()),
        },
    }
}

#[test]
fn values_of_vault_are_read_from_both_versions_of_its_engine() {
    let server = Server::start(Box::new(vault_answer));
    let url = server.url();
    let variables = [("VAULT_ADDR", url.as_str()), ("VAULT_TOKEN", TOKEN)];
    for (reference, expected) in [
        ("${vault:secret/app#topic}", "from-v2"),
        ("${vault:secret/data/app#topic}", "from-v2"),
        ("${vault:team/kv/a/b#topic}", "from-team"),
        ("${vault:old/app#topic}", "from-v1"),
        ("${vault:old/app x#topic}", "encoded"),
        ("${vault:database/creds/app#username}", "dynamic"),
        ("t-${vault:secret/app#port}-${vault:old/app#topic}", "t-9092-from-v1"),
    ] {
        assert_resolved(reference, &variables, expected);
    }

    // The token in the file that `vault login` writes.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".vault-token"), format!("{TOKEN}\n")).unwrap();
    let home = folder.path().to_str().unwrap();
    assert_resolved("${vault:old/app#topic}", &[("VAULT_ADDR", &url), ("HOME", home)], "from-v1");

    // A secret is fetched once, for all references and files.
    std::fs::write(folder.path().join("p.toml"), pipeline("${vault:secret/app#topic}-${vault:secret/app#port}"))
        .unwrap();
    std::fs::write(folder.path().join("trunkline.toml"), "kafka.\"client.id\" = \"${vault:secret/app#topic}\"\n")
        .unwrap();
    let before = server.requests.load(Ordering::Relaxed);
    let Output { status, .. } = trunkline(folder.path(), &["acls", "p.toml"], &variables).output().unwrap();
    assert!(status.success());
    assert_eq!(server.requests.load(Ordering::Relaxed) - before, 2, "the mount and the secret");
}

#[test]
fn refusals_of_vault_name_the_cause_and_the_next_step() {
    let server = Server::start(Box::new(vault_answer));
    let url = server.url();
    let variables = [("VAULT_ADDR", url.as_str()), ("VAULT_TOKEN", TOKEN)];
    assert_refused(
        "${vault:secret/app}",
        &variables,
        &["`${vault:secret/app}` is not a reference", "`${vault:PATH#KEY}`"],
    );
    assert_refused("${vault:secret/app#tpoic}", &variables, &["has no key `tpoic`", "did you mean `#topic`?"]);
    assert_refused("${vault:secret/none#a}", &variables, &["has no secret at `secret/data/none`", "check the path"]);
    let policy = r#"`path "secret/data/other" { capabilities = ["read"] }`"#;
    assert_refused("${vault:secret/other#a}", &variables, &["refused to read `secret/data/other`", policy]);
    assert_refused("${vault:old/sealed#a}", &variables, &["503", "Vault is sealed", "check VAULT_ADDR"]);
    assert_refused("${vault:../x#a}", &variables, &["`../x` is not a path"]);
    let wrong = [("VAULT_ADDR", url.as_str()), ("VAULT_TOKEN", "hunter2wrong")];
    assert_refused("${vault:old/app#topic}", &wrong, &["refused to read `old/app`", "permission denied"]);
    assert_refused(
        "${vault:old/app#topic}",
        &[("VAULT_ADDR", &url)],
        &["there is no token for Vault", "set VAULT_TOKEN"],
    );
    assert_refused("${vault:old/app#topic}", &[], &["VAULT_ADDR is not set", "export VAULT_ADDR="]);
    let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let closed_url = format!("http://user:hunter2@{closed}");
    let unreachable = [("VAULT_ADDR", closed_url.as_str()), ("VAULT_TOKEN", TOKEN)];
    assert_refused("${vault:old/app#topic}", &unreachable, &[&format!("http://{closed} does not answer"), "refused"]);
    assert_refused("${valt:old/app#topic}", &variables, &["did you mean `${vault:old/app#topic}`?"]);
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    assert!(key.len() <= 64);
    let pad =
        |filler: u8| -> Vec<u8> { (0..64).map(|index| key.get(index).copied().unwrap_or_default() ^ filler).collect() };
    let inner = Sha256::digest([pad(0x36), text.as_bytes().to_vec()].concat());
    Sha256::digest([pad(0x5c), inner.to_vec()].concat()).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Does the request have the signature that AWS computes from it?
fn is_signed(request: &Request) -> bool {
    let authorization = request.headers["authorization"].strip_prefix("AWS4-HMAC-SHA256 ").unwrap();
    let fields: BTreeMap<&str, &str> = authorization.split(", ").map(|field| field.split_once('=').unwrap()).collect();
    let scope = fields["Credential"].strip_prefix(&format!("{KEY_ID}/")).unwrap();
    let parts: Vec<&str> = scope.split('/').collect();
    let signed: Vec<&str> = fields["SignedHeaders"].split(';').collect();
    assert!(["host", "x-amz-date", "x-amz-target"].iter().all(|name| signed.contains(name)), "{signed:?}");
    let headers: String = signed.iter().map(|name| format!("{name}:{}\n", request.headers[*name])).collect();
    let body = hex(&Sha256::digest(request.body.as_bytes()));
    let canonical = format!("POST\n/\n\n{headers}\n{}\n{body}", fields["SignedHeaders"]);
    let date = &request.headers["x-amz-date"];
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let mut key = format!("AWS4{SECRET_KEY}").into_bytes();
    for part in parts {
        key = hmac(&key, part);
    }
    hex(&hmac(&key, &text)) == fields["Signature"]
}

fn aws_answer(request: &Request) -> (u16, String) {
    let error = |kind: &str| (400, format!(r#"{{"__type":"{kind}","Message":"about {kind}"}}"#));
    if !is_signed(request) {
        return error("InvalidSignatureException");
    }
    assert_eq!(request.headers["x-amz-target"], "secretsmanager.GetSecretValue");
    let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
    let arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:topic-Ab12";
    let region = request.headers["authorization"].split('/').nth(2).unwrap();
    match body["SecretId"].as_str().unwrap() {
        "prod/kafka" if region == "eu-central-1" => {
            (200, r#"{"SecretString":"{\"topic\":\"from-aws\",\"port\":9098}"}"#.to_owned())
        }
        id if id == arn && region == "us-west-2" => (200, r#"{"SecretString":"from-arn"}"#.to_owned()),
        "binary" => (200, r#"{"SecretBinary":"aHVudGVyMg=="}"#.to_owned()),
        "denied" => error("com.amazonaws.secretsmanager#AccessDeniedException"),
        "busy" => (503, String::new()),
        _ => error("ResourceNotFoundException"),
    }
}

#[test]
fn values_of_aws_secrets_manager_are_read_with_signed_requests() {
    let server = Server::start(Box::new(aws_answer));
    let url = server.url();
    let endpoint = ("AWS_ENDPOINT_URL_SECRETS_MANAGER", url.as_str());
    let identity =
        [("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY), ("AWS_REGION", "eu-central-1")];
    let variables = [&identity[..], &[endpoint]].concat();
    for (reference, expected) in [
        ("${aws-secret:prod/kafka#topic}", "from-aws"),
        ("${aws-secret:arn:aws:secretsmanager:us-west-2:123456789012:secret:topic-Ab12}", "from-arn"),
        ("t-${aws-secret:prod/kafka#port}", "t-9098"),
    ] {
        assert_resolved(reference, &variables, expected);
    }
    let general = [&identity[..], &[("AWS_ENDPOINT_URL", url.as_str())]].concat();
    assert_resolved("${aws-secret:prod/kafka#topic}", &general, "from-aws");

    assert_refused("${aws-secret:prod/kafka#tpic}", &variables, &["has no key `tpic`", "did you mean `#topic`?"]);
    assert_refused("${aws-secret:none}", &variables, &["ResourceNotFoundException", "check the name, AWS_REGION"]);
    assert_refused("${aws-secret:denied}", &variables, &["AccessDeniedException", "`secretsmanager:GetSecretValue`"]);
    assert_refused("${aws-secret:binary}", &variables, &["the secret `binary` has no text"]);
    let begun = server.requests.load(Ordering::Relaxed);
    assert_refused("${aws-secret:busy}", &variables, &["503", "check AWS_REGION and the endpoint"]);
    assert_eq!(server.requests.load(Ordering::Relaxed) - begun, 2, "a temporary failure is tried twice");
    let wrong = [&variables[..], &[("AWS_SECRET_ACCESS_KEY", "hunter2wrong")]].concat();
    assert_refused("${aws-secret:prod/kafka}", &wrong, &["InvalidSignatureException", "AWS_SESSION_TOKEN"]);
    let no_credentials = [endpoint, ("AWS_REGION", "eu-central-1")];
    assert_refused(
        "${aws-secret:prod/kafka}",
        &no_credentials,
        &["no AWS credentials were found", "get-caller-identity"],
    );
    let nowhere = [endpoint, identity[0], identity[1]];
    assert_refused("${aws-secret:prod/kafka}", &nowhere, &["the AWS region is not known", "set AWS_REGION"]);
}

/// The stage that uses the changed secret is restarted; the other one is not.
#[test]
fn sighup_reads_the_secrets_of_vault_again() {
    let topic = Arc::new(Mutex::new("first".to_owned()));
    let current = topic.clone();
    let server = Server::start(Box::new(move |request| match request.path.as_str() {
        "/v1/kv/app" => (200, format!(r#"{{"data":{{"topic":"{}"}}}}"#, current.lock().unwrap())),
        _ => (404, r#"{"errors":[]}"#.to_owned()),
    }));
    let url = server.url();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.toml"), pipeline("${vault:kv/app#topic}")).unwrap();
    std::fs::write(folder.path().join("q.toml"), pipeline("fixed").replace("\"p\"", "\"q\"")).unwrap();
    let log = folder.path().join("stderr");
    let variables = [("VAULT_ADDR", url.as_str()), ("VAULT_TOKEN", TOKEN)];
    let mut command = trunkline(folder.path(), &["run", "p.toml", "q.toml"], &variables);
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut worker = command.spawn().unwrap();
    let text = || String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    let reloads = || text().lines().filter(|line| line.contains(" restarted=[")).map(str::to_owned).collect::<Vec<_>>();
    let wait_for = |worker: &mut Child, count: usize| {
        let begun = Instant::now();
        while reloads().len() < count {
            let is_running = worker.try_wait().unwrap().is_none();
            assert!(is_running && begun.elapsed() < LIMIT, "{}", text());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    };
    wait_for(&mut worker, 1);
    *topic.lock().unwrap() = "second".to_owned();
    let id = i32::try_from(worker.id()).unwrap();
    // SAFETY: the call has no memory effects; the process was not reaped yet.
    unsafe { libc::kill(id, libc::SIGHUP) };
    wait_for(&mut worker, 2);
    // SAFETY: as above.
    unsafe { libc::kill(id, libc::SIGTERM) };
    assert!(worker.wait().unwrap().success(), "{}", text());
    let reload = reloads().pop().unwrap();
    assert!(reload.contains("restarted=[p.logs]") && reload.contains("unchanged=[q.logs]"), "{reload}");
    assert!(!text().contains("hunter2"), "{}", text());
}

/// A role from a web identity, as pods of EKS have it, with an S3 store and a token service that
/// are not Amazon's. `endpoint` is that of S3 only.
#[test]
fn a_web_identity_gets_the_credentials_of_its_role_from_the_token_service() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let sts = Server::start(Box::new(move |request| {
        seen.lock().unwrap().push(request.body.clone());
        let credentials = "<Credentials><AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>hunter2role</SecretAccessKey>\
            <SessionToken>hunter2session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>";
        let user = "<AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/lake/x</Arn><AssumedRoleId>A:x</AssumedRoleId></AssumedRoleUser>";
        let result = format!("<AssumeRoleWithWebIdentityResult>{credentials}{user}</AssumeRoleWithWebIdentityResult>");
        let text = format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">{result}\
             </AssumeRoleWithWebIdentityResponse>"
        );
        (200, text)
    }));
    let signed = Arc::new(Mutex::new(Vec::new()));
    let seen = signed.clone();
    let s3 = Server::start(Box::new(move |request| {
        let header = |name: &str| request.headers.get(name).cloned().unwrap_or_default();
        seen.lock().unwrap().push((header("authorization"), header("x-amz-security-token")));
        (404, "<Error><Code>NoSuchBucket</Code></Error>".to_owned())
    }));
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{}[sinks.lake]\nconnector = \"s3\"\ninputs = [\"logs\"]\nurl = \"s3://lake/x\"\nendpoint = \"{}\"\npath_style = true\n",
        pipeline("web"),
        s3.url()
    );
    std::fs::write(folder.path().join("p.toml"), text).unwrap();
    std::fs::write(folder.path().join("identity"), "web-identity-token").unwrap();
    let identity = folder.path().join("identity").display().to_string();
    let (region, sts_url) = ("eu-central-1", sts.url());
    let variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", identity.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/lake"),
        ("AWS_REGION", region),
        ("AWS_ENDPOINT_URL_STS", sts_url.as_str()),
    ];
    let Output { stdout, stderr, .. } =
        trunkline(folder.path(), &["validate", "p.toml", "--check"], &variables).output().unwrap();
    let shown = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(shown.contains("s3.no_such_bucket") && !shown.contains("hunter2"), "{shown}");
    let asked = asked.lock().unwrap();
    let is_token =
        asked.iter().all(|body| body.contains("AssumeRoleWithWebIdentity") && body.contains("web-identity-token"));
    assert!(!asked.is_empty() && is_token, "{asked:?}");
    let signed = signed.lock().unwrap();
    let (authorization, token) = signed.first().unwrap();
    assert!(authorization.contains("Credential=ASIAROLE/") && token == "hunter2session", "{authorization}");
}
