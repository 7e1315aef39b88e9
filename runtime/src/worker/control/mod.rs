//! How people control a cluster while it runs: components are paused, resumed and restarted.
//!
//! A request is a few rows in `_trunkline.checkpoints`. Each worker follows the partition of these
//! rows and compares them with its tasks, so a request reaches all workers within a second, and a
//! pause outlives every worker. The worker reads all rows before it starts a task.
//!
//! Each worker also writes the states of its tasks into a row when they change, so that every
//! worker can answer for the whole cluster, and a sign of life every second.

mod busy;
mod row_order;
mod view;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde_json::{Value, json};
use trunkline_connector::{Error, Result};

use self::busy::Busy;
use self::row_order::RowOrder;
pub use self::view::{Components, Request, Target, View};
use super::Overview;
use crate::checkpoint::{
    AliveRow, AuditEntry, ConnectorRow, ControlRow, ControlRows, RunState, StateRow, TaskRow, WorkerTasks, user_name,
};
use crate::kafka::{Cluster, TableFollower};
use crate::stage::{StopSignal, WorkerContext};

/// Time between two looks at new rows.
const POLL: Duration = Duration::from_millis(250);

/// Time between two signs of life, and between two comparisons of the tasks with their row.
const PUBLISH: Duration = Duration::from_secs(1);

/// Tasks of a worker that is gone are removed after this time.
const REMOVE_AFTER: Duration = Duration::from_secs(60);

/// A row that this worker has written arrives within this time.
const SHOWN_AFTER: Duration = Duration::from_secs(10);

/// Time for a worker to show a sign of life to a command, with room for a slow broker.
const SIGN_LIMIT: Duration = Duration::from_secs(3);

/// Time between two looks for signs of life.
const SIGN_POLL: Duration = Duration::from_millis(50);

/// Time to remove the row of a worker that stops.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// The same warning is repeated after this time.
const REPEAT_WARNING: Duration = Duration::from_secs(60);

/// Writes the rows of requests.
pub trait RowStore: Send {
    /// Writes rows in this order. Returns their offsets.
    fn write(&self, rows: &[ControlRow]) -> Result<Vec<i64>>;
}

impl RowStore for Arc<Mutex<ControlRows>> {
    fn write(&self, rows: &[ControlRow]) -> Result<Vec<i64>> {
        let writer = self.lock().unwrap_or_else(PoisonError::into_inner);
        rows.iter().map(|row| writer.write(row)).collect()
    }
}

/// The control of a cluster, as one worker knows it. Clones share their state.
#[derive(Clone, Default)]
pub struct Control {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    view: Mutex<View>,
    order: Mutex<RowOrder>,
    /// Changes with each row that may concern a task.
    version: AtomicU64,
    /// See [`Control::changes`].
    changes: AtomicU64,
    connection: Mutex<Option<Connection>>,
    http: Mutex<Option<String>>,
}

/// The connection of a worker to its cluster.
pub(crate) struct Connection {
    /// Writes the rows of requests.
    pub(crate) store: Box<dyn RowStore>,
    /// This worker's machine.
    pub(crate) node: String,
    /// Who started this worker, and when, in milliseconds since the Unix epoch.
    pub(crate) started: (String, i64),
    /// For answers about topics and offsets: Kafka, and the name of the cluster.
    pub(crate) kafka: Option<(Cluster, String)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// What is known of the cluster now.
    pub fn view(&self) -> View {
        lock(&self.shared.view).clone()
    }

