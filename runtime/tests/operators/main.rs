//! What a person uses before and around a worker: the JSON Schema, new pipeline files, completions
//! and manual pages.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod deploy;
mod doctor;
mod json_schema;
mod new_pipeline;
mod shell;
mod validator;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The binary with arguments, in a folder, without the settings of the environment.
fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE_")) {
        command.env_remove(name);
    }
    command.args(arguments).current_dir(folder);
    command
}

/// The exit code, stdout and stderr of a command.
fn outcome(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn trunkline(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    outcome(&mut command(folder, arguments))
}

/// A TOML text as JSON.
fn toml_as_json(text: &str) -> Result<serde_json::Value, toml::de::Error> {
    text.parse::<toml::Table>().map(|table| serde_json::to_value(table).unwrap())
}
