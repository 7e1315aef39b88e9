//! `trunkline transform test`: runs the tests of a project, and measures its plugin.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use trunkline_connector::config::Report;
use trunkline_connector::{Batch, Rejections};
use trunkline_transform_host::{Instance, Limits, Plugin, StateStore};

use super::project::{Project, ProjectTest};
use super::{Exit, failed, plugin_host};
use crate::cli::output::{print_data, print_error, report_problems};
use crate::plan::plugin_rejected;
use crate::record_tests::{TestRecord, compare, difference, read_expected, read_records, run_plugin};

/// How long `--bench` measures each test.
const BENCH: Duration = Duration::from_secs(2);
/// Records per call of `--bench`.
const BENCH_BATCH: usize = 1000;

/// Runs the tests of a project. The exit code is 1 if one fails.
pub(super) fn test(folder: &Path, update: bool, bench: bool) -> Exit {
    let project = match Project::read(folder) {
        Ok(project) => project,
        Err(problems) => return report_problems(&[problems], false),
    };
    if project.tests.is_empty() {
        return failed(Exit::Config, &format!("{} has no `[[tests]]`", project.document.file.display()));
    }
    let wasm = project.wasm();
    if !wasm.is_file() {
        let message =
            format!("{} does not exist; run\n  trunkline transform build {}", wasm.display(), folder.display());
        return failed(Exit::Config, &message);
    }
    warn_if_outdated(&project, &wasm);
    let host = match plugin_host(None) {
        Ok(host) => host,
        Err(exit) => return exit,
    };
    let plugin = match host.load(&wasm) {
        Ok(plugin) => plugin,
        Err(error) => return failed(Exit::Config, &error.to_string()),
    };
    let mut text = String::new();
    let mut failures = 0;
    for test in &project.tests {
        match run_test(&project, &plugin, test, update, bench) {
            Ok(outcome) => {
                failures += usize::from(!outcome.passed);
                text.push_str(&outcome.text);
            }
            Err(exit) => return exit,
        }
    }
    let _ = writeln!(text, "{} passed, {failures} failed", project.tests.len() - failures);
    let printed = print_data(&text);
    if failures > 0 { Exit::Runtime } else { printed }
}

struct Outcome {
    passed: bool,
    text: String,
}

fn run_test(
    project: &Project,
    plugin: &Plugin,
    test: &ProjectTest,
    update: bool,
    bench: bool,
) -> Result<Outcome, Exit> {
    let problem =
        |path: &Path, error: &dyn std::fmt::Display| failed(Exit::Config, &format!("{}:{error}", path.display()));
    let records = read_records(&test.records).map_err(|error| problem(&test.records, &error))?;
    let mut instance = start(project, plugin, test)?;
    let actual = match run_plugin(&mut instance, &records, test.advance_to) {
        Ok(actual) => actual,
        Err(message) => {
            return Ok(Outcome { passed: false, text: format!("FAILED  {}: {message}\n", test.name) });
        }
    };
    if update {
        let lines: String = actual.iter().map(|record| format!("{}\n", record.line())).collect();
        fs::write(&test.expected, lines).map_err(|error| {
            failed(Exit::Environment, &format!("cannot write {}: {error}", test.expected.display()))
        })?;
    }
    let expected = read_expected(&test.expected).map_err(|error| problem(&test.expected, &error))?;
    let passed = compare(&expected, &actual);
    let mut text = match (passed, update) {
        (true, true) => format!("updated {}: {} records in, {} out\n", test.name, records.len(), actual.len()),
        (true, false) => format!("ok      {}: {} records in, {} out\n", test.name, records.len(), actual.len()),
        (false, _) => format!(
            "FAILED  {}: the output differs from {} (- expected, + actual; --update accepts it)\n{}",
            test.name,
            test.expected.display(),
            difference(&expected, &actual)
        ),
    };
    if bench && !records.is_empty() {
        match measure(&mut instance, &records) {
            Ok(speed) => text.push_str(&speed),
            Err(message) => return Ok(Outcome { passed: false, text: format!("{text}FAILED  {message}\n") }),
        }
    }
    Ok(Outcome { passed, text })
}

/// Starts the plugin with the configuration of a test.
fn start(project: &Project, plugin: &Plugin, test: &ProjectTest) -> Result<Instance, Exit> {
    plugin.start(&test.config, &Limits::default()).map_err(|error| {
        let report = Report::default();
        let Some(section) = project.test_section(test, &report) else {
            return failed(Exit::Config, &error.to_string());
        };
        let problem = plugin_rejected(&project.document, &section, plugin.name(), error);
        match project.document.finish(vec![problem]) {
            Some(problems) => report_problems(&[problems], false),
            None => Exit::Config,
        }
    })
}

/// Repeats the records in calls of [`BENCH_BATCH`] records.
fn measure(instance: &mut Instance, records: &[TestRecord]) -> Result<String, String> {
    let mut input = Batch::default();
    for (record, index) in records.iter().cycle().take(BENCH_BATCH.max(records.len())).zip(0..) {
        record.push_to(&mut input, "test", index);
    }
    let (mut count, mut spent) = (0usize, Duration::ZERO);
    let started = Instant::now();
    let mut rejected = Rejections::default();
    let mut state = instance.plugin().uses_state().then(|| StateStore::new(usize::MAX));
    while started.elapsed() < BENCH {
        let mut batch = input.clone();
        rejected.clear();
        let call = Instant::now();
        let processed = match &mut state {
            Some(state) => instance.process_with_state(&mut batch, &mut rejected, state),
            None => instance.process(&mut batch, &mut rejected),
        };
        processed.map_err(|error| error.to_string())?;
        if let Some(state) = &mut state {
            state.commit();
        }
        spent += call.elapsed();
        count += input.len();
    }
    let seconds = spent.as_secs_f64();
    Ok(format!(
        "        {:.0} records/s, {:.0} ns a record, {} KiB of memory\n",
        count as f64 / seconds,
        seconds * 1e9 / count as f64,
        instance.memory() >> 10
    ))
}

/// Warns if a source file is newer than the plugin.
fn warn_if_outdated(project: &Project, wasm: &Path) {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let Some(built) = modified(wasm) else { return };
    let sources = ["src/lib.rs", "app.py", "app.js"].map(|file| project.folder.join(file));
    let is_newer = |path: &Path| modified(path).is_some_and(|time: SystemTime| time > built);
    if let Some(source) = sources.iter().find(|path| is_newer(path)) {
        print_error(format_args!(
            "warning: {} is newer than {}; run `trunkline transform build {}`",
            source.display(),
            wasm.display(),
            project.folder.display()
        ));
    }
}
