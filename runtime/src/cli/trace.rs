//! `trunkline trace`: shows the path of one record: what each transform makes of it, and where it
//! ended.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use trunkline_connector::{Batch, Error, OffsetRanges, RecordRef, Result, TopicPartition};

use super::SettingsArgs;
use super::dlq::connect;
use super::output::{Exit, print_data, report_error};
use super::record::record_reading;
use super::selection::{Component, components, pipeline};
use super::trace_file;
use super::validate::load_to_inspect;
use crate::config::Settings;
use crate::dead_letters::{read, redriven_ranges};
use crate::kafka::topic_reader::RecordReader;
use crate::kafka::{Admin, Cluster, GroupOffsets};
use crate::plan::{Pipeline, SinkPlan};
use crate::replay::inspection::line;
use crate::replay::origin::Origin;
use crate::replay::trace::{LetterTrace, StageTrace, StepTrace};
use crate::stage::{LookupTable, component_name};
use crate::units::counted;

/// `trunkline trace`.
#[derive(Args)]
pub(super) struct TraceArgs {
    /// Pipeline file, or folder of them
    #[arg(value_name = "PIPELINES")]
    path: PathBuf,
    /// The pipeline
    #[arg(value_name = "PIPELINE")]
    pipeline: String,
    /// The record, by its place in Kafka
    #[arg(long, value_name = "TOPIC:PARTITION:OFFSET", required_unless_present = "file")]
    record: Option<String>,
    /// The record behind a row of this file of an `s3` sink: its path, key or name
    #[arg(long, value_name = "FILE", conflicts_with = "record", requires = "row")]
    file: Option<String>,
    /// The row of --file, counted from 0
    #[arg(long, value_name = "N", requires = "file")]
    row: Option<u64>,
    /// Print as JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the verb.
pub(super) fn run(args: &TraceArgs) -> Exit {
    let (settings, loaded) = match load_to_inspect(std::slice::from_ref(&args.path), &args.settings, args.json) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let traced = pipeline(&loaded.pipelines, &args.pipeline).and_then(|pipeline| {
        let named = args.record.as_deref().map(Place::parse).transpose()?;
        let cluster = connect(&settings)?;
        let arguments = json!({ "pipeline": pipeline.name, "record": args.record, "file": args.file, "row": args.row });
        record_reading(&cluster, &settings, "trace", arguments)?;
        let place = match (named, &args.file) {
            (None, Some(file)) => {
                let (partition, offset) = trace_file::find(&cluster, pipeline, file, args.row.unwrap_or_default())?;
                Place { partition, offset }
            }
            (Some(place), _) => place,
            (None, None) => Place::parse("")?,
        };
        let tracer = Tracer { cluster: &cluster, settings: &settings, pipeline, place: &place };
        let record = tracer.record()?;
        let origin = Origin::of(record.get(0));
        Ok((line(record.get(0), None), origin, tracer.stages(record.get(0))?))
    });
    match traced {
        Ok((record, origin, stages)) if args.json => {
            print_data(&format!("{{\"record\":{record},\"origin\":{},\"stages\":{}}}\n", json!(origin), json!(stages)))
        }
        Ok((record, origin, stages)) => print_data(&text(&record, origin.as_ref(), &stages)),
        Err(error) => report_error(&error),
    }
}

/// The place of a record in Kafka.
struct Place {
    partition: TopicPartition,
    offset: i64,
}

impl Place {
    fn parse(text: &str) -> Result<Self> {
        let parse = || {
            let (place, offset) = text.rsplit_once(':')?;
            let (topic, partition) = place.rsplit_once(':')?;
            let (partition, offset) = (partition.parse().ok()?, offset.parse().ok()?);
            (!topic.is_empty() && partition >= 0 && offset >= 0)
                .then(|| Self { partition: TopicPartition::new(topic, partition), offset })
        };
        parse().ok_or_else(|| {
            let message =
                format!("`{text}` names no record: write TOPIC:PARTITION:OFFSET, such as shop.orders:3:41207");
            Error::config("cli.bad_record", message)
        })
    }
}

struct Tracer<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    pipeline: &'a Pipeline,
    place: &'a Place,
}

