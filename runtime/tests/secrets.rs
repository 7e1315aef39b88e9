//! A marker stands for a secret in every option of every connector and in every setting. No
//! output, no file of the worker and no topic contains it (I8).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Any part of it in any output is a leak.
const MARKER: &str = "hunter2marker";

/// More than any command here should take.
const LIMIT: Duration = Duration::from_secs(60);

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    let is_setting = |name: &str| name.starts_with("TRUNKLINE_") || name.starts_with("AWS_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command.args(arguments).current_dir(folder).env("MARKER", MARKER).env("TRUNKLINE_LOG", "trace");
    command.env("TRUNKLINE_LOG_FORMAT", "text");
    command
}

fn output_of(folder: &Path, arguments: &[&str]) -> String {
    let Output { stdout, stderr, .. } = command(folder, arguments).output().unwrap();
    format!("{}{}", String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[track_caller]
fn assert_hidden(output: &str) {
    let leak = output.lines().find(|line| line.contains("hunter2") || line.contains("2marker"));
    assert!(leak.is_none(), "a secret is shown: {leak:?}");
}

/// The options of all connectors, as the command line describes them: kind, connector and key.
fn options() -> Vec<(String, String, String)> {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Vec::new();
    for connector in ["logfile", "mysql", "s3", "elasticsearch", "redshift", "snowflake"] {
        let Output { stdout, .. } =
            command(folder.path(), &["connectors", "describe", connector, "--json"]).output().unwrap();
        let described: serde_json::Value = serde_json::from_slice(&stdout).unwrap();
        for described in described.as_array().unwrap() {
            for option in described["options"].as_array().unwrap() {
                let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
                options.push((text(&described["kind"]), connector.to_owned(), text(&option["key"])));
            }
        }
    }
    options
}

#[test]
fn no_option_of_a_connector_is_shown_in_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let options = options();
    assert!(options.len() > 60, "{}", options.len());
    for (index, (kind, connector, key)) in options.iter().enumerate() {
        // A text, a list of texts and a number that is not one: each is an error of most options.
        for (form, value) in ["\"${env:MARKER}\"", "[\"${env:MARKER}\"]", "\"x://u:${env:MARKER}@h:bad/${env:MARKER}\""]
            .iter()
            .enumerate()
        {
            let text =
                format!("name = \"p{index}-{form}\"\n[{kind}s.c]\nconnector = \"{connector}\"\n{key} = {value}\n");
            fs::write(folder.path().join(format!("{index}-{form}.toml")), text).unwrap();
        }
    }
    for arguments in [&["validate", "."][..], &["validate", ".", "--json"], &["graph", "."], &["acls", "."]] {
        let output = output_of(folder.path(), arguments);
        assert!(output.len() > 1000, "{output}");
        assert_hidden(&output);
    }
}

#[test]
fn no_setting_is_shown_in_an_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("web.toml"),
        "name = \"web\"\n[sources.logs]\nconnector = \"logfile\"\npaths = [\"a\"]\n",
    )
    .unwrap();
    let Output { stdout, .. } = command(folder.path(), &["settings", "--json"]).output().unwrap();
    let settings: serde_json::Value = serde_json::from_slice(&stdout).unwrap();
    let keys: Vec<&str> = settings.as_array().unwrap().iter().map(|setting| setting["key"].as_str().unwrap()).collect();
    assert!(keys.contains(&"kafka"), "{keys:?}");
    let kafka = ["security", "region", "sasl.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"];
    let properties = kafka.map(|name| format!("kafka.\"{name}\""));
    for key in keys.iter().copied().chain(properties.iter().map(String::as_str)) {
        for value in ["\"${env:MARKER}\"", "[\"${env:MARKER}\"]"] {
            fs::write(folder.path().join("trunkline.toml"), format!("{key} = {value}\n")).unwrap();
            // The filter of the log comes from the environment otherwise.
            let mut command = command(folder.path(), &["validate", "web.toml"]);
            command.env_remove("TRUNKLINE_LOG");
            let Output { stdout, stderr, .. } = command.output().unwrap();
            // These four are names and places, which the commands show.
            if !["data", "secrets", "cluster", "node", "prefix", "brokers"].contains(&key) {
                assert_hidden(&format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)));
            }
        }
    }
}

