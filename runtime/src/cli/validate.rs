//! `trunkline validate`: everything that is wrong with pipeline files.

use std::collections::BTreeSet;
use std::path::PathBuf;

use trunkline_connector::PreflightIssue;
use trunkline_transform_host::{Host, HostOptions};

use super::output::{Exit, print_data, report_problems};
use crate::config::{FileProblems, Settings, problem_at};
use crate::plan::{Loaded, Pipeline, Registry, Route, load_each};
use crate::stage::component_name;
use crate::worker::DataDir;

pub(super) fn validate(paths: &[PathBuf], as_json: bool, check: bool, settings: &Settings) -> Exit {
    let loaded = match load_for_reading(paths, settings) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let lacks = if check { lacks(&loaded.pipelines, settings) } else { Vec::new() };
    if !lacks.is_empty() {
        let files_are_right = loaded.problems.is_empty();
        let all: Vec<FileProblems> = loaded.problems.into_iter().chain(lacks).collect();
        let exit = report_problems(&all, as_json);
        return if files_are_right { Exit::Environment } else { exit };
    }
    if !as_json {
        for pipeline in &loaded.pipelines {
            print_data(&format!("{}: ok: {}\n", pipeline.file.display(), contents(pipeline)));
        }
        if loaded.problems.is_empty() {
            return Exit::Ok;
        }
    }
    report_problems(&loaded.problems, as_json)
}

/// Loads pipelines for commands that do not run them. Compiled plugins are read from the data
/// directory and added to it, if a worker has created it; otherwise nothing is written.
pub(super) fn load_for_reading(paths: &[PathBuf], settings: &Settings) -> Result<Loaded, Exit> {
    match Host::new(HostOptions { cache_dir: DataDir::plugin_cache(&settings.data) }) {
        Ok(host) => Ok(load_each(paths, &host, settings, &Registry::new())),
        Err(error) => {
            let message = format!("plugins cannot run on this machine: {error}");
            super::print_problems(&[problem_at(None, "environment.plugins", message, None)]);
            Err(Exit::Environment)
        }
    }
}

/// What the systems lack that the sources read from.
fn lacks(pipelines: &[Pipeline], settings: &Settings) -> Vec<FileProblems> {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return vec![problem_at(None, "environment.runtime", format!("cannot start a thread: {error}"), None)];
        }
    };
    let mut lacks = Vec::new();
    for pipeline in pipelines {
        for source in &pipeline.sources {
            let task = component_name(&settings.cluster, &pipeline.name, &source.name);
            for PreflightIssue { code, message, fix } in source.spec.preflight(&task, runtime.handle()) {
                let message = format!("`sources.{}`: {message}", source.name);
                lacks.push(problem_at(Some(&pipeline.file), code, message, fix));
            }
        }
    }
    lacks
}

fn contents(pipeline: &Pipeline) -> String {
    let mut transforms: BTreeSet<&str> = BTreeSet::new();
    transforms.extend(pipeline.transforms.iter().map(|transform| transform.name.as_str()));
    transforms.extend(pipeline.sources.iter().flat_map(|source| &source.apply).map(|step| step.component.as_str()));
    let stages =
        pipeline.transforms.iter().map(|stage| &stage.inputs).chain(pipeline.sinks.iter().map(|stage| &stage.inputs));
    stages.flatten().for_each(|input| add_transforms(&input.route, &mut transforms));
    let counts = [("source", pipeline.sources.len()), ("transform", transforms.len()), ("sink", pipeline.sinks.len())];
    let mut parts = vec![format!("pipeline `{}`", pipeline.name)];
    for (what, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        parts.push(format!("{count} {what}{}", if count == 1 { "" } else { "s" }));
    }
    parts.join(", ")
}

fn add_transforms<'p>(route: &'p Route, names: &mut BTreeSet<&'p str>) {
    for branch in &route.branches {
        names.insert(&branch.step.component);
        branch.outputs.iter().for_each(|(_, next)| add_transforms(next, names));
    }
}
