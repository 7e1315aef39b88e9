//! The snapshot: emits existing rows between the transactions of the stream.
//!
//! The source follows the binlog meanwhile. The snapshot emits a row of a chunk after the stream
//! has passed everything that the chunk's query could see, unless the stream changed the row
//! meanwhile: the change was emitted, and is newer. So every row is emitted once, in its newest
//! state, and a restart continues after the last emitted key.

pub(crate) mod access;
mod chunk;
pub(crate) mod condition;
mod consistent_read;
pub(crate) mod describe;
pub(crate) mod incremental;
pub(crate) mod names;
mod pages;
pub(crate) mod progress_log;
pub(crate) mod reader;
mod select;
pub(crate) mod tracker;

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::{JoinError, JoinHandle};
use trunkline_connector::{Error, Result, SourceBatch, failpoint};

use self::chunk::{Chunk, ChunkRequest, Described};
use self::consistent_read::{ConsistentRead, PageMessage};
use self::pages::{PageLimits, RowPage};
use self::reader::{ReadRequest, ReadResult, Reader};
use self::tracker::{SnapshotTracker, TableRequest};
use crate::config::SnapshotMode;
use crate::connection::query::QueryConnection;
use crate::position::{StreamState, TablePosition, table_key};
use crate::schema::table_name::TableName;

/// The target size of a chunk. The number of rows follows from the size of the previous chunk's
/// rows.
const CHUNK_BYTES: usize = 4 << 20;
/// The number of rows of a table's first chunk.
const FIRST_CHUNK_ROWS: usize = 256;

/// The result of the reading task, and its connection.
type TaskResult = (Option<QueryConnection>, Result<ReadResult>);

/// A running snapshot.
pub(crate) struct Snapshot {
    reader: Arc<Reader>,
    runtime: tokio::runtime::Handle,
    connection: Option<QueryConnection>,
    task: Option<JoinHandle<TaskResult>>,
    /// The task starts a consistent read. The stream waits until the read's position in the binlog
    /// is known: its rows belong there, and changes of tables without a key are suppressed up to
    /// there.
    blocks_stream: bool,
    /// Tables with a key that cannot be read in chunks.
    without_chunks: HashSet<TableName>,
    /// The tables of the consistent read that emits rows.
    emitting: Vec<TableName>,
    ready: Option<ReadResult>,
    delivery: Option<ChunkInDelivery>,
    chunk_rows: usize,
}

/// A chunk whose rows are being emitted. Its changed keys are final.
struct ChunkInDelivery {
    chunk: Chunk,
    changed_keys: HashSet<Vec<u8>>,
}

/// The state of the snapshot after a [step](Snapshot::step).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SnapshotStep {
    BatchFull,
    /// Rows are about to arrive, before which the stream must not advance.
    BlocksStream,
    /// The stream may advance.
    Waiting,
    /// Every table is done.
    Done,
}

impl Snapshot {
    pub(crate) fn new(reader: Arc<Reader>, runtime: tokio::runtime::Handle) -> Self {
        Self {
            reader,
            runtime,
            connection: None,
            task: None,
            blocks_stream: false,
            without_chunks: HashSet::new(),
            emitting: Vec::new(),
            ready: None,
            delivery: None,
            chunk_rows: FIRST_CHUNK_ROWS,
        }
    }

    /// Polls the task that reads rows. Ready when it ended; pending without a task.
    pub(crate) fn poll_task(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.task {
            Some(task) => Pin::new(task).poll(context).map(|result| self.task_ended(result)),
            None => Poll::Pending,
        }
    }

    /// Emits the available rows, and starts the next read.
    pub(crate) fn step(
        &mut self,
        stream: StreamState<'_>,
        tracker: &mut SnapshotTracker,
        out: &mut SourceBatch,
    ) -> Result<SnapshotStep> {
        loop {
            if let Some(delivery) = self.delivery.take() {
                self.delivery = emit_chunk(delivery, tracker, out)?;
                if self.delivery.is_some() {
                    return Ok(SnapshotStep::BatchFull);
                }
                continue;
            }
            if let Some(result) = self.ready.take() {
                match self.take_result(result, stream, tracker, out)? {
                    Some(step) => return Ok(step),
                    None => continue,
                }
            }
            if self.task.is_some() {
                return Ok(if self.blocks_stream { SnapshotStep::BlocksStream } else { SnapshotStep::Waiting });
            }
            if tracker.left() == 0 {
                return Ok(SnapshotStep::Done);
            }
            if !stream.is_between_transactions {
                return Ok(SnapshotStep::Waiting);
            }
            let Some(request) = tracker.next() else { return Ok(SnapshotStep::Done) };
            if self.reader.options.snapshot_mode == SnapshotMode::Exact {
                self.start_consistent_read(tracker.all(), out);
            } else if request.table.order.is_empty() || self.without_chunks.contains(&request.table.name) {
                self.start_consistent_read(vec![request], out);
            } else {
                self.start_chunk(request, None, stream, tracker, out);
            }
            return Ok(SnapshotStep::Waiting);
        }
    }

