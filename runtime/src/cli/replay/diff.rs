//! `trunkline replay diff`: compares the files of a shadow with those of the live destination.
//! `replay_diff_rows` compares rows and documents, `replay_diff_topics` topics.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;
use trunkline_connector::{Error, OutputFile, Result, TopicPartition};

use super::super::SettingsArgs;
use super::super::dlq::connect;
use super::super::output::{Exit, columns, print_data, print_error, report_error, report_problems};
use super::super::selection;
use super::super::validate::load_to_inspect;
use super::diff_rows;
use super::diff_topics;
use super::target::{Choice, Refusal};
use crate::config::Settings;
use crate::plan::{Pipeline, SinkPlan};
use crate::replay::diff::{Comparison, Differences, Place, Sample, Side};
use crate::replay::run::{Run, Runs};
use crate::worker::create_private_folder;

/// Folders that are printed; further ones are counted.
const FOLDERS: usize = 50;

/// `trunkline replay diff`.
#[derive(Args)]
pub(super) struct DiffArgs {
    /// Pipeline file, or folder of them
    #[arg(value_name = "PIPELINES")]
    path: PathBuf,
    /// The run that filled the shadow
    #[arg(value_name = "ID")]
    id: String,
    /// Columns that identify a row: rows with the same key and other values have changed. Without
    /// it, rows are compared as a whole. A record of a topic has the column `@key`, and the members
    /// of its value
    #[arg(long, value_name = "COLUMN,..", value_delimiter = ',')]
    pub(super) key: Vec<String>,
    /// Columns that are not compared
    #[arg(long, value_name = "COLUMN,..", value_delimiter = ',')]
    pub(super) ignore: Vec<String>,
    /// Show at most N rows that differ
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) samples: usize,
    /// Print the result as JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the verb. The exit code is 1 if the two differ.
pub(super) fn run(args: &DiffArgs) -> Exit {
    let (settings, loaded) = match load_to_inspect(std::slice::from_ref(&args.path), &args.settings, args.json) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    match compare(args, &settings, &loaded.pipelines) {
        Ok(found) => print(args, &found),
        Err(Refusal::Error(error)) => report_error(&error),
        Err(Refusal::Problems(problems)) => report_problems(&[problems], args.json),
    }
}

/// The result, with what is shown of it.
pub(super) struct Found {
    /// What the rows are counted by.
    pub(super) heading: &'static str,
    pub(super) live: String,
    pub(super) shadow: String,
    pub(super) differences: Differences,
    /// Rows that differ, as JSON: the one of the live destination, and that of the shadow.
    pub(super) samples: Vec<(Value, Value)>,
    /// Live files with offsets outside of the range of the run, too.
    pub(super) beyond: usize,
    /// What was compared.
    pub(super) notes: Vec<String>,
}

/// A side, with its files.
struct Files<'a> {
    sink: &'a SinkPlan,
    files: Vec<OutputFile>,
}

fn compare(args: &DiffArgs, settings: &Settings, pipelines: &[Pipeline]) -> Result<Found, Refusal> {
    let cluster = connect(settings)?;
    let run = Runs::new(&cluster, &settings.cluster_name()).get(&args.id)?;
    check_run(&run)?;
    if run.transform {
        return diff_topics::compare(args, settings, pipelines, &cluster, &run);
    }
    let choice = Choice::of_shadow(&run);
    let (live, pipeline) = choice.pipelines(pipelines, settings)?;
    let shadow = selection::sink(&pipeline, Some(&live.name))?;
    let runtime = runtime()?;
    if let (Some(contents), Some(_)) = (live.spec.contents(), shadow.spec.contents()) {
        return diff_rows::compare(args, settings, (live, shadow, &contents), &run, &runtime);
    }
    let live = files(live, &run, &runtime)?;
    let shadow = files(shadow, &run, &runtime)?;
    let (differences, samples) = in_folder(settings, |folder| compare_files(args, &live, &shadow, folder, &runtime))?;
    let ranges = ranges(&run);
    let is_beyond = |file: &&OutputFile| {
        ranges.get(&file.partition).is_some_and(|(from, to)| file.first < *from || file.last >= *to)
    };
    Ok(Found {
        heading: "FOLDER",
        notes: Vec::new(),
        live: live.sink.spec.destination().unwrap_or_default(),
        shadow: run.destination,
        differences,
        samples,
        beyond: live.files.iter().filter(is_beyond).count(),
    })
}

