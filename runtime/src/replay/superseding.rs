//! Puts the output of a run in the place of the files that the live sink wrote for its range.
//!
//! The run prepares all new files without making one visible. Then, under an intent in the row of
//! the run:
//!
//! ```text
//! staging → check → [txn: publishing, the files to remove] → commit each new file
//!         → [txn: removing] → remove each earlier file → [txn: done]
//! ```
//! A crash before *publishing* leaves the earlier files, and the run can be given up. A crash after
//! it leads to the new files: each step can be repeated, and the run only goes forward. From the
//! first committed to the last removed file, readers may see both.
//!
//! For rows ([`Supersede::Rows`]) one commit with all output adds the new rows and removes the
//! earlier ones, in one transaction of the destination. Nothing is left for the last step. A commit
//! that the destination refuses as a whole leads back to *staging*: where the live sink has changed
//! rows of the same keys since, the run follows it, and commits then.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::runtime::Handle;
use trunkline_connector::{
    Domain, ErasedTwoPhaseSink, Error, LIVE_AHEAD, NOT_REBUILT, OffsetRanges, OutputFile, Result, Retry, RowCount,
    Sink, SinkContext, SinkReplay, Supersede, TopicPartition, failpoint,
};

use super::execution::{Ending, Job};
use super::run::{RowChange, Run, RunState, Runs, Step, Superseding};
use super::widening::{is_in, visible_up_to};
use crate::backoff::Backoff;
use crate::checkpoint::{IntentRecord, IntentState, Intents, SupersedingRows};
use crate::kafka::GroupOffsets;
use crate::stage::StopSignal;
use crate::worker::DataDir;

/// Committables, or files, of one call.
const PART: usize = 100;

/// Waiting times between attempts while the destination does not answer, and their number: about
/// two minutes in all.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(20);
const ATTEMPTS: u32 = 10;

/// Time between two looks at the position of the live sink, and their number.
const POSITION_CHECK: Duration = Duration::from_millis(500);
const POSITION_CHECKS: u32 = 20;

/// What is stored of a run, and its changes.
trait Record {
    fn step(&self) -> Step;
    /// Stores that the output becomes visible, and which files it replaces.
    fn publish(&mut self, replaced: Vec<OutputFile>) -> Result<()>;
    /// Stores that all output is visible.
    fn remove(&mut self) -> Result<()>;
    /// Stores that the run is complete.
    fn finish(&mut self) -> Result<()>;
    /// The files that are replaced.
    fn replaced(&self) -> Result<Vec<OutputFile>>;
}

/// The destination.
trait Output {
    /// Checks that prepared output can be committed.
    fn check(&mut self, staged: &[Value]) -> Result<()>;
    /// The files that are replaced now. None of the new ones is visible.
    fn list(&mut self) -> Result<Vec<OutputFile>>;
    fn commit(&mut self, staged: &[Value]) -> Result<()>;
    fn remove(&mut self, files: &[OutputFile]) -> Result<()>;
}

/// Continues from the step that is stored. With `part` = `None`, all output is committed by one
/// call.
fn advance(
    record: &mut dyn Record,
    output: &mut dyn Output,
    staged: &[Value],
    part: Option<usize>,
    stop: &StopSignal,
) -> Result<Ending> {
    // One call, even if there is nothing to add: it removes the earlier rows.
    let whole = [staged];
    let parts: Vec<&[Value]> = part.map_or_else(|| whole.to_vec(), |part| staged.chunks(part).collect());
    if record.step() == Step::Staging {
        for staged in &parts {
            retry(stop, || output.check(staged))?;
        }
        let replaced = retry(stop, || output.list())?;
        failpoint!("replay.publish.before")?;
        record.publish(replaced)?;
        failpoint!("replay.publish.recorded")?;
    }
    if record.step() == Step::Publishing {
        for staged in &parts {
            if stop.is_set() {
                return Ok(Ending::Stopped);
            }
            retry(stop, || output.commit(staged))?;
            failpoint!("replay.publish.part")?;
        }
        record.remove()?;
        failpoint!("replay.remove.recorded")?;
    }
    if record.step() == Step::Removing {
        for files in record.replaced()?.chunks(part.unwrap_or(PART)) {
            if stop.is_set() {
                return Ok(Ending::Stopped);
            }
            retry(stop, || output.remove(files))?;
            failpoint!("replay.remove.part")?;
        }
        failpoint!("replay.done.before")?;
        record.finish()?;
        failpoint!("replay.done.after")?;
    }
    Ok(Ending::Finished)
}

