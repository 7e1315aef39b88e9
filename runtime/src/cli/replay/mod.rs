//! `trunkline replay`: a sink or transform reads a range of its topics again, as a run that is
//! separate from the live one (I9).

mod diff;
mod diff_rows;
mod diff_topics;
mod execution;
mod plan;
mod progress;
mod supersede;
mod switch;
mod target;
mod to_stdout;
mod transform;

use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use self::diff::DiffArgs;
use self::plan::Replay;
pub(super) use self::progress::replaced;
use self::switch::SwitchArgs;
use self::target::Refusal;
pub(super) use self::target::host;
use super::SettingsArgs;
use super::output::{Exit, print_error, report_error, report_problems};
use super::validate::load_to_inspect;

/// `trunkline replay`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct ReplayCommand {
    #[command(subcommand)]
    verb: Option<ReplayVerb>,
    #[command(flatten)]
    replay: ReplayArgs,
}

#[derive(Subcommand)]
enum ReplayVerb {
    /// Compare the files, rows, documents or topics that a run wrote into a shadow with those of
    /// the live destination
    Diff(DiffArgs),
    /// Make the shadow that a run has filled the live destination, where that is one safe step:
    /// tables of a warehouse exchange their names, an alias of a search engine moves. Else, print
    /// what to do
    Switch(SwitchArgs),
}

/// Runs the verb.
pub(super) fn run(command: &ReplayCommand) -> Exit {
    match &command.verb {
        Some(ReplayVerb::Diff(args)) => diff::run(args),
        Some(ReplayVerb::Switch(args)) => switch::run(args),
        None => run_replay(&command.replay),
    }
}

/// A replay.
#[derive(Args)]
pub(super) struct ReplayArgs {
    /// Pipeline file, or folder of them
    // Not required before a command such as `diff`.
    #[arg(value_name = "PIPELINES", required = true)]
    path: Option<PathBuf>,
    /// The pipeline
    #[arg(value_name = "PIPELINE", required = true)]
    pipeline: Option<String>,
    /// The sink that reads its topics again; may be left out if there is only one
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// The separate transform that reads its topics again, instead of a sink. It writes to the
    /// topic of --into, and builds its state from the range
    #[arg(long, value_name = "NAME", conflicts_with_all = ["sink", "supersede", "resume", "discard"])]
    transform: Option<String>,
    /// With --transform: write to a topic that has records, or that the live transform writes. Its
    /// readers get the records a second time
    #[arg(long, requires = "transform")]
    append: bool,
    /// First record: `earliest`, `latest`, offsets by partition (0:1200,1:900), a time
    /// (2026-11-01T00:00Z), or a time ago (-7d)
    #[arg(
        long,
        value_name = "POSITION",
        allow_hyphen_values = true,
        required_unless_present_any = ["resume", "discard", "join"]
    )]
    from: Option<String>,
    /// The position after the last record, in the same forms
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, default_value = "latest")]
    to: String,
    /// The times of --from and --to are those in this field of the value, such as `created_at`,
    /// instead of the times of the records in Kafka. All records of the topics are read to find
    /// them
    #[arg(long, value_name = "FIELD")]
    by: Option<String>,
    /// Only these partitions of the topics
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    partitions: Option<Vec<i32>>,
    /// Only records of the range that the live sink or transform, or the transforms that run inside
    /// it, have rejected: those with a dead letter that was not redriven
    #[arg(long)]
    dead_letters: bool,
    /// Use the transforms and options of this file, such as an earlier version of the pipeline
    #[arg(long, value_name = "FILE")]
    pipeline_file: Option<PathBuf>,
    /// Options that replace those of the sink or transform, as in the pipeline file:
    /// 'url="s3://lake/orders-v2"'
    #[arg(long, value_name = "OPTION=VALUE")]
    into: Vec<String>,
    /// Take the place of what the live sink wrote for the range: its files or rows are replaced, or
    /// its documents are written again with the same versions
    #[arg(long, conflicts_with_all = ["into", "dead_letters", "to_stdout", "resume"])]
    supersede: bool,
    /// Give up a run that is not finished: one with --supersede removes what it has prepared, if it
    /// has not replaced anything; what another one has written stays
    #[arg(long, value_name = "ID", conflicts_with_all = [
        "from", "by", "into", "partitions", "dead_letters", "dry_run", "supersede", "resume", "to_stdout", "rate"
    ])]
    discard: Option<String>,
    /// At most N records per second
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU64>,
    /// Continue the run with this id
    #[arg(long, value_name = "ID", conflicts_with_all = ["from", "by", "into", "partitions", "dead_letters", "dry_run"])]
    resume: Option<String>,
    /// Help to execute the run with this id, which another process or machine executes: take over
    /// some of its partitions, until the range is processed
    #[arg(long, value_name = "ID", conflicts_with_all = [
        "from", "by", "into", "partitions", "dead_letters", "dry_run", "supersede", "resume", "discard", "to_stdout",
        "rate", "sink", "transform"
    ])]
    join: Option<String>,
    /// Print what would be read and written, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print each record of the range as the sink would receive it, or as the transform would write
    /// it, as a line of JSON, and change nothing. Rejected records have the code and the reason
    #[arg(long, conflicts_with_all = ["into", "rate", "resume", "dry_run"])]
    to_stdout: bool,
    /// Print only records for which this expression in CEL is true: 'value.country == "DE"'
    #[arg(long = "where", value_name = "EXPRESSION", requires = "to_stdout")]
    condition: Option<String>,
    /// Print at most N records
    #[arg(long, value_name = "N", requires = "to_stdout")]
    limit: Option<u64>,
    /// Print progress and result as lines of JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

fn run_replay(args: &ReplayArgs) -> Exit {
    let (paths, pipeline) = (args.path.as_slice(), args.pipeline.as_deref().unwrap_or_default());
    let (settings, loaded) = match load_to_inspect(paths, &args.settings, args.json) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let replay = Replay { args, pipeline, settings: &settings, pipelines: &loaded.pipelines };
    let outcome = if args.to_stdout { replay.inspect() } else { replay.run() };
    match outcome {
        Ok(exit) => exit,
        Err(Refusal::Error(error)) => report_error(&error),
        Err(Refusal::Problems(problems)) => {
            if !args.json && !args.into.is_empty() {
                print_error(format_args!("with the options of --into, the pipeline file has these problems:"));
            }
            report_problems(&[problems], args.json)
        }
    }
}
