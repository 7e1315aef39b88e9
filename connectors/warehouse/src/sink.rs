//! The running sink: decodes records, fits them to their tables, and takes the files of each topic
//! partition through the phases of [`TwoPhaseSink`].

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use parquet::basic::Compression;
use trunkline_connector::{
    Batch, Buffered, Error, Rejections, Result, Retry, SchemaLookup, Sink, SinkContext, SinkWriter, TopicPartition,
    TwoPhaseSink, failpoint,
};
use trunkline_objects::columns::JsonDecoder;
use trunkline_objects::{Encoders, WriterOptions};

use crate::buffer::{FileContext, PartitionBuffer};
use crate::config::Options;
use crate::dialect::Dialect;
use crate::intent::{Committable, Plan};
use crate::layouts::Layouts;
use crate::load::{Loader, PendingLoad};
use crate::offsets::Offsets;
use crate::order::MoveDetector;
use crate::refused::{RefusedRows, RowCounter};
use crate::replay::Replacement;
use crate::sessions::Sessions;
use crate::stage::Stage;
use crate::staging::{Staging, upload};
use crate::tables::Tables;
use crate::takeover::Takeover;

/// A call of a sink ends within a minute; a load that takes longer continues, and the next call
/// waits for it.
const LOAD_WAIT: Duration = Duration::from_secs(50);
const ROW_GROUP: usize = 16 << 20;

/// Opens a sink with this dialect and stage. `refused` are the rows that earlier sinks with these
/// options found.
pub fn open_sink(
    dialect: Arc<dyn Dialect>,
    stage: Box<dyn Stage>,
    options: Options,
    context: SinkContext,
    refused: Arc<RefusedRows>,
) -> Result<Sink> {
    let mut sink = WarehouseSink::new(dialect, stage, options, context, refused);
    // Login and grants are proved at the start, not at the first load.
    let offsets = &sink.loader.offsets;
    sink.sessions.run(|dialect, session| offsets.create(dialect, session))?;
    Ok(Sink::TwoPhase(Box::new(sink)))
}

/// See the module's header.
pub(crate) struct WarehouseSink {
    /// The sink's folder in the stage.
    prefix: String,
    /// What the output takes the place of, if it is that of a replay with `--supersede`.
    replacement: Option<Replacement>,
    pub(crate) options: Options,
    stage: Arc<dyn Stage>,
    pub(crate) sessions: Sessions,
    pub(crate) tables: Tables,
    pub(crate) loader: Loader,
    encoders: Arc<Encoders>,
    folder: PathBuf,
    pub(crate) schemas: Arc<dyn SchemaLookup>,
    pub(crate) layouts: Layouts,
    pub(crate) decoder: JsonDecoder,
    buffers: HashMap<TopicPartition, PartitionBuffer>,
    pub(crate) move_detectors: HashMap<TopicPartition, MoveDetector>,
    /// The epochs under which this task loads.
    claims: HashMap<TopicPartition, i64>,
    job: Option<Job>,
    pub(crate) refused: Arc<RefusedRows>,
    pub(crate) row_counter: RowCounter,
    /// Ends a job whose sink is gone.
    is_cancelled: Arc<AtomicBool>,
}

/// What a thread does, because it may take longer than a call may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Stage,
    Load,
}

/// A step of some loads that runs in its own thread.
struct Job {
    step: Step,
    committables: Vec<Committable>,
    outcome: Receiver<(Sessions, Result<()>)>,
}

/// The work of a thread.
type Work = Box<dyn FnOnce(&mut Sessions) -> Result<()> + Send>;