/// Repeats a call while it fails with an external error, for about two minutes.
fn retry<T>(stop: &StopSignal, mut call: impl FnMut() -> Result<T>) -> Result<T> {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut attempt = 1;
    loop {
        match call() {
            Err(error) if error.domain == Domain::External && error.retry != Retry::Never && attempt < ATTEMPTS => {
                tracing::warn!(%error, attempt, "a step of the replay failed; retrying");
                if stop.wait(backoff.advance()) {
                    return Err(error);
                }
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

/// How the last step of a run went.
pub enum Completion {
    /// The run has ended.
    Ended(Ending),
    /// The live sink has loaded more records. The run must process them, too.
    Extended(Box<Run>),
}

/// Completes a run whose range is processed: the new files take the place of the earlier ones.
pub fn complete(
    job: &Job<'_>,
    data: &DataDir,
    runtime: &Handle,
    runs: &Runs<'_>,
    stop: &StopSignal,
) -> Result<Completion> {
    let run = runs.get(&job.run.id)?;
    if !run.is_unfinished() {
        return Ok(Completion::Ended(Ending::Finished));
    }
    if run.ranges != job.run.ranges {
        // Another process that executes the run has extended it.
        return Ok(Completion::Extended(Box::new(run)));
    }
    let follows = job.sink()?.spec.supersede() == Supersede::Rows { up_to_live: true };
    let is_staging = run.supersede.as_ref().is_some_and(|superseding| superseding.step == Step::Staging);
    if follows
        && is_staging
        && let Some(extended) = extend(job, runs, &run)?
    {
        return Ok(Completion::Extended(Box::new(extended)));
    }
    let rows = SupersedingRows::of(job.cluster, &job.component());
    let staged: Vec<Value> = rows.staged(job.cluster)?.into_iter().map(|(_, committable)| committable).collect();
    let mut record = Row { job, runs, rows, run, replaced: None };
    let mut output = Destination { job, data, runtime, stop, sink: None };
    let is_rows = matches!(job.sink()?.spec.supersede(), Supersede::Rows { .. });
    let part = (!is_rows).then_some(PART);
    let outcome = advance(&mut record, &mut output, &staged, part, stop);
    match outcome {
        Err(error) if error.code == LIVE_AHEAD => {
            let run = step_back(runs, &job.run.id)?;
            for _ in 0..POSITION_CHECKS {
                if let Some(extended) = extend(job, runs, &run)? {
                    return Ok(Completion::Extended(Box::new(extended)));
                }
                // It records its position after its load.
                if stop.wait(POSITION_CHECK) {
                    return Ok(Completion::Ended(Ending::Stopped));
                }
            }
            Err(error.context(
                "the live sink has not recorded its last load: start the pipeline, and continue the run with --resume",
            ))
        }
        Err(error) if error.code == NOT_REBUILT => {
            step_back(runs, &job.run.id)?;
            Err(error)
        }
        outcome => outcome.map(Completion::Ended),
    }
}

/// Ends the range where the live sink is. `None` if it ends there.
fn extend(job: &Job<'_>, runs: &Runs<'_>, run: &Run) -> Result<Option<Run>> {
    let live = Intents::of(job.cluster, &job.live_component()).load(job.cluster)?;
    let end = |range: &super::run::PartitionRange| visible_up_to(live.get(&range.topic_partition())).max(range.to);
    if run.ranges.iter().all(|range| end(range) == range.to) {
        return Ok(None);
    }
    let extended = runs.update(&run.id, |run| {
        run.ranges.iter_mut().for_each(|range| range.to = range.to.max(end(range)));
        Ok(())
    })?;
    Ok(Some(extended))
}

/// Stores that the destination has refused the commit, and that nothing was replaced.
fn step_back(runs: &Runs<'_>, id: &str) -> Result<Run> {
    runs.update(id, |run| {
        if let Some(superseding) = run.supersede.as_mut().filter(|superseding| superseding.step == Step::Publishing) {
            *superseding = Superseding { rows: superseding.rows.map(|_| 0), ..Superseding::default() };
        }
        Ok(())
    })
}

/// Gives up a run that has not replaced anything: removes what it has prepared. What a run into a
/// shadow has written stays there. A repeated call continues after a crash.
pub fn discard(job: &Job<'_>, data: &DataDir, runtime: &Handle, runs: &Runs<'_>) -> Result<Run> {
    let id = &job.run.id;
    // First, so that no command continues it.
    let run = runs.update(id, |run| {
        match (&run.supersede, run.state) {
            (_, RunState::Finished) => {
                let message = format!("the run {id} has processed its range: there is nothing left to give up");
                return Err(Error::config("replay.finished", message));
            }
            (Some(superseding), _) if superseding.is_between() => {
                let message = format!(
                    "the run {id} has begun to replace what the live sink wrote, so it can only be completed: use --resume {id}"
                );
                return Err(Error::config("replay.published", message));
            }
            // Of a run that replaces nothing, what it has written stays: it is in no one's way.
            _ => {}
        }
        run.state = RunState::Discarded;
        run.ended = Some(Timestamp::now().as_millisecond());
        Ok(())
    })?;
    let rows = SupersedingRows::of(job.cluster, &job.component());
    let staged: Vec<Value> = rows.staged(job.cluster)?.into_iter().map(|(_, committable)| committable).collect();
    let stop = StopSignal::default();
    let mut output = Destination { job, data, runtime, stop: &stop, sink: None };
    for staged in staged.chunks(PART) {
        retry(&stop, || output.sink()?.discard_prepared(staged))?;
    }
    let planned = Intents::of(job.cluster, &job.component()).load(job.cluster)?;
    let has_collected = job.run.request.supersede;
    for row in planned.values() {
        match row.state {
            IntentState::Planned => retry(&stop, || output.sink()?.abort(&row.payload))?,
            // A run that replaces output stores its prepared output in separate rows.
            IntentState::Prepared if !has_collected => {
                retry(&stop, || output.sink()?.discard_prepared(std::slice::from_ref(&row.payload)))?;
            }
            IntentState::Prepared | IntentState::Committed => {}
        }
    }
    let keys = rows.keys(job.cluster)?;
    runs.change_with(|runs| known(runs, id), |_, producer| rows.remove(producer, &keys))?;
    Ok(run)
}

/// The rows of a run in Kafka.
struct Row<'a> {
    job: &'a Job<'a>,
    runs: &'a Runs<'a>,
    rows: SupersedingRows,
    run: Run,
    replaced: Option<Vec<OutputFile>>,
}

impl Row<'_> {
    /// What the run changes in each partition.
    fn changes(&self, replaced: &[OutputFile]) -> Result<Vec<RowChange>> {
        let mut removed: BTreeMap<&TopicPartition, u64> = BTreeMap::new();
        for file in replaced {
            *removed.entry(&file.partition).or_default() += file.records;
        }
        let rows = Intents::of(self.job.cluster, &self.job.component()).load(self.job.cluster)?;
        let change = |range: &super::run::PartitionRange| {
            let partition = range.topic_partition();
            let counters = rows.get(&partition).map(|row| row.counters.clone()).unwrap_or_default();
            RowChange {
                topic: range.topic.clone(),
                partition: range.partition,
                removed: removed.get(&partition).copied().unwrap_or(0),
                added: counters.0.get(&self.run.sink).map_or(0, |counters| counters.out),
                extra: counters.0.values().map(|counters| counters.extra).sum(),
            }
        };
        Ok(self.run.ranges.iter().map(change).collect())
    }
}

impl Record for Row<'_> {
    fn step(&self) -> Step {
        self.run.supersede.as_ref().map(|superseding| superseding.step).unwrap_or_default()
    }

    fn publish(&mut self, replaced: Vec<OutputFile>) -> Result<()> {
        let partitions = self.changes(&replaced)?;
        let removed: u64 = partitions.iter().map(|change| change.removed).sum();
        let is_first = Cell::new(false);
        let id = self.run.id.clone();
        let decide = |runs: &[Run]| {
            let mut run = known(runs, &id)?;
            // Another process that executes the run may have been faster: its list counts, because
            // this one may have been made after the first new file.
            is_first.set(run.supersede.as_ref().is_some_and(|superseding| superseding.step == Step::Staging));
            if run.state == RunState::Discarded {
                return Err(Error::config("replay.finished", format!("the run {id} was given up meanwhile")));
            }
            if is_first.get() {
                run.supersede = Some(Superseding {
                    step: Step::Publishing,
                    files: replaced.len(),
                    rows: run.supersede.as_ref().and_then(|superseding| superseding.rows).map(|_| removed),
                    visible: Some(Timestamp::now().as_millisecond()),
                    removed: None,
                    partitions: partitions.clone(),
                });
            }
            Ok(run)
        };
        let write = |_: &Run, producer: &mut crate::kafka::TransactionalProducer| match is_first.get() {
            true => self.rows.replace(producer, &replaced),
            false => Ok(()),
        };
        self.run = self.runs.change_with(decide, write)?;
        self.replaced = is_first.get().then_some(replaced);
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        self.run = self.runs.update(&self.run.id, |run| {
            if let Some(superseding) = &mut run.supersede
                && superseding.step == Step::Publishing
            {
                superseding.step = Step::Removing;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let keys = self.rows.keys(self.job.cluster)?;
        let id = self.run.id.clone();
        let decide = |runs: &[Run]| {
            let mut run = known(runs, &id)?;
            if let Some(superseding) = run.supersede.as_mut().filter(|superseding| superseding.step != Step::Done) {
                let now = Timestamp::now().as_millisecond();
                superseding.step = Step::Done;
                superseding.removed = Some(now);
                (run.state, run.error, run.ended) = (RunState::Finished, None, Some(now));
            }
            Ok(run)
        };
        self.run = self.runs.change_with(decide, |_, producer| self.rows.remove(producer, &keys))?;
        Ok(())
    }

    fn replaced(&self) -> Result<Vec<OutputFile>> {
        match &self.replaced {
            Some(replaced) => Ok(replaced.clone()),
            None => self.rows.replaced(self.job.cluster),
        }
    }
}

fn known(runs: &[Run], id: &str) -> Result<Run> {
    let run = runs.iter().find(|run| run.id == id).cloned();
    run.ok_or_else(|| Error::internal("replay.unknown_run", format!("the row of the run `{id}` is gone")))
}

/// The destination of a sink.
struct Destination<'a> {
    job: &'a Job<'a>,
    data: &'a DataDir,
    runtime: &'a Handle,
    stop: &'a StopSignal,
    /// Opened when it is first used.
    sink: Option<Box<dyn ErasedTwoPhaseSink>>,
}

impl Destination<'_> {
    fn sink(&mut self) -> Result<&mut Box<dyn ErasedTwoPhaseSink>> {
        let sink = match self.sink.take() {
            Some(sink) => sink,
            None => self.open()?,
        };
        Ok(self.sink.insert(sink))
    }

    fn open(&self) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        let job = self.job;
        let context = job.context(self.data, self.runtime, self.stop)?;
        let name = job.sink_name();
        let sink = job.sink()?.spec.open(SinkContext {
            replay: Some(SinkReplay {
                run: job.run.id.clone(),
                supersedes: job.run.request.supersede,
                ranges: ranges_of(job.run),
                earlier: self.earlier()?,
            }),
            budget: context.budget.clone(),
            runtime: self.runtime.clone(),
            scratch: context.scratch(&format!("{name}.publication"))?,
            schemas: context.schemas.clone(),
            name,
        })?;
        match sink {
            Sink::TwoPhase(sink) => Ok(sink),
            Sink::Idempotent(_) => {
                let message = format!("a sink of the connector `{}` has no files to publish", job.sink()?.connector);
                Err(Error::internal("replay.sink_kind", message))
            }
        }
    }
}

impl Destination<'_> {
    /// Partitions with records before the range, if they matter.
    fn earlier(&self) -> Result<BTreeSet<TopicPartition>> {
        if self.job.sink()?.spec.supersede() != (Supersede::Rows { up_to_live: true }) {
            return Ok(BTreeSet::new());
        }
        let offsets = GroupOffsets::new(self.job.cluster, &self.job.component())?;
        let mut earlier = BTreeSet::new();
        for range in &self.job.run.ranges {
            let partition = range.topic_partition();
            if offsets.watermarks(&partition)?.0 < range.from {
                earlier.insert(partition);
            }
        }
        Ok(earlier)
    }
}

