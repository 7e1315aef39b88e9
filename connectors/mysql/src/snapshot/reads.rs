//! [`Reads`]: the readers of a snapshot, and the reads that they were given.
//!
//! Every reader has a connection, and encodes the rows that it reads. Reads stay in the order of
//! their start, in which their rows are emitted. So the chunks of a table are emitted in the order
//! of its key, and one key is the table's whole position.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use trunkline_connector::{Error, Result};

use super::reader::{ReadRequest, ReadResult, Reader};
use super::tracker::WindowId;
use crate::connection::query::QueryConnection;
use crate::position::KeyPosition;
use crate::schema::table_name::TableName;

/// The target size of a chunk. The number of rows follows from the size of earlier rows.
const CHUNK_BYTES: usize = 4 << 20;
/// The smallest target, for a small budget of memory.
const MIN_CHUNK_BYTES: usize = 256 << 10;
/// A chunk ends early when its rows are larger than this multiple of the target.
const MAX_EXCESS: usize = 4;

/// Limits on the size of a chunk, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkSize {
    /// The size that the number of rows aims at.
    pub(super) target: usize,
    /// The chunk ends early when its rows are larger than this.
    pub(super) most: usize,
    /// The chunk reserves at most this much of the memory budget.
    pub(super) reserved: usize,
}

/// The result of a task, and its connection.
type TaskResult = (Option<QueryConnection>, Result<ReadResult>);

/// The readers and their reads.
pub(super) struct Reads {
    reader: Arc<Reader>,
    threads: Threads,
    /// Connections without a read.
    idle: Vec<QueryConnection>,
    queue: VecDeque<Read>,
    /// The maximum number of running reads.
    readers: usize,
}

/// A read whose rows were not emitted yet.
pub(super) struct Read {
    /// The chunk; `None` for a consistent read.
    pub(super) chunk: Option<ChunkRead>,
    task: Option<JoinHandle<TaskResult>>,
    result: Option<ReadResult>,
    /// The result was not examined yet.
    is_new: bool,
    /// The rows are not needed any more.
    is_discarded: bool,
}

/// A chunk that is being read.
pub(super) struct ChunkRead {
    pub(super) table: TableName,
    pub(super) window: WindowId,
    /// The version of the schema at the request.
    pub(super) schema_version: u64,
    /// The key that precedes the chunk.
    pub(super) after: Option<KeyPosition>,
    /// Receives the bound that the reader looks up.
    pub(super) found_bound: Option<oneshot::Receiver<KeyPosition>>,
    /// The upper bound, after which the next chunk starts.
    pub(super) end: Option<KeyPosition>,
}

/// The threads that run the readers.
struct Threads {
    handle: Handle,
    own: Option<Runtime>,
}

impl Threads {
    /// Several readers have their own threads: encoding would keep those of the connectors busy.
    fn start(count: usize, shared: Handle) -> Result<Self> {
        if count == 1 {
            return Ok(Self { handle: shared, own: None });
        }
        let runtime = Builder::new_multi_thread().worker_threads(count).thread_name("snapshot").enable_all().build();
        let runtime = runtime.map_err(|error| {
            let message = format!("cannot start {count} threads: {error}; lower `snapshot_threads`");
            Error::external("mysql.snapshot_threads", message)
        })?;
        Ok(Self { handle: runtime.handle().clone(), own: Some(runtime) })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.own.take() {
            // Waits for nothing: a reader ends at its next row.
            runtime.shutdown_background();
        }
    }
}

impl Reads {
    pub(super) fn new(reader: Arc<Reader>, shared: Handle) -> Result<Self> {
        let readers = reader.options.snapshot_threads;
        let threads = Threads::start(readers, shared)?;
        Ok(Self { reader, threads, idle: Vec::new(), queue: VecDeque::new(), readers })
    }

    pub(super) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Whether chunks of a table may be read at the same time.
    pub(super) fn is_parallel(&self) -> bool {
        self.readers > 1
    }

    /// No read is running or waiting.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether another chunk can start. Chunks that wait for others keep their memory, so their
    /// number is limited. A chunk waits for those that were started before it, never for one that
    /// has not started, so the limit stops none forever.
    pub(super) fn has_room(&self) -> bool {
        let most = if self.readers == 1 { 1 } else { 2 * self.readers };
        let is_free = self.running() < self.readers && self.queue.len() < most;
        is_free && (self.queue.is_empty() || !self.reader.budget.is_tight())
    }

    fn running(&self) -> usize {
        self.queue.iter().filter(|read| read.task.is_some()).count()
    }

    /// The limits on the size of a chunk. All chunks together aim at an eighth of the budget.
    pub(super) fn chunk_size(&self) -> ChunkSize {
        let (budget, chunks) = (self.reader.budget.limit(), 2 * self.readers);
        let target = (budget / 8 / chunks).clamp(MIN_CHUNK_BYTES, CHUNK_BYTES);
        // One more is being delivered. The stage needs a part of the budget to take their rows, so
        // chunks of very large rows must not reserve all of it.
        ChunkSize { target, most: target * MAX_EXCESS, reserved: budget / 2 / (chunks + 1) }
    }