    /// Takes the result of a read; the step if the caller has to wait.
    fn take_result(
        &mut self,
        result: ReadResult,
        stream: StreamState<'_>,
        tracker: &mut SnapshotTracker,
        out: &mut SourceBatch,
    ) -> Result<Option<SnapshotStep>> {
        match result {
            ReadResult::Chunk(chunk) if stream.has_passed(&chunk.high_watermark) => {
                self.accept_chunk(chunk, stream, tracker, out);
            }
            ReadResult::Consistent(mut read) if stream.has_passed(&read.at) => {
                if let Some(step) = self.emit_consistent(&mut read, tracker, out)? {
                    self.ready = Some(ReadResult::Consistent(read));
                    return Ok(Some(step));
                }
            }
            ReadResult::Dropped(name) => {
                tracker.close_window();
                tracker.table_dropped(&name, out);
            }
            ReadResult::WithoutChunks(description) => {
                tracker.close_window();
                tracker.define(&description.table);
                self.without_chunks.insert(description.table.name.clone());
            }
            ReadResult::KeyChanged(description) => {
                tracker.close_window();
                let (source, table) = (&self.reader.options.name, &description.table);
                let key: Vec<&str> = table.key_names().collect();
                tracing::warn!(
                    source,
                    code = "mysql.key_changed",
                    "the key of {} changed during its snapshot (now: {}), which restarts; its topic also has records with the \
                     previous key",
                    table.name,
                    if key.is_empty() { "none".to_owned() } else { key.join(", ") }
                );
                tracker.restart(table, out)?;
            }
            ReadResult::Changed => drop(tracker.close_window()),
            ReadResult::ConditionRejected(name, why) => {
                tracker.close_window();
                self.skip_table(&name, &why, tracker, out)?;
            }
            early => {
                self.ready = Some(early);
                return Ok(Some(SnapshotStep::Waiting));
            }
        }
        Ok(None)
    }

    /// Starts the read of a chunk, and opens its window. `described`: the table's description,
    /// unless the schema changed since.
    fn start_chunk(
        &mut self,
        request: TableRequest,
        described: Option<Described>,
        stream: StreamState<'_>,
        tracker: &mut SnapshotTracker,
        out: &SourceBatch,
    ) {
        self.blocks_stream = false;
        tracker.open_window(&request.table.name);
        if request.after.is_none() {
            self.chunk_rows = FIRST_CHUNK_ROWS;
        }
        let chunk = ChunkRequest {
            request,
            position: stream.position.clone(),
            last_end: stream.last_end.clone(),
            described,
            max_rows: self.chunk_rows.clamp(1, self.reader.options.chunk_rows),
            page: PageLimits::of(out),
        };
        self.start(ReadRequest::Chunk(Box::new(chunk)));
    }

    /// Starts a read of whole tables, all as of one point in time.
    fn start_consistent_read(&mut self, tables: Vec<TableRequest>, out: &SourceBatch) {
        self.blocks_stream = true;
        self.start(ReadRequest::Consistent(tables, PageLimits::of(out)));
    }

    fn start(&mut self, request: ReadRequest) {
        let (reader, mut connection) = (Arc::clone(&self.reader), self.connection.take());
        self.task = Some(self.runtime.spawn(async move {
            let result = reader.read(request, &mut connection).await;
            (connection, result)
        }));
    }

    /// Takes the result of the task.
    fn task_ended(&mut self, result: Result<TaskResult, JoinError>) -> Result<()> {
        self.task = None;
        let (connection, result) =
            result.map_err(|error| Error::internal("mysql.snapshot", format!("the reading task ended: {error}")))?;
        self.connection = connection;
        self.ready = Some(result?);
        Ok(())
    }

