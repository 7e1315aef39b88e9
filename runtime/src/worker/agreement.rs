//! The workers of a cluster agree on the plans that they run: two versions of a component never run
//! at the same time, although each worker has loaded its own pipeline files.
//!
//! Each worker has a row in `_trunkline.checkpoints` with the fingerprints of the plans that it
//! runs ([`fingerprint`](crate::plan::fingerprint)). Before a task starts, its worker writes the
//! fingerprint into its own row (a claim), and then reads the rows of the others. Of two workers
//! with different claims at least one sees the other's. A worker that sees one withdraws its own
//! claim, and tries again later; a worker that runs the component is never disturbed.
//!
//! A row is renewed every [`BEAT`]. A row that has not changed for [`DEAD_AFTER`], by the clock of
//! its reader, belongs to a worker that is gone. A worker that was suspended for that long compares
//! the rows again before it renews its own claims; meanwhile Kafka's groups and transactional ids
//! fence what it shares with others (I4).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use trunkline_connector::{Error, Result, Retry};

use crate::backoff::jitter;
use crate::checkpoint::WorkerRows;
use crate::stage::{GIVE_UP as STAGE_GIVE_UP, StageState, StageStatus, StopSignal, WorkerContext};

/// Time between two checks for new tasks.
const POLL: Duration = Duration::from_millis(20);

/// The same while there are none. New ones end the wait.
const IDLE_POLL: Duration = Duration::from_millis(200);

/// Time after which a row is renewed.
const BEAT: Duration = Duration::from_secs(3);

/// A worker whose row has not changed for this time is gone.
const DEAD_AFTER: Duration = Duration::from_secs(15);

/// After a silence of this length, another worker may have taken this one for dead.
const LONG_SILENCE: Duration = Duration::from_secs(10);

/// Longest time between two claims.
const RETRY: Duration = Duration::from_secs(3);

/// With `--until-idle`, a task fails that has been refused for this time, because a job must end.
const GIVE_UP: Duration = Duration::from_secs(45);

/// Time to remove the row of a worker that stops.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// The same warning is repeated after this time.
const REPEAT_WARNING: Duration = Duration::from_secs(60);

/// The fingerprints of the plans that a worker runs, by component.
type Claims = BTreeMap<String, String>;

/// The permission of a task to run.
pub(super) struct Permit {
    /// `{pipeline}.{component}`.
    component: String,
    fingerprint: String,
    status: Arc<StageStatus>,
    is_granted: AtomicBool,
    /// Since when it has been refused.
    refused: Mutex<Option<Instant>>,
}

impl Permit {
    pub(super) fn new(fingerprint: String, status: Arc<StageStatus>) -> Arc<Self> {
        Arc::new(Self {
            component: status.name(),
            fingerprint,
            status,
            is_granted: AtomicBool::new(false),
            refused: Mutex::new(None),
        })
    }

    pub(super) fn is_granted(&self) -> bool {
        self.is_granted.load(Ordering::Acquire)
    }

    fn grant(&self) {
        if self.refused.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            tracing::info!(stage = self.component, "no worker runs another version of this component any more");
        }
        self.is_granted.store(true, Ordering::Release);
    }

    /// The job ends without this task, because the plans cannot be compared.
    fn fail(&self, error: &Error) {
        if !self.is_granted() && !self.status.is_over() {
            tracing::error!(stage = self.component, %error, "failed: the plans of the cluster's workers cannot be compared");
            self.status.set_state(StageState::Failed(error.to_string()));
        }
    }

    /// Reports the first refusal.
    fn refuse(&self, other: &OtherWorker, gives_up: bool) {
        self.is_granted.store(false, Ordering::Release);
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *refused {
            Some(since) => since,
            None => {
                let error = difference(&other.name);
                tracing::error!(
                    stage = self.component,
                    %error,
                    "not started: it starts when all workers have this version, or with --allow-divergence"
                );
                self.status.failed(&error.to_string());
                *refused.insert(Instant::now())
            }
        };
        if gives_up && since.elapsed() > GIVE_UP && !self.status.is_over() {
            self.status.set_state(StageState::Failed(difference(&other.name).to_string()));
        }
    }
}

fn difference(other: &str) -> Error {
    let message = format!(
        "{other} runs another version of this component: load the same pipeline files and plugins in all workers of the \
         cluster"
    );
    Error::config("worker.plans_differ", message)
}

