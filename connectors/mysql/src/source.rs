//! The running source: fills batches from the follower of the binlog and from the snapshot.
//!
//! Every external failure ends the source with an error and its position. The stage opens it again
//! with backoff, so a restart of the worker and one of the server have the same recovery.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use trunkline_connector::{Error, Fill, Result, Source, SourceBatch, SourceContext, SourceLag, failpoint};

use crate::binlog::follower::Follower;
use crate::binlog::history::History;
use crate::binlog::{self, ReplicaIdentity};
use crate::config::{MysqlOptions, OnPurged, SnapshotPolicy};
use crate::connection::binlog_state::{
    binlog_end, check_contains, current_position, gtids_before, has_binlog_after, purged,
};
use crate::connection::charsets::load_charsets;
use crate::connection::logging::unlogged_changes;
use crate::connection::query::QueryConnection;
use crate::connection::server_info::ServerInfo;
use crate::format::deletes;
use crate::position::{BinlogPosition, Epoch, STREAM, StoredPosition, StreamPosition, TablePosition, table_key};
use crate::replication::BinlogEvents;
use crate::replication::event_frame::Event;
use crate::retention::BinlogRetention;
use crate::schema::table_name::TableName;
use crate::snapshot::access::{self, TableAccess, access_to, check_columns};
use crate::snapshot::describe::{self, TableDescription};
use crate::snapshot::names::{UnmatchedGlob, unmatched_globs};
use crate::snapshot::progress_log::ProgressLog;
use crate::snapshot::reader::Reader;
use crate::snapshot::tracker::SnapshotTracker;
use crate::snapshot::{Snapshot, SnapshotStep};

/// The interval in which a source without records stores its position. An idle source must advance
/// too, because the server purges the binlog behind it.
const POSITION_INTERVAL: Duration = Duration::from_secs(5);
/// The interval of requests for the end of the binlog, while everything has been read.
const END_INTERVAL: Duration = Duration::from_secs(1);
/// How long a batch with records waits for more.
const LINGER: Duration = Duration::from_millis(1);
/// As [`LINGER`], for a small batch during a snapshot. A snapshot of thousands of small tables
/// fills few batches then, and the stage creates the topics of a batch with one request.
const SNAPSHOT_LINGER: Duration = Duration::from_millis(10);
/// The server sends several heartbeats per second, so this silence means a dead connection.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// A running source.
pub(crate) struct MysqlSource {
    options: Arc<MysqlOptions>,
    runtime: tokio::runtime::Handle,
    until_idle: bool,
    queries: QueryConnection,
    events: BinlogEvents,
    follower: Follower,
    tracker: SnapshotTracker,
    reader: Arc<Reader>,
    snapshot: Option<Snapshot>,
    progress_log: ProgressLog,
    retention: BinlogRetention,
    /// The end of the server's binlog, and the time of the request for it.
    end: BinlogPosition,
    end_checked: Instant,
    last_event: Instant,
    /// The received bytes at the last check for silence.
    received_bytes: u64,
    /// The stored position of the stream, and its time.
    stored: StreamPosition,
    stored_at: Instant,
    /// Keys of an abandoned position, which the first batch removes.
    obsolete_keys: Vec<String>,
    /// Tables whose snapshot starts again after a gap, which the first batch reports.
    restarted: Vec<String>,
    is_caught_up: bool,
}

/// The result of a wait.
enum WaitOutcome {
    Event(Event),
    SnapshotRows,
    Timeout,
}

/// Where a source starts.
struct StartingPoint {
    position: StreamPosition,
    /// The stored position of the stream; the default if none is stored yet.
    stored: StreamPosition,
    tracker: SnapshotTracker,
    obsolete_keys: Vec<String>,
    /// Keys of the tables whose snapshot starts again after a gap.
    restarted: Vec<String>,
}

/// Warns of globs that match no table. Rejects a server whose binlog lacks changes of the tables.
async fn check_names(
    options: &MysqlOptions,
    queries: &mut QueryConnection,
    known: &[Arc<TableDescription>],
) -> Result<()> {
    let (source, server) = (&options.name, options.connection.server_label());
    let names: Vec<TableName> = known.iter().map(|description| description.table.name.clone()).collect();
    for UnmatchedGlob { message, fix } in unmatched_globs(options, queries, &names).await? {
        let fix = fix.unwrap_or_else(|| "the source waits for it".to_owned());
        tracing::warn!(source, code = "mysql.unmatched", "{server}: {message}; {fix}");
    }
    if options.snapshot != SnapshotPolicy::Only {
        let databases: BTreeSet<String> = names.into_iter().map(|name| name.database).collect();
        if let Some(problem) = unlogged_changes(queries, &databases).await?.into_iter().next() {
            return Err(problem.into_error(queries));
        }
    }
    Ok(())
}

