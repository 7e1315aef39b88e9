//! `trunkline validate`: checks pipeline files and prints all problems.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use trunkline_connector::{MemoryBudget, PreflightIssue, SinkContext};
use trunkline_transform_host::{Host, HostOptions};

use super::SettingsArgs;
use super::dlq::connect;
use super::kafka_check::kafka_issues;
use super::newest_records::newest_records;
use super::output::{Exit, print_data, print_problems, report_error, report_problems};
use crate::checkpoint::Schemas;
use crate::config::{FileProblems, Settings, json, problem_at};
use crate::kafka::Cluster;
use crate::plan::{Input, Loaded, Pipeline, Registry, Route, SinkPlan, load_each};
use crate::record_tests::read_tests;
use crate::stage::component_name;
use crate::worker::DataDir;

/// The memory of a sink that compares records with its tables.
const RECORDS_BUDGET: usize = 64 << 20;

/// Runs the verb.
pub(super) fn validate(paths: &[PathBuf], as_json: bool, check: bool, settings: &Settings) -> Exit {
    // `run` would refuse these settings, too.
    if let Err(error) = Cluster::new(settings.brokers.as_deref().unwrap_or_default(), &settings.kafka) {
        let problem = problem_at(None, error.code, error.message().to_owned(), None);
        return if as_json { report_problems(&[problem], true) } else { report_error(&error) };
    }
    let Loaded { pipelines, problems, warnings, .. } = match load_for_reading(paths, settings) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let mut problems = problems;
    // A file whose tests are invalid can run, but not be tested.
    problems.extend(pipelines.iter().filter_map(|pipeline| read_tests(pipeline, settings).err()));
    let issues = match check {
        true => {
            let mut issues = kafka_issues(&pipelines, settings);
            issues.extend(preflight_issues(&pipelines, settings));
            issues
        }
        false => Vec::new(),
    };
    let result = match (problems.is_empty(), issues.is_empty()) {
        (false, _) => Exit::Config,
        (true, false) => Exit::Environment,
        (true, true) => Exit::Ok,
    };
    let all: Vec<FileProblems> = problems.into_iter().chain(issues).chain(warnings).collect();
    let printed = if as_json {
        print_data(&format!("{}\n", json(&all)))
    } else {
        let printed = print_data(&pipelines.iter().map(description).collect::<String>());
        if !all.is_empty() {
            print_problems(&all);
        }
        printed
    };
    if result == Exit::Ok { printed } else { result }
}

/// Loads pipelines for commands that do not run them. Compiled plugins are read from the data
/// directory and added to it, if a worker has created it; otherwise nothing is written.
pub(super) fn load_for_reading(paths: &[PathBuf], settings: &Settings) -> Result<Loaded, Exit> {
    match Host::new(HostOptions { cache_dir: DataDir::plugin_cache(&settings.data) }) {
        Ok(host) => Ok(load_each(paths, &host, settings, &Registry::new())),
        Err(error) => {
            let message = format!("plugins cannot run on this machine: {error}");
            print_problems(&[problem_at(None, "environment.plugins", message, None)]);
            Err(Exit::Environment)
        }
    }
}

/// The settings and pipelines of a command that does not run them, with the connectors that were
/// created by REST on the worker of the data directory. Problems are printed, and end the command
/// if they leave no pipeline.
pub(super) fn load_to_inspect(
    paths: &[PathBuf],
    settings: &SettingsArgs,
    as_json: bool,
) -> Result<(Settings, Loaded), Exit> {
    let settings = settings.load().map_err(|problems: Vec<_>| report_problems(&problems, as_json))?;
    let mut paths = paths.to_vec();
    let same = |path: &PathBuf, other: &PathBuf| match (path.canonicalize(), other.canonicalize()) {
        (Ok(path), Ok(other)) => other.starts_with(path),
        _ => false,
    };
    let connectors = DataDir::connectors_of_running(&settings.data);
    let is_named = |folder: &PathBuf| paths.iter().any(|path| same(path, folder) || same(folder, path));
    let more = connectors.filter(|folder| !is_named(folder));
    paths.extend(more);
    let loaded = load_for_reading(&paths, &settings)?;
    if loaded.pipelines.is_empty() && !loaded.problems.is_empty() {
        return Err(report_problems(&loaded.problems, as_json));
    }
    Ok((settings, loaded))
}

