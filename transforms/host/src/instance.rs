//! An [`Instance`]: a running plugin of one task.
//!
//! # Processing a batch
//! Records are passed in calls of at most `batch_records` records and `batch_bytes` bytes. A batch
//! that fits into one call is passed in place; otherwise, each call gets a packed copy of its
//! records. A batch is also packed if most of its bytes are unused, or are parts of records that
//! the plugin does not read. The outcome is collected separately and replaces the batch after all
//! calls have succeeded, so an error leaves the batch unchanged.
//!
//! A call in which the plugin crashes is repeated in parts: see [`isolation`].
//!
//! Plugins with timers have another loop, which also decides where calls end: see [`timed`].

mod isolation;
mod packing;
mod timed;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::{Batch, Entry, Error, Rejections, Retry, Schema};

use crate::guest::{CallError, Guest, GuestCrash, InitReply, Inputs};
use crate::host_functions::Metrics;
use crate::limits::{CrashLog, CrashWindow, Limits};
use crate::plugin::Plugin;
use crate::schema_fits::{SchemaFits, SchemaStore};
use crate::state::StateStore;
use crate::verdict::{Call, Counts, Outcome, Rules, VerdictError};

use packing::{copy_records, is_sparse};
use timed::{Called, Timing};

/// Begins the error of a batch that is not retried.
const STOP: &str = "stop: ";

/// A running plugin with its configuration. It belongs to one task.
pub struct Instance {
    plugin: Plugin,
    config: String,
    limits: Limits,
    ports: Vec<String>,
    reply: InitReply,
    /// `None` after a crash, until the next call.
    guest: Option<Guest>,
    crashes: CrashWindow,
    crash_log: CrashLog,
    last_crash: Option<GuestCrash>,
    outcome: Outcome,
    /// The batch of a call that is not passed in place.
    packed: Batch,
    /// Metrics of the current batch, merged into `metrics` when it succeeds.
    batch_metrics: Metrics,
    metrics: Metrics,
    /// The state of the current batch.
    state: Option<StateStore>,
    timing: Timing,
    schema_fits: SchemaFits,
}

impl Instance {
    /// The output port of verdicts that name no other port.
    pub const DEFAULT_PORT: &'static str = "default";

    pub(crate) fn new(plugin: Plugin, config: String, limits: Limits, guest: Guest, reply: InitReply) -> Self {
        let mut ports = vec![Self::DEFAULT_PORT.to_owned()];
        ports.extend(reply.ports.iter().cloned());
        Self {
            plugin,
            config,
            limits,
            ports,
            reply,
            guest: Some(guest),
            crashes: CrashWindow::default(),
            crash_log: CrashLog::default(),
            last_crash: None,
            outcome: Outcome::default(),
            packed: Batch::default(),
            batch_metrics: Metrics::default(),
            metrics: Metrics::default(),
            state: None,
            timing: Timing::default(),
            schema_fits: SchemaFits::default(),
        }
    }

    /// Gives the instance the schemas that records name, so that changed records can keep theirs.
    /// Without them, changed records have no schema unless the plugin [keeps
    /// it](Instance::keeps_schema).
    pub fn with_schemas(mut self, store: Arc<dyn SchemaStore>) -> Self {
        self.schema_fits.set_store(store);
        self
    }

    /// The schemas that were derived from those of changed records, because these no longer fitted.
    /// Publish them with the records that name them.
    pub fn derived_schemas(&self) -> &[Arc<Schema>] {
        self.schema_fits.derived()
    }

    /// Names of the output ports, indexed by [`Entry::port`]. The first is `default`.
    pub fn ports(&self) -> &[String] {
        &self.ports
    }

    /// Whether the plugin declares that changed values still fit their schema. If not,
    /// [`Instance::process`] compares them with it.
    pub fn keeps_schema(&self) -> bool {
        self.reply.keeps_schema
    }

    /// The plugin of this instance.
    pub fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    /// Bytes of linear memory in use.
    pub fn memory(&self) -> usize {
        self.guest.as_ref().map_or(0, Guest::memory)
    }

    /// Takes the metrics of the batches that succeeded since the previous call of this function.
    pub fn take_metrics(&mut self) -> Metrics {
        std::mem::take(&mut self.metrics)
    }

