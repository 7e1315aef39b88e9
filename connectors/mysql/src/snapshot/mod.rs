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
mod plan;
pub(crate) mod progress_log;
pub(crate) mod reader;
mod reads;
mod select;
pub(crate) mod tracker;

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use trunkline_connector::{Result, SourceBatch, failpoint};

use self::chunk::{Chunk, ChunkRequest};
use self::consistent_read::{ConsistentRead, PageMessage};
use self::describe::TableDescription;
use self::pages::PageLimits;
use self::plan::TablePlan;
use self::reader::{ReadRequest, ReadResult, Reader};
use self::reads::{ChunkRead, Reads};
use self::tracker::{ChangedKeys, SnapshotTracker, TableRequest};
use crate::config::SnapshotMode;
use crate::position::{StreamState, TablePosition, table_key};
use crate::schema::table_name::TableName;

/// A running snapshot.
pub(crate) struct Snapshot {
    reads: Reads,
    /// The tables whose chunks are being read, in the order of their start.
    plans: Vec<TablePlan>,
    /// A consistent read is running. The stream waits until the read's position in the binlog is
    /// known: its rows belong there, and changes of tables without a key are suppressed up to
    /// there.
    blocks_stream: bool,
    /// Tables with a key that cannot be read in chunks.
    without_chunks: HashSet<TableName>,
    /// The tables of the consistent read that emits rows.
    emitting: Vec<TableName>,
    delivery: Option<ChunkInDelivery>,
}

/// A chunk whose rows are being emitted. Its changed keys are final.
struct ChunkInDelivery {
    chunk: Chunk,
    changed_keys: ChangedKeys,
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
    pub(crate) fn new(reader: Arc<Reader>, runtime: tokio::runtime::Handle) -> Result<Self> {
        Ok(Self {
            reads: Reads::new(reader, runtime)?,
            plans: Vec::new(),
            blocks_stream: false,
            without_chunks: HashSet::new(),
            emitting: Vec::new(),
            delivery: None,
        })
    }

    /// Polls the tasks that read rows. Ready when one of them has news; pending without a task.
    pub(crate) fn poll_tasks(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.reads.poll(context)
    }

    /// Emits the available rows, and starts the next reads.
    pub(crate) fn step(
        &mut self,
        stream: StreamState<'_>,
        tracker: &mut SnapshotTracker,
        out: &mut SourceBatch,
    ) -> Result<SnapshotStep> {
        loop {
            self.take_news(tracker)?;
            // The next chunks are read during the delivery of this one. The follower processes no
            // event before its end, so all of them see the same stream.
            self.start_reads(stream, tracker, out);
            if let Some(delivery) = self.delivery.take() {
                let (name, is_last) = (delivery.chunk.table().name.clone(), delivery.chunk.is_last);
                self.delivery = emit_chunk(delivery, tracker, out)?;
                if self.delivery.is_some() {
                    return Ok(SnapshotStep::BatchFull);
                }
                if is_last {
                    self.plans.retain(|plan| *plan.table() != name);
                }
            } else if tracker.left() == 0 {
                tracker.close_all_windows();
                return Ok(SnapshotStep::Done);
            } else if let Some(read) = self.reads.take_oldest() {
                let (chunk, result) = read.into_parts();
                if let Some(result) = result
                    && let Some(step) = self.take_result(chunk, result, stream, tracker, out)?
                {
                    return Ok(step);
                }
            } else {
                return Ok(if self.blocks_stream { SnapshotStep::BlocksStream } else { SnapshotStep::Waiting });
            }
        }
    }

