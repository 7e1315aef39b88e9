//! The sink of a replay with its options, and the rules for its destination.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::Path;

use trunkline_connector::{Error, OutputFile, Result, Supersede, TopicPartition};
use trunkline_transform_host::{Host, HostOptions};

use super::super::selection::{self, components};
use super::supersede::{self, check_destination as check_superseded, check_kind};
use crate::config::{FileProblems, Settings};
use crate::plan::{Pipeline, Registry, SinkPlan, load_with_options};
use crate::replay::run::{PartitionRange, Run, overlap};
use crate::replay::widening::Replacement;
use crate::worker::plugin_cache_dirs;

/// The sink of a replay.
pub(super) struct Target {
    pub(super) pipeline: Pipeline,
    pub(super) sink: SinkPlan,
    /// The sink as its pipeline file has it.
    pub(super) live: SinkPlan,
    pub(super) destination: String,
    /// A live sink writes there too, to which repeated records do no harm.
    pub(super) is_live: bool,
    /// The replay takes the place of what the live sink wrote.
    pub(super) supersede: bool,
}

impl Target {
    /// Records per second, at most.
    pub(super) fn rate(&self, requested: Option<NonZeroU64>) -> Option<NonZeroU64> {
        self.live.replay.rate(requested)
    }
}

/// Why a replay does not start.
pub(super) enum Refusal {
    Error(Error),
    /// Problems in the options of `--into`.
    Problems(FileProblems),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Refuses options of `--into` that are not TOML, and secrets that are written out: the text is
/// stored with the run (I8).
pub(super) fn check_options(into: &str) -> Result<()> {
    let options = into.parse::<toml::Table>().map_err(|error| {
        // The excerpt of the text may show a secret.
        let (at, problem) = (error.span().map_or(0, |span| span.start), error.message());
        let before = into.get(..at).unwrap_or_default();
        let (line, column) = (before.lines().count().max(1), before.lines().last().unwrap_or_default().chars().count() + 1);
        let message = format!(
            "--into is not valid: {problem} (option {line}, column {column}). Write each option as in the pipeline file, with quotes \
             around text: --into 'url=\"s3://lake/orders-v2\"'"
        );
        Error::config("replay.bad_into", message)
    })?;
    let Some(name) = options.iter().find_map(|(name, value)| literal_secret(name, value)) else { return Ok(()) };
    let message = format!(
        "--into sets `{name}` to a secret, and its text is stored with the run: write a reference, such as \
         `${{env:NAME}}` or `${{file:/run/secrets/NAME}}`"
    );
    Err(Error::config("replay.bad_into", message))
}

/// The name of an option whose value is, or holds, a secret that is not a reference.
fn literal_secret<'a>(name: &'a str, value: &'a toml::Value) -> Option<&'a str> {
    const SECRETS: [&str; 6] = ["secret", "password", "passphrase", "token", "private_key", "bearer"];
    match value {
        toml::Value::Table(members) => members.iter().find_map(|(name, value)| literal_secret(name, value)),
        toml::Value::Array(items) => items.iter().find_map(|item| literal_secret(name, item)),
        toml::Value::String(text) if !text.contains("${") => {
            let login = text.split_once("://").and_then(|(_, rest)| rest.split('/').next()?.rsplit_once('@'));
            let has_password = login.is_some_and(|(login, _)| login.contains(':'));
            (has_password || SECRETS.iter().any(|secret| name.contains(secret))).then_some(name)
        }
        _ => None,
    }
}

/// What a command line chooses.
pub(super) struct Choice<'a> {
    /// The pipeline's name.
    pub(super) pipeline: &'a str,
    /// The sink's name; may be left out if there is only one.
    pub(super) sink: Option<&'a str>,
    /// The options of `--into`, as TOML.
    pub(super) into: &'a str,
    /// Another file for the same pipeline.
    pub(super) file: Option<&'a Path>,
    /// Take the place of what the live sink wrote.
    pub(super) supersede: bool,
}

impl<'a> Choice<'a> {
    /// What the command line of a run into another destination chose.
    pub(super) fn of_shadow(run: &'a Run) -> Self {
        Self {
            pipeline: &run.pipeline,
            sink: Some(&run.sink),
            into: &run.into,
            file: run.request.pipeline_file.as_deref(),
            supersede: false,
        }
    }

