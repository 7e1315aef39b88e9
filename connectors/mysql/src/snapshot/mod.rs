//! The snapshot: rows that were there before the binlog is followed, handed out between its transactions.
//!
//! The binlog is followed all the while. A row of a chunk is handed out when the follower has reached the place in the binlog that is behind everything
//! the chunk's query could see, and only if no change of that row came meanwhile: then the change itself has been handed out, and
//! is newer. So every row comes once, in its newest state, and a restart goes on after the last key that was handed out.

pub(crate) mod describe;
pub(crate) mod incremental;
pub(crate) mod progress_log;
pub(crate) mod reader;
mod rows;
pub(crate) mod select;
pub(crate) mod tracker;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use sqlx::mysql::MySqlConnection;
use tokio::task::JoinHandle;
use trunkline_connector::{Error, Result, SourceBatch, failpoint};

use self::reader::{Chunk, ChunkRequest, Reader, Request, Rows, Sent, Whole};
use self::rows::Portion;
use self::tracker::{Progress, Wanted};
use crate::binlog::follower::Follower;
use crate::config::SnapshotMode;
use crate::position::TablePosition;

/// Bytes that a chunk should have; its number of rows follows from the size of the last one's.
const CHUNK_BYTES: usize = 4 << 20;
/// Rows of the first chunk of a table: how large its rows are is not known yet.
const FIRST_ROWS: usize = 256;

/// What the reader gave back with its connection.
type Done = (Option<MySqlConnection>, Result<Rows>);

/// The snapshot at work.
pub(crate) struct Snapshot {
    reader: Arc<Reader>,
    runtime: tokio::runtime::Handle,
    connection: Option<MySqlConnection>,
    pub(crate) job: Option<JoinHandle<Done>>,
    /// The job reads whole tables: until their snapshot's place in the binlog is known, the binlog must not be read past it: the rows
    /// come there, and changes of tables without key are left out up to there and no further.
    pauses: bool,
    ready: Option<Rows>,
    handing: Option<Handing>,
    limit: usize,
}

/// A chunk that is being handed out: nothing changes in it any more.
struct Handing {
    chunk: Chunk,
    touched: HashSet<Vec<u8>>,
}