    /// Changes with each row that may concern a task.
    pub(super) fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }

    /// Changes with each row, except for further signs of life of a worker that is alive.
    pub(crate) fn changes(&self) -> u64 {
        self.shared.changes.load(Ordering::Acquire)
    }

    /// The number of workers that are alive.
    pub(crate) fn alive_workers(&self) -> usize {
        lock(&self.shared.view).workers(Instant::now()).count()
    }

    /// The address of this worker's HTTP server, for the other workers' users.
    pub fn set_http(&self, address: Option<String>) {
        *lock(&self.shared.http) = address;
    }

    /// Writes the rows of a request. `known` are the components of this worker. Returns the
    /// components that it names.
    pub fn request(&self, request: &Request, target: &Target, known: &Components) -> Result<Components> {
        let view = self.view();
        let mut all = view.components(Instant::now());
        all.extend(known.iter().cloned());
        let rows = rows_of(&view, request, target, &all)?;
        self.record(request, target)?;
        // A restart takes effect when its row is read, so that it happens once.
        self.write(rows, |row| matches!(row, ControlRow::State(..)))?;
        target.among(&all)
    }

    /// Writes rows. The worker's answers and tasks follow at once those that `shows` selects.
    fn write(&self, rows: Vec<ControlRow>, shows: impl Fn(&ControlRow) -> bool) -> Result<()> {
        let offsets = lock(&self.shared.connection).as_ref().ok_or_else(not_connected)?.store.write(&rows)?;
        for (row, offset) in rows.into_iter().zip(offsets).filter(|(row, _)| shows(row)) {
            self.apply_in_order(row, |order, row| order.admits_written(row, offset));
        }
        Ok(())
    }

    /// Takes over a row that was read at this offset.
    pub(crate) fn read(&self, offset: i64, row: ControlRow) {
        self.apply_in_order(row, |order, row| order.admits_read(row, offset));
    }

    fn apply_in_order(&self, row: ControlRow, admits: impl FnOnce(&mut RowOrder, &ControlRow) -> bool) {
        // Held until the row is applied: another thread may apply a later one.
        let mut order = lock(&self.shared.order);
        if admits(&mut order, &row) {
            self.apply(row);
        }
    }

    /// Writes the request to the audit log.
    fn record(&self, request: &Request, target: &Target) -> Result<()> {
        let component = target.component.as_ref().map(|component| format!("{}.{component}", target.pipeline));
        let mut arguments = json!({ "name": component.unwrap_or_else(|| target.pipeline.clone()) });
        if let Request::Restart { failed_only, task } = request {
            arguments["failed_only"] = json!(failed_only);
            arguments["task"] = json!(task);
        }
        self.audit(request.name(), arguments)
    }

    /// Stores a connector that was created by REST, or removes it. A new one begins in the state
    /// `initial`. `arguments` are those of the audit log.
    pub(crate) fn store_connector(
        &self,
        name: &str,
        row: Option<ConnectorRow>,
        initial: RunState,
        arguments: Value,
    ) -> Result<()> {
        self.audit(if row.is_some() { "store connector" } else { "delete connector" }, arguments)?;
        // The state of an earlier connector of this name has no meaning for a new one. It stays
        // until then: the tasks of a deleted connector end later than its row.
        let is_new = row.is_some() && !self.view().connectors().contains_key(name);
        let initial = (initial != RunState::Running)
            .then(|| StateRow { state: initial, since: Timestamp::now().as_millisecond() });
        let state = is_new.then(|| ControlRow::State(name.to_owned(), initial));
        let rows: Vec<_> = state.into_iter().chain([ControlRow::Connector(name.to_owned(), row)]).collect();
        self.write(rows, |_| true)
    }

    /// Writes an HTTP request to the audit log. If this fails, the request must be refused.
    pub(crate) fn audit(&self, command: &str, arguments: Value) -> Result<()> {
        let Some((cluster, entry)) = self.entry(command, arguments)? else { return Ok(()) };
        entry.write(&cluster).map_err(|error| entry.refused(error))?;
        log_entry(&entry);
        Ok(())
    }

    /// The same for a request that only shows records: without the right to write entries, it is
    /// recorded in the worker's log alone.
    pub(crate) fn audit_reading(&self, command: &str, arguments: Value) -> Result<()> {
        let Some((cluster, entry)) = self.entry(command, arguments)? else { return Ok(()) };
        match entry.write_if_permitted(&cluster)? {
            None => {}
            Some(reason) => tracing::warn!(target: "trunkline::audit", "{reason}"),
        }
        log_entry(&entry);
        Ok(())
    }

    /// The entry of a request; `None` without Kafka.
    fn entry(&self, command: &str, arguments: Value) -> Result<Option<(Cluster, AuditEntry)>> {
        let connection = lock(&self.shared.connection).as_ref().map(|connection| connection.kafka.clone());
        let Some((cluster, name)) = connection.ok_or_else(not_connected)? else { return Ok(None) };
        Ok(Some((cluster, AuditEntry::of_request(&name, command, arguments))))
    }

    /// Kafka, and the name of the cluster.
    pub fn kafka(&self) -> Result<(Cluster, String)> {
        let connection = lock(&self.shared.connection);
        connection.as_ref().and_then(|connection| connection.kafka.clone()).ok_or_else(not_connected)
    }

    /// The tasks of this worker.
    pub fn own_tasks(&self, overview: &Overview) -> WorkerTasks {
        let (node, http) = self.place();
        let started = lock(&self.shared.connection).as_ref().map(|connection| connection.started.clone());
        let (user, started) = started.unzip();
        WorkerTasks { node, http, user: user.unwrap_or_default(), started, tasks: task_rows(overview) }
    }

    /// The machine of this worker, and the address of its HTTP server, as it shows them in Kafka.
    pub(crate) fn place(&self) -> (String, Option<String>) {
        let node = lock(&self.shared.connection).as_ref().map(|connection| connection.node.clone());
        (node.unwrap_or_default(), lock(&self.shared.http).clone())
    }

    /// Starts to answer from these rows.
    pub(crate) fn connect(&self, view: View, connection: Connection) {
        *lock(&self.shared.view) = view;
        *lock(&self.shared.connection) = Some(connection);
        self.shared.changes.fetch_add(1, Ordering::AcqRel);
        self.shared.version.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn apply(&self, row: ControlRow) {
        let concerns_tasks = matches!(row, ControlRow::State(..) | ControlRow::Restart(..));
        let mut view = lock(&self.shared.view);
        let is_known_sign = match &row {
            ControlRow::Alive(worker, Some(_)) | ControlRow::Beat(worker, true) => view.is_known(worker),
            _ => false,
        };
        view.apply(row, Instant::now());
        drop(view);
        if !is_known_sign {
            self.shared.changes.fetch_add(1, Ordering::AcqRel);
        }
        if concerns_tasks {
            self.shared.version.fetch_add(1, Ordering::AcqRel);
        }
    }
}