    pub(super) fn start(&mut self, chunk: Option<ChunkRead>, request: ReadRequest) {
        let (reader, mut connection) = (Arc::clone(&self.reader), self.idle.pop());
        let task = self.threads.handle.spawn(async move {
            let result = reader.read(request, &mut connection).await;
            (connection, result)
        });
        self.queue.push_back(Read { chunk, task: Some(task), result: None, is_new: false, is_discarded: false });
    }

    /// Polls the running reads. Ready when one of them ended, or found its bound; pending without a
    /// running read.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut outcome = Poll::Pending;
        for read in &mut self.queue {
            if let Some(chunk) = &mut read.chunk
                && let Some(receiver) = &mut chunk.found_bound
                && let Poll::Ready(found) = Pin::new(receiver).poll(context)
            {
                chunk.found_bound = None;
                chunk.end = found.ok().or(chunk.end.take());
                read.is_new = true;
                outcome = Poll::Ready(Ok(()));
            }
            let Some(task) = &mut read.task else { continue };
            let Poll::Ready(ended) = Pin::new(task).poll(context) else { continue };
            read.task = None;
            // The bound was sent before the result.
            if let Some(chunk) = &mut read.chunk
                && let Some(mut receiver) = chunk.found_bound.take()
            {
                chunk.end = receiver.try_recv().ok().or(chunk.end.take());
            }
            match ended_read(ended) {
                Ok((connection, result)) => {
                    self.idle.extend(connection);
                    (read.result, read.is_new) = (result, true);
                    outcome = Poll::Ready(Ok(()));
                }
                // The rows of a discarded read are not needed.
                Err(_) if read.is_discarded => outcome = Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        outcome
    }

    /// Whether a read is running.
    pub(super) fn is_running(&self) -> bool {
        self.running() > 0
    }

    /// The next read with news: its bound, or its result.
    pub(super) fn next_news(&mut self) -> Option<usize> {
        // Discarded reads remain until their connection is free.
        self.queue.retain(|read| !read.is_discarded || read.task.is_some());
        let index = self.queue.iter().position(|read| read.is_new && !read.is_discarded)?;
        self.queue[index].is_new = false;
        Some(index)
    }

    /// A read, and its result.
    pub(super) fn get(&self, index: usize) -> Option<(Option<&ChunkRead>, Option<&ReadResult>)> {
        self.queue.get(index).map(|read| (read.chunk.as_ref(), read.result.as_ref()))
    }

    /// Takes the result of a read.
    pub(super) fn take_result(&mut self, index: usize) -> Option<ReadResult> {
        self.queue.get_mut(index)?.result.take()
    }

    /// Takes the result of the oldest read with its chunk, if it has ended.
    pub(super) fn take_oldest(&mut self) -> Option<Read> {
        let index = self.queue.iter().position(|read| !read.is_discarded)?;
        match self.queue[index].result {
            Some(_) => self.queue.remove(index),
            None => None,
        }
    }

    /// Returns the oldest read.
    pub(super) fn put_back(&mut self, chunk: Option<ChunkRead>, result: ReadResult) {
        self.queue.push_front(Read { chunk, task: None, result: Some(result), is_new: false, is_discarded: false });
    }

    /// The result of the oldest read.
    pub(super) fn oldest_result(&mut self) -> Option<&mut ReadResult> {
        self.queue.front_mut()?.result.as_mut()
    }

    /// Discards the chunks of a table from this read on. Returns their windows.
    pub(super) fn discard(&mut self, table: &TableName, from: usize) -> Vec<WindowId> {
        let mut windows = Vec::new();
        for read in self.queue.iter_mut().skip(from).filter(|read| !read.is_discarded) {
            if let Some(chunk) = read.chunk.as_ref().filter(|chunk| chunk.table == *table) {
                windows.push(chunk.window);
                (read.is_discarded, read.result) = (true, None);
            }
        }
        windows
    }

    pub(super) fn use_one_reader(&mut self) {
        self.readers = 1;
    }

    /// Continues with the readers that have a connection. Returns their number; `None` if there is
    /// no other reader.
    pub(super) fn lower_readers(&mut self) -> Option<usize> {
        let connected = self.idle.len() + self.running();
        self.readers = self.readers.min(connected.max(1));
        (connected > 0).then_some(self.readers)
    }
}

impl Read {
    /// The chunk, and its result.
    pub(super) fn into_parts(self) -> (Option<ChunkRead>, Option<ReadResult>) {
        (self.chunk, self.result)
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        for task in self.queue.iter().filter_map(|read| read.task.as_ref()) {
            task.abort();
        }
    }
}

/// The connection and the result of a task.
fn ended_read(ended: Result<TaskResult, JoinError>) -> Result<(Option<QueryConnection>, Option<ReadResult>)> {
    let (connection, result) =
        ended.map_err(|error| Error::internal("mysql.snapshot", format!("a reading task ended: {error}")))?;
    Ok((connection, Some(result?)))
}
