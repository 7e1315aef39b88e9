//! An [`Instance`]: one task's plugin, and what happens when it dies.
//!
//! # A batch
//! The records are handed over in calls of at most `batch_records` and `batch_bytes`. A batch that fits into one call is handed over as
//! it lies; otherwise each call gets a batch of its own. The outcome is gathered beside the batch, and takes its place only when all
//! calls have succeeded: after an error the batch is what it was.
//!
//! # A death
//! A call of many records that the plugin does not survive is split in two, and each half is run in order by a fresh instance; a
//! single record that it does not survive is set aside with what it died of. Halving happens on a stack, left half on top, so that
//! outcomes come in the order of the records and each record has one (I3, I5).
//!
//! A call that ran out of time is run again with less time, by the share of its records, else one bad record would cost the limit ten
//! times over. Only a single record that takes the whole limit is set aside for it.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use trunkline_connector::batch::ENTRY_BYTES;
use trunkline_connector::{Batch, Entry, Error, Reason, Rejections, Retry};

use crate::calls::Metrics;
use crate::guest::{CallFault, Death, Guest, InitReply};
use crate::limits::{Deaths, Limits};
use crate::plugin::Plugin;
use crate::verdict::{Counts, Fault, Outcome, Rules};

/// No call gets less time, however few its records.
const LEAST_TIME: Duration = Duration::from_millis(100);
/// A batch is handed over as it lies unless more than this of its arena, and more than half, belongs to no record.
const WASTE_BYTES: usize = 64 << 10;
/// A cleared batch keeps the names of its topics; past this many they are forgotten.
const MANY_TOPICS: usize = 1000;

/// A running plugin with its configuration. It belongs to one task.
pub struct Instance {
    plugin: Plugin,
    config: String,
    limits: Limits,
    ports: Vec<String>,
    reply: InitReply,
    /// `None` after a death, until the next call.
    guest: Option<Guest>,
    deaths: Deaths,
    last_death: Option<Death>,
    outcome: Outcome,
    /// The batch of one call, when it is not handed over as it lies.
    packed: Batch,
    /// Counted by the calls of the batch under way.
    counted: Metrics,
    metrics: Metrics,
}

