//! The plugins that tests use.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::paths::{repository, target_directory};

/// The plugin `transforms/plugins/testing` as WASM, built once in this process. Its options name
/// texts: `trap_on = "text"` traps on each record whose value contains the text.
pub fn test_plugin() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("testing")).clone()
}

/// The plugin `transforms/plugins/counting`, which keeps state, in the same way.
pub fn counting_plugin() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("counting")).clone()
}

fn build(name: &str) -> PathBuf {
    let plugins = repository().join("transforms/plugins");
    let target = target_directory().join("plugins");
    let plugin = target.join(format!("{name}.wasm"));
    std::fs::create_dir_all(&target).unwrap();
    // A failure is not a skip: the worker's bundled plugins were built with the same tools.
    let output = Command::new(plugins.join("build"))
        .arg(name)
        .arg(&plugin)
        .env("CARGO_TARGET_DIR", target)
        // `tests/timed` sets it for the test harness; cargo must not see it.
        .env_remove("RUSTC_BOOTSTRAP")
        .output()
        .unwrap();
    assert!(output.status.success(), "the plugin {name} does not build: {}", String::from_utf8_lossy(&output.stderr));
    plugin
}