    /// Checks whether the next batch may start. A started batch is always finished, regardless of
    /// how often the plugin crashes: an interrupted batch would be interrupted at the same record
    /// each time it is read again.
    ///
    /// # Errors
    /// `plugin.restarts`: the plugin crashed on [`Limits::crashes_per_minute`] records within a
    /// minute. The error states how long to wait.
    pub fn ready(&mut self) -> Result<(), Error> {
        let Some(wait) = self.crashes.until_allowed(Instant::now(), self.limits.crashes_per_minute) else {
            return Ok(());
        };
        let message = format!(
            "{} crashed on {} records within a minute; last cause: {}. Fix the plugin, or filter such records out \
             before it. Earlier records are committed; later records wait",
            self.plugin.name(),
            self.limits.crashes_per_minute,
            self.last_crash_message()
        );
        Err(Error::external("plugin.restarts", message).retry(Retry::After(wait)))
    }

    /// Runs all records of `batch` through the plugin. Afterwards `batch` contains the output
    /// records, in order and with [`Entry::port`] set; they share its arena. Records that the
    /// plugin rejected or crashed on are added to `rejected` unchanged.
    ///
    /// # Errors
    /// - `plugin.failed`: the plugin reports that the batch may be retried.
    /// - `plugin.stopped`: it reports that a retry does not help.
    /// - `plugin.start`: the plugin cannot be restarted after a crash.
    /// - `plugin.protocol`: the verdicts are malformed. A retry does not help.
    ///
    /// After an error, `batch` and `rejected` are unchanged.
    pub fn process(&mut self, batch: &mut Batch, rejected: &mut Rejections) -> Result<Counts, Error> {
        if batch.is_empty() {
            return Ok(Counts::default());
        }
        self.begin();
        let all = 0..batch.len();
        if self.state.is_some() && self.plugin.uses_timers() {
            self.run_timed(batch)?;
        } else if self.fits_in_place(batch, &all)? {
            let timeout = self.limits.timeout;
            if let Called::Crashed(crash) = self.call_in_place(batch, timeout)? {
                self.isolate(batch, all, crash, timeout)?;
            }
        } else {
            self.run_packed(batch, all)?;
        }
        Ok(self.apply_outcome(batch, rejected))
    }

    fn begin(&mut self) {
        self.outcome.clear();
        self.timing.rejected.clear();
        self.batch_metrics = Metrics::default();
    }

    /// Like [`Instance::process`], for a batch of one topic partition whose state the plugin may
    /// use. The changes stay in the store's transaction. After an error, the state is unchanged.
    ///
    /// The timers that the records make due fire, each before the first record that does. What they
    /// emit is part of the output, and counted as extra records. A timer that is rejected, or that
    /// crashes the plugin, is a rejection with the key and time of the timer, without a value and
    /// with the header `trunkline.timer`.
    ///
    /// # Errors
    /// Also `plugin.state_full`: the state has reached its limit; errors of the disk that has the
    /// state; and `plugin.timer_loop`: timers set timers that are due, without end.
    pub fn process_with_state(
        &mut self,
        batch: &mut Batch,
        rejected: &mut Rejections,
        state: &mut StateStore,
    ) -> Result<Counts, Error> {
        self.with_state(state, |instance| instance.process(batch, rejected))
    }

    /// Lends the state to a call.
    fn with_state<R>(
        &mut self,
        state: &mut StateStore,
        call: impl FnOnce(&mut Self) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let savepoint = state.savepoint();
        self.state = Some(std::mem::replace(state, StateStore::new(0)));
        let outcome = call(self);
        if let Some(used) = self.state.take() {
            *state = used;
        }
        match outcome.is_ok() {
            true => state.release(savepoint),
            false => state.rollback_to(savepoint),
        }
        outcome
    }

    /// Ends the plugin's work: appends the records that the plugin still emits to `batch`.
    ///
    /// # Errors
    /// As for [`Instance::process`]. If the plugin crashes here, its unemitted records are lost.
    pub fn flush(&mut self, batch: &mut Batch) -> Result<Counts, Error> {
        let verdicts = self.guest()?.flush();
        self.batch_metrics = Metrics::default();
        let verdicts = match verdicts {
            Ok(verdicts) => verdicts,
            Err(CallError::BatchFailed(message)) => return Err(self.batch_failed(&message)),
            Err(CallError::Crashed(crash)) => {
                let message = format!("{} crashed during flush: {}", self.plugin.name(), crash.message);
                self.discard_guest(crash);
                return Err(Error::external("plugin.trap", message));
            }
        };
        // the input record of the verdict: it has no key, value, headers and timestamp
        let mut empty_record = Batch::default();
        let topic = batch.topic_index("");
        empty_record.record().finish();
        self.outcome.clear();
        let rules = Rules { call: Call::Flush, ..self.rules() };
        let applied = self.outcome.apply(verdicts, &empty_record, 0..1, &rules, &mut self.schema_fits);
        applied.map_err(|error| self.verdict_error(error))?;
        self.collect_metrics();
        self.metrics.merge(std::mem::take(&mut self.batch_metrics));
        let shift = batch.append(&self.outcome.bytes).wrapping_sub(empty_record.arena_bytes() as u32);
        let mut entries = batch.take_entries();
        entries.extend(self.outcome.entries.iter().map(|entry| Entry {
            topic,
            key_at: entry.key_at.wrapping_add(shift),
            value_at: entry.value_at.wrapping_add(shift),
            headers_at: entry.headers_at.wrapping_add(shift),
            ..*entry
        }));
        batch.set_entries(entries);
        let emitted = self.outcome.entries.len() as u64;
        Ok(Counts { out: emitted, extra: emitted, ..Counts::default() })
    }