fn log_entry(entry: &AuditEntry) {
    let AuditEntry { user, host, command, arguments, .. } = entry;
    tracing::info!(target: "trunkline::audit", %user, %host, %command, %arguments, "a request to the worker");
}

fn not_connected() -> Error {
    let message = "the worker is not connected to Kafka yet: try again in a few seconds";
    Error::external("control.not_connected", message)
}

/// The rows of a request that is made now.
pub fn rows_of(view: &View, request: &Request, target: &Target, known: &Components) -> Result<Vec<ControlRow>> {
    let id = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
    view.rows_of(request, target, known, &id, Timestamp::now().as_millisecond())
}

/// Reads the rows of a cluster. Returns them, and the connection.
pub fn read(cluster: &Cluster, name: &str) -> Result<(View, ControlRows)> {
    let rows = ControlRows::new(cluster, name)?;
    let table = rows.follow();
    let view = load(&rows, &table)?;
    Ok((view, rows))
}

/// Reads the rows of a cluster, and waits until each of its workers has shown a sign of life, but
/// not longer than [`SIGN_LIMIT`]. Only the others count as alive then: the rows of a worker that
/// was killed stay until another worker removes them.
pub fn read_alive(cluster: &Cluster, name: &str) -> Result<View> {
    let rows = ControlRows::new(cluster, name)?;
    let (table, mut view) = follow(&rows)?;
    let begun = Instant::now();
    while !view.left_behind().is_empty() && begun.elapsed() < SIGN_LIMIT {
        std::thread::park_timeout(SIGN_POLL);
        table.poll(|_, key, value| {
            let Some(row) = rows.parse(key, value) else { return };
            if let ControlRow::Alive(worker, is_alive) = &row {
                view.apply(ControlRow::Beat(worker.clone(), is_alive.is_some()), Instant::now());
            }
            view.apply(row, Instant::now());
        });
    }
    Ok(view)
}

/// Reads the rows of a cluster, without the signs of life: they are old. Returns what follows them.
pub fn follow(rows: &ControlRows) -> Result<(TableFollower, View)> {
    let table = rows.follow();
    let mut view = load(rows, &table)?;
    view.forget_signs();
    Ok((table, view))
}

fn load(rows: &ControlRows, table: &TableFollower) -> Result<View> {
    let mut view = View::default();
    let now = Instant::now();
    table.load(|_, key, value| {
        if let Some(row) = rows.parse(key, value) {
            view.apply(row, now);
        }
    })?;
    Ok(view)
}

/// The thread that follows the rows and writes the row of this worker.
pub(super) struct Follower {
    finish: StopSignal,
    thread: JoinHandle<()>,
}

impl Follower {
    /// Reads all rows, and starts the thread.
    pub(super) fn start(context: &WorkerContext, overview: &Overview, control: &Control) -> Result<Self> {
        let rows = ControlRows::new(&context.cluster, &context.names.cluster)?;
        let table = rows.follow();
        let view = load(&rows, &table)?;
        let rows = Arc::new(Mutex::new(rows));
        let names = &context.names;
        let connection = Connection {
            store: Box::new(rows.clone()),
            node: names.node.clone(),
            started: (user_name(), Timestamp::now().as_millisecond()),
            kafka: Some((context.cluster.clone(), names.cluster.clone())),
        };
        control.connect(view, connection);
        let mut publisher = Publisher {
            worker: names.worker.clone(),
            overview: overview.clone(),
            control: control.clone(),
            rows,
            written: None,
            busy: Busy::default(),
            is_shown: false,
            is_job: context.until_idle,
            left_behind: None,
            warned: None,
        };
        let finish = StopSignal::default();
        let finished = finish.clone();
        let body = move || {
            let mut last = Instant::now();
            while !finished.wait(POLL) {
                let mut arrived = Vec::new();
                {
                    let rows = lock(&publisher.rows);
                    table.poll(|offset, key, value| {
                        arrived.extend(rows.parse(key, value).map(|row| (offset, row)));
                    });
                }
                arrived.into_iter().for_each(|(offset, row)| publisher.control.read(offset, row));
                if last.elapsed() >= PUBLISH {
                    last = Instant::now();
                    publisher.publish();
                }
            }
            publisher.finish();
        };
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(body)
            .map_err(|error| Error::external("worker.thread", format!("cannot start a thread: {error}")))?;
        Ok(Self { finish, thread })
    }

