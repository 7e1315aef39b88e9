//! The parts of the toolchains that `trunkline transform build` fetches: those that a newcomer
//! would otherwise install by hand. They are pinned, and listed before they are fetched.
//!
//! | language | part | place |
//! |---|---|---|
//! | Rust | the target of the standard library | rustup's folder |
//! | Python | componentize-py | `toolchains` in the cache folder of the user |
//! | JavaScript | componentize-js | `node_modules` in the project, where Node.js finds it |

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Exit;
use crate::cli::output::print_error;
use crate::worker::user_cache_dir;

/// An exit code and a message.
pub(super) type Failure = (Exit, String);

pub(super) const RUST_TARGET: &str = "wasm32-unknown-unknown";
const COMPONENTIZE_PY: &str = "componentize-py==0.25.1";
/// Where npm installs componentize-js; `package.json` of the project pins it.
const COMPONENTIZE_JS: &str = "node_modules/@bytecodealliance/componentize-js";
const RUSTUP: &str = "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -t wasm32-unknown-unknown";

/// Programs with the environment that they need.
pub(super) struct Program {
    pub(super) path: OsString,
    pub(super) environment: Vec<(&'static str, OsString)>,
}

impl Program {
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A program that is not there, with the command that installs it.
fn missing(program: &str, problem: &str, install: &str) -> Failure {
    (Exit::Environment, format!("`{program}` {problem}; to install it, run\n  {install}"))
}

/// Cargo, whose compiler has the standard library of the target.
pub(super) fn rust(folder: &Path, offline: bool) -> Result<Program, Failure> {
    let rustc = env::var_os("TRUNKLINE_WASM_RUSTC").or_else(|| env::var_os("RUSTC"));
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    if !runs(&cargo, &["--version"], folder) {
        return Err(missing("cargo", "is not installed", RUSTUP));
    }
    let compiler = rustc.clone().unwrap_or_else(|| "rustc".into());
    if !has_rust_target(&compiler, folder) {
        let install = ["target", "add", RUST_TARGET];
        let command = format!("rustup {}", install.join(" "));
        let problem = format!("has no standard library for {RUST_TARGET}");
        let by_hand = || missing(&compiler.to_string_lossy(), &problem, &command);
        // Another compiler than rustup's is not changed.
        if offline || rustc.is_some() || !runs(OsStr::new("rustup"), &["--version"], folder) {
            return Err(by_hand());
        }
        let mut rustup = Command::new("rustup");
        rustup.args(install).current_dir(folder);
        fetch(&format!("the standard library for {RUST_TARGET}"), "rustup", rustup, &command)?;
        if !has_rust_target(&compiler, folder) {
            return Err(by_hand());
        }
    }
    Ok(Program { path: cargo, environment: rustc.into_iter().map(|rustc| ("RUSTC", rustc)).collect() })
}

fn has_rust_target(rustc: &OsStr, folder: &Path) -> bool {
    let mut command = Command::new(rustc);
    command.args(["--print", "target-libdir", "--target", RUST_TARGET]).current_dir(folder);
    let Ok(output) = command.output() else { return false };
    let libdir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let files = fs::read_dir(&libdir).map(|files| files.flatten().collect::<Vec<_>>()).unwrap_or_default();
    files.iter().any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
}

/// componentize-py: the one of the variable `COMPONENTIZE_PY`, of the path, or of the cache.
pub(super) fn python(folder: &Path, offline: bool) -> Result<Program, Failure> {
    let by_hand = || missing("componentize-py", "is not installed", &format!("pip install {COMPONENTIZE_PY}"));
    let named = env::var_os("COMPONENTIZE_PY");
    let path = named.clone().unwrap_or_else(|| "componentize-py".into());
    if runs(&path, &["--version"], folder) {
        return Ok(Program { path, environment: Vec::new() });
    }
    let Some(cache) = user_cache_dir().filter(|_| named.is_none()) else { return Err(by_hand()) };
    let place = cache.join("trunkline/toolchains").join(COMPONENTIZE_PY.replace("==", "-"));
    if !place.is_dir() {
        if offline || !runs(OsStr::new("python3"), &["-m", "pip", "--version"], folder) {
            return Err(by_hand());
        }
        // Renamed when it is complete; another build may do the same.
        let partial = place.with_extension(format!("partial-{}", std::process::id()));
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        pip.args(["--root-user-action=ignore", "--target"]);
        pip.arg(&partial).arg(COMPONENTIZE_PY);
        let what = format!("{COMPONENTIZE_PY} into {}", place.display());
        let fetched = fetch(&what, "pip", pip, &format!("pip install {COMPONENTIZE_PY}"));
        let moved = fetched.map(|()| fs::rename(&partial, &place).is_ok() || place.is_dir());
        let _ = fs::remove_dir_all(&partial); // what is left of a failure or a race
        if !moved? {
            return Err((Exit::Environment, format!("cannot create {}", place.display())));
        }
    }
    let program =
        Program { path: place.join("bin/componentize-py").into(), environment: vec![("PYTHONPATH", place.into())] };
    match program.command().arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(program),
        _ => Err(by_hand()),
    }
}

/// Node.js, with componentize-js in the project.
pub(super) fn js(folder: &Path, offline: bool) -> Result<Program, Failure> {
    let node = Program { path: "node".into(), environment: Vec::new() };
    if !runs(&node.path, &["--version"], folder) {
        return Err(missing("node", "is not installed", "apt-get install nodejs npm  # or from nodejs.org"));
    }
    if !folder.join(COMPONENTIZE_JS).is_dir() {
        let by_hand = format!("npm install --prefix {}", folder.display());
        if offline || !runs(OsStr::new("npm"), &["--version"], folder) {
            return Err(missing("@bytecodealliance/componentize-js", "is not installed", &by_hand));
        }
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(folder);
        let what = format!("@bytecodealliance/componentize-js 0.23 into {}", folder.join("node_modules").display());
        fetch(&what, "npm", npm, &by_hand)?;
    }
    Ok(node)
}

/// Runs a command that fetches a part.
fn fetch(what: &str, program: &str, command: Command, by_hand: &str) -> Result<(), Failure> {
    print_error(format_args!("fetching {what}"));
    run(command, program).map_err(|(exit, problem)| {
        let next = format!("Check the network and its proxy, or install it by hand:\n  {by_hand}");
        (exit, format!("cannot fetch {what}: {problem}. {next}"))
    })
}

fn runs(program: &OsStr, arguments: &[&str], folder: &Path) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs a step of the build; its output is shown on stderr.
pub(super) fn run(mut command: Command, name: &str) -> Result<(), Failure> {
    let stderr = std::io::stderr();
    let stdout = std::os::fd::AsFd::as_fd(&stderr).try_clone_to_owned();
    let stdout = stdout.map_or_else(|_| Stdio::null(), Stdio::from);
    match command.stdout(stdout).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err((Exit::Environment, format!("`{name}` failed ({status}); its messages are above"))),
        Err(error) => Err((Exit::Environment, format!("cannot run `{name}`: {error}"))),
    }
}