/// Calls `compare` with a folder for temporary files.
pub(super) fn in_folder<T>(settings: &Settings, compare: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let folder = settings.data.join("replays").join(format!("diff-{}", uuid::Uuid::new_v4().simple()));
    create_private_folder(&folder).map_err(|error| trunkline_connector::io_error("create", &folder, &error))?;
    let found = compare(&folder);
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        tracing::debug!(%error, folder = %folder.display(), "the folder of temporary files cannot be removed");
    }
    found
}

fn check_run(run: &Run) -> Result<()> {
    let problem = if run.request.supersede {
        "it took the place of the live output, so that there is no shadow"
    } else if run.is_unfinished() {
        &format!(
            "it has not processed its range: complete it with `trunkline replay PIPELINES {} --resume {}`",
            run.pipeline, run.id
        )
    } else {
        return Ok(());
    };
    Err(Error::config("replay.not_comparable", format!("the run {} cannot be compared: {problem}", run.id)))
}

pub(super) fn ranges(run: &Run) -> BTreeMap<TopicPartition, (i64, i64)> {
    run.ranges.iter().map(|range| (range.topic_partition(), (range.from, range.to))).collect()
}

/// The files of a sink with offsets of the range.
fn files<'a>(sink: &'a SinkPlan, run: &Run, runtime: &Runtime) -> Result<Files<'a>> {
    let Some(listing) = sink.spec.list_output(runtime.handle())? else {
        let message = format!(
            "the output of the connector `{}` cannot be compared here: tables of a warehouse can with `lineage = true` and a `table` \
             that depends on nothing but the topic. Compare others with a query at the destination",
            sink.connector
        );
        return Err(Error::config("replay.not_comparable", message));
    };
    let (name, ranges) = (format!("{}.{}", run.pipeline, run.sink), ranges(run));
    let is_in = |file: &OutputFile| {
        ranges.get(&file.partition).is_some_and(|(from, to)| file.first < *to && file.last >= *from)
    };
    Ok(Files { sink, files: listing.files.into_iter().filter(|file| file.sink == name && is_in(file)).collect() })
}

fn compare_files(
    args: &DiffArgs,
    live: &Files<'_>,
    shadow: &Files<'_>,
    folder: &Path,
    runtime: &Runtime,
) -> Result<(Differences, Vec<(Value, Value)>)> {
    let mut comparison = Comparison::new(args.key.clone(), args.ignore.clone(), args.samples, folder.to_owned());
    for (side, files) in [(Side::Live, live), (Side::Shadow, shadow)] {
        for (file, number) in files.files.iter().zip(0..) {
            let (of_file, mut place) = (files.sink.spec.folder_of(file), Place { file: number, row: 0 });
            files.sink.spec.read_rows(file, folder, runtime.handle(), &mut |row| {
                comparison.add(side, &of_file, place, row)?;
                place.row += 1;
                Ok(())
            })?;
        }
    }
    let differences = comparison.finish()?;
    check_key(args, &differences)?;
    let places =
        |at: fn(&Sample) -> Option<Place>| differences.samples.iter().filter_map(at).collect::<BTreeSet<Place>>();
    let live_rows = rows_at(live, &places(|sample| sample.0), folder, runtime)?;
    let shadow_rows = rows_at(shadow, &places(|sample| sample.1), folder, runtime)?;
    let row = |rows: &BTreeMap<Place, Value>, place: Option<Place>| {
        place.and_then(|place| rows.get(&place)).cloned().unwrap_or(Value::Null)
    };
    let samples =
        differences.samples.iter().map(|(one, other)| (row(&live_rows, *one), row(&shadow_rows, *other))).collect();
    Ok((differences, samples))
}

/// Refuses a column of `--key` that no row has.
pub(super) fn check_key(args: &DiffArgs, differences: &Differences) -> Result<()> {
    let is_unknown = |name: &&String| !differences.columns.contains_key(*name) && !args.ignore.contains(name);
    match args.key.iter().find(is_unknown).filter(|_| !differences.columns.is_empty()) {
        Some(name) => {
            let message = format!("no row has a column `{name}`: correct --key");
            Err(Error::config("replay.not_comparable", message))
        }
        None => Ok(()),
    }
}

