//! The running sink: decodes records, fits them to their tables, and takes the files of each topic
//! partition through the phases of [`TwoPhaseSink`].

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
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
use crate::intent::{Committable, Plan, manifest_key};
use crate::layouts::Layouts;
use crate::load::{Loader, PendingLoad};
use crate::offsets::Offsets;
use crate::order::MoveDetector;
use crate::replay::Replacement;
use crate::sessions::Sessions;
use crate::stage::{Stage, StagedFile};
use crate::tables::Tables;
use crate::takeover::Takeover;

/// A call of a sink ends within a minute; a load that takes longer continues, and the next call
/// waits for it.
const LOAD_WAIT: Duration = Duration::from_secs(50);
const ROW_GROUP: usize = 16 << 20;

/// Opens a sink with this dialect and stage.
pub fn open_sink(
    dialect: Arc<dyn Dialect>,
    stage: Box<dyn Stage>,
    options: Options,
    context: SinkContext,
) -> Result<Sink> {
    let mut sink = WarehouseSink::new(dialect, stage, options, context);
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
    stage: Box<dyn Stage>,
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
    job: Option<LoadJob>,
}

/// A load that runs in its own thread.
struct LoadJob {
    loads: Vec<String>,
    outcome: Receiver<(Sessions, Result<()>)>,
}

impl WarehouseSink {
    /// The sink without its offsets table.
    pub(crate) fn new(
        dialect: Arc<dyn Dialect>,
        stage: Box<dyn Stage>,
        options: Options,
        context: SinkContext,
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
            stage,
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
        for file in &plan.files {
            let Some(key) = &file.key else { continue };
            failpoint!("warehouse.upload.before")?;
            self.stage.put_file(key, &self.folder.join(&file.temp))?;
            let staged = StagedFile { key: key.clone(), url: self.stage.url(key), bytes: file.bytes, rows: file.rows };
            if let Some(manifest) = self.sessions.dialect().manifest(&[staged]) {
                self.stage.put_bytes(&manifest_key(key), manifest.as_bytes())?;
            }
            failpoint!("warehouse.upload.after")?;
        }
        Ok(())
    }

    /// Runs the loads in a thread, because they may take longer than a call may.
    fn run_job(&mut self, committables: &[Committable]) -> Result<()> {
        let loads: Vec<String> = committables.iter().map(|committable| committable.plan.load.clone()).collect();
        let job = match self.job.take().filter(|job| job.loads == loads) {
            Some(job) => job,
            None => self.start_job(loads, committables)?,
        };
        match job.outcome.recv_timeout(LOAD_WAIT) {
            Ok((sessions, outcome)) => {
                self.sessions = sessions;
                outcome
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

    fn start_job(&mut self, loads: Vec<String>, committables: &[Committable]) -> Result<LoadJob> {
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
        let fresh = self.sessions.another();
        let mut sessions = std::mem::replace(&mut self.sessions, fresh);
        let (send, outcome) = channel();
        let work = move || {
            let done = loader.load(&mut sessions, &pending);
            // The sink is gone if nothing receives it.
            drop(send.send((sessions, done)));
        };
        std::thread::Builder::new().name("warehouse-load".to_owned()).spawn(work).map_err(|error| {
            Error::external("warehouse.thread", format!("cannot start a thread for a load: {error}"))
        })?;
        Ok(LoadJob { loads, outcome })
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
        let partitions: Vec<TopicPartition> =
            plans.iter().map(|plan| TopicPartition::new(plan.topic.as_str(), plan.partition)).collect();
        for (plan, partition) in plans.iter().zip(&partitions) {
            self.claim(partition)?;
            self.upload(plan)?;
        }
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
            None => self.run_job(committables)?,
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
        self.buffers.values().for_each(|buffer| buffer.remove_files(&self.folder));
    }
}
