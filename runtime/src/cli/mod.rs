//! The command line.
//!
//! stdout carries data (or JSON, with `--json`), stderr everything else. [`Exit`] lists the exit
//! codes. Every verb takes the flags that set worker settings; [`crate::config`] defines the
//! settings.

mod acls;
mod addresses;
mod audit;
mod broker;
mod connectors;
mod control;
mod dlq;
mod doctor;
mod explain;
mod graph;
mod json_schema;
mod kafka_check;
mod new;
mod newest_records;
mod offsets;
mod offsets_source;
mod output;
mod parse;
mod record;
mod reload;
mod replay;
mod run;
mod run_report;
mod runs;
mod selection;
mod settings;
mod settings_args;
mod shell;
mod snapshot;
mod status;
mod stored_connectors;
mod tap;
mod test;
mod top;
mod trace;
mod trace_file;
mod transform;
mod validate;
mod worker_api;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

pub use explain::error_codes;
pub use output::{Exit, print_data, print_problems};
pub use settings_args::SettingsArgs;

/// Moves data through Kafka: sources write to topics, WASM plugins transform records, sinks load
/// them. Exactly once.
#[derive(Parser)]
#[command(name = "trunkline", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Write a commented pipeline file for a source and a sink; asks for what is not given
    New(new::NewArgs),
    /// Check pipeline files and print all problems
    Validate(ValidateArgs),
    /// Check the pipelines, this machine, the brokers and the other systems, and print how to fix
    /// each problem; changes nothing
    Doctor(doctor::DoctorArgs),
    /// Print pipelines as a mermaid flowchart, or as text with live rates
    Graph(GraphArgs),
    /// Print the rights in Kafka that pipelines need, as commands, JSON or an IAM policy
    Acls(acls::AclsArgs),
    /// Run pipelines until stopped
    ///
    /// SIGINT and SIGTERM stop the worker: it flushes, commits and ends. On SIGHUP it reloads its
    /// pipeline files: a stage with an unchanged plan keeps running, a stage with a changed plan
    /// restarts from its committed position, a removed stage stops, and a failed stage is tried
    /// again. An invalid file changes nothing that runs. (With --until-idle, SIGHUP ends the
    /// process.)
    #[command(verbatim_doc_comment)]
    Run(RunArgs),
    /// Try a parser of the source logfile on files, and print the records
    Parse(parse::ParseArgs),
    /// List, show and redrive dead letters
    Dlq(dlq::DlqArgs),
    /// Show what the worker of a data directory does: state, counters, lag and last error per stage
    Status(StatusArgs),
    /// Show the tasks of all workers live: rates, lag, commits, errors and memory; pause and resume
    Top(top::TopArgs),
    /// Stop the tasks of a pipeline or component on all workers, until it is resumed. Its position
    /// stays
    Pause(control::ControlArgs),
    /// Start the tasks of a paused pipeline or component
    Resume(control::ControlArgs),
    /// Stop and start the tasks of a pipeline or component on all workers
    Restart(control::RestartArgs),
    /// Print records of a pipeline's topics as JSON lines, without touching its groups
    Tap(tap::TapArgs),
    /// Re-read selected tables while the source keeps streaming changes
    Snapshot(SnapshotArgs),
    /// Let a sink or transform read a range of its topics again, as a separate run: into another
    /// destination, or in the place of what it wrote
    Replay(Box<replay::ReplayCommand>),
    /// List, show, pause, resume and stop runs: what all workers run, and replays
    Runs(runs::RunsArgs),
    /// Show positions, and move those of sinks and transforms
    Offsets(offsets::OffsetsArgs),
    /// Check that the files or rows of a sink hold every committed row once
    Audit(audit::AuditArgs),
    /// Show the path of one record: what each transform makes of it, and where it ended
    Trace(trace::TraceArgs),
    /// Run the embedded Kafka broker without pipelines
    Broker(broker::BrokerArgs),
    /// Run the tests in pipeline files: records in, expected records per output; needs no Kafka
    Test(test::TestArgs),
    /// Create, build, test and inspect plugins, and list the bundled transforms
    Transform(transform::TransformArgs),
    /// List connectors and bundled plugins, or describe the options of one
    Connectors(ConnectorsArgs),
    /// List the worker settings with their variables and flags
    Settings(ListSettingsArgs),
    /// Print the JSON Schema of pipeline files, for completion and errors in editors
    JsonSchema(json_schema::JsonSchemaArgs),
    /// Explain an error code
    Explain(ExplainArgs),
    /// Print completions for a shell
    Completions(shell::CompletionsArgs),
    /// Write manual pages, one for each command
    Man(shell::ManArgs),
}