impl WarehouseSink {
    /// The sink without its offsets table.
    pub(crate) fn new(
        dialect: Arc<dyn Dialect>,
        stage: Box<dyn Stage>,
        options: Options,
        context: SinkContext,
        refused: Arc<RefusedRows>,
    ) -> Self {
        let sessions = Sessions::new(Arc::clone(&dialect));
        let run = context.replay.as_ref().map(|replay| replay.run.as_str());
        let offsets = Offsets::of(&context.name, run, dialect.as_ref());
        let task = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
        let writer = WriterOptions { compression: Compression::SNAPPY, row_group: ROW_GROUP };
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let mut prefix: String = context.name.chars().map(plain).collect();
        if let Some(run) = run {
            // The live sink removes unknown files from its own folder. Names of sinks have no `+`.
            prefix = format!("{prefix}+{run}");
        }
        let deletes = options.remember_deletes.map(|keep| offsets.deletes(&context.name, keep, dialect.as_ref()));
        let live = Offsets::of(&context.name, None, dialect.as_ref());
        let replacement = context.replay.filter(|replay| replay.supersedes).map(|replay| Replacement {
            run: replay.run,
            ranges: replay.ranges,
            earlier: replay.earlier,
            live,
        });
        Self {
            prefix,
            replacement,
            tables: Tables::new(options.on_type_change),
            options,
            stage: Arc::from(stage),
            sessions,
            loader: Loader { offsets, deletes, task },
            encoders: Arc::new(Encoders::new(context.runtime, writer)),
            folder: context.scratch,
            schemas: context.schemas,
            layouts: Layouts::default(),
            decoder: JsonDecoder::default(),
            buffers: HashMap::new(),
            move_detectors: HashMap::new(),
            claims: HashMap::new(),
            job: None,
            refused,
            row_counter: RowCounter::default(),
            is_cancelled: Arc::default(),
        }
    }

    /// The buffer of a topic partition, and what its files are made with.
    pub(crate) fn buffer(&mut self, partition: &TopicPartition) -> (&mut PartitionBuffer, FileContext<'_>) {
        let context = FileContext { folder: &self.folder, encoders: &self.encoders };
        (self.buffers.entry(partition.clone()).or_default(), context)
    }

    fn partition_prefix(&self, partition: &TopicPartition) -> String {
        format!("{}/{}+{}/", self.prefix, partition.topic, partition.partition)
    }

    /// The epoch of this task for a topic partition. Every task claims it before it changes a table
    /// or loads a file: the session of an earlier task may hold the locks of both.
    pub(crate) fn claim(&mut self, partition: &TopicPartition) -> Result<i64> {
        if let Some(epoch) = self.claims.get(partition) {
            return Ok(*epoch);
        }
        failpoint!("warehouse.claim.before")?;
        let patience = self.options.takeover_timeout;
        let offsets = &self.loader.offsets;
        let row = Takeover { offsets, partition, patience }
            .run(&mut self.sessions, &mut |dialect, session| offsets.claim(dialect, session, partition))?;
        failpoint!("warehouse.claim.after")?;
        self.claims.insert(partition.clone(), row.epoch);
        Ok(row.epoch)
    }

    fn upload(&self, plan: &Plan) -> Result<()> {
        for file in plan.files.iter().filter(|file| file.key.is_some()) {
            failpoint!("warehouse.upload.before")?;
            upload(self.stage.as_ref(), self.sessions.dialect().as_ref(), &self.folder.join(&file.temp), file)?;
            failpoint!("warehouse.upload.after")?;
        }
        Ok(())
    }

    /// Names the load that each plan follows. The files of the plans are in the stage.
    fn follow(&mut self, plans: &[Plan]) -> Result<Vec<Committable>> {
        let partitions: Vec<TopicPartition> = plans.iter().map(partition_of).collect();
        let offsets = &self.loader.offsets;
        let mut rows = self.sessions.run(|dialect, session| offsets.read(dialect, session, &partitions))?;
        let mut committables = Vec::with_capacity(plans.len());
        for (plan, partition) in plans.iter().zip(&partitions) {
            let row = rows.remove(partition).ok_or_else(|| crate::offsets::missing_row(&offsets.table, partition))?;
            let epoch = self.claims.get(partition).copied().unwrap_or(row.epoch);
            if row.epoch != epoch {
                return Err(crate::load::fenced(partition, epoch, row.epoch));
            }
            committables.push(Committable { plan: plan.clone(), previous: row.load, epoch });
        }
        Ok(committables)
    }

