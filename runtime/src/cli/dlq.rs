//! `trunkline dlq`: lists, shows and redrives dead letters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use trunkline_connector::{Error, RecordRef, Result};
use trunkline_transform_host::{Host, HostOptions};

use super::SettingsArgs;
use super::addresses::brokers;
use super::output::{Exit, columns, print_data, print_error, report_error};
use super::record::{record, record_reading};
use super::validate::load_to_inspect;
use crate::checkpoint::{CHECKPOINTS, Schemas};
use crate::config::Settings;
use crate::dead_letters::{DeadLetter, LetterCondition, Plan, Redrive, Through, read, redriven_ranges};
use crate::kafka::{Admin, Cluster};
use crate::plan::{Input, Pipeline, Route};
use crate::stage::StraightStages;
use crate::worker::plugin_cache_dirs;

/// `trunkline dlq`.
#[derive(Args)]
pub(super) struct DlqArgs {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Subcommand)]
enum DlqCommand {
    /// Count the dead letters of each component and error code
    List {
        /// Pipeline files, or folders of them
        #[arg(default_value = "pipelines", value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Only dead letters for which this expression in CEL is true: 'code == "parse.json" &&
        /// time >= "2026-03-01"'
        #[arg(long = "where", value_name = "CEL")]
        condition: Option<String>,
        /// Print as JSON on stdout
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Print dead letters of a pipeline: the record, the error, and where it failed
    Show {
        #[command(flatten)]
        choice: Choice,
        /// Print at most N dead letters
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: usize,
        /// Print one JSON object per line on stdout
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Return the records of dead letters to the topics that they came from, each once. Records
    /// that a source rejected pass the source with its configuration of today
    Redrive {
        #[command(flatten)]
        choice: Choice,
        /// Send the records to this topic instead. It must exist
        #[arg(long, value_name = "TOPIC", conflicts_with = "through_stage")]
        to_topic: Option<String>,
        /// Pass the records that a transform with its own topics rejected through that stage, with
        /// its configuration of today, instead of returning them to the topic that it reads
        #[arg(long)]
        through_stage: bool,
        /// Pass each record through this plugin first: a file, or the name of a bundled plugin
        #[arg(long, value_name = "PLUGIN")]
        through: Option<PathBuf>,
        /// The configuration of --through
        #[arg(long, value_name = "JSON", requires = "through")]
        through_config: Option<String>,
        /// Return records to topics that other components read too: those receive them a second
        /// time
        #[arg(long)]
        to_all_readers: bool,
        /// Print what would be redriven, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print the result as JSON on stdout
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
}

/// Which dead letters.
#[derive(Args)]
struct Choice {
    /// The pipeline
    #[arg(value_name = "PIPELINE")]
    pipeline: String,
    /// Pipeline files, or folders of them; one of them defines the pipeline
    #[arg(default_value = "pipelines", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Only those of this component
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    /// Only those with this error code
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// Only those for which this expression in CEL is true: 'error.contains("column 7") &&
    /// value.n > 3'. A wrong name prints all variables
    #[arg(long = "where", value_name = "CEL")]
    condition: Option<String>,
}

/// The dead letters that a command is about.
struct Selection<'a> {
    component: Option<&'a str>,
    code: Option<&'a str>,
    condition: Option<LetterCondition>,
}

impl Selection<'_> {
    fn includes(&mut self, letter: &DeadLetter, record: RecordRef<'_>, is_redriven: bool) -> Result<bool> {
        let is_chosen = self.component.is_none_or(|component| component == letter.component)
            && self.code.is_none_or(|code| code == letter.code);
        match &mut self.condition {
            Some(condition) if is_chosen => condition.holds(letter, record, is_redriven),
            _ => Ok(is_chosen),
        }
    }

    /// Prints how many dead letters the condition could not decide.
    fn print_note(&self) {
        if let Some(note) = self.condition.as_ref().and_then(LetterCondition::note) {
            print_error(format_args!("{note}"));
        }
    }
}

/// Runs the verb.
pub(super) fn dlq(args: &DlqArgs) -> Exit {
    let (paths, settings, as_json) = match &args.command {
        DlqCommand::List { paths, json, settings, .. } => (paths, settings, *json),
        DlqCommand::Show { choice, json, settings, .. } | DlqCommand::Redrive { choice, json, settings, .. } => {
            (&choice.paths, settings, *json)
        }
    };
    let (settings, loaded) = match load_to_inspect(paths, settings, as_json) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let outcome = connect(&settings).and_then(|cluster| {
        let context = Context { cluster: &cluster, settings: &settings, pipelines: &loaded.pipelines };
        match &args.command {
            DlqCommand::List { condition, .. } => context.list(condition.as_deref(), as_json),
            DlqCommand::Show { choice, limit, .. } => context.show(choice, *limit, as_json),
            DlqCommand::Redrive {
                choice,
                to_topic,
                through,
                through_config,
                through_stage,
                to_all_readers,
                dry_run,
                ..
            } => {
                let plugin =
                    through.as_ref().map(|file| context.plugin(file, through_config.as_deref())).transpose()?;
                let how = How {
                    to_topic: to_topic.as_deref(),
                    through: through.as_deref(),
                    through_stage: *through_stage,
                    to_all_readers: *to_all_readers,
                    dry_run: *dry_run,
                };
                context.redrive(choice, &how, plugin, as_json)
            }
        }
    });
    outcome.unwrap_or_else(|error| report_error(&error))
}

/// The cluster of the settings.
pub(super) fn connect(settings: &Settings) -> Result<Cluster> {
    Ok(Cluster::new(&brokers(settings)?, &settings.kafka)?
        .with_prefix(&settings.prefix)
        .with_topic_creation(settings.topics.create))
}

/// The options of `dlq redrive`.
struct How<'a> {
    to_topic: Option<&'a str>,
    /// The file of the plugin.
    through: Option<&'a Path>,
    through_stage: bool,
    to_all_readers: bool,
    dry_run: bool,
}