    /// Starts reads until every reader has one.
    fn start_reads(&mut self, stream: StreamState<'_>, tracker: &mut SnapshotTracker, out: &SourceBatch) {
        // Without GTIDs, each chunk locks its table for a moment, and writers would wait for the
        // locks of several readers most of the time.
        if stream.position.processed.is_none() {
            self.reads.use_one_reader();
        }
        // Within a transaction, a window would lack the keys that were emitted before it.
        while stream.is_between_transactions && !self.blocks_stream && self.reads.has_room() {
            let is_exact = self.reads.reader().options.snapshot_mode == SnapshotMode::Exact;
            let index = match self.plans.iter().position(TablePlan::is_ready) {
                Some(index) => index,
                None => {
                    let Some(request) = tracker.next(|name| self.plans.iter().any(|plan| plan.table() == name)) else {
                        return;
                    };
                    if is_exact || request.table.order.is_empty() || self.without_chunks.contains(&request.table.name) {
                        // The stream waits for the read, so it starts after the chunks.
                        if self.reads.is_empty() && self.delivery.is_none() {
                            let tables = if is_exact { tracker.all() } else { vec![request] };
                            self.blocks_stream = true;
                            self.reads.start(None, ReadRequest::Consistent(tables, PageLimits::of(out)));
                        }
                        return;
                    }
                    self.plans.push(TablePlan::new(request));
                    self.plans.len() - 1
                }
            };
            self.start_chunk(index, stream, tracker, out);
        }
    }

    /// Starts the next chunk of a plan, and opens its window.
    fn start_chunk(&mut self, index: usize, stream: StreamState<'_>, tracker: &mut SnapshotTracker, out: &SourceBatch) {
        let (is_parallel, schema_version) = (self.reads.is_parallel(), tracker.schema_version());
        let most_rows = self.reads.reader().options.chunk_rows;
        let Some(chunk) = self.plans[index].next_chunk(is_parallel, schema_version, most_rows) else { return };
        let table = chunk.request.table.name.clone();
        let read = ChunkRead {
            window: tracker.open_window(&table),
            table,
            schema_version,
            after: chunk.request.after.clone(),
            found_bound: chunk.found_bound,
            end: chunk.end,
        };
        let mut position = stream.position.clone();
        position.end = position.end.max(stream.reached.clone());
        let request = ChunkRequest {
            request: chunk.request,
            position,
            last_end: stream.last_end.clone(),
            described: chunk.described,
            upper_bound: chunk.upper_bound,
            max_rows: chunk.max_rows,
            size: self.reads.chunk_size(),
            page: PageLimits::of(out),
        };
        self.reads.start(Some(read), ReadRequest::Chunk(Box::new(request)));
    }

    /// Continues the plans with the bounds and the chunks that arrived.
    fn take_news(&mut self, tracker: &mut SnapshotTracker) -> Result<()> {
        while let Some(index) = self.reads.next_news() {
            let chunk_bytes = self.reads.chunk_size().target;
            let Some((Some(read), result)) = self.reads.get(index) else { continue };
            let Some(plan) = self.plans.iter_mut().find(|plan| *plan.table() == read.table) else { continue };
            let is_waited_for = plan.waits_for(read.after.as_ref());
            match result {
                None if is_waited_for => plan.continue_after(read.end.clone()),
                Some(ReadResult::Chunk(chunk)) => {
                    plan.learn(chunk, read.after.as_ref(), read.schema_version, chunk_bytes);
                    if chunk.is_last {
                        plan.end();
                    } else if chunk.is_cut || is_waited_for {
                        plan.continue_after(chunk.end_key());
                    }
                    if chunk.is_cut {
                        let table = read.table.clone();
                        close_windows(tracker, self.reads.discard(&table, index + 1));
                    }
                }
                Some(ReadResult::Refused(_)) => {
                    plan.continue_after(read.after.clone());
                    let table = read.table.clone();
                    let refused = self.reads.take_result(index);
                    close_windows(tracker, self.reads.discard(&table, index));
                    self.lower_readers(refused)?;
                }
                // The stream decides when the other results count.
                _ => {}
            }
        }
        Ok(())
    }

    /// Continues with the readers that have a connection; without one, the refusal is an error.
    fn lower_readers(&mut self, refused: Option<ReadResult>) -> Result<()> {
        let Some(ReadResult::Refused(error)) = refused else { return Ok(()) };
        let Some(readers) = self.reads.lower_readers() else { return Err(error) };
        let source = &self.reads.reader().options.name;
        tracing::warn!(
            source,
            code = error.code,
            "{}; the snapshot continues with fewer connections: {readers}",
            error.message()
        );
        Ok(())
    }

