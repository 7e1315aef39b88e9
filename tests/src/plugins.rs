//! Plugins for tests.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::repository::target_directory;
use crate::{Skip, repository};

/// The plugin `transforms/plugins/testing` as WASM, built from source once in this process. It passes every record on, but traps on one
/// whose value contains the option `trap_on`.
pub fn test_plugin() -> Result<PathBuf, Skip> {
    static BUILT: OnceLock<Result<PathBuf, Skip>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Result<PathBuf, Skip> {
    let source = repository().join("transforms/plugins/testing");
    if !source.is_dir() {
        return Err(Skip::new(format!("no {}", source.display())));
    }
    let target = target_directory().join("plugins");
    // In a shell, because the toolchain script's answer is made of shell assignments. Without the wrapper that lints our own crates.
    let output = Command::new("bash")
        .args(["-euc", r#"eval "$("$0/tests/services/wasm-toolchain")"; cd "$1"; cargo build --release --locked --target wasm32-unknown-unknown"#])
        .arg(repository())
        .arg(&source)
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the test plugin does not build: {stderr}");
    let folder = target.join("wasm32-unknown-unknown/release");
    let mut found = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let plugin =
        found.find(|path| path.extension().is_some_and(|e| e == "wasm") && path.to_string_lossy().contains("testing"));
    Ok(plugin.unwrap_or_else(|| panic!("no *testing*.wasm in {}", folder.display())))
}