struct Context<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    pipelines: &'a [Pipeline],
}

/// Dead letters with the same component and code.
#[derive(Default)]
struct Group {
    count: u64,
    redriven: u64,
    first: Option<i64>,
    last: Option<i64>,
}

impl Context<'_> {
    fn list(&self, condition: Option<&str>, as_json: bool) -> Result<Exit> {
        let mut groups: BTreeMap<(String, String, String), Group> = BTreeMap::new();
        let mut selection = Selection { component: None, code: None, condition: self.condition(condition)? };
        for pipeline in self.pipelines {
            self.each(pipeline, |letter, record, is_redriven| {
                if !selection.includes(letter, record, is_redriven)? {
                    return Ok(());
                }
                let group = groups.entry((pipeline.name.clone(), letter.component.clone(), letter.code.clone()));
                let group = group.or_default();
                group.count += 1;
                group.redriven += u64::from(is_redriven);
                group.first = group.first.into_iter().chain(letter.timestamp).min();
                group.last = group.last.max(letter.timestamp);
                Ok(())
            })?;
        }
        selection.print_note();
        if as_json {
            let groups: Vec<Value> = groups
                .iter()
                .map(|((pipeline, component, code), group)| {
                    json!({
                        "pipeline": pipeline, "component": component, "code": code, "count": group.count,
                        "redriven": group.redriven, "first": group.first.map(time), "last": group.last.map(time),
                    })
                })
                .collect();
            return Ok(print_data(&format!("{}\n", Value::Array(groups))));
        }
        if groups.is_empty() {
            let which = if condition.is_some() { "such " } else { "" };
            print_error(format_args!("there are no {which}dead letters"));
        }
        let mut rows = vec![["PIPELINE", "COMPONENT", "CODE", "COUNT", "REDRIVEN", "FIRST", "LAST"].map(str::to_owned)];
        rows.extend(groups.into_iter().map(|((pipeline, component, code), group)| {
            let shown = |at: Option<i64>| at.map(time).unwrap_or_default();
            let (count, redriven) = (group.count.to_string(), group.redriven.to_string());
            [pipeline, component, code, count, redriven, shown(group.first), shown(group.last)]
        }));
        Ok(print_data(&columns(&rows, &[])))
    }

    fn show(&self, choice: &Choice, limit: usize, as_json: bool) -> Result<Exit> {
        let pipeline = self.pipeline(choice)?;
        let arguments = json!({
            "pipeline": pipeline.name, "component": choice.component, "code": choice.code, "where": choice.condition,
            "limit": limit,
        });
        record_reading(self.cluster, self.settings, "dlq show", arguments)?;
        let mut text = String::new();
        let (mut shown, mut others) = (0, 0);
        let mut selection = self.selection(choice)?;
        self.each(pipeline, |letter, record, is_redriven| {
            if !selection.includes(letter, record, is_redriven)? {
                return Ok(());
            }
            if shown == limit {
                others += 1;
                return Ok(());
            }
            shown += 1;
            let object = describe(letter, record, is_redriven);
            if as_json {
                text.push_str(&format!("{object}\n"));
            } else {
                text.push_str(&paragraph(letter, &object));
            }
            Ok(())
        })?;
        let printed = print_data(&text);
        selection.print_note();
        if shown == 0 {
            print_error(format_args!("there are no such dead letters"));
        }
        if others > 0 {
            print_error(format_args!(
                "{others} more dead letters: raise --limit, or choose with --component, --code and --where"
            ));
        }
        Ok(printed)
    }

    fn redrive(&self, choice: &Choice, how: &How<'_>, through: Option<Through>, as_json: bool) -> Result<Exit> {
        let pipeline = self.pipeline(choice)?;
        let has_plugin = through.is_some();
        let to_topic = match how.to_topic {
            Some(topic) => Some((topic, self.partitions(topic)?)),
            None => None,
        };
        let refusal = |topic: &str| if how.to_all_readers { None } else { self.refusal(topic) };
        let schemas = Arc::new(Schemas::new(self.cluster.clone()));
        let plan = Plan {
            pipeline: &pipeline.name,
            topic: &pipeline.dead_letters,
            to_topic,
            is_unchanged: &|component| is_first(pipeline, component),
            refusal: &refusal,
            passes_stage: how.through_stage,
            schemas: &schemas,
        };
        // No worker of this cluster has run yet: there are no state topics to write to.
        let admin = Arc::new(Admin::new(self.cluster)?);
        let is_new = admin.partitions(&self.cluster.own_topic(CHECKPOINTS))?.is_none();
        let dry_run = how.dry_run || is_new;
        let name = self.settings.cluster_name();
        if !dry_run {
            // The configuration of a plugin may have secrets.
            let arguments = json!({
                "pipeline": pipeline.name, "component": choice.component, "code": choice.code, "where": choice.condition,
                "to_topic": how.to_topic, "through": how.through, "through_stage": how.through_stage,
                "to_all_readers": how.to_all_readers,
            });
            record(self.cluster, self.settings, "dlq redrive", arguments)?;
        }
        let mut stages = StraightStages::new(pipeline, &self.settings.topics, admin, schemas.clone(), !dry_run);
        let mut selection = self.selection(choice)?;
        let mut selects = |letter: &DeadLetter, record: RecordRef<'_>, is_redriven: bool| {
            selection.includes(letter, record, is_redriven)
        };
        let mut redrive = Redrive::new(self.cluster, &name, &plan, &mut selects, through, &mut stages, dry_run)?;
        redrive.run()?;
        let printed = print_data(&report(&redrive, how.dry_run, has_plugin, as_json));
        let all_redriven = redrive.skipped.is_empty();
        drop(redrive);
        selection.print_note();
        Ok(if all_redriven { printed } else { Exit::Runtime })
    }

    fn selection<'c>(&self, choice: &'c Choice) -> Result<Selection<'c>> {
        Ok(Selection {
            component: choice.component.as_deref(),
            code: choice.code.as_deref(),
            condition: self.condition(choice.condition.as_deref())?,
        })
    }

    fn condition(&self, expression: Option<&str>) -> Result<Option<LetterCondition>> {
        expression.map(|expression| LetterCondition::compile(&self.host()?, expression)).transpose()
    }

    fn host(&self) -> Result<Host> {
        Host::new(HostOptions { cache_dirs: plugin_cache_dirs(Some(&self.settings.data)) })
            .map_err(|error| Error::external("environment.plugins", format!("plugins cannot run here: {error}")))
    }

    /// Starts the plugin of `--through`.
    fn plugin(&self, file: &Path, config: Option<&str>) -> Result<Through> {
        let config = serde_json::from_str(config.unwrap_or("{}")).map_err(|error| {
            Error::config(
                "cli.bad_config",
                format!("--through-config is not JSON: {error}; an example is '{{\"fields\":[\"a\"]}}'"),
            )
        })?;
        Through::start(&self.host()?, file, &config)
    }

    /// Passes the dead letters of a pipeline, and whether they were redriven.
    fn each(
        &self,
        pipeline: &Pipeline,
        mut each: impl FnMut(&DeadLetter, RecordRef<'_>, bool) -> Result<()>,
    ) -> Result<()> {
        let (name, topic) = (&pipeline.name, &pipeline.dead_letters);
        let redriven = redriven_ranges(self.cluster, &self.settings.cluster_name(), name, topic)?;
        read(self.cluster, topic, name, |letter, record| {
            let is_redriven = redriven.get(&letter.partition).is_some_and(|ranges| ranges.contains(letter.offset));
            each(&letter, record, is_redriven)
        })
    }

    fn pipeline(&self, choice: &Choice) -> Result<&Pipeline> {
        self.pipelines.iter().find(|pipeline| pipeline.name == choice.pipeline).ok_or_else(|| {
            let known: Vec<&str> = self.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
            let message = format!("no file defines the pipeline `{}`; known: {}", choice.pipeline, known.join(", "));
            Error::config("cli.unknown_pipeline", message)
        })
    }

    fn partitions(&self, topic: &str) -> Result<i32> {
        Admin::new(self.cluster)?.partitions(topic)?.ok_or_else(|| {
            let message = format!("the topic `{topic}` does not exist: create it, or name another one");
            Error::config("kafka.unknown_topic", message)
        })
    }

    /// Why records must not return to a topic: others than the failed component read it too.
    fn refusal(&self, topic: &str) -> Option<String> {
        let reads = |inputs: &[Input]| inputs.iter().any(|input| input.topics.selects(topic));
        let mut readers = Vec::new();
        for pipeline in self.pipelines {
            let transforms = pipeline.transforms.iter().map(|stage| (&stage.name, &stage.inputs));
            let stages = transforms.chain(pipeline.sinks.iter().map(|stage| (&stage.name, &stage.inputs)));
            let stages = stages.filter(|(_, inputs)| reads(inputs));
            readers.extend(stages.map(|(name, _)| format!("`{}.{name}`", pipeline.name)));
        }
        if readers.len() <= 1 {
            return None;
        }
        Some(format!(
            "topic `{topic}` is read by {}, and each of them would receive the records: name another topic with --to-topic, pass the records of a separate transform through it with --through-stage, or repeat them for all with --to-all-readers",
            readers.join(" and ")
        ))
    }
}

