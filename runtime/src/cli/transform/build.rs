//! `trunkline transform build`: runs the toolchain of the project's language.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use trunkline_transform_host::embed_config_schema;

use super::project::Project;
use super::toolchain::{self, Failure, RUST_TARGET};
use super::{Exit, Language, failed, plugin_host};
use crate::cli::output::{print_data, print_error, report_problems};

/// The JSON Schema of the configuration in a project.
const SCHEMA: &str = "config.schema.json";

/// Builds the project. `offline`: fetches nothing.
pub(super) fn build(folder: &Path, offline: bool) -> Exit {
    let project = match Project::read(folder) {
        Ok(project) => project,
        Err(problems) => return report_problems(&[problems], false),
    };
    let built = match project.language {
        Language::Rust => rust(&project, offline),
        Language::Python => python(&project, offline),
        Language::Js => js(&project, offline),
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
    if project.language != Language::Rust {
        print_error(format_args!("compiling {} for this machine, once", wasm.display()));
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

type Built = Result<(), Failure>;

fn rust(project: &Project, offline: bool) -> Built {
    let cargo = toolchain::rust(&project.folder, offline)?;
    let target_dir = absolute(&project.folder)?.join("target");
    let mut command = cargo.command();
    command.args(["build", "--release", "--lib", "--target", RUST_TARGET, "--target-dir"]).arg(&target_dir);
    if offline {
        command.arg("--offline");
    }
    run(command, &project.folder, "cargo build")?;
    let library = project.name.replace('-', "_");
    copy(&target_dir.join(RUST_TARGET).join("release").join(format!("{library}.wasm")), project)
}

fn python(project: &Project, offline: bool) -> Built {
    let mut command = toolchain::python(&project.folder, offline)?.command();
    command.args(["-d", "wit", "-w", project.world, "componentize", "app", "-o"]);
    command.arg(absolute(&project.folder)?.join(format!("{}.wasm", project.name)));
    print_error(format_args!("building with componentize-py"));
    run(command, &project.folder, "componentize-py")
}

fn js(project: &Project, offline: bool) -> Built {
    let mut command = toolchain::js(&project.folder, offline)?.command();
    command.arg("build.js").arg(absolute(&project.folder)?.join(format!("{}.wasm", project.name)));
    command.arg(project.world);
    print_error(format_args!("building with componentize-js"));
    run(command, &project.folder, "node build.js")
}

/// Runs a step of the build in the project's folder. Its failure is one of the sources.
fn run(mut command: Command, folder: &Path, name: &str) -> Built {
    command.current_dir(folder);
    toolchain::run(command, name).map_err(|(_, message)| (Exit::Runtime, message))
}

fn copy(built: &Path, project: &Project) -> Built {
    let target = project.wasm();
    fs::copy(built, &target).map(drop).map_err(|error| {
        (Exit::Environment, format!("cannot copy {} to {}: {error}", built.display(), target.display()))
    })
}

fn absolute(folder: &Path) -> Result<PathBuf, Failure> {
    fs::canonicalize(folder).map_err(|error| (Exit::Environment, format!("cannot open {}: {error}", folder.display())))
}
