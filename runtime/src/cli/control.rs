//! `trunkline pause`, `resume` and `restart`.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::json;
use trunkline_connector::{Error, Result};

use super::SettingsArgs;
use super::dlq::connect;
use super::output::{Exit, print_data, print_error, report_error, report_problems};
use super::record::record;
use super::selection::components;
use super::validate::load_to_inspect;
use crate::config::Settings;
use crate::kafka::Cluster;
use crate::plan::Pipeline;
use crate::worker::control::{Components, Request, Target, read, rows_of};

/// `trunkline pause` and `trunkline resume`.
#[derive(Args)]
pub(super) struct ControlArgs {
    /// PIPELINE or PIPELINE.COMPONENT
    #[arg(value_name = "PIPELINE[.COMPONENT]")]
    name: String,
    /// Pipeline files, or folders of them: the names may be those of components that no worker runs
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print the result as JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// `trunkline restart`.
#[derive(Args)]
pub(super) struct RestartArgs {
    /// Restart only tasks that have failed
    #[arg(long)]
    failed_only: bool,
    #[command(flatten)]
    control: ControlArgs,
}

/// Runs `trunkline pause`.
pub(super) fn pause(args: &ControlArgs) -> Exit {
    run(args, &Request::Pause)
}

/// Runs `trunkline resume`.
pub(super) fn resume(args: &ControlArgs) -> Exit {
    run(args, &Request::Resume)
}

/// Runs `trunkline restart`.
pub(super) fn restart(args: &RestartArgs) -> Exit {
    run(&args.control, &Request::Restart { failed_only: args.failed_only, task: None })
}

fn run(args: &ControlArgs, request: &Request) -> Exit {
    let (settings, pipelines) = if args.paths.is_empty() {
        match args.settings.load() {
            Ok(settings) => (settings, Vec::new()),
            Err(problems) => return report_problems(&problems, args.json),
        }
    } else {
        match load_to_inspect(&args.paths, &args.settings, args.json) {
            Ok((settings, loaded)) => (settings, loaded.pipelines),
            Err(exit) => return exit,
        }
    };
    let written = connect(&settings).and_then(|cluster| write(&args.name, request, &cluster, &settings, &pipelines));
    match written {
        Ok(named) => report(request, &named, args.json),
        Err(error) => report_error(&error),
    }
}

/// Writes the rows of a request to a pipeline or component. Returns the components that it names.
pub(super) fn write(
    target: &str,
    request: &Request,
    cluster: &Cluster,
    settings: &Settings,
    pipelines: &[Pipeline],
) -> Result<Components> {
    let name = settings.cluster_name();
    let (view, store) = match read(cluster, &name) {
        // No worker of this cluster has run yet.
        Err(error) if error.code == "kafka.unknown_topic" => return Err(no_worker(&name)),
        other => other?,
    };
    let mut known = view.components(Instant::now());
    let of_pipeline = |pipeline: &Pipeline| {
        let names = components(pipeline).into_iter().map(|component| component.name().to_owned());
        names.map(|component| (pipeline.name.clone(), component)).collect::<Vec<_>>()
    };
    known.extend(pipelines.iter().flat_map(of_pipeline));
    if known.is_empty() {
        return Err(no_worker(&name));
    }
    let mut arguments = json!({ "name": target });
    let target = Target::parse(target);
    let named = target.among(&known)?;
    let rows = rows_of(&view, request, &target, &known)?;
    if let Request::Restart { failed_only, .. } = request {
        arguments["failed_only"] = json!(failed_only);
    }
    record(cluster, settings, request.name(), arguments)?;
    rows.iter().try_for_each(|row| store.write(row).map(drop))?;
    Ok(named)
}

fn no_worker(cluster: &str) -> Error {
    let message = format!(
        "no worker of the cluster `{cluster}` runs, so the name cannot be checked: start a worker, or add the pipeline files \
         to the command"
    );
    Error::config("control.no_worker", message)
}

/// Prints what was requested.
pub(super) fn report(request: &Request, named: &Components, as_json: bool) -> Exit {
    let names: Vec<String> = named.iter().map(|(pipeline, component)| format!("{pipeline}.{component}")).collect();
    let (verb, consequence) = match request {
        Request::Pause => ("paused", "the workers commit and stop these tasks within two seconds"),
        Request::Stop => {
            ("stopped", "the workers commit and stop these tasks within two seconds; `trunkline resume` starts them")
        }
        Request::Resume => ("resumed", "the workers start these tasks within two seconds, at their positions"),
        Request::Restart { failed_only: true, .. } => ("restarted", "the workers restart tasks that have failed"),
        Request::Restart { .. } => ("restarted", "the workers restart these tasks within two seconds"),
    };
    if as_json {
        return print_data(&format!("{}\n", json!({ "request": verb, "components": names })));
    }
    print_error(format_args!("{verb}: {}; {consequence}", names.join(", ")));
    Exit::Ok
}
