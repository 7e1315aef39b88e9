//! The binary: stdout, stderr and exit codes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use trunkline::plan::{Registry, options};

const GOOD: &str = r#"
name = "shop"

[sources.web]
connector = "logfile"
parser = "json"
paths = ["a.log"]
apply = ["mask"]

[sources.api]
connector = "logfile"
parser = "json"
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

[transforms.upper]
inputs = ["clean"]
plugin = "mask.wasm"
config = { fields = ["upper"] }

[sinks.copy]
connector = "s3"
inputs = ["upper"]
url = "file:///copy"
on_error = "stop"
"#;

/// The binary with arguments, in a folder, without the settings of the environment.
fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE_")) {
        command.env_remove(name);
    }
    command.args(arguments).current_dir(folder);
    command
}

fn trunkline(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command(folder, arguments).output().unwrap();
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
fn validate_prints_valid_pipelines_and_where_transforms_run() {
    let folder = folder(&[("shop.toml", GOOD), ("trunkline.toml", "brokers = \"x:1\"\n")]);
    let (code, stdout, stderr) = trunkline(folder.path(), &["validate", "."]);
    // Three of its masks run after a topic.
    assert!(code == Some(0) && stderr.ends_with("\n3 warnings in 1 file\n"), "{stderr}");
    assert_eq!(
        stdout,
        "./shop.toml: ok: pipeline `shop`, 2 sources, 4 transforms, 2 sinks\n  \
         transform `clean`: separate stage, writes `shop.clean`\n  \
         transform `mask`: before the topic of `web`\n  \
         transform `scored`: separate stage, writes `scored`\n  \
         transform `upper`: fused into `copy`\n"
    );
    let (code, stdout, _) = trunkline(folder.path(), &["validate", "shop.toml", "--json"]);
    let warnings: Value = serde_json::from_str(&stdout).unwrap();
    let severities: Vec<&str> =
        warnings.as_array().unwrap().iter().map(|it| it["severity"].as_str().unwrap()).collect();
    assert_eq!((code, severities), (Some(0), vec!["warning"; 3]));
}

#[test]
fn validate_prints_problems_to_stderr_without_colours() {
    let folder = folder(&[("good.toml", GOOD), ("bad.toml", "nam = \"x\"\n")]);
    let (code, stdout, stderr) = trunkline(folder.path(), &["validate", "good.toml", "bad.toml"]);
    assert_eq!(code, Some(2));
    assert!(stdout.starts_with("good.toml: ok") && !stdout.contains("bad.toml"), "{stdout}");
    assert!(stderr.contains("bad.toml:1:1") && stderr.ends_with("2 errors and 3 warnings in 2 files\n"), "{stderr}");
    assert!(!stderr.contains('\u{1b}'), "{stderr}");
    let (code, stdout, stderr) = trunkline(folder.path(), &["validate", "bad.toml", "--json"]);
    let problems: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, problems.as_array().unwrap().len(), stderr.as_str()), (Some(2), 2, ""));
}