    /// Whether the records of a call are the whole batch, and need no packed copy.
    fn fits_in_place(&mut self, batch: &Batch, records: &Range<usize>) -> Result<bool, Error> {
        let inputs = self.guest()?.inputs();
        let is_whole = records.len() == batch.len() && self.call_len(batch, records, Inputs::ALL) == batch.len();
        Ok(is_whole && !is_sparse(batch, inputs))
    }

    /// Passes the batch in one call. The only copy is the one into the plugin's memory.
    fn call_in_place(&mut self, batch: &mut Batch, timeout: Duration) -> Result<Called, Error> {
        self.guest()?;
        let savepoint = begin_state(&mut self.state, batch);
        let Some(guest) = &mut self.guest else { return Err(no_instance()) };
        let called = guest.process(batch.seal(), timeout, &mut self.state);
        self.end_call(called, batch, 0..batch.len(), savepoint)
    }

    /// Runs the records in several calls, each with a packed batch.
    fn run_packed(&mut self, batch: &Batch, records: Range<usize>) -> Result<(), Error> {
        let mut start = records.start;
        while start < records.end {
            let inputs = self.guest()?.inputs();
            let call = start..start + self.call_len(batch, &(start..records.end), inputs);
            let timeout = self.limits.timeout;
            if let Called::Crashed(crash) = self.call_packed(batch, call.clone(), timeout)? {
                self.isolate(batch, call.clone(), crash, timeout)?;
            }
            start = call.end;
        }
        Ok(())
    }

    fn call_packed(&mut self, batch: &Batch, records: Range<usize>, timeout: Duration) -> Result<Called, Error> {
        let inputs = self.guest()?.inputs();
        copy_records(&mut self.packed, batch, records.clone(), inputs);
        let savepoint = begin_state(&mut self.state, &self.packed);
        let Some(guest) = &mut self.guest else { return Err(no_instance()) };
        let called = guest.process(self.packed.seal(), timeout, &mut self.state);
        self.end_call(called, batch, records, savepoint)
    }

    /// Applies the result of a call, or takes back its changes.
    fn end_call(
        &mut self,
        called: Result<Vec<u8>, CallError>,
        batch: &Batch,
        records: Range<usize>,
        savepoint: Option<usize>,
    ) -> Result<Called, Error> {
        if called.is_ok()
            && let Some(due) = self.timer_due_within(batch, &records)
        {
            self.discard_call(savepoint);
            return Ok(Called::TimerDue(due));
        }
        let crash = self.apply_verdicts(called, batch, records, &self.rules())?;
        self.end_state(savepoint, crash.is_some())?;
        Ok(crash.map_or(Called::Done, Called::Crashed))
    }

    /// Keeps the changes of a call, or takes them back if it crashed. An error takes back those of
    /// the batch.
    fn end_state(&mut self, savepoint: Option<usize>, crashed: bool) -> Result<(), Error> {
        let (Some(state), Some(savepoint)) = (&mut self.state, savepoint) else { return Ok(()) };
        if !crashed {
            state.end_batch();
        }
        if let Some(failure) = state.take_failure() {
            return Err(failure);
        }
        if !crashed {
            state.release(savepoint);
            return Ok(());
        }
        if state.is_full() {
            return Err(state.full_error());
        }
        state.rollback_to(savepoint);
        Ok(())
    }