impl Output for Destination<'_> {
    fn check(&mut self, staged: &[Value]) -> Result<()> {
        let id = &self.job.run.id;
        let next = format!(
            "the staged files of the run {id} are not complete: give it up with --discard {id}, and start it again"
        );
        self.sink()?.check_prepared(staged).map_err(|error| match error.domain {
            Domain::Data => error.context(next),
            _ => error,
        })
    }

    fn list(&mut self) -> Result<Vec<OutputFile>> {
        let job = self.job;
        // Before the files: the rows of that time say which of them are visible.
        let rows = Intents::of(job.cluster, &job.live_component()).load(job.cluster)?;
        if matches!(job.sink()?.spec.supersede(), Supersede::Rows { .. }) {
            // No file: only the position of the live sink is checked.
            replaced_files(&job.sink_name(), job.run, &rows, Vec::new())?;
            let counts = job.sink()?.spec.count_rows(&ranges_of(job.run), 0, self.runtime)?.unwrap_or_default();
            return Ok(counts.partitions.into_iter().map(|count| counted(&job.sink_name(), count)).collect());
        }
        let listing = job.sink()?.spec.list_output(self.runtime)?.unwrap_or_default();
        replaced_files(&job.sink_name(), job.run, &rows, listing.files)
    }

    fn commit(&mut self, staged: &[Value]) -> Result<()> {
        self.sink()?.commit(staged)
    }

    fn remove(&mut self, files: &[OutputFile]) -> Result<()> {
        match self.job.sink()?.spec.supersede() {
            // The transaction that added the new rows has removed them.
            Supersede::Rows { .. } => Ok(()),
            _ => self.job.sink()?.spec.remove_output(files, self.runtime),
        }
    }
}

