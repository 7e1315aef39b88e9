//! The command line.
//!
//! stdout is data (or JSON, with `--json`), stderr is everything else. The exit code says what kind of thing went wrong: see [`Exit`].
//! Every verb takes the flags that set worker settings; what is said of them is in [`crate::config`].

mod broker;
mod connectors;
mod graph;
mod output;
mod reload;
mod run;
mod settings_args;
mod snapshot;
mod validate;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use output::{Exit, print_data, print_problems};
pub use settings_args::SettingsArgs;

/// Moves data through Kafka: sources write to topics, WASM plugins transform records, sinks load them. Exactly once.
#[derive(Parser)]
#[command(name = "trunkline", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Checks pipeline files and shows everything that is wrong with them
    Validate(ValidateArgs),
    /// Prints pipelines as a mermaid flowchart
    Graph(GraphArgs),
    /// Runs pipelines until stopped
    ///
    /// SIGINT and SIGTERM stop it: it flushes, commits and ends. SIGHUP has it read its pipeline files again: what is planned as before goes on
    /// undisturbed, what changed starts anew from its committed position, what is gone stops, and what had failed for good is tried again. A file
    /// with mistakes changes nothing of what runs. (With --until-idle, SIGHUP ends it as it does any program.)
    #[command(verbatim_doc_comment)]
    Run(RunArgs),
    /// Has a source read tables once more, beside what comes
    Snapshot(SnapshotArgs),
    /// Runs the embedded Kafka broker without pipelines
    Broker(broker::BrokerArgs),
    /// Lists the connectors
    Connectors(ConnectorsArgs),
}

/// `trunkline validate`.
#[derive(Args)]
struct ValidateArgs {
    /// Pipeline files, or folders of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print problems as JSON on stdout: [{code, severity, message, file, line, column, length, expected, help}]
    #[arg(long)]
    json: bool,
    /// Ask the sources' systems too, and show what they lack with what mends it. Changes nothing there
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// `trunkline graph`.
#[derive(Args)]
struct GraphArgs {
    /// Pipeline files, or folders of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Draw the topics of dead letters too
    #[arg(long)]
    dead_letters: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// `trunkline run`.
#[derive(Args)]
pub struct RunArgs {
    /// Pipeline files, or folders of them
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Stop when everything there is has been read, delivered and committed
    #[arg(long)]
    pub until_idle: bool,
    /// Read pipeline files again when they, or plugins that they name, change: as on SIGHUP
    #[arg(long, conflicts_with = "until_idle")]
    pub watch: bool,
    /// Print the summary as JSON on stdout
    #[arg(long)]
    pub json: bool,
    /// Give this worker a new id, for a data directory that was copied from another worker
    #[arg(long)]
    pub new_worker_id: bool,
    /// Worker settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// `trunkline snapshot`.
#[derive(Args)]
struct SnapshotArgs {
    /// The source, as PIPELINE.SOURCE
    #[arg(value_name = "PIPELINE.SOURCE")]
    source: String,
    /// Pipeline files, or folders of them, one of which has the source
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Tables to read once more, as DATABASE.TABLE; `*` stands for any characters
    #[arg(long, required = true, value_delimiter = ',', value_name = "TABLE")]
    tables: Vec<String>,
    /// Only rows that fulfil this, in SQL: what follows WHERE, of every table that is named
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
    /// Print the tables as JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// `trunkline connectors`.
#[derive(Args)]
struct ConnectorsArgs {
    /// Print them as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            // Help and version go to stdout and are no failure.
            let _ = message.print();
            return if message.use_stderr() { Exit::Config.into() } else { Exit::Ok.into() };
        }
    };
    let exit = match cli.verb {
        Verb::Broker(args) => broker::broker(&args),
        Verb::Connectors(args) => connectors::connectors(args.json),
        Verb::Validate(args) => match args.settings.load() {
            Ok(settings) => validate::validate(&args.paths, args.json, args.check, &settings),
            Err(problems) => output::report_problems(&problems, args.json),
        },
        Verb::Graph(args) => match args.settings.load() {
            Ok(settings) => graph::graph(&args.paths, args.dead_letters, &settings),
            Err(problems) => output::report_problems(&problems, false),
        },
        Verb::Snapshot(args) => match args.settings.load() {
            Ok(settings) => snapshot::snapshot(&args, &settings),
            Err(problems) => output::report_problems(&problems, false),
        },
        Verb::Run(args) => match args.settings.load() {
            Ok(settings) => return run::run(&args, settings),
            Err(problems) => output::report_problems(&problems, args.json),
        },
    };
    exit.into()
}