/// Whether a component receives records as they are in their topic: no transform comes before it.
fn is_first(pipeline: &Pipeline, component: &str) -> bool {
    fn later(route: &Route, component: &str, stage: &str) -> bool {
        route.branches.iter().flat_map(|branch| &branch.outputs).any(|(_, route)| {
            (route.deliver && stage == component)
                || route.branches.iter().any(|branch| branch.step.component == component)
                || later(route, component, stage)
        })
    }
    let transforms = pipeline.transforms.iter().map(|stage| (&stage.name, &stage.inputs));
    let mut stages = transforms.chain(pipeline.sinks.iter().map(|stage| (&stage.name, &stage.inputs)));
    !stages.any(|(stage, inputs)| inputs.iter().any(|input| later(&input.route, component, stage)))
}

fn report(redrive: &Redrive<'_>, dry_run: bool, has_plugin: bool, as_json: bool) -> String {
    if as_json {
        let moved = redrive.moved.iter().map(|((component, code, topic), count)| {
            json!({ "component": component, "code": code, "topic": topic, "count": count })
        });
        let dropped = redrive
            .dropped
            .iter()
            .map(|((component, code), count)| json!({ "component": component, "code": code, "count": count }));
        let skipped = redrive.skipped.iter().map(|(reason, count)| json!({ "reason": reason, "count": count }));
        let (moved, dropped, skipped): (Vec<Value>, Vec<Value>, Vec<Value>) =
            (moved.collect(), dropped.collect(), skipped.collect());
        let report = json!({ "dry_run": dry_run, "redriven": moved, "dropped": dropped, "skipped": skipped });
        return format!("{report}\n");
    }
    let mut text = String::new();
    let verb = if dry_run { "would be redriven" } else { "redriven" };
    for ((component, code, topic), count) in &redrive.moved {
        text.push_str(&format!("{count} of `{component}` with {code} {verb} to topic `{topic}`\n"));
    }
    let verb = if dry_run { "would be dropped" } else { "dropped" };
    let by = if has_plugin { "the plugin" } else { "the stage" };
    for ((component, code), count) in &redrive.dropped {
        text.push_str(&format!("{count} of `{component}` with {code} {verb} by {by}\n"));
    }
    for (reason, count) in &redrive.skipped {
        text.push_str(&format!("{count} stay: {reason}\n"));
    }
    if text.is_empty() {
        text.push_str("no dead letter is left to redrive\n");
    }
    text
}

