//! The running source: the follower of the binlog and the snapshot beside it, filling batches in turn.
//!
//! Everything that fails outside ends the source with an error and the position where it was; the stage opens it again with backoff. So there is one
//! way to begin, after a restart of the worker as after one of the server.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use sqlx::mysql::MySqlConnection;
use trunkline_connector::{Error, Fill, Result, Source, SourceBatch, SourceContext, SourceLag, failpoint};

use crate::binlog::follower::Follower;
use crate::binlog::{Binlog, Identity};
use crate::config::{MysqlOptions, OnPurged, Snapshot as When};
use crate::connection::connect::{query_connection, server};
use crate::connection::server_info::{Server, beginning, binlog_end, check_not_behind, still_has};
use crate::position::{Place, STREAM, StreamPosition, TablePosition, read_position, table_key};
use crate::replication::event_frame::Event;
use crate::retention::Headroom;
use crate::snapshot::progress_log::Meter;
use crate::snapshot::reader::Reader;
use crate::snapshot::tracker::Progress;
use crate::snapshot::{Snapshot, Step, describe};

/// Without records, the position is noted this often, moved or not: an idle source moves on too, and the binlog behind it may be purged.
const NOTE_POSITION: Duration = Duration::from_secs(5);
/// How often the server is asked where its binlog ends, while everything has been read.
const ASK_END: Duration = Duration::from_secs(1);
/// A batch with something in it waits no longer for more.
const LINGER: Duration = Duration::from_millis(1);
/// The server sends a heartbeat several times a second: silence for so long is a dead connection.
const SILENCE: Duration = Duration::from_secs(30);

/// A source at work.
pub(crate) struct MysqlSource {
    options: Arc<MysqlOptions>,
    runtime: tokio::runtime::Handle,
    until_idle: bool,
    queries: MySqlConnection,
    binlog: Binlog,
    follower: Follower,
    progress: Progress,
    snapshot: Option<Snapshot>,
    meter: Meter,
    headroom: Headroom,
    /// Where the server's binlog ended when it was asked last, and when that was.
    end: Place,
    asked: Instant,
    heard: Instant,
    /// Bytes of the binlog's connection that had come then.
    received: u64,
    /// The stream's position as it was noted last, and when.
    noted: StreamPosition,
    noted_at: Instant,
    /// Keys of a position that was given up: they are removed with the first batch.
    obsolete: Vec<String>,
    caught_up: bool,
}

/// What came while the source waited.
enum Came {
    Event(Event),
    Rows,
    Nothing,
}

impl MysqlSource {
    pub(crate) fn open(options: Arc<MysqlOptions>, context: SourceContext) -> Result<Self> {
        let runtime = context.runtime.clone();
        runtime.block_on(Self::begin(options, context))
    }

    async fn begin(options: Arc<MysqlOptions>, context: SourceContext) -> Result<Self> {
        let mut queries = query_connection(&options).await?;
        let server = Server::ask(&options, &mut queries).await?;
        let (mut stream, mut tables) = read_position(&context.position)?;
        // Before anything else is read: what is committed after this is in the binlog that is followed.
        let mut first = match stream {
            Some(_) => None,
            None => Some(beginning(&options, &mut queries, server.gtids).await?),
        };
        failpoint!("mysql.begin.after")?;
        let mut known = describe::tables(&options, &mut queries, &server.charsets, None).await?;
        if known.is_empty() {
            tracing::warn!(
                source = options.name,
                "`tables` chooses none of the tables that are there now; waiting for some to be created"
            );
        }
        let done = |name: &String| tables.get(name) == Some(&TablePosition::Done);
        // Of a snapshot that is complete nothing is missed, whatever became of the binlog.
        let is_over = options.snapshot == When::Only && known.iter().all(|table| done(&table.full_name()));
        let mut obsolete = Vec::new();
        if let Some(position) = &stream
            && !is_over
        {
            check_not_behind(&options, &mut queries, server.gtids, position).await?;
            if !still_has(&options, &mut queries, position).await? {
                let lost = server.gtids.in_its_words(purged(&options, position));
                if options.on_purged == OnPurged::Stop {
                    return Err(lost);
                }
                tracing::warn!(source = options.name, "{}; beginning anew with a snapshot", lost.message());
                obsolete = tables.keys().map(|name| table_key(name)).collect();
                tables.clear();
                first = Some(beginning(&options, &mut queries, server.gtids).await?);
                known = describe::tables(&options, &mut queries, &server.charsets, None).await?;
            }
        }
        // A first position is noted at once: from then on nothing is missed, however early the source is stopped.
        let (position, noted) = match (first, stream.take()) {
            (None, Some(position)) => (position.clone(), position),
            (first, _) => (first.unwrap_or_default(), StreamPosition::default()),
        };
        let known: HashMap<_, _> = known.into_iter().map(|table| (table.full_name(), table)).collect();
        let mut progress = Progress::new(tables, known);
        progress.plan(options.snapshot != When::Never);
        let identity = Identity::new(&context.task, options.server_id);
        let binlog = Binlog::open(&options, &identity, &position, context.scratch).await?;
        failpoint!("mysql.binlog.after")?;
        let (end, _) = binlog_end(&options, &mut queries).await?;
        let reader = Reader {
            options: Arc::clone(&options),
            charsets: Arc::clone(&server.charsets),
            budget: context.budget.clone(),
            server_id: server.server_id,
            gtids: server.gtids,
            visible: Mutex::default(),
        };
        let snapshot = (progress.left() > 0).then(|| Snapshot::new(Arc::new(reader), context.runtime.clone()));
        let guess = match progress.left() {
            0 => 0,
            _ => describe::guessed_rows(&options, &mut queries, &progress.waiting()).await?,
        };
        let meter = Meter::new(progress.left(), guess);
        let headroom = Headroom::new(server.retention);
        let now = Instant::now();
        Ok(Self {
            noted,
            follower: Follower::new(Arc::clone(&options), server, position)?,
            options,
            runtime: context.runtime,
            until_idle: context.until_idle,
            queries,
            binlog,
            progress,
            snapshot,
            meter,
            headroom,
            end,
            asked: now,
            heard: now,
            received: 0,
            noted_at: now,
            obsolete,
            caught_up: false,
        })
    }