/// What [`Snapshot::step`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There are enough rows in the batch.
    Full,
    /// More rows are about to come: the binlog must wait.
    Pausing,
    /// The binlog may go on.
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
            job: None,
            pauses: false,
            ready: None,
            handing: None,
            limit: FIRST_ROWS,
        }
    }

    /// Hands out what is ready, and asks for what comes next.
    pub(crate) fn step(&mut self, follower: &Follower, progress: &mut Progress, out: &mut SourceBatch) -> Result<Step> {
        loop {
            if let Some(handing) = self.handing.take() {
                if let Some(rest) = hand_out(handing, progress, out)? {
                    self.handing = Some(rest);
                    return Ok(Step::Full);
                }
                continue;
            }
            match self.ready.take() {
                Some(Rows::Chunk(chunk)) if is_behind(follower, &chunk) => self.settle(chunk, follower, progress, out),
                Some(Rows::Whole(mut whole)) if follower.is_between() && *follower.reached() >= whole.at => {
                    if let Some(step) = self.hand_out_whole(&mut whole, progress, out)? {
                        self.ready = Some(Rows::Whole(whole));
                        return Ok(step);
                    }
                }
                Some(Rows::Dropped(table)) => {
                    progress.recorded();
                    progress.set(&table.full_name(), TablePosition::Done, out)?;
                }
                Some(Rows::Changed) => {
                    progress.recorded();
                }
                Some(Rows::Refused(table, why)) => {
                    progress.recorded();
                    self.refuse(&table.full_name(), &why, progress, out)?;
                }
                Some(early) => {
                    self.ready = Some(early);
                    return Ok(Step::Waiting);
                }
                None if self.job.is_some() => return Ok(if self.pauses { Step::Pausing } else { Step::Waiting }),
                None => {
                    if progress.left() == 0 {
                        return Ok(Step::Done);
                    }
                    if !follower.is_between() {
                        return Ok(Step::Waiting);
                    }
                    let Some(wanted) = progress.next() else { return Ok(Step::Done) };
                    if self.reader.options.snapshot_mode == SnapshotMode::Exact {
                        self.ask_whole(progress.all(), out);
                    } else if wanted.table.key.is_empty() {
                        self.ask_whole(vec![wanted], out);
                    } else {
                        self.ask(wanted, None, follower, progress, out);
                    }
                    return Ok(Step::Waiting);
                }
            }
        }
    }

    /// Has a chunk of a table read; from now on its changes are recorded. `described` is when the table was, if nothing has changed since.
    fn ask(
        &mut self,
        wanted: Wanted,
        described: Option<Instant>,
        follower: &Follower,
        progress: &mut Progress,
        out: &SourceBatch,
    ) {
        self.pauses = false;
        progress.record(&wanted.table.full_name());
        if wanted.after.is_none() {
            self.limit = FIRST_ROWS;
        }
        let limit = self.limit.clamp(1, self.reader.options.chunk_rows);
        let (position, ended) = (follower.position.clone(), follower.ended.clone());
        let portion = (out.max_bytes, out.max_records);
        self.start(Request::Chunk(Box::new(ChunkRequest { wanted, position, ended, described, limit, portion })));
    }

    /// Has tables read whole, all as of one moment.
    fn ask_whole(&mut self, tables: Vec<Wanted>, out: &SourceBatch) {
        self.pauses = true;
        self.start(Request::Whole(tables, (out.max_bytes, out.max_records)));
    }

    fn start(&mut self, request: Request) {
        let (reader, mut connection) = (Arc::clone(&self.reader), self.connection.take());
        self.job = Some(self.runtime.spawn(async move {
            let rows = reader.read(request, &mut connection).await;
            (connection, rows)
        }));
    }

    /// Takes up what the job gave back.
    pub(crate) fn arrived(&mut self, done: std::result::Result<Done, tokio::task::JoinError>) -> Result<()> {
        self.job = None;
        let (connection, rows) =
            done.map_err(|error| Error::internal("mysql.snapshot", format!("the reader of rows ended: {error}")))?;
        self.connection = connection;
        self.ready = Some(rows?);
        Ok(())
    }

    /// The follower is behind everything that the chunk could see: what it has not seen changing is as it was read.
    fn settle(&mut self, chunk: Chunk, follower: &Follower, progress: &mut Progress, out: &mut SourceBatch) {
        let Some(touched) = progress.recorded() else {
            // It cannot be taken, and is asked for once more.
            return;
        };
        progress.define(&chunk.table);
        out.schemas.push(Arc::clone(&chunk.table.schema));
        let rows: usize = chunk.portions.iter().map(Portion::rows).sum();
        let after = chunk.portions.back().and_then(Portion::last);
        if after.is_some() && !chunk.last {
            let bytes: usize = chunk.portions.iter().map(Portion::bytes).sum();
            self.limit = (CHUNK_BYTES / (bytes / rows.max(1)).max(1)).clamp(1, self.limit.saturating_mul(4));
            // The next chunk is read while this one is handed out: until that is over no event is looked at, so that both see the same. And no
            // definition has changed since this one was asked for.
            let (table, condition) = (Arc::clone(&chunk.table), chunk.condition.clone());
            self.ask(Wanted { table, condition, after }, Some(chunk.described), follower, progress, out);
        }
        self.handing = Some(Handing { chunk, touched });
    }

    /// Notes that a table is not read: its condition cannot be had.
    fn refuse(&self, name: &str, why: &str, progress: &mut Progress, out: &mut SourceBatch) -> Result<()> {
        let source = &self.reader.options.name;
        tracing::error!(source, code = "mysql.where", "the rows of {name} that were asked for are not read: {why}");
        progress.set(name, TablePosition::Done, out)
    }

    /// Hands out rows of tables that are read whole; how it goes on, unless it was all of them.
    fn hand_out_whole(
        &self,
        whole: &mut Whole,
        progress: &mut Progress,
        out: &mut SourceBatch,
    ) -> Result<Option<Step>> {
        if !whole.told {
            whole.told = true;
            for table in &whole.tables {
                progress.define(table);
                out.schemas.push(Arc::clone(&table.schema));
            }
        }
        for (name, why) in whole.refused.drain(..) {
            self.refuse(&name, &why, progress, out)?;
        }
        if let Some(portion) = &mut whole.portion {
            // No change of a row is before the moment that it is of.
            if !portion.hand_out(out, &HashSet::new()) {
                return Ok(Some(Step::Full));
            }
            whole.portion = None;
        }
        if !whole.ended {
            return Ok(Some(if out.is_full() { Step::Full } else { Step::Pausing }));
        }
        // Those of them that are gone have no more rows either.
        for name in &whole.names {
            progress.set(name, TablePosition::Done, out)?;
        }
        Ok(None)
    }

    /// Waits for what the binlog is paused for: rows of tables that are read whole.
    pub(crate) async fn pause(&mut self) -> Result<()> {
        if let Some(job) = &mut self.job {
            let done = job.await;
            return self.arrived(done);
        }
        if let Some(Rows::Whole(whole)) = &mut self.ready
            && whole.portion.is_none()
        {
            match whole.portions.recv().await {
                Some(sent) => match sent? {
                    Sent::Rows(portion) => whole.portion = Some(portion),
                    Sent::Refused(name, why) => whole.refused.push((name, why)),
                },
                None => whole.ended = true,
            }
        }
        Ok(())
    }
}

/// Is the follower past everything that a chunk's query could see?
fn is_behind(follower: &Follower, chunk: &Chunk) -> bool {
    follower.is_between() && *follower.reached() >= chunk.before
}

/// Hands out rows of a chunk; what is left of it, if anything.
fn hand_out(mut handing: Handing, progress: &mut Progress, out: &mut SourceBatch) -> Result<Option<Handing>> {
    let Handing { chunk, touched } = &mut handing;
    let mut reached = None;
    while let Some(portion) = chunk.portions.front_mut() {
        let whole = portion.hand_out(out, touched);
        reached = portion.reached().or(reached);
        if !whole {
            break;
        }
        chunk.portions.pop_front();
    }
    let name = chunk.table.full_name();
    if chunk.portions.is_empty() && chunk.last {
        failpoint!("mysql.done.before")?;
        progress.set(&name, TablePosition::Done, out)?;
    } else if let Some(key) = reached {
        progress.advance(&name, key, out)?;
    }
    Ok((!handing.chunk.portions.is_empty()).then_some(handing))
}