impl StartingPoint {
    async fn find(
        options: &MysqlOptions,
        queries: &mut QueryConnection,
        server: &ServerInfo,
        stored: StoredPosition,
        history: &History<'_>,
    ) -> Result<Self> {
        let StoredPosition { stream, mut tables, mut obsolete_keys } = stored;
        let previous_epoch = stream.as_ref().and_then(|position| position.epoch.clone());
        // The position comes before the tables: everything committed after it is in the stream.
        let mut first = match stream {
            Some(_) => None,
            None => Some(current_position(queries, server.flavor).await?),
        };
        failpoint!("mysql.begin.after")?;
        let mut known = describe::tables(options, queries, &server.charsets, None).await?;
        check_names(options, queries, &known).await?;
        let is_done =
            |description: &Arc<TableDescription>| tables.get(&description.table.name) == Some(&TablePosition::Done);
        let mut restarted = Vec::new();
        // A completed snapshot needs no binlog.
        let is_over = options.snapshot == SnapshotPolicy::Only && known.iter().all(is_done);
        if let Some(position) = &stream
            && !is_over
        {
            let lost = history.verify(options, queries, server, position).await?;
            let lost = match lost {
                Some(error) => Some(error),
                None => {
                    check_contains(queries, server.flavor, position).await?;
                    let has_binlog = has_binlog_after(queries, position).await?;
                    (!has_binlog).then(|| purged(queries, position))
                }
            };
            if let Some(error) = lost {
                if options.on_purged == OnPurged::Stop {
                    return Err(error);
                }
                tracing::warn!(source = options.name, "{}; restarting with a snapshot", error.message());
                let before: Vec<String> = tables.keys().map(table_key).collect();
                tables.clear();
                first = Some(current_position(queries, server.flavor).await?);
                known = describe::tables(options, queries, &server.charsets, None).await?;
                let now: BTreeSet<String> = known.iter().map(|known| table_key(&known.table.name)).collect();
                restarted = before.iter().filter(|key| now.contains(*key)).cloned().collect();
                obsolete_keys.extend(before);
            }
        }
        // The first position is stored at once, so that a source that stops early misses nothing.
        let (mut position, stored) = match (first, stream) {
            (None, Some(position)) => (position.clone(), position),
            (first, _) => (first.unwrap_or_default(), StreamPosition::default()),
        };
        let is_other = |known: Option<&String>| known.is_some_and(|known| *known != server.identity);
        let epoch_server = position.epoch.as_ref().map(|epoch| &epoch.server);
        if epoch_server.is_none() || is_other(epoch_server) {
            let anchor_server = position.anchor.as_ref().map(|anchor| &anchor.server);
            if position.processed.is_some() && (is_other(epoch_server) || is_other(anchor_server)) {
                // Rows of a snapshot would get the position of another server.
                position.end = BinlogPosition::default();
            }
            let now = jiff::Timestamp::now().as_second();
            position.epoch = Some(Epoch::begin(previous_epoch.as_ref(), &server.identity, now));
        }
        if options.snapshot != SnapshotPolicy::Never {
            check_columns(options, queries, &known).await?;
        }
        let known = known.into_iter().map(|description| Arc::clone(&description.table));
        let mut tracker = SnapshotTracker::new(tables, known);
        tracker.plan(options.snapshot != SnapshotPolicy::Never);
        if let Some(name) = tracker.exhausted() {
            return Err(interrupted(options, name));
        }
        Ok(Self { position, stored, tracker, obsolete_keys, restarted })
    }
}

impl MysqlSource {
    pub(crate) fn open(options: Arc<MysqlOptions>, context: SourceContext) -> Result<Self> {
        let runtime = context.runtime.clone();
        runtime.block_on(Self::start(options, context))
    }