/// The range of a run.
fn ranges_of(run: &Run) -> OffsetRanges {
    run.ranges.iter().map(|range| (range.topic_partition(), (range.from, range.to))).collect()
}

/// The rows of a partition in a table, as they are stored with the run.
fn counted(sink: &str, count: RowCount) -> OutputFile {
    let RowCount { table, partition, rows, extremes: (first, last), .. } = count;
    OutputFile {
        id: format!("{table}/{partition}"),
        name: table,
        sink: sink.to_owned(),
        partition,
        first,
        last,
        records: rows,
    }
}

/// The files of the live sink in the ranges of a run. Each must be whole, as when the run was
/// started.
fn replaced_files(
    sink: &str,
    run: &Run,
    live: &BTreeMap<TopicPartition, IntentRecord>,
    files: Vec<OutputFile>,
) -> Result<Vec<OutputFile>> {
    let mut ranges = BTreeMap::new();
    for range in &run.ranges {
        let partition = range.topic_partition();
        let limit = visible_up_to(live.get(&partition));
        if limit < range.to {
            let message = format!(
                "the position of the live sink in {partition} was moved back to {limit} during the run, so it writes records of the \
                 range again: nothing was replaced. Give the run up with --discard {}, and start it again when the sink is past \
                 offset {}",
                run.id, range.to
            );
            return Err(Error::data("replay.output_changed", message));
        }
        ranges.insert(partition, (range.from, range.to));
    }
    let mut replaced = Vec::new();
    for file in files {
        let Some(range) = ranges.get(&file.partition).copied() else { continue };
        if file.sink != sink || !is_in(&file, range) {
            continue;
        }
        if file.first < range.0 || file.last >= range.1 {
            let message = format!(
                "{} appeared during the run and holds records inside and outside of the range: nothing was replaced. Give the run up \
                 with --discard {}, and start it again",
                file.name, run.id
            );
            return Err(Error::data("replay.output_changed", message));
        }
        replaced.push(file);
    }
    Ok(replaced)
}

#[cfg(test)]
mod tests;