impl Instance {
    /// The port that records go to unless a verdict names another.
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
            deaths: Deaths::default(),
            last_death: None,
            outcome: Outcome::default(),
            packed: Batch::default(),
            counted: Metrics::default(),
            metrics: Metrics::default(),
        }
    }

    /// Names of the output ports, by [`Entry::port`]; the first is `default`.
    pub fn ports(&self) -> &[String] {
        &self.ports
    }

    /// Do values that it changes keep fitting their schema? If not, [`Instance::process`] takes the header `trunkline.schema` from them.
    pub fn keeps_schema(&self) -> bool {
        self.reply.keeps_schema
    }

    /// The plugin it was started from.
    pub fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    /// Bytes of memory that the plugin holds.
    pub fn memory(&self) -> usize {
        self.guest.as_ref().map_or(0, Guest::memory)
    }

    /// What the plugin counted since this was last called, in batches that succeeded.
    pub fn take_metrics(&mut self) -> Metrics {
        std::mem::take(&mut self.metrics)
    }

    /// May another batch begin? A batch that was begun is finished, however often the plugin dies of it: were it given up half-way, it
    /// would be given up there every time that it is read again.
    ///
    /// # Errors
    /// `plugin.restarts`: the plugin did not survive more than [`Limits::deaths_per_minute`] records. The error says how long to wait.
    pub fn ready(&mut self) -> Result<(), Error> {
        let Some(wait) = self.deaths.wait(Instant::now(), self.limits.deaths_per_minute) else { return Ok(()) };
        let died_of = self.last_death.as_ref().map_or("", |death| death.message.as_str());
        let message = format!(
            "{} died of {} records within a minute, the last time of: {died_of}. Mend the plugin, or keep such records from it; \
             what came before is done, and the rest waits",
            self.plugin.name(),
            self.limits.deaths_per_minute
        );
        Err(Error::external("plugin.restarts", message).retry(Retry::After(wait)))
    }

    /// Runs all records of `batch` through the plugin. Afterwards `batch` holds the records that go on, in order, with
    /// [`Entry::port`] set; they share its arena. Records that were rejected, or that the plugin did not survive, are added to
    /// `rejected` as they came.
    ///
    /// # Errors
    /// `plugin.failed`: the plugin says that the batch may be tried again. `plugin.start`: it cannot be started again after a death.
    /// `plugin.protocol`: its verdicts are malformed; trying again will not help. Batch and `rejected` are
    /// then as they were.
    pub fn process(&mut self, batch: &mut Batch, rejected: &mut Rejections) -> Result<Counts, Error> {
        if batch.is_empty() {
            return Ok(Counts::default());
        }
        self.outcome.clear();
        self.counted = Metrics::default();
        let whole = 0..batch.len();
        if self.call_len(batch, &whole) == batch.len() && !is_wasteful(batch) {
            self.run_as_it_lies(batch)?;
        } else {
            self.run_packed(batch, whole)?;
        }
        Ok(self.conclude(batch, rejected))
    }

    /// Ends the plugin's work in peace: appends what it still has to say to `batch`.
    ///
    /// # Errors
    /// As for [`Instance::process`]; a plugin that dies here loses what it had to say.
    pub fn flush(&mut self, batch: &mut Batch) -> Result<Counts, Error> {
        let verdicts = self.guest()?.flush();
        self.counted = Metrics::default();
        let verdicts = match verdicts {
            Ok(verdicts) => verdicts,
            Err(CallFault::Failed(message)) => return Err(self.failed(&message)),
            Err(CallFault::Died(death)) => {
                self.bury(death.clone());
                return Err(Error::external(
                    "plugin.trap",
                    format!("{}: died while flushing: {}", self.plugin.name(), death.message),
                ));
            }
        };
        // what the verdict is made as if for: a record without anything
        let mut nothing = Batch::default();
        let topic = batch.topic_index("");
        nothing.record().finish();
        self.outcome.clear();
        let rules = Rules { only_emit: true, ..self.rules() };
        self.outcome.apply(verdicts, &nothing, 0..1, &rules).map_err(|fault| self.fault(fault))?;
        self.collect_metrics();
        self.metrics.merge(std::mem::take(&mut self.counted));
        let shift = batch.append(&self.outcome.bytes).wrapping_sub(nothing.arena_bytes() as u32);
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

    /// The usual case: one call, no copy but that into the plugin.
    fn run_as_it_lies(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let time = self.limits.time;
        let called = self.guest()?.process(batch.seal(), time);
        match self.take(called, batch, 0..batch.len())? {
            None => Ok(()),
            Some(death) => self.isolate(batch, 0..batch.len(), death, time),
        }
    }

    /// In several calls, each with a batch of its own.
    fn run_packed(&mut self, batch: &Batch, records: Range<usize>) -> Result<(), Error> {
        let mut start = records.start;
        while start < records.end {
            let call = start..start + self.call_len(batch, &(start..records.end));
            let time = self.limits.time;
            if let Some(death) = self.call_packed(batch, call.clone(), time)? {
                self.isolate(batch, call.clone(), death, time)?;
            }
            start = call.end;
        }
        Ok(())
    }

    /// Finds the records of a call that the plugin does not survive, and gives all others their outcome.
    fn isolate(&mut self, batch: &Batch, records: Range<usize>, death: Death, time: Duration) -> Result<(), Error> {
        let mut pending = Vec::new();
        self.split(batch, records, death, time, &mut pending);
        while let Some((records, time)) = pending.pop() {
            // one record alone gets all the time there is, before it is set aside for taking too long
            let time = if records.len() == 1 { self.limits.time } else { time };
            if let Some(death) = self.call_packed(batch, records.clone(), time)? {
                self.split(batch, records, death, time, &mut pending);
            }
        }
        Ok(())
    }

    fn split(
        &mut self,
        batch: &Batch,
        records: Range<usize>,
        death: Death,
        time: Duration,
        pending: &mut Vec<(Range<usize>, Duration)>,
    ) {
        if records.len() == 1 {
            self.deaths.note(Instant::now());
            let record = batch.get(records.start).entry();
            tracing::warn!(
                plugin = self.plugin.name(),
                code = death.code,
                partition = record.partition,
                offset = record.offset,
                "a record is set aside: {}",
                death.message
            );
            self.outcome.counts.records_in += 1;
            self.outcome.reject(records.start, Reason::new(death.code, death.message));
            return;
        }
        let time = if death.code == Death::TIMEOUT { (time / 2).max(LEAST_TIME.min(self.limits.time)) } else { time };
        let middle = records.start + records.len() / 2;
        pending.push((middle..records.end, time));
        pending.push((records.start..middle, time));
    }

    fn call_packed(&mut self, batch: &Batch, records: Range<usize>, time: Duration) -> Result<Option<Death>, Error> {
        self.guest()?;
        pack(&mut self.packed, batch, records.clone());
        let Some(guest) = &mut self.guest else { return Err(Error::internal("plugin.guest", "a plugin vanished")) };
        let called = guest.process(self.packed.seal(), time);
        self.take(called, batch, records)
    }

    /// Takes the verdicts of a call, or says what the plugin died of.
    fn take(
        &mut self,
        called: Result<Vec<u8>, CallFault>,
        batch: &Batch,
        records: Range<usize>,
    ) -> Result<Option<Death>, Error> {
        let death = match called {
            Ok(verdicts) => {
                let rules = self.rules();
                match self.outcome.apply(verdicts, batch, records, &rules) {
                    Ok(()) => {
                        self.collect_metrics();
                        return Ok(None);
                    }
                    Err(Fault::TooMuch(message)) => Death { code: Death::OUTPUT, message },
                    Err(fault) => return Err(self.fault(fault)),
                }
            }
            Err(CallFault::Failed(message)) => return Err(self.failed(&message)),
            Err(CallFault::Died(death)) => death,
        };
        self.bury(death.clone());
        Ok(Some(death))
    }

    /// Puts the outcome in the batch's place.
    fn conclude(&mut self, batch: &mut Batch, rejected: &mut Rejections) -> Counts {
        for (index, reason) in self.outcome.rejections.drain(..) {
            rejected.push(batch.get(index), reason);
        }
        let spare = batch.take_entries();
        batch.append(&self.outcome.bytes);
        batch.set_entries(std::mem::replace(&mut self.outcome.entries, spare));
        self.outcome.entries.clear();
        self.metrics.merge(std::mem::take(&mut self.counted));
        let counts = self.outcome.counts;
        debug_assert_eq!(counts.records_in + counts.extra, counts.out + counts.dropped + counts.rejected);
        counts
    }

    /// The running plugin; a fresh one after a death.
    fn guest(&mut self) -> Result<&mut Guest, Error> {
        if self.guest.is_none() {
            self.guest = Some(self.restart()?);
        }
        self.guest.as_mut().ok_or_else(|| Error::internal("plugin.guest", "a plugin vanished"))
    }

    fn restart(&mut self) -> Result<Guest, Error> {
        let name = self.plugin.name();
        let died_of = self.last_death.as_ref().map_or("", |death| death.message.as_str());
        let (guest, reply) = self.plugin.start_guest(&self.config, &self.limits).map_err(|error| {
            Error::external(
                "plugin.start",
                format!("{name} cannot be started again after it died of: {died_of}: {error}"),
            )
        })?;
        if reply != self.reply {
            let message = format!(
                "{name} answered its configuration otherwise when it was started again: {reply:?}, before {:?}",
                self.reply
            );
            return Err(Error::external("plugin.start", message));
        }
        Ok(guest)
    }

    /// A store in which something trapped may be in any state: it is given up.
    fn bury(&mut self, death: Death) {
        self.guest = None;
        self.last_death = Some(death);
    }

    fn failed(&self, message: &str) -> Error {
        Error::external("plugin.failed", format!("{} failed on a batch: {message}", self.plugin.name()))
    }

    fn fault(&self, fault: Fault) -> Error {
        let name = self.plugin.name();
        match fault {
            Fault::Protocol(message) => Error::data("plugin.protocol", format!("{name}: {message}")),
            Fault::TooMuch(message) => Error::external("plugin.output", format!("{name}: {message}")),
            Fault::ArenaFull => {
                Error::data("plugin.output", format!("{name}: a batch would grow past 2 GiB; make batches smaller"))
            }
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            ports: self.ports.len(),
            keeps_schema: self.reply.keeps_schema,
            output_bytes: self.limits.output_bytes,
            only_emit: false,
        }
    }

    fn collect_metrics(&mut self) {
        if let Some(guest) = &mut self.guest {
            let counted = guest.take_metrics();
            self.counted.merge(counted);
        }
    }

    /// How many of these records fit into one call; at least one.
    fn call_len(&self, batch: &Batch, records: &Range<usize>) -> usize {
        let entries = &batch.entries()[records.clone()];
        let mut bytes = 0;
        let fit = entries.iter().take(self.limits.batch_records.max(1)).take_while(|entry| {
            bytes += bytes_of(entry);
            bytes <= self.limits.batch_bytes
        });
        fit.count().max(1)
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

/// Of data and table.
fn bytes_of(entry: &Entry) -> usize {
    let part = |len: i32| usize::try_from(len).unwrap_or(0);
    ENTRY_BYTES + part(entry.key_len) + part(entry.value_len) + part(entry.headers_len)
}

/// Is most of the arena what earlier transforms left behind?
fn is_wasteful(batch: &Batch) -> bool {
    let used: usize = batch.entries().iter().map(bytes_of).sum();
    let all = batch.bytes();
    all.saturating_sub(used) > WASTE_BYTES.max(all / 2)
}

/// Makes `packed` a batch of these records.
fn pack(packed: &mut Batch, batch: &Batch, records: Range<usize>) {
    packed.clear();
    if packed.topics().len() > MANY_TOPICS {
        *packed = Batch::default();
    }
    for index in records {
        packed.push_copy(batch.get(index));
    }
}