/// Reads rows again, to show them.
fn rows_at(
    files: &Files<'_>,
    places: &BTreeSet<Place>,
    folder: &Path,
    runtime: &Runtime,
) -> Result<BTreeMap<Place, Value>> {
    let mut found = BTreeMap::new();
    let numbers: BTreeSet<u32> = places.iter().map(|place| place.file).collect();
    for number in numbers {
        let Some(file) = files.files.get(number as usize) else { continue };
        let mut place = Place { file: number, row: 0 };
        files.sink.spec.read_rows(file, folder, runtime.handle(), &mut |row| {
            if places.contains(&place) {
                let members: Map<String, Value> =
                    row.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
                found.insert(place, Value::Object(members));
            }
            place.row += 1;
            Ok(())
        })?;
    }
    Ok(found)
}

fn print(args: &DiffArgs, found: &Found) -> Exit {
    let differences = &found.differences;
    let columns_of = |wanted: [bool; 2]| {
        let names = differences.columns.iter().filter(move |(_, sides)| **sides == wanted);
        names.map(|(name, _)| name.as_str()).collect::<Vec<_>>()
    };
    let text = match args.json {
        true => {
            let mut value = json!(differences);
            value["run"] = args.id.as_str().into();
            value["live"] = found.live.as_str().into();
            value["shadow"] = found.shadow.as_str().into();
            value["key"] = json!(args.key);
            value["different"] = (!differences.is_empty()).into();
            value["columns_only_live"] = json!(columns_of([true, false]));
            value["columns_only_shadow"] = json!(columns_of([false, true]));
            value["live_files_beyond_range"] = found.beyond.into();
            value["notes"] = json!(found.notes);
            let sample = |(live, shadow): &(Value, Value)| json!({ "live": live, "shadow": shadow });
            value["samples"] = found.samples.iter().map(sample).collect();
            format!("{value}\n")
        }
        false => table(found, &columns_of([true, false]), &columns_of([false, true])),
    };
    let printed = print_data(&text);
    found.notes.iter().for_each(|note| print_error(format_args!("{note}")));
    if found.beyond > 0 {
        print_error(format_args!(
            "{} live files hold records outside of the range of the run, too: these rows count as missing in the shadow",
            found.beyond
        ));
    }
    if differences.is_empty() {
        return printed;
    }
    let message = format!("the shadow {} differs from {}", found.shadow, found.live);
    report_error(&Error::data("replay.different", message))
}

fn table(found: &Found, only_live: &[&str], only_shadow: &[&str]) -> String {
    let differences = &found.differences;
    let mut rows = vec![[found.heading, "LIVE", "SHADOW"].map(str::to_owned)];
    for (folder, [live, shadow]) in differences.folders.iter().take(FOLDERS) {
        let folder = if folder.is_empty() { "." } else { folder.as_str() };
        rows.push([folder.to_owned(), live.to_string(), shadow.to_string()]);
    }
    let mut text = columns(&rows, &[1, 2]);
    if differences.folders.len() > FOLDERS {
        text.push_str(&format!(".. and {} more\n", differences.folders.len() - FOLDERS));
    }
    text.push_str(&format!(
        "{} rows are equal, {} changed, {} only in the live destination, {} only in the shadow\n",
        differences.equal, differences.changed, differences.only_live, differences.only_shadow
    ));
    for (names, side) in [(only_live, "the live destination"), (only_shadow, "the shadow")] {
        if !names.is_empty() {
            text.push_str(&format!("columns with values only in {side}: {}\n", names.join(", ")));
        }
    }
    for (live, shadow) in &found.samples {
        match (live, shadow) {
            (live, Value::Null) => text.push_str(&format!("only live:   {live}\n")),
            (Value::Null, shadow) => text.push_str(&format!("only shadow: {shadow}\n")),
            (live, shadow) => text.push_str(&format!("changed:     {live}\n         to: {shadow}\n")),
        }
    }
    text
}

pub(super) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))
}
