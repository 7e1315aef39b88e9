//! Wrong Kafka settings: reported with the property's name, never with its value (I8).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

const PIPELINE: &str = r#"
name = "web"

[sources.logs]
connector = "logfile"
paths = ["access.log"]
"#;

/// Any part of it in any output is a leak.
const MARKER: &str = "hunter2";

/// Runs a job on brokers that do not exist, with all that can be logged. Returns the exit code and
/// all output.
fn run(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE_")) {
        command.env_remove(name);
    }
    command.args(arguments).args(["--brokers", "127.0.0.1:1"]).current_dir(folder);
    command
        .env("TRUNKLINE_LOG", "trace")
        .env("TRUNKLINE_LOG_FORMAT", "text")
        .env("MARKER", MARKER)
        .envs(variables.iter().copied());
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), format!("{}{}", String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap()))
}

fn folder(settings: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("web.toml"), PIPELINE).unwrap();
    std::fs::write(folder.path().join("trunkline.toml"), settings).unwrap();
    folder
}

const JOB: [&str; 3] = ["run", "web.toml", "--until-idle"];

#[track_caller]
fn assert_reported((code, output): (Option<i32>, String), expected: &str) {
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains(expected), "expected {expected:?} in {output}");
    assert!(!output.contains("hunter") && !output.contains("unter2"), "{output}");
}

#[test]
fn unknown_and_wrong_properties_are_config_errors_without_values() {
    let cases = [
        (r#""sasl.passwort" = "${env:MARKER}""#, "`sasl.passwort` is unknown: did you mean `sasl.password`?"),
        (r#""ssl.certficate.pem" = "-----BEGIN CERTIFICATE-----\nhunter2""#, "did you mean `ssl.certificate.pem`?"),
        (r#"sasl.oauthbearer.client.secert = "hunter2""#, "did you mean `sasl.oauthbearer.client.secret`?"),
        (r#""security.protocol" = "hunter2""#, "expected plaintext, ssl, sasl_plaintext, sasl_ssl"),
        (r#""socket.timeout.ms" = "hunter2""#, "the Kafka property `socket.timeout.ms` is not valid"),
        (r#""enable.ssl.certificate.verification" = "hunter2""#, "expected true, false"),
        // Accepted one by one, and refused when a client is created.
        ("\"security.protocol\" = \"sasl_ssl\"\n\"sasl.mechanism\" = \"hunter2\"", "cannot create a Kafka client"),
        ("\"security.protocol\" = \"ssl\"\n\"ssl.key.pem\" = \"hunter2\"", "ssl.key.pem"),
        ("\"security.protocol\" = \"ssl\"\n\"ssl.certificate.pem\" = \"hunter2\"", "ssl.certificate.pem"),
        ("\"security.protocol\" = \"ssl\"\n\"ssl.ca.pem\" = \"hunter2\"", "ssl.ca.pem"),
    ];
    for (setting, expected) in cases {
        let folder = folder(&format!("[kafka]\n{setting}\n"));
        assert_reported(run(folder.path(), &JOB, &[]), expected);
    }
}

#[test]
fn typos_in_environment_variables_are_config_errors_without_values() {
    let folder = folder("");
    let variables = [("TRUNKLINE_KAFKA_SASL_PASSWROD", MARKER)];
    assert_reported(run(folder.path(), &JOB, &variables), "`sasl.passwrod` is unknown: did you mean `sasl.password`?");
    let variables = [("TRUNKLINE_KAFKA_SECURITY_PROTOCOL", MARKER)];
    assert_reported(run(folder.path(), &JOB, &variables), "expected plaintext, ssl, sasl_plaintext, sasl_ssl");
}

#[test]
fn incomplete_settings_of_an_oauth_server_are_config_errors_without_values() {
    let settings =
        "[kafka]\n\"sasl.oauthbearer.method\" = \"oidc\"\n\"sasl.oauthbearer.client.secret\" = \"hunter2\"\n";
    let folder = folder(settings);
    let expected = "needs the settings `sasl.oauthbearer.token.endpoint.url`, `sasl.oauthbearer.client.id`";
    assert_reported(run(folder.path(), &JOB, &[]), expected);
}

#[test]
fn every_verb_that_reaches_kafka_reports_wrong_properties() {
    let folder = folder("[kafka]\n\"sasl.passwort\" = \"hunter2\"\n");
    let snapshot = ["snapshot", "web.logs", "web.toml", "--tables", "a.b"];
    assert_reported(run(folder.path(), &snapshot, &[]), "did you mean `sasl.password`?");
}

#[test]
fn files_that_cannot_be_used_are_reported_with_property_and_path() {
    let tls = "[kafka]\n\"security.protocol\" = \"ssl\"\n";
    let missing = folder(&format!("{tls}\"ssl.ca.location\" = \"/no/such/ca.pem\"\n"));
    assert_reported(run(missing.path(), &JOB, &[]), "`ssl.ca.location`: /no/such/ca.pem: No such file");

    let garbage = folder("");
    let path = garbage.path().join("client.key");
    std::fs::write(&path, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
        .unwrap();
    let settings = format!("{tls}\"ssl.key.location\" = \"{}\"\n\"ssl.key.password\" = \"hunter2\"\n", path.display());
    std::fs::write(garbage.path().join("trunkline.toml"), settings).unwrap();
    let (code, output) = run(garbage.path(), &JOB, &[]);
    assert!(output.contains("ssl.key.location") && output.contains("`ssl.key.password`"), "{output}");
    assert_reported((code, output), &path.display().to_string());

    let pasted = folder(&format!("{tls}\"ssl.key.location\" = \"-----BEGIN PRIVATE KEY-----\\nhunter2\"\n"));
    assert_reported(run(pasted.path(), &JOB, &[]), "`ssl.key.pem`");
}