impl Tracer<'_> {
    fn record(&self) -> Result<Batch> {
        let Place { partition, offset } = self.place;
        self.check_place()?;
        let mut batch = Batch::default();
        let mut reader = RecordReader::new(self.cluster);
        let copy = |record: RecordRef<'_>| batch.push_copy(record);
        if reader.read(&partition.topic, partition.partition, *offset, copy)? {
            return Ok(batch);
        }
        let message = format!(
            "topic `{}` partition {} has no record at offset {offset}: retention deleted it, it does not exist yet, or a \
             marker of a transaction is there. `trunkline offsets show` prints the ends of the partitions",
            partition.topic, partition.partition
        );
        Err(Error::data("cli.no_record", message))
    }

    /// Refuses a topic or partition that does not exist.
    fn check_place(&self) -> Result<()> {
        let TopicPartition { topic, partition } = &self.place.partition;
        let message = match Admin::new(self.cluster)?.partitions(topic)? {
            Some(count) if *partition < count => return Ok(()),
            Some(count) => format!("topic `{topic}` has no partition {partition}: it has 0 to {}", count - 1),
            None => format!(
                "the brokers have no topic `{topic}`: write TOPIC:PARTITION:OFFSET with a topic that the pipeline `{}` reads, which \
                 `trunkline graph` shows",
                self.pipeline.name
            ),
        };
        Err(Error::data("cli.no_record", message))
    }

    /// The path of the record through each stage that reads its topic.
    fn stages(&self, record: RecordRef<'_>) -> Result<Vec<StageTrace>> {
        let topic = record.topic();
        let mut stages = Vec::new();
        for component in components(self.pipeline) {
            if !component.inputs().iter().any(|input| input.topics.selects(topic)) {
                continue;
            }
            let mut stage = StageTrace {
                component: format!("{}.{}", self.pipeline.name, component.name()),
                kind: component.kind(),
                ..StageTrace::default()
            };
            let own = match component {
                Component::Transform(plan) => {
                    let table = plan.table.as_ref().map(|table| LookupTable::load(self.cluster, table));
                    Some((plan, table.transpose()?))
                }
                Component::Source(_) | Component::Sink(_) => None,
            };
            let mut results = Batch::default();
            stage.run(component.inputs(), own, record, &mut results)?;
            stage.committed = self.committed(component.name())?;
            stage.is_processed = stage.committed.is_some_and(|committed| committed > self.place.offset);
            if let Component::Sink(sink) = component
                && stage.is_processed
            {
                self.find_output(sink, &results, &mut stage)?;
            }
            stages.push(stage);
        }
        if stages.is_empty() {
            let message = format!(
                "no stage of the pipeline `{}` reads the topic `{topic}`: `trunkline graph` shows what its stages read",
                self.pipeline.name
            );
            return Err(Error::config("cli.no_reader", message));
        }
        self.add_dead_letters(&mut stages)?;
        for stage in &mut stages {
            // Files have ranges of offsets, and a rejected record is in none of them.
            if stage.dead_letters.iter().any(|letter| letter.replay.is_none()) {
                stage.files.clear();
                stage.documents = None;
            }
        }
        Ok(stages)
    }

    fn committed(&self, component: &str) -> Result<Option<i64>> {
        let name = component_name(&self.settings.cluster_name(), &self.pipeline.name, component);
        let partitions = std::slice::from_ref(&self.place.partition);
        Ok(GroupOffsets::new(self.cluster, &name)?.committed(partitions)?.into_values().next())
    }

    /// Finds what the destination has of the record, whose results are what the sink receives of it
    /// today.
    fn find_output(&self, sink: &SinkPlan, results: &Batch, stage: &mut StageTrace) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))?;
        let name = format!("{}.{}", self.pipeline.name, sink.name);
        let listing = sink.spec.list_output(runtime.handle())?.unwrap_or_default();
        let files = listing.files.into_iter().filter(|file| {
            let is_within = (file.first..=file.last).contains(&self.place.offset);
            file.sink == name && file.partition == self.place.partition && is_within
        });
        stage.files = files.map(|file| file.name).collect();
        let Place { partition, offset } = self.place;
        let ranges = OffsetRanges::from([(partition.clone(), (*offset, offset + 1))]);
        if let Some(counts) = sink.spec.count_rows(&ranges, 0, runtime.handle())? {
            stage.rows = Some(counts.partitions.into_iter().map(|count| (count.table, count.rows)).collect());
        }
        stage.documents = sink.spec.find_documents(results, runtime.handle())?;
        Ok(())
    }

    /// Adds the dead letters of the record to the stage in which they were written.
    fn add_dead_letters(&self, stages: &mut [StageTrace]) -> Result<()> {
        let Pipeline { name, dead_letters: topic, .. } = self.pipeline;
        let redriven = redriven_ranges(self.cluster, &self.settings.cluster_name(), name, topic)?;
        read(self.cluster, topic, name, |letter, _| {
            let Place { partition, offset } = self.place;
            let is_of_record = letter.origin.as_ref().is_some_and(|origin| {
                *origin.topic == *partition.topic && origin.partition == partition.partition && origin.offset == *offset
            });
            let rejected_by = |stage: &&mut StageTrace| {
                stage.component == format!("{name}.{}", letter.component)
                    || stage.steps.iter().any(|step| step.transform == letter.component)
            };
            if let Some(stage) = stages.iter_mut().find(rejected_by).filter(|_| is_of_record) {
                stage.dead_letters.push(LetterTrace {
                    is_redriven: redriven.get(&letter.partition).is_some_and(|ranges| ranges.contains(letter.offset)),
                    component: letter.component,
                    partition: letter.partition,
                    offset: letter.offset,
                    code: letter.code,
                    message: letter.message,
                    replay: letter.replay,
                });
            }
            Ok(())
        })
    }
}