/// The value of a worker's row.
#[derive(Serialize, Deserialize)]
struct Row {
    node: String,
    /// Differs in each version of the row.
    beat: u128,
    plans: Claims,
}

/// Another worker of the cluster that is alive.
struct OtherWorker {
    key: Vec<u8>,
    name: String,
    plans: Claims,
    /// Its row has not changed for long.
    is_dead: bool,
}

/// The thread that keeps this worker's row and grants permits.
pub(super) struct Agreement {
    permits: Arc<Mutex<Vec<Weak<Permit>>>>,
    finish: StopSignal,
    thread: JoinHandle<()>,
}

impl Agreement {
    /// Starts the thread. `allow_divergence`: differences are reported, and everything runs.
    pub(super) fn spawn(context: &WorkerContext, allow_divergence: bool) -> Result<Self> {
        let permits: Arc<Mutex<Vec<Weak<Permit>>>> = Arc::default();
        let finish = StopSignal::default();
        let mut keeper = Keeper {
            rows: WorkerRows::new(&context.cluster, &context.names.cluster, &context.names.worker)?,
            node: context.names.node.clone(),
            allow_divergence,
            until_idle: context.until_idle,
            claimed: Claims::new(),
            last_beat: None,
            next_claim: Instant::now(),
            seen: BTreeMap::new(),
            warned: None,
            failing_since: None,
        };
        let (watched, finished) = (permits.clone(), finish.clone());
        let idle_poll = if context.until_idle { POLL } else { IDLE_POLL };
        let body = move || {
            while !finished.wait_for_change(POLL, idle_poll) {
                keeper.step(&alive(&watched));
            }
            keeper.finish();
        };
        let thread = std::thread::Builder::new()
            .name("agreement".to_owned())
            .spawn(body)
            .map_err(|error| Error::external("worker.thread", format!("cannot start a thread: {error}")))?;
        Ok(Self { permits, finish, thread })
    }

    /// Claims these permits. A claim lasts as long as the permit: until its task was replaced and
    /// has ended.
    pub(super) fn watch<'p>(&self, permits: impl Iterator<Item = &'p Arc<Permit>>) {
        let mut watched = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        for permit in permits {
            if !watched.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(permit))) {
                watched.push(Arc::downgrade(permit));
                self.finish.announce();
            }
        }
    }

    /// Withdraws all claims. Call it when no task runs.
    pub(super) fn finish(self) {
        self.finish.set();
        // A panic of the thread has been logged, and its row counts as dead soon.
        let _ = self.thread.join();
    }
}

fn alive(permits: &Mutex<Vec<Weak<Permit>>>) -> Vec<Arc<Permit>> {
    let mut permits = permits.lock().unwrap_or_else(PoisonError::into_inner);
    permits.retain(|permit| permit.strong_count() > 0);
    permits.iter().filter_map(Weak::upgrade).collect()
}

/// Keeps the row of this worker.
struct Keeper {
    rows: WorkerRows,
    node: String,
    allow_divergence: bool,
    until_idle: bool,
    /// The claims of the row.
    claimed: Claims,
    last_beat: Option<Instant>,
    next_claim: Instant,
    /// The rows of the other workers, and since when they have not changed.
    seen: BTreeMap<Vec<u8>, (Vec<u8>, Instant)>,
    warned: Option<Instant>,
    failing_since: Option<Instant>,
}

impl Keeper {
    fn step(&mut self, permits: &[Arc<Permit>]) {
        let Err(error) = self.try_step(permits) else {
            self.failing_since = None;
            return;
        };
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        // A job must end.
        if self.until_idle && (error.retry == Retry::Never || since.elapsed() > STAGE_GIVE_UP) {
            permits.iter().for_each(|permit| permit.fail(&error));
        }
        self.next_claim = Instant::now() + jitter(RETRY);
        if self.warned.is_none_or(|at| at.elapsed() >= REPEAT_WARNING) {
            self.warned = Some(Instant::now());
            tracing::warn!(%error, "the plans of the cluster's workers cannot be compared; trying again");
        }
    }