    async fn start(options: Arc<MysqlOptions>, context: SourceContext) -> Result<Self> {
        let mut queries = QueryConnection::open(&options.connection).await?;
        let server = ServerInfo::read(&mut queries).await?;
        let stored = StoredPosition::read(&context.position)?;
        let identity = ReplicaIdentity::new(&context.task, options.server_id);
        let history = History { identity: &identity, scratch: &context.scratch };
        let start = StartingPoint::find(&options, &mut queries, &server, stored, &history).await?;
        let StartingPoint { position, stored, tracker, obsolete_keys, restarted } = start;
        let events = binlog::open(&options.connection, &identity, &position, context.scratch).await?;
        failpoint!("mysql.binlog.after")?;
        let (end, _) = binlog_end(&mut queries).await?;
        let reader = Reader {
            options: Arc::clone(&options),
            charsets: Arc::clone(&server.charsets),
            budget: context.budget,
            server_id: server.server_id,
            epoch: position.epoch.as_ref().map_or(0, |epoch| epoch.number),
            flavor: server.flavor,
            visible_from: Mutex::default(),
        };
        let reader = Arc::new(reader);
        let snapshot = match tracker.left() {
            0 => None,
            _ => Some(Snapshot::new(Arc::clone(&reader), context.runtime.clone())?),
        };
        let expected = match tracker.left() {
            0 => 0,
            _ => describe::estimated_rows(&mut queries, tracker.waiting()).await?,
        };
        let now = Instant::now();
        Ok(Self {
            progress_log: ProgressLog::new(tracker.left(), expected),
            retention: BinlogRetention::new(server.retention, server.flavor.dialect()),
            follower: Follower::new(Arc::clone(&options), server, position)?,
            stored,
            options,
            runtime: context.runtime,
            until_idle: context.until_idle,
            queries,
            events,
            tracker,
            reader,
            snapshot,
            end,
            end_checked: now,
            last_event: now,
            received_bytes: 0,
            stored_at: now,
            obsolete_keys,
            restarted,
            is_caught_up: false,
        })
    }

