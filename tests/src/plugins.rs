//! Plugins for tests.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::repository;
use crate::repository::target_directory;

/// The plugin `transforms/plugins/testing` as WASM, built from source once in this process. It does what its options say to records
/// whose value contains a text: `trap_on = "text"` traps.
pub fn test_plugin() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let plugins = repository().join("transforms/plugins");
    let target = target_directory().join("plugins");
    let plugin = target.join("testing.wasm");
    std::fs::create_dir_all(&target).unwrap();
    // What it needs is what the worker's bundled plugins needed: no reason to skip.
    let output = Command::new(plugins.join("build"))
        .arg("testing")
        .arg(&plugin)
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap();
    assert!(output.status.success(), "the test plugin does not build: {}", String::from_utf8_lossy(&output.stderr));
    plugin
}