    /// Whether a step of these loads runs.
    fn is_running<'p>(&self, step: Step, plans: impl Iterator<Item = &'p Plan>) -> bool {
        let of = |job: &&Job| job.step == step && job.committables.iter().map(|running| &running.plan).eq(plans);
        self.job.as_ref().filter(of).is_some()
    }

    /// Runs a step in a thread.
    fn start(&mut self, step: Step, committables: Vec<Committable>, work: Work) -> Result<()> {
        let fresh = self.sessions.another();
        let mut sessions = std::mem::replace(&mut self.sessions, fresh);
        let (send, outcome) = channel();
        let run = move || {
            let done = work(&mut sessions);
            // The sink is gone if nothing receives it.
            drop(send.send((sessions, done)));
        };
        std::thread::Builder::new().name("warehouse-load".to_owned()).spawn(run).map_err(|error| {
            Error::external("warehouse.thread", format!("cannot start a thread for a load: {error}"))
        })?;
        self.job = Some(Job { step, committables, outcome });
        Ok(())
    }

    /// Waits for the step that runs, as long as a call may take. Returns its loads.
    fn wait(&mut self) -> Result<Vec<Committable>> {
        let Some(job) = self.job.take() else { return Ok(Vec::new()) };
        match job.outcome.recv_timeout(LOAD_WAIT) {
            Ok((sessions, outcome)) => {
                self.sessions = sessions;
                outcome.map(|()| job.committables)
            }
            Err(RecvTimeoutError::Timeout) => {
                self.job = Some(job);
                let message = format!("the load takes longer than {} s and continues", LOAD_WAIT.as_secs());
                Err(Error::external("warehouse.slow", message).retry(Retry::After(Duration::from_millis(100))))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::internal("warehouse.load", "the thread of a load ended early; the load is decided again"))
            }
        }
    }

    /// Copies the files into staging tables, where the destination refuses what it would refuse in
    /// the load.
    fn stage_loads(&mut self, plans: &[Plan]) -> Result<Vec<Committable>> {
        if !self.is_running(Step::Stage, plans.iter()) {
            for plan in plans {
                self.claim(&partition_of(plan))?;
                self.upload(plan)?;
            }
            let committables = self.follow(plans)?;
            let pending = pending_loads(self.stage.as_ref(), &committables);
            let staging = Staging {
                loader: self.loader.clone(),
                stage: Arc::clone(&self.stage),
                folder: self.folder.clone(),
                refused: Arc::clone(&self.refused),
                is_cancelled: Arc::clone(&self.is_cancelled),
            };
            self.start(Step::Stage, committables, Box::new(move |sessions| staging.run(sessions, &pending)))?;
        }
        self.wait()
    }

    /// Commits loads, of this task or of earlier ones.
    fn load(&mut self, committables: &[Committable]) -> Result<()> {
        if !self.is_running(Step::Load, committables.iter().map(|committable| &committable.plan)) {
            let pending = pending_loads(self.stage.as_ref(), committables);
            let (offsets, patience) = (&self.loader.offsets, self.options.takeover_timeout);
            for partition in pending.iter().map(PendingLoad::partition) {
                // An earlier task has prepared the load, and its session may hold the locks.
                if !self.claims.contains_key(&partition) {
                    Takeover { offsets, partition: &partition, patience }
                        .run(&mut self.sessions, &mut |dialect, session| offsets.adopt(dialect, session, &partition))?;
                }
            }
            let loader = self.loader.clone();
            let work = move |sessions: &mut Sessions| loader.load(sessions, &pending);
            self.start(Step::Load, committables.to_vec(), Box::new(work))?;
        }
        self.wait().map(drop)
    }

    fn check_destination(&self, plan: &Plan) -> Result<()> {
        let own = self.sessions.dialect().destination();
        if plan.destination == own {
            return Ok(());
        }
        Err(Error::config(
            "warehouse.other_destination",
            format!(
                "a load for {} is prepared for {}, but the sink now writes to {own}. Run it once more with the earlier destination",
                plan.topic, plan.destination
            ),
        ))
    }
}

fn partition_of(plan: &Plan) -> TopicPartition {
    TopicPartition::new(plan.topic.as_str(), plan.partition)
}

fn pending_loads(stage: &dyn Stage, committables: &[Committable]) -> Vec<PendingLoad> {
    committables.iter().map(|committable| PendingLoad::new(committable, |key: &str| stage.url(key))).collect()
}

impl SinkWriter for WarehouseSink {
    fn write(&mut self, partition: &TopicPartition, records: &Batch, rejected: &mut Rejections) -> Result<()> {
        self.write_records(partition, records, rejected)
    }

    fn buffered(&self, partition: &TopicPartition) -> Buffered {
        self.buffers.get(partition).map(PartitionBuffer::buffered).unwrap_or_default()
    }

    fn discard(&mut self, partition: &TopicPartition) {
        if let Some(buffer) = self.buffers.remove(partition) {
            buffer.remove_files(&self.folder);
        }
    }

    fn memory_bytes(&self) -> usize {
        self.buffers.values().map(PartitionBuffer::memory_bytes).sum::<usize>() + self.decoder.memory()
    }

