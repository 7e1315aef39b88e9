//! `trunkline transform`: writing, building and testing plugins, and the bundled transforms.

mod build;
mod create;
mod inspect;
mod project;
mod test;
mod toolchain;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use trunkline_transform_host::{Host, HostOptions};

use super::connectors;
use super::output::{Exit, print_error, print_problems};
use crate::config::problem_at;
use crate::worker::plugin_cache_dirs;

/// `trunkline transform`.
#[derive(Args)]
pub(super) struct TransformArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create a project: a transform with a test, sample records, a pipeline and a README
    New {
        /// Name of the transform: letters, digits, `_` and `-`
        name: String,
        /// The language
        #[arg(long, value_enum, default_value_t = Language::Rust)]
        lang: Language,
        /// The folder to create [default: NAME]
        #[arg(long, value_name = "DIR")]
        into: Option<PathBuf>,
    },
    /// Build the .wasm file of a project; fetches the parts of the toolchain that are missing
    Build {
        /// The folder with `transform.toml`
        #[arg(value_name = "DIR", default_value = ".")]
        folder: PathBuf,
        /// Fetch nothing, and show the commands that install what is missing
        #[arg(long)]
        offline: bool,
    },
    /// Run the tests of a project: records in, expected records out
    Test {
        /// The folder with `transform.toml`
        #[arg(value_name = "DIR", default_value = ".")]
        folder: PathBuf,
        /// Write the output into the files of expected records
        #[arg(long)]
        update: bool,
        /// Measure the speed with the records of each test
        #[arg(long)]
        bench: bool,
    },
    /// Show the interface version, ports, imports and size of a plugin
    Inspect {
        /// The file, or the name of a bundled plugin
        #[arg(value_name = "FILE.wasm")]
        file: PathBuf,
        /// The plugin's configuration as JSON, for a plugin that needs one to name its ports
        #[arg(long, value_name = "JSON")]
        config: Option<String>,
        /// Print as JSON on stdout
        #[arg(long)]
        json: bool,
    },
    /// List the bundled transforms with their options
    List {
        /// Print as JSON on stdout
        #[arg(long)]
        json: bool,
    },
    /// Describe the options of a bundled transform, with an example
    Describe {
        /// Its name, such as mask
        name: String,
        /// Print as JSON on stdout
        #[arg(long)]
        json: bool,
    },
}

/// The languages that `new` has templates for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
    Python,
    Js,
}

impl Language {
    /// Its name in `transform.toml`.
    fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Python => "python",
            Self::Js => "js",
        }
    }
}

/// Runs the verb.
pub(super) fn run(args: &TransformArgs) -> Exit {
    match &args.command {
        Command::New { name, lang, into } => create::create(name, *lang, into.as_deref()),
        Command::Build { folder, offline } => build::build(folder, *offline),
        Command::Test { folder, update, bench } => test::test(folder, *update, *bench),
        Command::Inspect { file, config, json } => inspect::inspect(file, config.as_deref(), *json),
        Command::List { json } => connectors::list_transforms(*json),
        Command::Describe { name, json } => connectors::describe_transform(name, *json),
    }
}

/// The host of plugins. `data`: the worker's data directory. A failure is printed.
pub(in crate::cli) fn plugin_host(data: Option<&Path>) -> Result<Host, Exit> {
    Host::new(HostOptions { cache_dirs: plugin_cache_dirs(data) }).map_err(|error| {
        let message = format!("plugins cannot run on this machine: {error}");
        print_problems(&[problem_at(None, "environment.plugins", message, None)]);
        Exit::Environment
    })
}

/// Prints a failure of this verb.
fn failed(exit: Exit, message: &str) -> Exit {
    print_error(format_args!("error: {message}"));
    exit
}