    /// Removes the row of this worker.
    pub(super) fn finish(self) {
        self.finish.set();
        // A panic of the thread has been logged, and the row has no effect without a worker.
        let _ = self.thread.join();
    }
}

/// Writes the states of this worker's tasks when they change.
struct Publisher {
    worker: String,
    overview: Overview,
    control: Control,
    rows: Arc<Mutex<ControlRows>>,
    /// The row as it was last written, and when.
    written: Option<(WorkerTasks, Instant)>,
    busy: Busy,
    /// It has shown a sign of life, which it removes at its end.
    is_shown: bool,
    /// A job shows no tasks: it ends by itself.
    is_job: bool,
    /// Workers whose tasks are left behind, and since when.
    left_behind: Option<(Vec<String>, Instant)>,
    warned: Option<Instant>,
}

impl Publisher {
    fn publish(&mut self) {
        if let Err(error) = self.try_publish()
            && self.warned.is_none_or(|at| at.elapsed() >= REPEAT_WARNING)
        {
            self.warned = Some(Instant::now());
            tracing::warn!(%error, "the states of this worker's tasks are not shown to the cluster; trying again");
        }
    }

    fn try_publish(&mut self) -> Result<()> {
        let write = |row: &ControlRow| lock(&self.rows).write(row);
        let busy = self.busy.components(&self.overview);
        if !self.is_job || self.is_shown || !busy.is_empty() {
            let node = if busy.is_empty() { String::new() } else { self.control.place().0 };
            write(&ControlRow::Alive(self.worker.clone(), Some(AliveRow { node, busy })))?;
            self.is_shown = true;
        }
        if self.is_job {
            return Ok(());
        }
        let tasks = self.control.own_tasks(&self.overview);
        let (left_behind, is_shown) = {
            let view = lock(&self.control.shared.view);
            (view.left_behind(), view.has_tasks_of(&self.worker))
        };
        // The row of a worker that hung for long may have been removed by another one.
        let is_current = |(row, at): &(WorkerTasks, Instant)| *row == tasks && (is_shown || at.elapsed() < SHOWN_AFTER);
        if !self.written.as_ref().is_some_and(is_current) {
            write(&ControlRow::Tasks(self.worker.clone(), Some(tasks.clone())))?;
            self.written = Some((tasks, Instant::now()));
        }
        match &self.left_behind {
            Some((workers, since)) if *workers == left_behind => {
                if since.elapsed() >= REMOVE_AFTER {
                    let others = workers.iter().filter(|worker| **worker != self.worker);
                    for row in others.flat_map(|worker| tombstones(worker)) {
                        write(&row)?;
                    }
                    self.left_behind = None;
                }
            }
            _ => self.left_behind = Some((left_behind, Instant::now())),
        }
        Ok(())
    }

    fn finish(&self) {
        if !self.is_shown {
            return;
        }
        let write = |row| lock(&self.rows).write_within(&row, FINISH_LIMIT).map(drop);
        if let Err(error) = tombstones(&self.worker).into_iter().try_for_each(write) {
            tracing::debug!(%error, "the rows of this worker were not removed: another worker removes them");
        }
    }
}

/// The rows that remove what a worker shows.
fn tombstones(worker: &str) -> [ControlRow; 2] {
    [ControlRow::Tasks(worker.to_owned(), None), ControlRow::Alive(worker.to_owned(), None)]
}

/// The states of a worker's tasks.
fn task_rows(overview: &Overview) -> Vec<TaskRow> {
    let tasks = overview.tasks();
    let rows = tasks.iter().map(|(number, status)| {
        let (state, error) = status.shown_state();
        TaskRow {
            pipeline: status.pipeline.clone(),
            component: status.component.clone(),
            kind: status.kind.name().to_owned(),
            task: *number,
            state: state.to_owned(),
            error,
        }
    });
    rows.collect()
}
