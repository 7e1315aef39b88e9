//! Builds a plugin of `transforms/plugins`. This crate's build script and its tests share this
//! file, so it uses only the standard library.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "wasm32-unknown-unknown";

/// Variables of the calling cargo that must not reach the plugin's build. They would lint the
/// plugin, select the wrong target, or block on the lock of the caller's target directory.
const CALLER_VARIABLES: [&str; 9] = [
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
];

/// Builds the package whose library is `name` from the workspace `plugins`. Returns the path of the
/// module.
pub(crate) fn build(plugins: &Path, name: &str, target_dir: &Path) -> Result<PathBuf, String> {
    let rustc = env::var("TRUNKLINE_WASM_RUSTC").ok();
    check_target(rustc.as_deref())?;
    let mut cargo = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    for variable in CALLER_VARIABLES {
        cargo.env_remove(variable);
    }
    if let Some(rustc) = rustc {
        cargo.env("RUSTC", rustc);
    }
    // the folder whose `.cargo/config.toml` applies to plugins
    cargo.current_dir(plugins);
    cargo.args(["build", "--release", "--locked", "--target", TARGET]);
    cargo.arg("--manifest-path").arg(plugins.join(name).join("Cargo.toml"));
    cargo.arg("--target-dir").arg(target_dir);
    let output = cargo.output().map_err(|error| format!("cannot run cargo for the plugin `{name}`: {error}"))?;
    if !output.status.success() {
        return Err(format!("the plugin `{name}` does not build:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let wasm = target_dir.join(TARGET).join("release").join(format!("{name}.wasm"));
    if !wasm.is_file() {
        return Err(format!("the build of the plugin `{name}` succeeded, but did not create {}", wasm.display()));
    }
    Ok(wasm)
}

/// Checks that the compiler has a standard library for the target. cargo's own message does not
/// say how to install it.
fn check_target(rustc: Option<&str>) -> Result<(), String> {
    let from_cargo = env::var("RUSTC").ok();
    let rustc = rustc.map(str::to_owned).or(from_cargo).unwrap_or_else(|| "rustc".to_owned());
    let output = Command::new(&rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let output = output.map_err(|error| format!("cannot run {rustc}: {error}"))?;
    let libdir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let files = fs::read_dir(&libdir).map(|dir| dir.flatten().collect::<Vec<_>>()).unwrap_or_default();
    if files.iter().any(|file| file.file_name().to_string_lossy().starts_with("libstd-")) {
        return Ok(());
    }
    Err(format!(
        "the compiler {rustc} has no standard library for {TARGET}, which plugins are built for: run \
         `rustup target add {TARGET}` (or, where that is not possible, `eval \"$(transforms/toolchain)\"`)"
    ))
}
