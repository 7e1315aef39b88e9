//! `trunkline transform build`: runs the toolchain of the project's language.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use trunkline_transform_host::embed_config_schema;

use super::project::Project;
use super::{Exit, Language, failed, plugin_host};
use crate::cli::output::{print_data, print_error, report_problems};

/// The JSON Schema of the configuration in a project.
const SCHEMA: &str = "config.schema.json";

const RUST_TARGET: &str = "wasm32-unknown-unknown";

/// Builds the project.
pub(super) fn build(folder: &Path) -> Exit {
    let project = match Project::read(folder) {
        Ok(project) => project,
        Err(problems) => return report_problems(&[problems], false),
    };
    let built = match project.language {
        Language::Rust => rust(&project),
        Language::Python => python(&project),
        Language::Js => js(&project),
    };
    if let Err((exit, message)) = built {
        return failed(exit, &message);
    }
    let host = match plugin_host(None) {
        Ok(host) => host,
        Err(exit) => return exit,
    };
    let wasm = project.wasm();
    if let Err((exit, message)) = embed_schema(&project, &wasm) {
        return failed(exit, &message);
    }
    if let Err(error) = host.load(&wasm) {
        return failed(Exit::Runtime, &error.to_string());
    }
    let bytes = fs::metadata(&wasm).map_or(0, |metadata| metadata.len());
    print_error(format_args!("{} KiB; next: trunkline transform test {}", bytes >> 10, folder.display()));
    print_data(&format!("{}\n", wasm.display()))
}

/// Adds the schema of the configuration to the plugin, if the project has one.
fn embed_schema(project: &Project, wasm: &Path) -> Built {
    let path = project.folder.join(SCHEMA);
    if !path.is_file() {
        return Ok(());
    }
    let failed = |path: &Path, error: std::io::Error| (Exit::Environment, format!("{}: {error}", path.display()));
    let schema = fs::read_to_string(&path).map_err(|error| failed(&path, error))?;
    let plugin = fs::read(wasm).map_err(|error| failed(wasm, error))?;
    let embedded = embed_config_schema(&plugin, &schema)
        .map_err(|problem| (Exit::Config, format!("{}: {problem}", path.display())))?;
    fs::write(wasm, embedded).map_err(|error| failed(wasm, error))
}

type Built = Result<(), (Exit, String)>;

/// A program that is not there, with the command that installs it.
fn missing(program: &str, problem: &str, install: &str) -> (Exit, String) {
    (Exit::Environment, format!("`{program}` {problem}; to install it, run\n  {install}"))
}

fn rust(project: &Project) -> Built {
    let rustc = env::var_os("TRUNKLINE_WASM_RUSTC").or_else(|| env::var_os("RUSTC"));
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let rustup = "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -t wasm32-unknown-unknown";
    if !runs(&cargo, &["--version"], &project.folder) {
        return Err(missing("cargo", "is not installed", rustup));
    }
    check_rust_target(rustc.as_deref().unwrap_or(OsStr::new("rustc")), &project.folder)?;
    let mut command = Command::new(&cargo);
    if let Some(rustc) = &rustc {
        command.env("RUSTC", rustc);
    }
    let target_dir = absolute(&project.folder)?.join("target");
    command.args(["build", "--release", "--lib", "--target", RUST_TARGET, "--target-dir"]).arg(&target_dir);
    run(command, &project.folder, "cargo build")?;
    let library = project.name.replace('-', "_");
    copy(&target_dir.join(RUST_TARGET).join("release").join(format!("{library}.wasm")), project)
}

/// Checks that the compiler has the standard library of the target.
fn check_rust_target(rustc: &OsStr, folder: &Path) -> Built {
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", RUST_TARGET])
        .current_dir(folder)
        .output()
        .map_err(|_| missing("rustc", "is not installed", &format!("rustup target add {RUST_TARGET}")))?;
    let libdir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let files = fs::read_dir(&libdir).map(|files| files.flatten().collect::<Vec<_>>()).unwrap_or_default();
    if files.iter().any(|file| file.file_name().to_string_lossy().starts_with("libstd-")) {
        return Ok(());
    }
    let problem = format!("has no standard library for {RUST_TARGET}");
    Err(missing(&rustc.to_string_lossy(), &problem, &format!("rustup target add {RUST_TARGET}")))
}

fn python(project: &Project) -> Built {
    let program = env::var_os("COMPONENTIZE_PY").unwrap_or_else(|| "componentize-py".into());
    if !runs(&program, &["--version"], &project.folder) {
        return Err(missing("componentize-py", "is not installed", "pip install componentize-py==0.25.1"));
    }
    let mut command = Command::new(&program);
    command.args(["-d", "wit", "-w", project.world, "componentize", "app", "-o"]);
    command.arg(absolute(&project.folder)?.join(format!("{}.wasm", project.name)));
    run(command, &project.folder, "componentize-py")
}

fn js(project: &Project) -> Built {
    if !runs(OsStr::new("node"), &["--version"], &project.folder) {
        return Err(missing("node", "is not installed", "apt-get install nodejs npm  # or from nodejs.org"));
    }
    if !project.folder.join("node_modules/@bytecodealliance/componentize-js").is_dir() {
        let install = format!("npm install --prefix {}", project.folder.display());
        return Err(missing("@bytecodealliance/componentize-js", "is not installed", &install));
    }
    let mut command = Command::new("node");
    command.arg("build.js").arg(absolute(&project.folder)?.join(format!("{}.wasm", project.name)));
    command.arg(project.world);
    run(command, &project.folder, "node build.js")
}

fn runs(program: &OsStr, arguments: &[&str], folder: &Path) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs a step of the build; its output is shown on stderr.
fn run(mut command: Command, folder: &Path, name: &str) -> Built {
    let stderr = std::io::stderr();
    let stdout = std::os::fd::AsFd::as_fd(&stderr).try_clone_to_owned();
    let stdout = stdout.map_or_else(|_| Stdio::null(), Stdio::from);
    let status = command.current_dir(folder).stdout(stdout).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err((Exit::Runtime, format!("`{name}` failed ({status}); its messages are above"))),
        Err(error) => Err((Exit::Environment, format!("cannot run `{name}`: {error}"))),
    }
}

fn copy(built: &Path, project: &Project) -> Built {
    let target = project.wasm();
    fs::copy(built, &target).map(drop).map_err(|error| {
        (Exit::Environment, format!("cannot copy {} to {}: {error}", built.display(), target.display()))
    })
}

fn absolute(folder: &Path) -> Result<PathBuf, (Exit, String)> {
    fs::canonicalize(folder).map_err(|error| (Exit::Environment, format!("cannot open {}: {error}", folder.display())))
}
