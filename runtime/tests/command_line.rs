//! The binary: what goes to stdout and stderr, and exit codes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const GOOD: &str = r#"
name = "shop"

[sources.web]
connector = "logfile"
paths = ["a.log"]
apply = ["mask"]

[sources.api]
connector = "logfile"
paths = ["b.log"]
topic = "api.{@path}"

[transforms.mask]
plugin = "mask.wasm"
config = { fields = ["card"] }

[transforms.clean]
inputs = ["web", "api"]
plugin = "mask.wasm"
config = { fields = ["ip"] }

[transforms.scored]
inputs = ["clean"]
plugin = "mask.wasm"
config = { fields = ["score"] }
topic = "scored"

[sinks.lake]
connector = "s3"
inputs = ["clean", "scored"]
url = "file:///lake"

[sinks.copy]
connector = "s3"
inputs = ["clean"]
url = "file:///copy"
on_error = "stop"
"#;

/// Runs the binary in a folder, without the settings of whoever runs the tests.
fn trunkline(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE_")) {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } = command.args(arguments).current_dir(folder).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn validate_says_ok_on_stdout() {
    let folder = folder(&[("shop.toml", GOOD), ("trunkline.toml", "brokers = \"x:1\"\n")]);
    let (code, stdout, stderr) = trunkline(folder.path(), &["validate", "."]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(stdout, "./shop.toml: ok: pipeline `shop`, 2 sources, 3 transforms, 2 sinks\n");
    let (code, stdout, _) = trunkline(folder.path(), &["validate", "shop.toml", "--json"]);
    assert_eq!((code, stdout.as_str()), (Some(0), "[]\n"));
}

#[test]
fn validate_shows_problems_on_stderr_without_colours() {
    let folder = folder(&[("good.toml", GOOD), ("bad.toml", "nam = \"x\"\n")]);
    let (code, stdout, stderr) = trunkline(folder.path(), &["validate", "good.toml", "bad.toml"]);
    assert_eq!(code, Some(2));
    assert!(stdout.starts_with("good.toml: ok") && stdout.lines().count() == 1, "{stdout}");
    assert!(stderr.contains("bad.toml:1:1") && stderr.ends_with("3 errors in 1 file\n"), "{stderr}");
    assert!(!stderr.contains('\u{1b}'), "{stderr}");
    let (code, stdout, stderr) = trunkline(folder.path(), &["validate", "bad.toml", "--json"]);
    let problems: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, problems.as_array().unwrap().len(), stderr.as_str()), (Some(2), 3, ""));
}

#[test]
fn bad_settings_and_usage_are_config_errors() {
    let folder = folder(&[("shop.toml", GOOD), ("trunkline.toml", "broker = \"x:1\"\n")]);
    let (code, stdout, stderr) = trunkline(folder.path(), &["validate", "shop.toml", "--memory", "lots"]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("trunkline.toml:1:1") && stderr.contains("the flag `--memory`"), "{stderr}");
    // A job reads its files once.
    let job = &["run", "shop.toml", "--until-idle", "--watch"];
    for wrong in [&["validate"][..], &["validat", "shop.toml"], &["validate", "shop.toml", "--colour"], job] {
        let (code, stdout, stderr) = trunkline(folder.path(), wrong);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{wrong:?}");
        assert!(stderr.starts_with("error:") || stderr.contains("Usage"), "{stderr}");
    }
    let (code, stdout, _) = trunkline(folder.path(), &["--help"]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("validate") && stdout.contains("graph") && stdout.contains("run"), "{stdout}");
}

#[test]
fn graph_is_drawn_from_the_plan() {
    let folder = folder(&[("shop.toml", GOOD), ("bad.toml", "")]);
    let (code, stdout, stderr) = trunkline(folder.path(), &["graph", "shop.toml", "--dead-letters"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!("graph", stdout);
    let (code, stdout, _) = trunkline(folder.path(), &["graph", "bad.toml"]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
}

#[test]
fn connectors_are_listed() {
    let folder = folder(&[]);
    let (code, stdout, _) = trunkline(folder.path(), &["connectors"]);
    assert_eq!(
        (code, stdout.as_str()),
        (Some(0), "source  logfile\nsource  mysql\nsink    elasticsearch\nsink    s3\n")
    );
}