    /// Closes the window of a chunk that the stream has passed, and starts its delivery.
    fn accept_chunk(
        &mut self,
        chunk: Chunk,
        stream: StreamState<'_>,
        tracker: &mut SnapshotTracker,
        out: &mut SourceBatch,
    ) {
        // An unusable chunk is read again.
        let Some(changed_keys) = tracker.close_window() else { return };
        tracker.define(chunk.table());
        out.schemas.push(Arc::clone(&chunk.table().schema));
        let rows: usize = chunk.pages.iter().map(RowPage::rows).sum();
        let after = chunk.pages.back().and_then(RowPage::last_key).map(|literals| chunk.position(literals));
        if after.is_some() && !chunk.is_last {
            let bytes: usize = chunk.pages.iter().map(RowPage::bytes).sum();
            let row_bytes = (bytes / rows.max(1)).max(1);
            self.chunk_rows = (CHUNK_BYTES / row_bytes).clamp(1, self.chunk_rows.saturating_mul(4));
            // The next chunk is read during the delivery of this one. The follower processes no
            // event before the end of the delivery, so both see the same stream, and the schema has
            // not changed since the chunk's request.
            let (table, condition) = (Arc::clone(chunk.table()), chunk.condition.clone());
            self.start_chunk(
                TableRequest { table, condition, after },
                Some(chunk.described.clone()),
                stream,
                tracker,
                out,
            );
        }
        self.delivery = Some(ChunkInDelivery { chunk, changed_keys });
    }

    /// Skips a table whose condition the server rejects.
    fn skip_table(
        &self,
        name: &TableName,
        why: &str,
        tracker: &mut SnapshotTracker,
        out: &mut SourceBatch,
    ) -> Result<()> {
        let source = &self.reader.options.name;
        tracing::error!(
            source,
            code = "mysql.where",
            "the requested snapshot skips {name}: the condition is invalid: {why}"
        );
        tracker.set(name, TablePosition::Done, out)
    }

    /// Emits rows of a consistent read. Returns the step after it, or `None` at the end of the
    /// read.
    fn emit_consistent(
        &mut self,
        read: &mut ConsistentRead,
        tracker: &mut SnapshotTracker,
        out: &mut SourceBatch,
    ) -> Result<Option<SnapshotStep>> {
        if !read.is_announced {
            read.is_announced = true;
            for table in &read.tables {
                tracker.define(table);
                out.schemas.push(Arc::clone(&table.schema));
            }
        }
        for (name, why) in std::mem::take(&mut read.rejected) {
            self.skip_table(&name, &why, tracker, out)?;
            read.skipped.push(name);
        }
        if let Some(page) = &mut read.page {
            // No change precedes the read.
            if self.emitting.is_empty() {
                self.emitting.clone_from(&read.names);
            }
            if !page.emit(out, &HashSet::new()) {
                return Ok(Some(SnapshotStep::BatchFull));
            }
            read.page = None;
        }
        if !read.has_ended {
            return Ok(Some(if out.is_full() { SnapshotStep::BatchFull } else { SnapshotStep::BlocksStream }));
        }
        self.emitting.clear();
        for name in &read.names {
            if read.is_skipped(name) {
                tracker.set(name, TablePosition::Done, out)?;
            } else if read.tables.iter().any(|table| table.name == *name) {
                tracker.set(name, TablePosition::Done, out)?;
                out.snapshot_ends.push(table_key(name));
            } else {
                tracker.table_dropped(name, out);
            }
        }
        Ok(None)
    }

    /// The tables whose consistent read has emitted rows and not ended.
    pub(crate) fn emitting(&self) -> &[TableName] {
        &self.emitting
    }

    /// Waits for the rows that block the stream.
    pub(crate) async fn wait(&mut self) -> Result<()> {
        if let Some(task) = &mut self.task {
            let result = task.await;
            return self.task_ended(result);
        }
        if let Some(ReadResult::Consistent(read)) = &mut self.ready
            && read.page.is_none()
        {
            match read.pages.recv().await {
                Some(message) => match message? {
                    PageMessage::Rows(page) => read.page = Some(page),
                    PageMessage::Rejected(name, why) => read.rejected.push((name, why)),
                },
                None => read.has_ended = true,
            }
        }
        Ok(())
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Emits rows of a chunk. Returns the rest of it.
fn emit_chunk(
    mut delivery: ChunkInDelivery,
    tracker: &mut SnapshotTracker,
    out: &mut SourceBatch,
) -> Result<Option<ChunkInDelivery>> {
    let ChunkInDelivery { chunk, changed_keys } = &mut delivery;
    let mut reached = None;
    while let Some(page) = chunk.pages.front_mut() {
        let is_emitted = page.emit(out, changed_keys);
        reached = page.reached_key().or(reached);
        if !is_emitted {
            break;
        }
        chunk.pages.pop_front();
    }
    if chunk.pages.is_empty() && chunk.is_last {
        failpoint!("mysql.done.before")?;
        tracker.set(&chunk.table().name, TablePosition::Done, out)?;
        out.snapshot_ends.push(table_key(&chunk.table().name));
    } else if let Some(literals) = reached {
        tracker.advance(&chunk.table().name, chunk.position(literals), out)?;
    }
    Ok((!delivery.chunk.pages.is_empty()).then_some(delivery))
}
