//! `trunkline doctor`: what is wrong with the configuration, the machine, the brokers and the
//! systems of sources and sinks, each with its fix. It is `validate --check`, and the checks of
//! the machine and of the brokers' settings. It changes nothing.
//!
//! A finding is an error if it stops a worker or loses records, and a warning otherwise.

mod brokers;
mod findings;
mod machine;

use std::path::PathBuf;

use clap::Args;
use trunkline_transform_host::{Host, HostOptions};

use self::findings::{Findings, Level};
use super::SettingsArgs;
use super::addresses::running_worker;
use super::output::{Exit, print_data, start_logging};
use super::validate::preflight_issues;
use crate::config::Settings;
use crate::kafka::embedded::EMBEDDED;
use crate::plan::{Pipeline, Registry, load_each};
use crate::record_tests::read_tests;
use crate::worker::{OpenFiles, ResourceKind, plugin_cache_dirs, raise_open_files_limit, rights_of};

/// `trunkline doctor`.
#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Pipeline files, or folders of them; without one, only the machine and the brokers are
    /// checked
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print the findings as JSON on stdout: {findings: [{level, area, code, message, place, fix}],
    /// errors, warnings}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the verb. The exit code is 1 if a finding is an error.
pub(super) fn doctor(args: &DoctorArgs) -> Exit {
    let mut findings = Findings::default();
    let loaded = args.settings.read().and_then(|settings| start_logging(&settings, false).map(|()| settings));
    match loaded {
        Ok(settings) => check(args, &settings, &mut findings),
        Err(problems) => findings.add_problems("settings", &problems),
    }
    let text = if args.json { format!("{:#}\n", findings.json()) } else { findings.text() };
    let printed = print_data(&text);
    if findings.count(Level::Error) > 0 { Exit::Runtime } else { printed }
}

fn check(args: &DoctorArgs, settings: &Settings, findings: &mut Findings) {
    findings.ok("settings", format!("cluster {}, node {}", settings.cluster_name(), settings.node));
    let pipelines = load(args, settings, findings);
    let embedded = matches!(settings.brokers.as_deref(), None | Some(EMBEDDED));
    machine::check_data_folder(&settings.data, embedded, findings);
    check_open_files(&pipelines, settings, embedded, findings);
    if pipelines.iter().flat_map(|pipeline| &pipeline.sources).any(|source| source.connector == "logfile") {
        machine::check_inotify(findings);
    }
    machine::check_clock(findings);
    if embedded {
        match running_worker(settings) {
            Ok(worker) => findings.ok("brokers", format!("embedded, in the running worker: {}", worker.brokers)),
            Err(_) => findings.ok("brokers", "embedded: they start with the worker".to_owned()),
        }
    } else {
        brokers::check(&pipelines, settings, findings);
    }
    if !pipelines.is_empty() {
        let issues = preflight_issues(&pipelines, settings);
        if issues.is_empty() {
            findings.ok("systems", "the systems of sources and sinks meet their prerequisites".to_owned());
        }
        findings.add_problems("systems", &issues);
    }
}

/// The valid pipelines. Problems and warnings are findings.
fn load(args: &DoctorArgs, settings: &Settings, findings: &mut Findings) -> Vec<Pipeline> {
    if args.paths.is_empty() {
        findings.ok("pipelines", "none named; `trunkline doctor pipelines/` checks them, too".to_owned());
        return Vec::new();
    }
    let host = match Host::new(HostOptions { cache_dirs: plugin_cache_dirs(Some(&settings.data)) }) {
        Ok(host) => host,
        Err(error) => {
            let message = format!("plugins cannot run on this machine: {error}");
            findings.error("plugins", "environment.plugins", message, None);
            return Vec::new();
        }
    };
    let loaded = load_each(&args.paths, &host, settings, &Registry::new());
    findings.add_problems("pipelines", &loaded.problems);
    let tests: Vec<_> = loaded.pipelines.iter().filter_map(|pipeline| read_tests(pipeline, settings).err()).collect();
    findings.add_problems("pipelines", &tests);
    findings.add_problems("pipelines", &loaded.warnings);
    let names: Vec<&str> = loaded.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
    if !names.is_empty() {
        findings.ok("pipelines", format!("valid, with their plugins: {}", names.join(", ")));
    }
    loaded.pipelines
}

fn check_open_files(pipelines: &[Pipeline], settings: &Settings, embedded: bool, findings: &mut Findings) {
    let topics = rights_of(pipelines, settings).keys().filter(|it| it.kind == ResourceKind::Topic).count();
    let partitions = topics * usize::try_from(settings.topics.partitions).unwrap_or(1);
    let embedded = if embedded { partitions } else { 0 };
    let files = OpenFiles::of(pipelines, embedded, |_| None, settings.topics.partitions);
    match raise_open_files_limit() {
        Ok(limit) => match files.shortage(limit) {
            Some(message) => {
                let fix = Some("raise the limit of the user or of the service".to_owned());
                findings.error("open files", "environment.open_files", message, fix);
            }
            None => findings.ok("open files", format!("at most {limit}")),
        },
        Err(error) => {
            let message = format!("the limit of open files cannot be read: {error}");
            findings.warning("open files", "environment.open_files", message, None);
        }
    }
}