/// The prerequisites that the systems of sources and sinks do not meet.
pub(super) fn preflight_issues(pipelines: &[Pipeline], settings: &Settings) -> Vec<FileProblems> {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return vec![problem_at(None, "environment.runtime", format!("cannot start a thread: {error}"), None)];
        }
    };
    let mut issues = Vec::new();
    for pipeline in pipelines {
        for source in &pipeline.sources {
            let task = component_name(&settings.cluster_name(), &pipeline.name, &source.name);
            for PreflightIssue { code, message, fix } in source.spec.preflight(&task, runtime.handle()) {
                let message = format!("`sources.{}`: {message}", source.name);
                issues.push(problem_at(Some(&pipeline.file), code, message, fix));
            }
        }
        for sink in &pipeline.sinks {
            let name = format!("{}.{}", pipeline.name, sink.name);
            let mut found = sink.spec.preflight(&name, runtime.handle());
            found.extend(record_issues(sink, name, settings, runtime.handle()));
            for PreflightIssue { code, message, fix } in found {
                let message = format!("`sinks.{}`: {message}", sink.name);
                issues.push(problem_at(Some(&pipeline.file), code, message, fix));
            }
        }
    }
    issues
}

/// Why the newest records of the sink's topics could not be written. Without a broker, there are no
/// records.
fn record_issues(
    sink: &SinkPlan,
    name: String,
    settings: &Settings,
    runtime: &tokio::runtime::Handle,
) -> Vec<PreflightIssue> {
    let Ok(cluster) = connect(settings) else { return Vec::new() };
    let context = SinkContext {
        name,
        replay: None,
        budget: MemoryBudget::new(RECORDS_BUDGET),
        runtime: runtime.clone(),
        scratch: std::env::temp_dir(),
        schemas: Arc::new(Schemas::new(cluster.clone())),
    };
    let mut records = || newest_records(&cluster, sink);
    sink.spec.preflight_records(context, &mut records)
}

/// A line about a valid pipeline, and one about each transform: where it runs.
fn description(pipeline: &Pipeline) -> String {
    let transforms = transforms(pipeline);
    let counts = [("source", pipeline.sources.len()), ("transform", transforms.len()), ("sink", pipeline.sinks.len())];
    let mut parts = vec![format!("pipeline `{}`", pipeline.name)];
    for (kind, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        parts.push(format!("{count} {kind}{}", if count == 1 { "" } else { "s" }));
    }
    let mut text = format!("{}: ok: {}\n", pipeline.file.display(), parts.join(", "));
    for (name, place) in transforms {
        text.push_str(&format!("  transform `{name}`: {place}\n"));
    }
    text
}

/// The transforms by name, each with the place where it runs.
fn transforms(pipeline: &Pipeline) -> BTreeMap<&str, String> {
    let mut places = BTreeMap::new();
    let mut applied: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for source in &pipeline.sources {
        for step in &source.apply {
            applied.entry(&step.component).or_default().push(format!("`{}`", source.name));
        }
    }
    for (name, sources) in applied {
        places.insert(name, format!("before the topic of {}", sources.join(" and ")));
    }
    for stage in &pipeline.transforms {
        let topics: Vec<String> = stage.topics().map(|topic| format!("`{}`", topic.source())).collect();
        places.insert(&stage.name, format!("separate stage, writes {}", topics.join(" and ")));
        fused_into(&stage.inputs, &stage.name, &mut places);
    }
    for sink in &pipeline.sinks {
        fused_into(&sink.inputs, &sink.name, &mut places);
    }
    places
}

fn fused_into<'p>(inputs: &'p [Input], stage: &str, places: &mut BTreeMap<&'p str, String>) {
    let mut names = BTreeSet::new();
    inputs.iter().for_each(|input| collect_steps(&input.route, &mut names));
    for name in names {
        places.insert(name, format!("fused into `{stage}`"));
    }
}

fn collect_steps<'p>(route: &'p Route, names: &mut BTreeSet<&'p str>) {
    for branch in &route.branches {
        names.insert(&branch.step.component);
        branch.outputs.iter().for_each(|(_, next)| collect_steps(next, names));
    }
}