    /// Adds the verdicts of a call to the outcome, or returns the crash of the call.
    fn apply_verdicts(
        &mut self,
        called: Result<Vec<u8>, CallError>,
        batch: &Batch,
        records: Range<usize>,
        rules: &Rules,
    ) -> Result<Option<GuestCrash>, Error> {
        let crash = match called {
            Ok(verdicts) => match self.outcome.apply(verdicts, batch, records, rules, &mut self.schema_fits) {
                Ok(()) => {
                    if let Some(error) = self.schema_fits.take_error() {
                        return Err(error);
                    }
                    self.collect_metrics();
                    return Ok(None);
                }
                Err(VerdictError::OutputLimit(message)) => {
                    GuestCrash { code: GuestCrash::OUTPUT, message, output: Vec::new() }
                }
                Err(error) => return Err(self.verdict_error(error)),
            },
            Err(CallError::BatchFailed(message)) => return Err(self.batch_failed(&message)),
            Err(CallError::Crashed(crash)) => crash,
        };
        self.discard_guest(crash.clone());
        Ok(Some(crash))
    }

    /// Replaces the batch by the outcome.
    fn apply_outcome(&mut self, batch: &mut Batch, rejected: &mut Rejections) -> Counts {
        for (index, reason) in self.outcome.rejections.drain(..) {
            rejected.push(batch.get(index), reason);
        }
        for (timer, reason) in self.timing.rejected.iter() {
            rejected.push(timer, reason.clone());
        }
        let spare = batch.take_entries();
        batch.append(&self.outcome.bytes);
        batch.set_entries(std::mem::replace(&mut self.outcome.entries, spare));
        self.outcome.entries.clear();
        self.metrics.merge(std::mem::take(&mut self.batch_metrics));
        let counts = self.outcome.counts;
        debug_assert_eq!(counts.records_in + counts.extra, counts.out + counts.dropped + counts.rejected);
        counts
    }

    /// The running guest. Starts a new one after a crash.
    fn guest(&mut self) -> Result<&mut Guest, Error> {
        if self.guest.is_none() {
            self.guest = Some(self.restart()?);
        }
        self.guest.as_mut().ok_or_else(no_instance)
    }

    fn restart(&mut self) -> Result<Guest, Error> {
        let name = self.plugin.name();
        let (guest, reply) = self.plugin.start_guest(&self.config, &self.limits).map_err(|error| {
            let crash = self.last_crash_message();
            Error::external("plugin.start", format!("{name} cannot be restarted after a crash ({crash}): {error}"))
        })?;
        if reply != self.reply {
            let message = format!(
                "{name} replied to its configuration with {reply:?} after a restart, and with {:?} before; expected the \
                 same reply",
                self.reply
            );
            return Err(Error::external("plugin.start", message));
        }
        Ok(guest)
    }

    /// Discards the guest, because a store may be in any state after a crash.
    fn discard_guest(&mut self, crash: GuestCrash) {
        self.guest = None;
        self.last_crash = Some(crash);
    }

    fn last_crash_message(&self) -> &str {
        self.last_crash.as_ref().map_or("", |crash| crash.message.as_str())
    }

    fn batch_failed(&self, message: &str) -> Error {
        if let Some(message) = message.strip_prefix(STOP) {
            return Error::config("plugin.stopped", format!("{} cannot continue: {message}", self.plugin.name()));
        }
        Error::external("plugin.failed", format!("{} failed on a batch: {message}", self.plugin.name()))
    }

    fn verdict_error(&self, error: VerdictError) -> Error {
        let name = self.plugin.name();
        match error {
            VerdictError::Protocol(message) => Error::data("plugin.protocol", format!("{name}: {message}")),
            VerdictError::OutputLimit(message) => Error::external("plugin.output", format!("{name}: {message}")),
            VerdictError::ArenaFull => {
                Error::data("plugin.output", format!("{name}: the output batch exceeds 2 GiB; use smaller batches"))
            }
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            ports: self.ports.len(),
            keeps_schema: self.reply.keeps_schema,
            output_bytes: self.limits.output_bytes,
            call: Call::Records,
            arena_bytes: None,
        }
    }

    fn collect_metrics(&mut self) {
        if let Some(guest) = &mut self.guest {
            let metrics = guest.take_metrics();
            self.batch_metrics.merge(metrics);
        }
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Instance")
            .field("plugin", &self.plugin)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

/// Opens a savepoint for a call.
fn begin_state(state: &mut Option<StateStore>, batch: &Batch) -> Option<usize> {
    let state = state.as_mut()?;
    state.begin_batch(batch);
    Some(state.savepoint())
}

fn no_instance() -> Error {
    Error::internal("plugin.guest", "a plugin instance is missing after its start")
}