    /// The pipeline as its file has it, and the one whose transforms and options apply.
    pub(super) fn pipelines<'p>(
        &self,
        pipelines: &'p [Pipeline],
        settings: &Settings,
    ) -> Result<(&'p SinkPlan, Pipeline), Refusal> {
        let live_pipeline = selection::pipeline(pipelines, self.pipeline)?;
        let live = selection::sink(live_pipeline, self.sink)?;
        if self.into.trim().is_empty() && self.file.is_none() {
            return Ok((live, live_pipeline.clone()));
        }
        check_options(self.into)?;
        let host = host(settings)?;
        let file = self.file.unwrap_or(&live_pipeline.file);
        let mut pipeline = load_with_options(file, ("sinks", &live.name), self.into, &host, settings, &Registry::new())
            .map_err(Refusal::Problems)?;
        if self.file.is_some() {
            check_file(file, &pipeline, live_pipeline, &live.name)?;
            pipeline.dead_letters.clone_from(&live_pipeline.dead_letters);
        }
        Ok((live, pipeline))
    }

    /// The sink with its options, checked against the destinations of live sinks.
    pub(super) fn target(&self, pipelines: &[Pipeline], settings: &Settings) -> Result<Target, Refusal> {
        let (live, pipeline) = self.pipelines(pipelines, settings)?;
        if let Some(reason) = &live.replay.forbid {
            let message = format!(
                "the pipeline file forbids replays into `{}.{}`: {reason}. To see what its transforms make of records, use \
                 --to-stdout",
                self.pipeline, live.name
            );
            return Err(Error::config("replay.forbidden", message).into());
        }
        let sink = selection::sink(&pipeline, Some(&live.name))?.clone();
        if sets_inputs(self.into) || (self.file.is_none() && sink.inputs != live.inputs) {
            let message =
                "--into sets `inputs`: a replay reads the topics of the live sink; set the options of its destination";
            return Err(Error::config("replay.bad_into", message).into());
        }
        if self.supersede {
            check_kind(&sink, live)?;
        }
        let Some(destination) = sink.spec.destination() else {
            let message = format!(
                "sinks of the connector `{}` cannot be replayed: they do not name the place that they write to",
                sink.connector
            );
            return Err(Error::config("replay.unsupported", message).into());
        };
        let has_options = !self.into.trim().is_empty() || self.file.is_some();
        let is_live = match self.supersede {
            true => check_superseded(live, &destination).map(|()| true)?,
            false => check_destination(pipelines, &sink, &destination, has_options)?,
        };
        Ok(Target { live: live.clone(), pipeline, sink, destination, is_live, supersede: self.supersede })
    }
}

/// The host of plugins.
pub(in crate::cli) fn host(settings: &Settings) -> Result<Host> {
    Host::new(HostOptions { cache_dirs: plugin_cache_dirs(Some(&settings.data)) })
        .map_err(|error| Error::external("environment.plugins", format!("plugins cannot run here: {error}")))
}

/// Checks that a file of `--pipeline-file` defines the same pipeline and component.
pub(super) fn check_file(file: &Path, found: &Pipeline, live: &Pipeline, name: &str) -> Result<()> {
    let problem = if found.name != live.name {
        format!("the pipeline `{}`, not `{}`", found.name, live.name)
    } else if components(found).iter().all(|known| known.name() != name) {
        let known: Vec<&str> = components(found).iter().map(|known| known.name()).collect();
        format!("no stage `{name}`, only {}", known.join(", "))
    } else {
        return Ok(());
    };
    let message = format!("{} defines {problem}: name an earlier version of the pipeline's file", file.display());
    Err(Error::config("replay.other_pipeline", message))
}

/// Whether the options of `--into` set `inputs`.
pub(super) fn sets_inputs(into: &str) -> bool {
    into.parse::<toml::Table>().is_ok_and(|options| options.contains_key("inputs"))
}