    fn spill(&mut self) -> Result<()> {
        self.decoder.forget();
        let largest = self.buffers.values().map(PartitionBuffer::largest_file).max().unwrap_or(0);
        let context = FileContext { folder: &self.folder, encoders: &self.encoders };
        // Files of half the largest one's size and more: small row groups are slow to read.
        self.buffers.values_mut().try_for_each(|buffer| buffer.spill(&context, (largest / 2).max(1)))
    }
}

impl TwoPhaseSink for WarehouseSink {
    type Plan = Plan;
    type Committable = Committable;

    fn seal(&mut self, partition: &TopicPartition) -> Result<Option<Plan>> {
        let Some(buffer) = self.buffers.get_mut(partition).filter(|buffer| !buffer.buffered().is_empty()) else {
            return Ok(None);
        };
        let (mut files, next_offset) = buffer.seal(&FileContext { folder: &self.folder, encoders: &self.encoders })?;
        if files.is_empty() {
            return Ok(None);
        }
        let load = uuid::Uuid::new_v4().simple().to_string();
        let folder = format!("{}{load}", self.partition_prefix(partition));
        for (number, file) in files.iter_mut().enumerate() {
            file.key = file.key.take().map(|_| format!("{folder}/{number}.parquet"));
        }
        Ok(Some(Plan {
            load,
            destination: self.sessions.dialect().destination(),
            topic: partition.topic.to_string(),
            partition: partition.partition,
            next_offset,
            files,
        }))
    }

    fn prepare(&mut self, plans: &[Plan], _: &mut Rejections) -> Result<Vec<Committable>> {
        let committables = self.stage_loads(plans)?;
        for file in plans.iter().flat_map(|plan| &plan.files) {
            // The stage has the bytes; the scratch folder is emptied at the next start anyway.
            drop(std::fs::remove_file(self.folder.join(&file.temp)));
        }
        Ok(committables)
    }

    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        committables.iter().try_for_each(|committable| self.check_destination(&committable.plan))?;
        match &self.replacement {
            // Not in a thread: nothing waits for the end of the call.
            Some(replacement) => {
                let loads = pending_loads(self.stage.as_ref(), committables);
                self.loader.replace(&mut self.sessions, &self.options, replacement, &loads)?;
            }
            None => self.load(committables)?,
        }
        for Committable { plan, .. } in committables {
            self.refused.forget(&partition_of(plan), plan.next_offset);
        }
        let keys: Vec<String> = committables.iter().flat_map(|committable| committable.plan.keys()).collect();
        failpoint!("warehouse.remove.before")?;
        // The rows are loaded. Files that stay are removed at the next assignment.
        if let Err(error) = self.stage.remove(&keys) {
            tracing::warn!(%error, "loaded files could not be removed from the stage");
        }
        Ok(())
    }

    fn abort(&mut self, plan: &Plan) -> Result<()> {
        plan.files.iter().for_each(|file| drop(std::fs::remove_file(self.folder.join(&file.temp))));
        self.stage.remove(&plan.keys())
    }

    fn recover(&mut self, partition: &TopicPartition, pending: &[Committable]) -> Result<()> {
        self.discard(partition);
        // Another task may have owned the topic partition meanwhile.
        self.claims.remove(partition);
        let keep: Vec<String> = pending.iter().flat_map(|committable| committable.plan.keys()).collect();
        let mut found = self.stage.list(&self.partition_prefix(partition))?;
        found.retain(|key| !keep.contains(key));
        self.stage.remove(&found)
    }

    fn check_prepared(&mut self, committables: &[Committable]) -> Result<()> {
        let found: HashSet<String> = self.stage.list(&format!("{}/", self.prefix))?.into_iter().collect();
        let files = committables.iter().flat_map(|committable| &committable.plan.files);
        match files.filter_map(|file| file.key.as_ref()).find(|key| !found.contains(*key)) {
            None => Ok(()),
            Some(key) => {
                let url = self.stage.url(key);
                let message = format!("the staged file {url} is gone: a rule of the bucket may have removed it");
                Err(Error::data("warehouse.staged_file_missing", message))
            }
        }
    }

    fn discard_prepared(&mut self, committables: &[Committable]) -> Result<()> {
        let keys: Vec<String> = committables.iter().flat_map(|committable| committable.plan.keys()).collect();
        self.stage.remove(&keys)
    }
}

impl Drop for WarehouseSink {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
        self.buffers.values().for_each(|buffer| buffer.remove_files(&self.folder));
    }
}