/// `trunkline validate`.
#[derive(Args)]
struct ValidateArgs {
    /// Pipeline files, or folders of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print problems as JSON on stdout: [{code, severity, message, file, line, column, length,
    /// expected, help}]
    #[arg(long)]
    json: bool,
    /// Also check the connection to Kafka, the rights there, and the prerequisites of the systems
    /// of sources and sinks, and print how to fix each problem. Changes nothing there that stays
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
    /// Also draw the topics of dead letters
    #[arg(long, conflicts_with = "live")]
    dead_letters: bool,
    /// Print the edges as text, with the rates, lag and age that the running workers show
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// `trunkline run`.
#[derive(Args)]
pub struct RunArgs {
    /// Pipeline files, or folders of them
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// End once all existing data is read, delivered and committed
    #[arg(long)]
    pub until_idle: bool,
    /// Reload pipeline files when they or their plugins change, as on SIGHUP
    #[arg(long, conflicts_with = "until_idle")]
    pub watch: bool,
    /// Print the summary as JSON on stdout
    #[arg(long)]
    pub json: bool,
    /// Exit with 1 if the run sent N or more records to the dead letters [default N: 1]
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        default_missing_value = "1",
        require_equals = true,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub fail_on_dead_letters: Option<u64>,
    /// Let sinks without state write next to the output of earlier runs, which repeats its
    /// records, and let sources and transforms take over topics of other components
    #[arg(long)]
    pub append: bool,
    /// Run components although other workers of the cluster run other versions of them
    #[arg(long)]
    pub allow_divergence: bool,
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
    /// Pipeline files, or folders of them; one of them defines the source
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Tables to read, as DATABASE.TABLE; `*` stands for any characters
    #[arg(long, required = true, value_delimiter = ',', value_name = "TABLE")]
    tables: Vec<String>,
    /// SQL condition on the rows of all these tables: the text after WHERE
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
    /// At the end of the snapshot, emit deletes for the rows in the topic that no longer exist
    #[arg(long, conflicts_with = "condition")]
    with_deletes: bool,
    /// Print the tables as JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// `trunkline status`.
#[derive(Args)]
struct StatusArgs {
    /// Show the states of the tasks of all workers of the cluster
    #[arg(long)]
    all_workers: bool,
    /// Print as JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// `trunkline connectors`.
#[derive(Args)]
struct ConnectorsArgs {
    #[command(subcommand)]
    command: Option<ConnectorsCommand>,
    /// Print as JSON on stdout
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum ConnectorsCommand {
    /// Describe the options of a connector or bundled plugin
    Describe {
        /// Its name, such as logfile or mask.wasm
        name: String,
    },
}

/// `trunkline settings`.
#[derive(Args)]
struct ListSettingsArgs {
    /// Print an example of trunkline.toml
    #[arg(long)]
    example: bool,
    /// Print as JSON on stdout
    #[arg(long, conflicts_with = "example")]
    json: bool,
}

/// `trunkline explain`.
#[derive(Args)]
struct ExplainArgs {
    /// The code, such as mysql.purged; without it, all codes are listed
    code: Option<String>,
}

/// Runs the command line of this process, and ends the process.
///
/// An orderly exit would release the tables of OpenSSL while threads of librdkafka may still log in
/// to a broker: closing a client does not wait for a connection that is being set up.
pub fn main() -> ! {
    let exit = match Cli::try_parse_from(with_joined_offsets(std::env::args_os())) {
        Ok(cli) => run_verb(cli.verb),
        Err(message) => usage(&message),
    };
    exit.end_process()
}

/// The arguments, with `--from offset 0:1200` as one value: people do not quote it.
fn with_joined_offsets(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    for argument in arguments {
        match joined.as_mut_slice() {
            [.., option, word] if (option == "--from" || option == "--to") && word == "offset" => {
                word.push(" ");
                word.push(argument);
            }
            _ => joined.push(argument),
        }
    }
    joined
}

/// Prints help and version to stdout, and usage errors to stderr.
fn usage(message: &clap::Error) -> Exit {
    if message.use_stderr() {
        // A failure to write to stderr cannot be reported.
        let _ = message.print();
        return Exit::Config;
    }
    let text = message.render();
    print_data(&if std::io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() })
}

fn run_verb(verb: Verb) -> Exit {
    match verb {
        Verb::Broker(args) => broker::broker(&args),
        Verb::Connectors(args) => match args.command {
            Some(ConnectorsCommand::Describe { name }) => connectors::describe(&name, args.json),
            None => connectors::list(args.json),
        },
        Verb::Settings(args) => settings::settings(args.example, args.json),
        Verb::Explain(args) => explain::explain(args.code.as_deref()),
        Verb::New(args) => new::new(&args),
        Verb::Doctor(args) => doctor::doctor(&args),
        Verb::JsonSchema(args) => json_schema::json_schema(&args),
        Verb::Completions(args) => shell::completions(&args, Cli::command()),
        Verb::Man(args) => shell::man(&args, Cli::command()),
        Verb::Validate(args) => match args.settings.load() {
            Ok(settings) => validate::validate(&args.paths, args.json, args.check, &settings),
            Err(problems) => output::report_problems(&problems, args.json),
        },
        Verb::Acls(args) => match args.settings.load() {
            Ok(settings) => acls::acls(&args, &settings),
            Err(problems) => output::report_problems(&problems, false),
        },
        Verb::Graph(args) => match args.settings.load() {
            Ok(settings) if args.live => graph::live(&args.paths, &settings),
            Ok(settings) => graph::graph(&args.paths, args.dead_letters, &settings),
            Err(problems) => output::report_problems(&problems, false),
        },
        Verb::Parse(args) => parse::parse(&args),
        Verb::Dlq(args) => dlq::dlq(&args),
        Verb::Test(args) => test::test(&args),
        Verb::Transform(args) => transform::run(&args),
        Verb::Replay(args) => replay::run(&args),
        Verb::Runs(args) => runs::run(&args),
        Verb::Trace(args) => trace::run(&args),
        Verb::Offsets(args) => offsets::run(&args),
        Verb::Audit(args) => audit::run(&args),
        Verb::Tap(args) => tap::tap(&args),
        Verb::Top(args) => top::top(&args),
        Verb::Pause(args) => control::pause(&args),
        Verb::Resume(args) => control::resume(&args),
        Verb::Restart(args) => control::restart(&args),
        Verb::Status(args) => match args.settings.load() {
            Ok(settings) => status::status(args.json, args.all_workers, &settings),
            Err(problems) => output::report_problems(&problems, args.json),
        },
        Verb::Snapshot(args) => match args.settings.load() {
            Ok(settings) => snapshot::snapshot(&args, &settings),
            Err(problems) => output::report_problems(&problems, false),
        },
        Verb::Run(args) => match args.settings.load_for_worker() {
            Ok(settings) => run::run(&args, settings),
            Err(problems) => output::report_problems(&problems, args.json),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_after_the_word_offset_need_no_quotes() {
        let joined = |words: &str| {
            let joined = with_joined_offsets(words.split_whitespace().map(OsString::from));
            joined.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>()
        };
        let expected = ["trunkline", "replay", "p.toml", "--from", "offset 0:1200", "--to", "offset 0:9", "--json"];
        assert_eq!(joined("trunkline replay p.toml --from offset 0:1200 --to offset 0:9 --json"), expected);
        let others = "trunkline offsets show offset --from earliest --to offset";
        assert_eq!(joined(others), others.split(' ').collect::<Vec<_>>());
    }

    #[test]
    fn tap_and_dlq_read_the_folder_pipelines_unless_files_are_named() {
        for words in ["tap web-logs", "dlq list", "dlq show web-logs --limit 5", "dlq redrive web-logs --dry-run"] {
            let parsed = Cli::try_parse_from(["trunkline"].into_iter().chain(words.split(' ')));
            assert!(parsed.is_ok(), "{words}: {}", parsed.err().unwrap());
        }
        let shown = Cli::try_parse_from(["trunkline", "dlq", "list", "--help"]).err().unwrap().to_string();
        assert!(shown.contains("[default: pipelines]"), "{shown}");
    }
}