    fn try_step(&mut self, permits: &[Arc<Permit>]) -> Result<()> {
        let (granted, waiting): (Vec<&Permit>, Vec<&Permit>) =
            permits.iter().map(Arc::as_ref).partition(|permit| permit.is_granted());
        let running: Claims = claims(&granted);
        // The last version of a task must end first.
        let is_free = |permit: &Permit| running.get(&permit.component).is_none_or(|it| *it == permit.fingerprint);
        let asking: Vec<&Permit> = waiting.into_iter().filter(|permit| is_free(permit)).collect();
        if !asking.is_empty() && self.next_claim <= Instant::now() {
            return self.claim(running, &asking);
        }
        let Some(last_beat) = self.last_beat else { return Ok(()) };
        let silence = last_beat.elapsed();
        if silence < BEAT && running == self.claimed {
            return Ok(());
        }
        if silence > LONG_SILENCE {
            let others = self.live_others()?;
            granted.iter().for_each(|permit| self.decide(permit, &others));
        }
        self.write(running)
    }

    /// Claims the plans of permits, and grants those that no other worker contradicts.
    fn claim(&mut self, running: Claims, asking: &[&Permit]) -> Result<()> {
        let mut wanted = running.clone();
        wanted.append(&mut claims(asking));
        self.write(wanted)?;
        let others = self.live_others()?;
        let claimed = self.claimed.clone();
        let is_claimed = |permit: &&&Permit| claimed.get(&permit.component) == Some(&permit.fingerprint);
        asking.iter().filter(is_claimed).for_each(|permit| self.decide(permit, &others));
        let granted: Vec<&Permit> = asking.iter().copied().filter(|permit| permit.is_granted()).collect();
        if granted.len() < asking.len() {
            self.next_claim = Instant::now() + jitter(RETRY);
            let mut kept = running;
            kept.append(&mut claims(&granted));
            self.write(kept)?;
        }
        Ok(())
    }

    fn decide(&self, permit: &Permit, others: &[OtherWorker]) {
        let differs = |other: &&OtherWorker| {
            other.plans.get(&permit.component).is_some_and(|fingerprint| *fingerprint != permit.fingerprint)
        };
        match others.iter().find(differs) {
            Some(other) if self.allow_divergence => {
                if !permit.is_granted() {
                    tracing::warn!(stage = permit.component, error = %difference(&other.name), "started nevertheless");
                }
                permit.grant();
            }
            Some(other) => permit.refuse(other, self.until_idle),
            None => permit.grant(),
        }
    }

    /// The rows of the other workers that are alive. The rows of dead ones are removed.
    fn live_others(&mut self) -> Result<Vec<OtherWorker>> {
        let mut seen = std::mem::take(&mut self.seen);
        let mut others = Vec::new();
        for (key, value) in self.rows.read_others()? {
            let Ok(Row { node, beat: _, plans }) = serde_json::from_slice(&value) else {
                tracing::debug!(key = %String::from_utf8_lossy(&key), "the row of a worker cannot be read");
                continue;
            };
            let name = format!("the worker `{}` (node `{node}`)", self.rows.worker_of(&key));
            let since = match seen.remove(&key) {
                Some((known, since)) if known == value => since,
                _ => Instant::now(),
            };
            self.seen.insert(key.clone(), (value, since));
            others.push(OtherWorker { key, name, plans, is_dead: since.elapsed() > DEAD_AFTER });
        }
        let (dead, live): (Vec<OtherWorker>, Vec<OtherWorker>) = others.into_iter().partition(|other| other.is_dead);
        for other in dead {
            tracing::info!("{} is gone: its claims on components end", other.name);
            self.rows.remove(&other.key)?;
        }
        Ok(live)
    }

    fn write(&mut self, plans: Claims) -> Result<()> {
        // It need not be a time, but it must be new after a restart.
        let beat = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let row = Row { node: self.node.clone(), beat, plans };
        let json = serde_json::to_vec(&row).map_err(|error| Error::internal("worker.row", error.to_string()))?;
        self.rows.write(&json)?;
        self.last_beat = Some(Instant::now());
        self.claimed = row.plans;
        Ok(())
    }

    fn finish(&self) {
        if self.last_beat.is_some()
            && let Err(error) = self.rows.remove_own(FINISH_LIMIT)
        {
            tracing::debug!(%error, "the row of this worker was not removed: others take it for dead soon");
        }
    }
}

fn claims(permits: &[&Permit]) -> Claims {
    permits.iter().map(|permit| (permit.component.clone(), permit.fingerprint.clone())).collect()
}