/// Refuses the destination of a live sink, unless repeated records change nothing there. That is
/// known of the options of the live sink only: with another `version_epoch`, for example, its next
/// records would lose. Returns whether it is the destination of a live sink.
fn check_destination(pipelines: &[Pipeline], sink: &SinkPlan, destination: &str, has_options: bool) -> Result<bool> {
    let mut is_live = false;
    for pipeline in pipelines {
        for live in &pipeline.sinks {
            let Some(place) = live.spec.destination().filter(|place| overlap(place, destination)) else { continue };
            if has_options || !sink.spec.repeats_change_nothing() {
                let message = format!(
                    "the sink `{}.{}` writes to {place}, and a replay into {destination} would write its records \
                     there a second time: choose another destination with --into, such as {}, and switch to it afterwards, or replace \
                     what the sink wrote with --supersede",
                    pipeline.name,
                    live.name,
                    example(sink.connector)
                );
                return Err(Error::config("replay.live_destination", message));
            }
            is_live = true;
        }
    }
    Ok(is_live)
}

/// An option of `--into` for another destination.
fn example(connector: &str) -> &'static str {
    match connector {
        "elasticsearch" => "'index=\"orders-v2\"'",
        "redshift" | "snowflake" => "'schema=\"replayed\"' or, if `table` names one table, 'table=\"orders_v2\"'",
        _ => "'url=\"s3://lake/orders-v2\"'",
    }
}

/// Refuses a destination that has records of the range.
pub(super) fn check_output(target: &Target, run: &Run) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))?;
    let offsets = run.ranges.iter().map(|range| (range.topic_partition(), (range.from, range.to))).collect();
    if let Some(rows) = target.sink.spec.rows_in_the_way(&offsets, runtime.handle())? {
        let message = format!("{rows}: choose an empty table, or drop the one of the earlier replay");
        return Err(Error::config("replay.output_exists", message));
    }
    let Some(listing) = target.sink.spec.list_output(runtime.handle())? else { return Ok(()) };
    let ranges: BTreeMap<TopicPartition, &PartitionRange> =
        run.ranges.iter().map(|range| (range.topic_partition(), range)).collect();
    let is_in_range = |file: &&OutputFile| {
        ranges.get(&file.partition).is_some_and(|range| file.first < range.to && file.last >= range.from)
    };
    match listing.files.iter().find(is_in_range) {
        None => Ok(()),
        Some(file) => {
            let message = format!(
                "{} holds records of the range, which the replay would write there a second time: choose an empty destination, \
                 or remove the files of the earlier replay",
                file.name
            );
            Err(Error::config("replay.output_exists", message))
        }
    }
}

/// What the run does to existing data, in one sentence.
pub(super) fn effect(target: &Target, replacement: Option<&Replacement>) -> String {
    if target.supersede {
        return supersede::effect(target, replacement);
    }
    let effect = match (target.is_live, target.sink.spec.repeats_change_nothing()) {
        (true, _) => {
            "Documents with a version stay as they are, because a repeated record has the same one; those whose ids are offsets are \
             written again, as are missing ones."
        }
        (false, _) if target.sink.spec.supersede() == Supersede::Files => {
            "New files are added there; no live sink uses this destination, and existing files stay as they are."
        }
        (false, true) => "New documents are written there; no live sink uses this destination.",
        (false, false) => {
            "New rows or documents are added there; no live sink uses this destination, and existing ones stay as they are."
        }
    };
    effect.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_options_must_be_references() {
        for into in [
            "secret_access_key = \"x\"",
            "tls = { key_password = \"x\" }",
            "url = [\"https://a:b@c:9200\"]",
            "password = \"x\"\nurl = \"s3://a/b\"",
        ] {
            let error = check_options(into).unwrap_err();
            assert_eq!(error.code, "replay.bad_into", "{into}");
            assert!(!error.to_string().contains("a:b@"), "{error}");
        }
        for into in ["url = \"s3://lake/v2\"", "secret_access_key = \"${env:KEY}\"", "url = \"https://${env:LOGIN}@c\""]
        {
            assert!(check_options(into).is_ok(), "{into}");
        }
    }

    #[test]
    fn options_that_are_not_toml_are_named_and_not_shown() {
        for (into, place) in
            [("url=file:///lake", "(option 1, column 5)"), ("a = 1\nsecret = hunter2", "(option 2, column 10)")]
        {
            let error = check_options(into).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(place) && text.contains("[replay.bad_into]") && text.contains("with quotes"),
                "{text}"
            );
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
