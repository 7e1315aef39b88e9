//! `trunkline doctor`: each finding has its fix, and errors decide the exit code.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::{command, outcome, trunkline};

const PIPELINE: &str = r#"
name = "web"

[sources.logs]
connector = "logfile"
paths = ["*.log"]

[sinks.lake]
connector = "s3"
inputs = ["logs"]
url = "file:///FOLDER/lake"
"#;

/// A folder with a pipeline, its input and its destination.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = PIPELINE.replace("/FOLDER", &folder.path().display().to_string());
    std::fs::create_dir(folder.path().join("pipelines")).unwrap();
    std::fs::write(folder.path().join("pipelines/web.toml"), text).unwrap();
    std::fs::write(folder.path().join("pipelines/a.log"), "one\ntwo\n").unwrap();
    folder
}

/// The exit code, and the findings.
fn doctor(folder: &Path, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let (code, stdout, stderr) = trunkline(folder, &[&["doctor", "--json"], arguments].concat());
    let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    let findings = report["findings"].as_array().unwrap().clone();
    let errors = findings.iter().filter(|finding| finding["level"] == "error").count();
    assert_eq!((report["errors"].as_u64(), code), (Some(errors as u64), Some(i32::from(errors > 0))), "{findings:#?}");
    (code, findings)
}

fn of_area<'f>(findings: &'f [Value], area: &str) -> Vec<&'f Value> {
    findings.iter().filter(|finding| finding["area"] == area).collect()
}

#[test]
fn a_working_setup_has_no_errors() {
    let folder = folder();
    let (code, findings) = doctor(folder.path(), &["pipelines"]);
    assert_eq!(code, Some(0), "{findings:#?}");
    for area in ["settings", "pipelines", "data folder", "open files", "brokers", "systems"] {
        assert!(!of_area(&findings, area).is_empty(), "{area}: {findings:#?}");
    }
    assert!(!folder.path().join("trunkline-data").exists());
    let (code, stdout, _) = trunkline(folder.path(), &["doctor"]);
    assert!(code == Some(0) && stdout.contains("brokers      embedded"), "{stdout}");
}

#[test]
fn problems_of_files_settings_and_brokers_have_places_and_fixes() {
    let folder = folder();
    std::fs::write(
        folder.path().join("pipelines/bad.toml"),
        "name = \"bad\"\n[sources.a]\nconnector = \"logfile\"\npats = [\"a\"]\n",
    )
    .unwrap();
    // Nothing listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (_, findings) = doctor(folder.path(), &["pipelines", "--brokers", &address]);
    let pipelines = of_area(&findings, "pipelines");
    let bad = pipelines.iter().find(|finding| finding["place"] == "pipelines/bad.toml:4:1").unwrap();
    assert!(bad["fix"].as_str().unwrap().contains("did you mean `paths`?"), "{bad}");
    let brokers = of_area(&findings, "brokers");
    assert_eq!((brokers.len(), &brokers[0]["code"]), (1, &Value::from("kafka.unreachable")), "{brokers:?}");
    assert!(brokers[0]["fix"].as_str().unwrap().starts_with("check `brokers`"), "{brokers:?}");

    std::fs::write(folder.path().join("trunkline.toml"), "memroy = \"1GiB\"\n").unwrap();
    let (_, findings) = doctor(folder.path(), &[]);
    assert_eq!((findings.len(), &findings[0]["place"]), (1, &Value::from("trunkline.toml:1:1")), "{findings:?}");
    let (code, stdout, _) = trunkline(folder.path(), &["doctor"]);
    assert!(code == Some(1) && stdout.contains("fix: did you mean `memory`?"), "{stdout}");
    assert!(stdout.ends_with("\n1 error, 0 warnings\n"), "{stdout}");
}

/// A broker process, killed when the test ends.
struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn brokers_and_topics_are_examined() {
    let folder = folder();
    let mut broker = command(folder.path(), &["broker", "--listen", "127.0.0.1:0", "--data", "broker"]);
    let mut broker = Broker(broker.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut address = String::new();
    BufReader::new(broker.0.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
    let address = address.trim();
    let (code, findings) = doctor(folder.path(), &["pipelines", "--brokers", address]);
    assert_eq!(code, Some(0), "{findings:#?}");
    assert!(of_area(&findings, "brokers")[0]["message"].as_str().unwrap().contains(address), "{findings:#?}");
    assert!(of_area(&findings, "topics")[0]["message"].as_str().unwrap().contains("none exists yet"), "{findings:#?}");

    let mut job = command(folder.path(), &["run", "pipelines", "--until-idle", "--brokers", address]);
    let (code, _, stderr) = outcome(job.env("TRUNKLINE_TOPICS_CONFIG_RETENTION_MS", "60000"));
    assert_eq!(code, Some(0), "{stderr}");
    // Its log is for programs: stderr is a pipe.
    let lines = stderr.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let is_created = |line: &Value| line["message"].as_str().unwrap().starts_with("created ");
    let created: Vec<Value> = lines.filter(is_created).collect();
    assert!(!created.is_empty() && created.iter().all(|line| line["level"] == "INFO"), "{stderr}");

    let (code, findings) = doctor(folder.path(), &["pipelines", "--brokers", address]);
    assert_eq!(code, Some(0), "{findings:#?}");
    let short: Vec<&Value> = findings.iter().filter(|finding| finding["code"] == "kafka.short_retention").collect();
    assert_eq!(short.len(), 2, "the topic and the dead letters: {findings:#?}");
    assert!(short[0]["fix"].as_str().unwrap().contains("--add-config retention.ms="), "{short:?}");
}