    /// Fills the batch. Returns whether everything available was emitted.
    fn fill_batch(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<bool> {
        self.follower.emitter.set_now(jiff::Timestamp::now().as_millisecond());
        loop {
            if self.follower.has_rows() {
                failpoint!("mysql.rows.before")?;
                self.follower.emit_rows(out, &mut self.tracker)?;
            }
            if out.is_full() || self.follower.has_rows() {
                return Ok(false);
            }
            let step = self.snapshot_step(out)?;
            if out.is_full() || step == SnapshotStep::BatchFull {
                return Ok(false);
            }
            let is_blocked = step == SnapshotStep::BlocksStream;
            if self.options.snapshot == SnapshotPolicy::Only && self.snapshot.is_none() {
                // No more records follow.
                if !self.until_idle {
                    self.runtime.block_on(async { tokio::time::sleep_until(deadline.into()).await });
                }
                return Ok(true);
            }
            // With `--until-idle` the source does not wait for new changes.
            if self.until_idle && *self.follower.reached() >= self.end && self.check_caught_up()? {
                return Ok(true);
            }
            let until = if out.is_empty() { deadline } else { deadline.min(Instant::now() + self.linger(out)) };
            let is_over = match self.wait(until, is_blocked)? {
                WaitOutcome::Event(event) => {
                    self.last_event = Instant::now();
                    self.describe_for(&event, out)?;
                    let rotated = self.rotated_file(&event);
                    self.follower.process(event, out, &mut self.tracker)?;
                    if let Some(file) = rotated {
                        self.adopt_gtids(&file)?;
                    }
                    self.describe_appeared(out)?;
                    Instant::now() >= deadline
                }
                WaitOutcome::SnapshotRows => Instant::now() >= deadline,
                WaitOutcome::Timeout => {
                    self.check_silence(is_blocked)?;
                    true
                }
            };
            if is_over {
                // After an event too: it may be a heartbeat, and heartbeats may coincide with
                // deadlines permanently.
                return self.check_caught_up();
            }
        }
    }

    fn linger(&self, out: &SourceBatch) -> Duration {
        let is_small = out.bytes() < out.max_bytes / 16;
        if self.snapshot.is_some() && is_small { SNAPSHOT_LINGER } else { LINGER }
    }

    /// Runs a step of the snapshot.
    fn snapshot_step(&mut self, out: &mut SourceBatch) -> Result<SnapshotStep> {
        let Some(snapshot) = &mut self.snapshot else { return Ok(SnapshotStep::Done) };
        let before = out.records.len() + out.rejected.len();
        let step = snapshot.step(self.follower.state(), &mut self.tracker, out)?;
        self.progress_log.add(out.records.len() + out.rejected.len() - before);
        if let Some(line) = self.progress_log.due(self.tracker.left()) {
            tracing::info!(source = self.options.name, "{line}");
        }
        if step == SnapshotStep::Done {
            tracing::info!(source = self.options.name, "{}; complete", self.progress_log.end());
            self.snapshot = None;
        }
        Ok(step)
    }

    /// Counts the failure of a consistent read that had emitted rows: a retry emits them again.
    fn count_failed_read(&mut self, out: &mut SourceBatch) -> Result<()> {
        let Some(snapshot) = &self.snapshot else { return Ok(()) };
        match self.tracker.read_failed(snapshot.emitting(), out)?.first() {
            Some(name) => Err(interrupted(&self.options, name)),
            None => Ok(()),
        }
    }

    /// Waits for an event or for rows of the snapshot; while the snapshot blocks the stream, only
    /// for rows.
    fn wait(&mut self, until: Instant, is_blocked: bool) -> Result<WaitOutcome> {
        let Self { runtime, events, snapshot, .. } = self;
        let outcome = runtime.block_on(async {
            let next = async {
                if is_blocked && let Some(snapshot) = snapshot.as_mut() {
                    return snapshot.wait().await.map(|()| WaitOutcome::SnapshotRows);
                }
                let mut event = pin!(events.next());
                poll_fn(|context| {
                    if let Some(snapshot) = snapshot.as_mut()
                        && let Poll::Ready(result) = snapshot.poll_tasks(context)
                    {
                        return Poll::Ready(result.map(|()| WaitOutcome::SnapshotRows));
                    }
                    event.as_mut().poll(context).map_ok(WaitOutcome::Event)
                })
                .await
            };
            tokio::time::timeout_at(until.into(), next).await
        });
        outcome.unwrap_or(Ok(WaitOutcome::Timeout))
    }

    /// The file that a rotation of the binlog ends, while the position has no GTIDs.
    fn rotated_file(&self, event: &Event) -> Option<String> {
        const ROTATE: u8 = 4;
        let is_rotation = event.header().event_type() == ROTATE && self.follower.lacks_gtids();
        is_rotation.then(|| self.follower.reached().file.clone()).filter(|file| !file.is_empty())
    }

    /// Replaces a position of file and offset by GTIDs at the start of a file, once the server
    /// gives GTIDs to all transactions. Within a file, the GTIDs before an offset are unknown.
    fn adopt_gtids(&mut self, previous_file: &str) -> Result<()> {
        let file = self.follower.reached().file.clone();
        if file == previous_file || !self.follower.is_between_transactions() {
            return Ok(());
        }
        if let Some(before_file) = self.runtime.block_on(gtids_before(&mut self.queries, &file))? {
            tracing::info!(
                source = self.options.name,
                "the server has turned on GTIDs; the position of the source consists of GTIDs from {file} on"
            );
            self.follower.adopt_gtids(before_file);
        }
        Ok(())
    }

    /// Asks the server for what the follower needs to process an event: charsets, the access to a
    /// new table, and its types.
    fn describe_for(&mut self, event: &Event, out: &mut SourceBatch) -> Result<()> {
        let charsets = self.follower.needs_charsets(event);
        if !charsets.is_empty() {
            self.runtime.block_on(load_charsets(&mut self.queries, &charsets))?;
        }
        let Some(name) = self.follower.mapped_table(event) else { return Ok(()) };
        if self.tracker.is_unknown(&name) {
            self.check_access(&name, out)?;
        }
        if self.follower.needs_description(event) {
            let charsets = self.follower.charsets();
            let described = describe::tables(&self.options, &mut self.queries, &charsets, Some(&name));
            let described = self.runtime.block_on(described)?.pop();
            let has_primary_key = described.as_ref().is_some_and(|it| it.has_primary_key);
            let columns = described.as_ref().map_or(&[][..], |it| &it.table.columns);
            self.follower.set_description(name, columns, has_primary_key);
        }
        Ok(())
    }

    /// Describes tables that appeared without a creation in the stream.
    fn describe_appeared(&mut self, out: &mut SourceBatch) -> Result<()> {
        for name in self.tracker.take_appeared() {
            self.check_access(&name, out)?;
        }
        Ok(())
    }

    /// Checks the access to a table that the source did not find when it opened. Unless the stream
    /// has its creation, it needs a snapshot: it was renamed, restored, or not readable before.
    fn check_access(&mut self, name: &TableName, out: &mut SourceBatch) -> Result<()> {
        let charsets = self.follower.charsets();
        let access = self.runtime.block_on(access_to(&self.options, &mut self.queries, &charsets, name))?;
        let (source, server) = (&self.options.name, self.options.connection.server_label());
        match &access {
            TableAccess::Readable(_) if !self.tracker.has_position(name) => {
                tracing::info!(source, "{name} appeared without its creation in the binlog; its snapshot starts");
            }
            TableAccess::Unreadable => {
                let grant = access::grants(&self.options.connection.address.user, std::slice::from_ref(name));
                tracing::warn!(
                    source,
                    code = "mysql.unreadable",
                    "{server}: the user may not read {name}, so its changes are dropped; {grant} or exclude the table from `tables`"
                );
            }
            TableAccess::Readable(_) | TableAccess::Gone => {}
        }
        self.tracker.set_access(name, access, out);
        if self.snapshot.is_none() && self.tracker.left() > 0 {
            self.progress_log = ProgressLog::new(self.tracker.left(), 0);
            self.snapshot = Some(Snapshot::new(Arc::clone(&self.reader), self.runtime.clone())?);
        }
        Ok(())
    }

    fn check_silence(&mut self, is_blocked: bool) -> Result<()> {
        // An event of a gigabyte may take longer than the timeout.
        let received_bytes = self.events.received_bytes();
        if is_blocked || received_bytes > self.received_bytes {
            self.last_event = Instant::now();
            self.received_bytes = received_bytes;
        }
        if self.last_event.elapsed() > SILENCE_TIMEOUT {
            let server = self.options.connection.server_label();
            let message = format!("{server} has sent nothing for {SILENCE_TIMEOUT:?}; reconnecting");
            return Err(Error::external("mysql.silence", message));
        }
        Ok(())
    }

    /// Whether everything that the server has was emitted.
    fn check_caught_up(&mut self) -> Result<bool> {
        if self.snapshot.is_some() || !self.follower.is_between_transactions() {
            return Ok(false);
        }
        if self.until_idle || self.end_checked.elapsed() >= END_INTERVAL {
            (self.end, _) = self.runtime.block_on(binlog_end(&mut self.queries))?;
            self.end_checked = Instant::now();
        }
        Ok(*self.follower.reached() >= self.end)
    }

    /// Warns when the server is about to purge unread transactions.
    fn check_retention(&mut self) {
        if let Some(written_at) = self.follower.written_at.take() {
            self.retention.record(written_at, jiff::Timestamp::now().as_millisecond());
        }
        if self.is_caught_up {
            self.retention.record_caught_up();
        }
        if let Some(warning) = self.retention.warning() {
            let server = self.options.connection.server_label();
            tracing::warn!(source = self.options.name, code = "mysql.headroom", "{server}: {warning}");
        }
    }

    /// Stores the position in the batch if it moved: always with records, otherwise at intervals.
    fn store_position(&mut self, out: &mut SourceBatch) -> Result<()> {
        let position = &self.follower.position;
        let is_idle = self.is_caught_up && self.until_idle;
        let is_due = !out.is_empty() || self.stored_at.elapsed() >= POSITION_INTERVAL || is_idle;
        let has_moved = *position != self.stored && (is_due || self.stored == StreamPosition::default());
        // An unchanged position too: the write shows a task that `trunkline snapshot` has changed
        // the position.
        if has_moved || self.stored_at.elapsed() >= POSITION_INTERVAL {
            out.set_position(STREAM, Some(position.to_bytes()?));
            self.stored = position.clone();
            self.stored_at = Instant::now();
        }
        Ok(())
    }
}

impl Source for MysqlSource {
    fn fill(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<Fill> {
        for key in std::mem::take(&mut self.obsolete_keys) {
            out.set_position(&key, None);
        }
        out.snapshot_begins.append(&mut self.restarted);
        let mut result = self.fill_batch(out, deadline);
        out.data_sets.extend(self.tracker.take_defined().into_iter().map(deletes::headers));
        if result.is_err() {
            // The last failure replaces the error, so that the source stops.
            result = self.count_failed_read(out).and(result);
        }
        self.is_caught_up = result.as_ref().is_ok_and(|is_caught_up| *is_caught_up);
        self.check_retention();
        // After an error too: the batch keeps the records before it.
        self.store_position(out)?;
        result.map(|is_caught_up| if is_caught_up { Fill::CaughtUp } else { Fill::More })
    }

    fn lag(&self) -> SourceLag {
        let retention_left = self.retention.left();
        if self.is_caught_up {
            return SourceLag { bytes: Some(0), retention_left, ..SourceLag::default() };
        }
        let reached = self.follower.reached();
        let bytes = if reached.file == self.end.file { self.end.pos.saturating_sub(reached.pos) } else { self.end.pos };
        SourceLag { bytes: Some(bytes.max(1)), records: None, age: None, retention_left }
    }
}

/// The error of a consistent read that failed repeatedly.
fn interrupted(options: &MysqlOptions, name: &TableName) -> Error {
    let server = options.connection.server_label();
    let message = format!(
        "{server}: the snapshot of {name} failed repeatedly after it had emitted rows, and each retry emits them again; fix the \
         cause in the log, then restart the snapshot with `trunkline snapshot --tables {name}`"
    );
    Error::data("mysql.snapshot_failed", message)
}