#[test]
fn bad_settings_and_usage_are_config_errors() {
    let folder = folder(&[("shop.toml", GOOD), ("trunkline.toml", "broker = \"x:1\"\n")]);
    let (code, stdout, stderr) = trunkline(folder.path(), &["validate", "shop.toml", "--memory", "lots"]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("trunkline.toml:1:1") && stderr.contains("the flag `--memory`"), "{stderr}");
    // A job reads its files only once.
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
fn connectors_and_plugins_are_listed_and_described() {
    let folder = folder(&[]);
    let (code, stdout, _) = trunkline(folder.path(), &["connectors"]);
    let kinds: Vec<&str> = stdout.lines().map(|line| line.split("  ").next().unwrap()).collect();
    let expected: Vec<&str> = ["source"; 2].into_iter().chain(["sink"; 4]).chain(["plugin"; 14]).collect();
    assert_eq!((code, kinds), (Some(0), expected), "{stdout}");
    assert!(stdout.lines().all(|line| line.split_whitespace().count() > 4), "a line without a summary: {stdout}");

    let registry = Registry::new();
    let sources = registry.sources().map(|connector| (connector.name(), connector.options(), options::SOURCE));
    let sinks = registry.sinks().map(|connector| (connector.name(), connector.options(), options::SINK));
    for (name, own, shared) in sources.chain(sinks) {
        let (code, text, _) = trunkline(folder.path(), &["connectors", "describe", name]);
        let (_, json, _) = trunkline(folder.path(), &["connectors", "describe", name, "--json"]);
        let described: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(code, Some(0));
        for (list, declared) in [("options", own), ("shared_options", shared)] {
            let keys: Vec<&str> = declared.iter().map(|option| option.key).collect();
            let listed = described[0][list].as_array().unwrap().iter().map(|option| option["key"].as_str().unwrap());
            assert_eq!(listed.collect::<Vec<_>>(), keys, "{name}");
            for key in keys {
                assert!(text.contains(&format!("\n  {key} (")), "no {key} in {text}");
            }
        }
    }
    let (_, stdout, _) = trunkline(folder.path(), &["connectors", "describe", "mask"]);
    assert!(stdout.contains("\n  fields (") && stdout.contains("\n  fuse ("), "{stdout}");
    let (code, _, stderr) = trunkline(folder.path(), &["connectors", "describe", "logfiel"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("did you mean `logfile`?"), "{stderr}");
}

#[test]
fn settings_are_listed_with_their_variables() {
    let folder = folder(&[]);
    let (code, stdout, _) = trunkline(folder.path(), &["settings"]);
    assert_eq!(code, Some(0));
    for variable in ["TRUNKLINE_BROKERS, flag --brokers", "TRUNKLINE_TOPICS_PARTITIONS", "TRUNKLINE_KAFKA_*"] {
        assert!(stdout.contains(variable), "no {variable} in {stdout}");
    }
    let (code, stdout, _) = trunkline(folder.path(), &["settings", "--example"]);
    assert!(code == Some(0) && stdout.contains("# memory = \"256MiB\""), "{stdout}");
}

#[test]
fn error_codes_are_explained() {
    let folder = folder(&[]);
    let (code, stdout, _) = trunkline(folder.path(), &["explain", "mysql.purged"]);
    assert_eq!(code, Some(0));
    assert!(stdout.starts_with("mysql.purged\n") && stdout.contains("on_purged"), "{stdout}");
    let (code, _, stderr) = trunkline(folder.path(), &["explain", "mysql.purgd"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("did you mean `mysql.purged`?"), "{stderr}");
    let (_, stdout, _) = trunkline(folder.path(), &["explain"]);
    assert!(stdout.lines().count() > 100, "{stdout}");
}

/// The commands that write to stdout and need no broker.
const PRINTING: [&[&str]; 8] = [
    &["--help"],
    &["--version"],
    &["connectors"],
    &["connectors", "describe", "logfile"],
    &["settings"],
    &["explain"],
    &["validate", "shop.toml"],
    &["graph", "shop.toml"],
];

/// A reader that has gone (`| head`) is not a failure.
#[test]
fn parse_tries_parsers_on_files() {
    let folder = folder(&[
        ("app.log", "bad\n2026-03-01 10:00:00,123 [main] INFO a.B - x\njava.lang.Error: y\n\tat a.B\n"),
        ("pairs.log", "n=5\nm=1 n=x\n"),
    ]);
    let run = |arguments: &[&str]| trunkline(folder.path(), &[&["parse"], arguments].concat());
    let (code, stdout, stderr) = run(&["--parser", "java", "app.log"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert!(stdout.contains(r#""stack_trace":"java.lang.Error: y\n\tat a.B""#), "{stdout}");
    assert!(stderr.starts_with("app.log:1:1: expected a time") && stderr.contains("\n  bad\n  ^\n"), "{stderr}");
    let (_, stdout, _) = run(&["--parser", "java", "--stats", "app.log"]);
    assert_eq!(stdout, "1 lines parsed, 1 rejected, 0 blank\n");
    let (code, stdout, _) = run(&["--detect", "app.log"]);
    assert_eq!(code, Some(0));
    // `logfmt` accepts every word as a key, which says nothing about the format.
    assert!(
        stdout.starts_with("java             1 lines parsed, 1 rejected")
            && stdout.contains("\nlogfmt           4 lines"),
        "{stdout}"
    );
    let (_, stdout, _) = run(&["--detect", "pairs.log"]);
    assert!(stdout.starts_with("logfmt ") || stdout.starts_with("key_value "), "{stdout}");
    let (_, stdout, stderr) = run(&["--parser", "logfmt", "--options", "types = { n = \"int\" }", "pairs.log"]);
    assert_eq!(stdout, "{\"n\":5}\n");
    assert!(stderr.contains("pairs.log:2:7: expected a whole number"), "{stderr}");
    for (arguments, code) in [
        (&["--parser", "cobol", "app.log"][..], "cli.unknown_parser"),
        (&["--parser", "grok", "app.log"], "cli.no_pattern"),
        (&["--pattern", "(", "app.log"], "cli.bad_options"),
        (&["--parser", "cri", "--options", "typos = 1", "app.log"], "cli.bad_options"),
    ] {
        let (exit, _, stderr) = run(arguments);
        assert!(exit == Some(2) && stderr.contains(code), "{arguments:?}: {exit:?} {stderr}");
    }
}

#[test]
fn a_closed_pipe_ends_no_command_with_an_error() {
    let folder = folder(&[("shop.toml", GOOD)]);
    for arguments in PRINTING {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let Output { status, stderr, .. } = command(folder.path(), arguments).stdout(writer).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(status.code() == Some(0) && !stderr.contains("error"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_full_disk_under_stdout_is_an_error() {
    let folder = folder(&[("shop.toml", GOOD)]);
    for arguments in PRINTING.into_iter().chain([&["validate", "shop.toml", "--json"][..]]) {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let Output { status, stderr, .. } = command(folder.path(), arguments).stdout(full).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(3), "{arguments:?}: {stderr}");
        assert!(stderr.contains("error: cannot write to stdout: "), "{arguments:?}: {stderr}");
    }
}

/// Errors that cannot be written must not change the result.
#[test]
fn a_full_disk_under_stderr_does_not_change_the_exit_code() {
    let folder = folder(&[("bad.toml", "nam = 1")]);
    for (arguments, code) in [
        (&["validate", "bad.toml"][..], 2),
        (&["graph", "bad.toml"], 2),
        (&["explain", "no.code"], 2),
        (&["run", "bad.toml", "--until-idle"], 2),
        (&["run", "--no-such-flag"], 2),
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = command(folder.path(), arguments).stderr(full).output().unwrap().status;
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

/// A job on the embedded broker, whose stdout or stderr cannot be written.
#[test]
fn a_job_ends_well_whatever_becomes_of_its_output() {
    let pipeline = "name = \"p\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"*.log\"]\n";
    let folder = folder(&[("p.toml", pipeline), ("a.log", "one\ntwo\n")]);
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let job = || command(folder.path(), &["run", "p.toml", "--until-idle"]);

    let Output { status, stdout, .. } = job().stderr(full()).output().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(String::from_utf8(stdout).unwrap().contains("web 2 in"));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let Output { status, stderr, .. } = job().stdout(writer).output().unwrap();
    assert_eq!(status.code(), Some(0), "{}", String::from_utf8_lossy(&stderr));
    let Output { status, stderr, .. } = job().stdout(full()).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("error: cannot write to stdout: "), "{stderr}");
}
