//! `trunkline test`: runs the tests in pipeline files.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::SettingsArgs;
use super::output::{Exit, print_data, print_problems, report_problems};
use super::transform::plugin_host;
use crate::config::{FileProblems, problem_at};
use crate::plan::{Registry, files_of, load_each};
use crate::record_tests::{PipelineTest, TestOutcome, read_tests, run_test};

/// `trunkline test`.
#[derive(Args)]
pub(super) struct TestArgs {
    /// Pipeline files, or folders of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Run only the tests whose name contains this text
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print the outcomes as JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the verb. The exit code is 1 if a test fails, and 2 if a file is invalid.
pub(super) fn test(args: &TestArgs) -> Exit {
    // Without a log: the differences show dead letters, and plugins log what a worker needs.
    let settings = match args.settings.read() {
        Ok(settings) => settings,
        Err(problems) => return report_problems(&problems, args.json),
    };
    let host = match plugin_host(Some(&settings.data)) {
        Ok(host) => host,
        Err(exit) => return exit,
    };
    let loaded = load_each(&args.paths, &host, &settings, &Registry::new());
    let mut problems = loaded.problems;
    let mut outcomes = Vec::new();
    for pipeline in &loaded.pipelines {
        match read_tests(pipeline, &settings) {
            Ok(tests) => {
                let is_selected =
                    |test: &&PipelineTest| args.only.as_ref().is_none_or(|text| test.name.contains(text.as_str()));
                outcomes.extend(tests.iter().filter(is_selected).map(|test| (pipeline, run_test(pipeline, test))));
            }
            Err(found) => problems.push(found),
        }
    }
    if !problems.is_empty() {
        return report_problems(&problems, args.json);
    }
    if outcomes.is_empty() {
        print_problems(&[no_tests(args)]);
        return Exit::Config;
    }
    let failed = outcomes.iter().filter(|(_, outcome)| outcome.failure.is_some()).count();
    let printed = if args.json {
        let list: Vec<_> = outcomes
            .iter()
            .map(|(pipeline, outcome)| {
                json!({
                    "file": pipeline.file, "pipeline": pipeline.name, "test": outcome.name,
                    "passed": outcome.failure.is_none(), "failure": outcome.failure,
                })
            })
            .collect();
        print_data(&format!("{:#}\n", json!(list)))
    } else {
        let mut text: String = outcomes.iter().map(|(pipeline, outcome)| line(&pipeline.name, outcome)).collect();
        text.push_str(&format!("{} passed, {failed} failed\n", outcomes.len() - failed));
        print_data(&text)
    };
    if failed > 0 { Exit::Runtime } else { printed }
}

fn line(pipeline: &str, outcome: &TestOutcome) -> String {
    match &outcome.failure {
        None => format!("ok      {pipeline}: {}\n", outcome.name),
        Some(failure) => format!("FAILED  {pipeline}: {}\n{failure}", outcome.name),
    }
}

fn no_tests(args: &TestArgs) -> FileProblems {
    let files = files_of(&args.paths);
    let file = files.first().map(PathBuf::as_path);
    let message = match &args.only {
        Some(text) => format!("no test has a name that contains `{text}`"),
        None => "the pipeline files have no `[[tests]]`".to_owned(),
    };
    let help = "add a test: [[tests]] with `name`, `records` and `expected`; see docs/guides/testing.md";
    problem_at(file, "test.none", message, Some(help.to_owned()))
}