    /// Takes the result of the oldest read; the step if the caller has to wait.
    fn take_result(
        &mut self,
        read: Option<ChunkRead>,
        result: ReadResult,
        stream: StreamState<'_>,
        tracker: &mut SnapshotTracker,
        out: &mut SourceBatch,
    ) -> Result<Option<SnapshotStep>> {
        match (read, result) {
            (Some(read), ReadResult::Chunk(chunk)) if stream.has_passed(&chunk.high_watermark) => {
                self.accept_chunk(&read, chunk, tracker, out);
            }
            (None, ReadResult::Consistent(mut consistent)) if stream.has_passed(&consistent.at) => {
                if let Some(step) = self.emit_consistent(&mut consistent, tracker, out)? {
                    self.reads.put_back(None, ReadResult::Consistent(consistent));
                    return Ok(Some(step));
                }
                self.blocks_stream = false;
            }
            (read, early @ (ReadResult::Chunk(_) | ReadResult::Consistent(_))) => {
                self.reads.put_back(read, early);
                return Ok(Some(SnapshotStep::Waiting));
            }
            (Some(read), result) => {
                tracker.close_window(read.window);
                match result {
                    ReadResult::Dropped(name) => tracker.table_dropped(&name, out),
                    ReadResult::WithoutChunks(description) => {
                        tracker.define(&description.table);
                        self.without_chunks.insert(read.table.clone());
                    }
                    ReadResult::KeyChanged(description) => {
                        self.warn_changed_key(&description);
                        tracker.restart(&description.table, out)?;
                    }
                    ReadResult::ConditionRejected(name, why) => self.skip_table(&name, &why, tracker, out)?,
                    // The chunk is read again.
                    _ => {}
                }
                self.plan_again(&read.table, tracker);
            }
            // No other result of a consistent read exists.
            (None, _) => self.blocks_stream = false,
        }
        Ok(None)
    }

    /// Discards the chunks of a table, and plans them again from its position.
    fn plan_again(&mut self, name: &TableName, tracker: &mut SnapshotTracker) {
        close_windows(tracker, self.reads.discard(name, 0));
        let has_chunks = |request: &TableRequest| {
            !request.table.order.is_empty() && !self.without_chunks.contains(&request.table.name)
        };
        let request = tracker.waiting_request(name).filter(has_chunks);
        match (self.plans.iter_mut().find(|plan| plan.table() == name), request) {
            (Some(plan), Some(request)) => plan.restart(request),
            _ => self.plans.retain(|plan| plan.table() != name),
        }
    }

    /// Closes the window of a chunk that the stream has passed, and starts its delivery.
    fn accept_chunk(&mut self, read: &ChunkRead, chunk: Chunk, tracker: &mut SnapshotTracker, out: &mut SourceBatch) {
        let changed_keys = tracker.close_window(read.window);
        match changed_keys.filter(|_| tracker.is_waiting(&read.table)) {
            Some(changed_keys) => {
                tracker.define(chunk.table());
                out.schemas.push(Arc::clone(&chunk.table().schema));
                self.delivery = Some(ChunkInDelivery { chunk, changed_keys });
            }
            // An unusable chunk is read again.
            None => self.plan_again(&read.table, tracker),
        }
    }

    fn warn_changed_key(&self, description: &TableDescription) {
        let (source, table) = (&self.reads.reader().options.name, &description.table);
        let key: Vec<&str> = table.key_names().collect();
        tracing::warn!(
            source,
            code = "mysql.key_changed",
            "the key of {} changed during its snapshot (now: {}), which restarts; its topic also has records with the \
             previous key",
            table.name,
            if key.is_empty() { "none".to_owned() } else { key.join(", ") }
        );
    }

    /// Skips a table whose condition the server rejects.
    fn skip_table(
        &self,
        name: &TableName,
        why: &str,
        tracker: &mut SnapshotTracker,
        out: &mut SourceBatch,
    ) -> Result<()> {
        let source = &self.reads.reader().options.name;
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
            if !page.emit(out, &ChangedKeys::default()) {
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
        if self.reads.is_running() {
            return poll_fn(|context| self.reads.poll(context)).await;
        }
        if let Some(ReadResult::Consistent(read)) = self.reads.oldest_result()
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

fn close_windows(tracker: &mut SnapshotTracker, windows: Vec<tracker::WindowId>) {
    for window in windows {
        tracker.close_window(window);
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