/// The trace for people.
fn text(record: &str, origin: Option<&Origin>, stages: &[StageTrace]) -> String {
    let mut text = format!("{record}\n");
    match origin {
        Some(origin) => text.push_str(&format!("from {origin}\n")),
        None => text.push_str("its headers name no source: another program wrote it, or a transform removed them\n"),
    }
    for stage in stages {
        text.push_str(&format!("{} `{}`, with today's transforms\n", stage.kind, stage.component));
        stage.steps.iter().for_each(|step| text.push_str(&step_text(step)));
        text.push_str(&format!("  {}\n", outcome(stage)));
        stage.files.iter().for_each(|file| text.push_str(&format!("  file whose offsets include it: {file}\n")));
        for (table, rows) in stage.rows.iter().flatten() {
            text.push_str(&format!("  {} of it in the table {table}\n", counted(*rows as usize, "row")));
        }
        if stage.rows.as_ref().is_some_and(Vec::is_empty) && stage.is_processed {
            text.push_str(
                "  no row of the table names it: it was dropped or rejected, or a later change has replaced its row\n",
            );
        }
        stage.documents.iter().flatten().for_each(|document| text.push_str(&format!("  document {document}\n")));
        for letter in &stage.dead_letters {
            let replay = letter.replay.as_ref().map_or_else(String::new, |run| format!(", by the replay {run}"));
            let redriven = if letter.is_redriven { ", redriven" } else { "" };
            text.push_str(&format!(
                "  dead letter {}/{} of `{}`{replay}{redriven}: {} ({})\n",
                letter.partition, letter.offset, letter.component, letter.message, letter.code
            ));
        }
    }
    text
}

fn step_text(step: &StepTrace) -> String {
    let port = step.port.as_ref().map_or_else(String::new, |port| format!(" to the port `{port}`"));
    let mut text = format!("  transform `{}`: {}{port}", step.transform, step.verdict);
    if let Some((code, message)) = &step.rejection {
        text.push_str(&format!(": {message} ({code})"));
    }
    text.push('\n');
    step.changes.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    text
}

/// Whether the stage has processed the record, and what it receives of it today.
fn outcome(stage: &StageTrace) -> String {
    let results = match stage.results {
        0 => "no record".to_owned(),
        1 => "one record".to_owned(),
        several => format!("{several} records"),
    };
    let reaches = if stage.kind == "sink" { "reaches it" } else { "leaves it" };
    match (stage.is_processed, stage.committed) {
        (true, Some(committed)) => format!("{results} {reaches}; committed (its position is {committed})"),
        (_, Some(committed)) => format!("{results} {reaches}; not committed yet (its position is {committed})"),
        (_, None) => format!("{results} {reaches}; the stage has not committed anything yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_named_by_topic_partition_and_offset() {
        let place = Place::parse("shop.orders:3:41207").unwrap();
        assert_eq!((place.partition, place.offset), (TopicPartition::new("shop.orders", 3), 41207));
        for wrong in ["", "shop", "shop:1", ":1:2", "shop:-1:2", "shop:1:-2", "shop:1:x"] {
            assert_eq!(Place::parse(wrong).err().unwrap().code, "cli.bad_record", "{wrong}");
        }
    }

    #[test]
    fn the_outcome_depends_on_the_position() {
        let stage = |committed| StageTrace {
            kind: "sink",
            results: 1,
            committed,
            is_processed: committed > Some(5),
            ..StageTrace::default()
        };
        assert!(outcome(&stage(Some(6))).contains("; committed"));
        assert!(outcome(&stage(Some(5))).contains("not committed yet"));
        assert!(outcome(&stage(None)).contains("has not committed anything yet"));
    }
}