    /// Fills the batch; `true` when everything that was there has been handed out.
    fn work(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<bool> {
        self.follower.emitter.set_now(jiff::Timestamp::now().as_millisecond());
        loop {
            if self.follower.has_rows() {
                failpoint!("mysql.rows.before")?;
                self.follower.hand_out(out, &mut self.progress)?;
            }
            if out.is_full() || self.follower.has_rows() {
                return Ok(false);
            }
            let step = self.snapshot_step(out)?;
            if out.is_full() || step == Step::Full {
                return Ok(false);
            }
            let paused = step == Step::Pausing;
            if self.options.snapshot == When::Only && self.snapshot.is_none() {
                // Nothing else will ever come.
                if !self.until_idle {
                    self.runtime.block_on(async { tokio::time::sleep_until(deadline.into()).await });
                }
                return Ok(true);
            }
            // Nobody waits for more than is there.
            if self.until_idle && *self.follower.reached() >= self.end && self.is_caught_up()? {
                return Ok(true);
            }
            let until = if out.is_empty() { deadline } else { deadline.min(Instant::now() + LINGER) };
            let is_over = match self.wait(until, paused)? {
                Came::Event(event) => {
                    self.heard = Instant::now();
                    self.describe_for(&event)?;
                    self.follower.take(event, out, &mut self.progress)?;
                    Instant::now() >= deadline
                }
                Came::Rows => Instant::now() >= deadline,
                Came::Nothing => {
                    self.check_silence(paused)?;
                    true
                }
            };
            if is_over {
                // Also after an event: it may have been a heartbeat. They come in a rhythm, and fills of the same rhythm end with one each.
                return self.is_caught_up();
            }
        }
    }

    /// Lets the snapshot take its turn.
    fn snapshot_step(&mut self, out: &mut SourceBatch) -> Result<Step> {
        let Some(snapshot) = &mut self.snapshot else { return Ok(Step::Done) };
        let before = out.records.len() + out.rejected.len();
        let step = snapshot.step(&self.follower, &mut self.progress, out)?;
        self.meter.add(out.records.len() + out.rejected.len() - before);
        if let Some(line) = self.meter.due(self.progress.left()) {
            tracing::info!(source = self.options.name, "{line}");
        }
        if step == Step::Done {
            tracing::info!(source = self.options.name, "{}; it is complete", self.meter.end());
            self.snapshot = None;
        }
        Ok(step)
    }

    /// Waits for an event or for rows of the snapshot; while that pauses the binlog, only for these.
    fn wait(&mut self, until: Instant, paused: bool) -> Result<Came> {
        let Self { runtime, binlog, snapshot, options, .. } = self;
        let came = runtime.block_on(async {
            let next = async {
                if paused && let Some(snapshot) = snapshot.as_mut() {
                    return snapshot.pause().await.map(|()| Came::Rows);
                }
                let mut event = pin!(binlog.next(options));
                poll_fn(|context| {
                    if let Some(snapshot) = snapshot.as_mut()
                        && let Some(job) = &mut snapshot.job
                        && let Poll::Ready(done) = Pin::new(job).poll(context)
                    {
                        return Poll::Ready(snapshot.arrived(done).map(|()| Came::Rows));
                    }
                    event.as_mut().poll(context).map_ok(Came::Event)
                })
                .await
            };
            tokio::time::timeout_at(until.into(), next).await
        });
        came.unwrap_or(Ok(Came::Nothing))
    }

    /// Asks the server what a table map leaves open.
    fn describe_for(&mut self, event: &Event) -> Result<()> {
        let Some((database, name)) = self.follower.asks_for(event) else { return Ok(()) };
        let charsets = self.follower.charsets();
        let only = Some((database.as_str(), name.as_str()));
        let described = describe::tables(&self.options, &mut self.queries, &charsets, only);
        let described = self.runtime.block_on(described)?;
        self.follower.told(format!("{database}.{name}"), described.first().map_or(&[], |table| &table.columns));
        Ok(())
    }

    fn check_silence(&mut self, paused: bool) -> Result<()> {
        // An event of a gigabyte may take longer to come.
        let received = self.binlog.received();
        if paused || received > self.received {
            self.heard = Instant::now();
            self.received = received;
        }
        if self.heard.elapsed() > SILENCE {
            let server = server(&self.options);
            return Err(Error::external("mysql.silence", format!("{server} has sent nothing for {SILENCE:?}")));
        }
        Ok(())
    }

    /// Has everything been handed out that the server has?
    fn is_caught_up(&mut self) -> Result<bool> {
        if self.snapshot.is_some() || !self.follower.is_between() {
            return Ok(false);
        }
        if self.until_idle || self.asked.elapsed() >= ASK_END {
            (self.end, _) = self.runtime.block_on(binlog_end(&self.options, &mut self.queries))?;
            self.asked = Instant::now();
        }
        Ok(*self.follower.reached() >= self.end)
    }

    fn mind_headroom(&mut self) {
        if let Some(written_at) = self.follower.written_at.take() {
            self.headroom.read(written_at, jiff::Timestamp::now().as_millisecond());
        }
        if self.caught_up {
            self.headroom.caught_up();
        }
        if let Some(warning) = self.headroom.warning() {
            let warning = Error::external("mysql.headroom", format!("{}: {warning}", server(&self.options)));
            let warning = self.follower.gtids().in_its_words(warning);
            tracing::warn!(source = self.options.name, "{}", warning.message());
        }
    }

    /// Notes the position if it moved: with records always, without any now and then.
    fn note(&mut self, out: &mut SourceBatch) -> Result<()> {
        let position = &self.follower.position;
        let due = !out.is_empty() || self.noted_at.elapsed() >= NOTE_POSITION || self.caught_up && self.until_idle;
        let moved = *position != self.noted && (due || self.noted == StreamPosition::default());
        // Where nothing happens, too: only by writing does a task learn that its position was changed (`trunkline snapshot`).
        if moved || self.noted_at.elapsed() >= NOTE_POSITION {
            out.set_position(STREAM, Some(position.to_bytes()?));
            self.noted = position.clone();
            self.noted_at = Instant::now();
        }
        Ok(())
    }
}

impl Source for MysqlSource {
    fn fill(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<Fill> {
        for key in std::mem::take(&mut self.obsolete) {
            out.set_position(&key, None);
        }
        let outcome = self.work(out, deadline).map_err(|error| self.follower.gtids().in_its_words(error));
        self.caught_up = outcome.as_ref().is_ok_and(|caught_up| *caught_up);
        self.mind_headroom();
        // After an error too: what was handed out before it is kept.
        self.note(out)?;
        outcome.map(|caught_up| if caught_up { Fill::CaughtUp } else { Fill::More })
    }

    fn lag(&self) -> SourceLag {
        let retention_left = self.headroom.left();
        if self.caught_up {
            return SourceLag { bytes: Some(0), retention_left, ..SourceLag::default() };
        }
        let reached = self.follower.reached();
        let bytes = if reached.file == self.end.file { self.end.pos.saturating_sub(reached.pos) } else { self.end.pos };
        SourceLag { bytes: Some(bytes.max(1)), records: None, age: None, retention_left }
    }
}

impl Drop for MysqlSource {
    fn drop(&mut self) {
        if let Some(job) = self.snapshot.as_mut().and_then(|snapshot| snapshot.job.take()) {
            job.abort();
        }
    }
}

fn purged(options: &MysqlOptions, position: &StreamPosition) -> Error {
    let place = &position.place;
    Error::data(
        "mysql.purged",
        format!(
            "{} has purged the binlog that follows this source's position ({}:{}): changes are lost. Set `on_purged = \"resnapshot\"` to begin anew with \
             a snapshot, and keep the binlog longer: SET PERSIST binlog_expire_logs_seconds = 604800",
            server(options),
            place.file,
            place.pos
        ),
    )
}