/// A worker whose sources and sinks reach no system, or one that refuses them.
#[test]
fn no_secret_reaches_logs_files_or_topics() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = r#"
        name = "p"
        [sources.logs]
        connector = "logfile"
        paths = ["access.log"]
        [sources.shop]
        connector = "mysql"
        url = "mysql://user:${env:MARKER}@127.0.0.1:1"
        tables = ["a.b"]
        [sinks.lake]
        connector = "s3"
        inputs = ["logs"]
        url = "s3://bucket/x"
        endpoint = "http://127.0.0.1:1"
        region = "eu-central-1"
        access_key_id = "AKIDEXAMPLE"
        secret_access_key = "${env:MARKER}"
        session_token = "${env:MARKER}"
        commit = { idle = "1s" }
        [sinks.search]
        connector = "elasticsearch"
        inputs = ["logs"]
        url = "http://127.0.0.1:1"
        index = "a"
        username = "user"
        password = "${env:MARKER}"
        [sinks.facts]
        connector = "redshift"
        inputs = ["logs"]
        url = "postgres://loader:${env:MARKER}@127.0.0.1:1/dev"
        schema = "raw"
        table = "t"
        mode = "append"
        every = "1s"
        stage = { url = "s3://a/b", endpoint = "http://127.0.0.1:1", region = "eu-central-1", access_key_id = "AKIDEXAMPLE", secret_access_key = "${env:MARKER}", session_token = "${env:MARKER}" }
        [sinks.snow]
        connector = "snowflake"
        inputs = ["logs"]
        account = "xy12345"
        url = "http://127.0.0.1:1"
        user = "LOADER"
        password = "${env:MARKER}"
        warehouse = "W"
        database = "D"
        schema = "S"
        table = "t"
        mode = "append"
        every = "1s"
        stage = { url = "s3://a/b", endpoint = "http://127.0.0.1:1", region = "eu-central-1", access_key_id = "AKIDEXAMPLE", secret_access_key = "${env:MARKER}", session_token = "${env:MARKER}", storage_integration = "LAKE" }
        [sinks.keyed]
        connector = "elasticsearch"
        inputs = ["logs"]
        url = "http://127.0.0.1:1"
        index = "b"
        api_key = "${env:MARKER}"
    "#;
    fs::write(folder.path().join("p.toml"), pipeline).unwrap();
    fs::write(folder.path().join("access.log"), "a line\n").unwrap();
    assert_hidden(&output_of(folder.path(), &["validate", "p.toml", "--check"]));

    let log = folder.path().join("stderr");
    let mut command = command(folder.path(), &["run", "p.toml"]);
    command.env("TRUNKLINE_KAFKA_COMPRESSION_TYPE", "none").env("TRUNKLINE_KAFKA_SASL_PASSWORD", MARKER);
    command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
    let mut worker = command.spawn().unwrap();
    let text = || String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    let begun = Instant::now();
    // Every component has failed at least once.
    let components = ["p.shop", "p.lake", "p.search", "p.keyed", "p.facts", "p.snow"];
    let has_failed = |text: &str, component: &str| {
        text.lines().any(|line| (line.contains(" WARN ") || line.contains("ERROR ")) && line.contains(component))
    };
    while !components.iter().all(|component| has_failed(&text(), component)) {
        let is_running = worker.try_wait().unwrap().is_none();
        let failed: Vec<_> = components.iter().filter(|component| has_failed(&text(), component)).collect();
        assert!(is_running && begun.elapsed() < LIMIT, "failed so far: {failed:?}: {}", text());
        std::thread::park_timeout(Duration::from_millis(100));
    }
    // SAFETY: the call has no memory effects; the process was not reaped yet.
    unsafe { libc::kill(worker.id() as i32, libc::SIGTERM) };
    let begun = Instant::now();
    while worker.try_wait().unwrap().is_none() {
        if begun.elapsed() > LIMIT {
            let _ = worker.kill();
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    assert_hidden(&text());
    for file in files(&folder.path().join("trunkline-data")) {
        let bytes = fs::read(&file).unwrap();
        let is_found = bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes());
        assert!(!is_found, "{} contains a secret", file.display());
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