/// A dead letter as JSON.
pub(super) fn describe(letter: &DeadLetter, record: RecordRef<'_>, is_redriven: bool) -> Value {
    let bytes = |bytes: Option<&[u8]>| match bytes.map(std::str::from_utf8) {
        None => Value::Null,
        Some(Ok(text)) => json!(text),
        Some(Err(_)) => json!({ "base64": STANDARD.encode(bytes.unwrap_or_default()) }),
    };
    let headers = record.headers().filter(|(name, _)| !name.starts_with("__connect.errors."));
    let headers: Vec<Value> = headers.map(|(name, value)| json!([name, bytes(value)])).collect();
    let origin = letter
        .origin
        .as_ref()
        .map(|origin| json!({ "topic": origin.topic, "partition": origin.partition, "offset": origin.offset }));
    json!({
        "partition": letter.partition, "offset": letter.offset, "time": letter.timestamp.map(time),
        "component": letter.component, "stage": letter.stage, "code": letter.code, "message": letter.message,
        "origin": origin, "attempts": letter.attempts, "redriven": is_redriven, "replay": letter.replay,
        "key": bytes(record.key()), "value": bytes(record.value()), "headers": headers,
    })
}

/// A dead letter for people.
fn paragraph(letter: &DeadLetter, object: &Value) -> String {
    let origin = letter.origin.as_ref().map_or_else(String::new, |origin| {
        format!(", from topic `{}` partition {} offset {}", origin.topic, origin.partition, origin.offset)
    });
    let redriven = if object["redriven"] == true { ", redriven" } else { "" };
    let mut text = format!(
        "{}/{}  {}  {}  {}{origin}{redriven}\n    {}\n",
        letter.partition,
        letter.offset,
        letter.timestamp.map(time).unwrap_or_default(),
        letter.component,
        letter.code,
        letter.message
    );
    for part in ["key", "value"] {
        match &object[part] {
            Value::Null => {}
            Value::String(content) => text.push_str(&format!("    {part}: {content}\n")),
            other => text.push_str(&format!("    {part}: {other}\n")),
        }
    }
    text
}

fn time(milliseconds: i64) -> String {
    Timestamp::from_millisecond(milliseconds).map_or_else(|_| milliseconds.to_string(), |time| time.to_string())
}
