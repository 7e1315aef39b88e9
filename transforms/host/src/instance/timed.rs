//! Records and timers in the order of event time, for plugins that use timers.
//!
//! A timer fires before the first record whose timestamp reaches its time, so the output does not
//! depend on how the records were divided into batches. Therefore a call ends before a record that
//! makes a pending timer due. A call may also set timers that were due before its last record; the
//! host knows them only afterwards. It then takes the call back, and repeats its first part. The
//! length of the repeated part, in event time, limits the calls that follow.

use std::ops::Range;
use std::time::{Duration, Instant};

use trunkline_connector::{Batch, Error, Reason, Rejections, headers};

use super::{Instance, begin_state, no_instance};
use crate::guest::GuestCrash;
use crate::state::StateStore;
use crate::timers::{self, Timer};
use crate::verdict::{Call, Counts, Rules};

/// What a sealed batch contains.
const CONTENT_TIMERS: u32 = 1;
/// Limit on the time of the calls at one record that set timers which are due at once.
const MAX_CHAINED_TIME: Duration = Duration::from_secs(60);

/// Calls that the span cuts before a wider one is tried.
const CUT_CALLS_BEFORE_WIDER: u32 = 16;

/// The outcome of a call with records.
pub(super) enum Called {
    /// The verdicts are applied.
    Done,
    /// The plugin crashed. The call has changed nothing.
    Crashed(GuestCrash),
    /// The call has set a timer that fires before the record with this index. It has changed
    /// nothing.
    TimerDue(usize),
}

/// What an instance keeps for timers.
#[derive(Default)]
pub(super) struct Timing {
    /// Timers of the current batch that were rejected.
    pub(super) rejected: Rejections,
    /// The event time that the records of a call may span, after a call that had to be repeated.
    span: Option<i64>,
    /// Calls since then that the span has cut.
    cut_calls: u32,
    /// The batch of a call with timers.
    due: Batch,
    /// The input of their verdicts: without keys, which emitted records must not keep.
    origins: Batch,
}

/// The topic partition of timers, and the batch that their output is added to.
struct Origin<'a> {
    topic_name: &'a str,
    topic: u16,
    partition: i32,
    arena_bytes: usize,
}

impl<'a> Origin<'a> {
    fn of(batch: &'a Batch, topic: u16, partition: i32) -> Self {
        let topic_name = batch.topics().get(usize::from(topic)).map_or("", |name| name);
        Self { topic_name, topic, partition, arena_bytes: batch.arena_bytes() }
    }
}

impl Instance {
    /// Lets the event time of a topic partition advance without a record: the timers until `to`
    /// fire, and `batch`, which is empty, gets the records that they emit. After an error, `batch`,
    /// `rejected` and the state are unchanged.
    ///
    /// # Errors
    /// As for [`Instance::process_with_state`].
    pub fn advance_time(
        &mut self,
        to: i64,
        topic: &str,
        partition: i32,
        batch: &mut Batch,
        rejected: &mut Rejections,
        state: &mut StateStore,
    ) -> Result<Counts, Error> {
        self.with_state(state, |instance| {
            instance.begin();
            let topic = batch.topic_index(topic);
            instance.fire_until(to, &Origin::of(batch, topic, partition))?;
            if let Some(state) = &mut instance.state {
                let mut clock = Batch::default();
                let mut record = clock.record();
                record.timestamp(to);
                record.finish();
                state.begin_batch(&clock);
                state.end_batch();
            }
            Ok(instance.apply_outcome(batch, rejected))
        })
    }

    /// Runs the records of a batch, and the timers that they make due.
    pub(super) fn run_timed(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let mut pending = vec![(0..batch.len(), self.limits.timeout)];
        while let Some((records, timeout)) = pending.pop() {
            let Some(first) = batch.entries().get(records.start).filter(|_| !records.is_empty()) else { continue };
            if let Some(time) = self.time_with(first.timestamp) {
                self.fire_until(time, &Origin::of(batch, first.topic, first.partition))?;
            }
            let (call, is_cut) = self.records_before_timers(batch, &records)?;
            pending.push((call.end..records.end, timeout));
            let timeout = if call.len() == 1 { self.limits.timeout } else { timeout };
            let called = match self.fits_in_place(batch, &call)? {
                true => self.call_in_place(batch, timeout)?,
                false => self.call_packed(batch, call.clone(), timeout)?,
            };
            match called {
                Called::Done => self.timing.widen_span(is_cut),
                Called::Crashed(crash) => self.bisect(batch, call, crash, timeout, &mut pending),
                Called::TimerDue(due) => {
                    pending.push((due..call.end, timeout));
                    pending.push((call.start..due, timeout));
                }
            }
        }
        // A record may have set a timer in its past.
        let (Some(time), Some(last)) = (self.state.as_ref().and_then(StateStore::time), batch.entries().last()) else {
            return Ok(());
        };
        self.fire_until(time, &Origin::of(batch, last.topic, last.partition))
    }

    /// The partition's time with a record of this timestamp; -1 is none.
    fn time_with(&self, timestamp: i64) -> Option<i64> {
        let time = self.state.as_ref().and_then(StateStore::time);
        time.max(Some(timestamp).filter(|timestamp| *timestamp >= 0))
    }

    /// The first records, at least one, that one call may get before a timer is due. Also returns
    /// whether more of them would exceed the span of a call.
    fn records_before_timers(&mut self, batch: &Batch, records: &Range<usize>) -> Result<(Range<usize>, bool), Error> {
        let inputs = self.guest()?.inputs();
        let len = self.call_len(batch, records, inputs);
        let next = self.state.as_mut().and_then(timers::next_timer).unwrap_or(i64::MAX);
        let entries = &batch.entries()[records.start..records.start + len];
        let mut time = entries.first().and_then(|first| self.time_with(first.timestamp)).unwrap_or(i64::MIN);
        let end_of_span = self.timing.span.map_or(i64::MAX, |span| time.saturating_add(span.max(1)));
        for (entry, index) in entries.iter().zip(records.start..).skip(1) {
            time = time.max(entry.timestamp);
            if time >= next.min(end_of_span) {
                return Ok((records.start..index, end_of_span < next));
            }
        }
        Ok((records.start..records.start + len, false))
    }

    /// After a call: the index of the record before which a timer fires that the call has set.
    pub(super) fn timer_due_within(&mut self, batch: &Batch, records: &Range<usize>) -> Option<usize> {
        let earliest = self.guest.as_ref()?.earliest_timer()?;
        let entries = &batch.entries()[records.clone()];
        let mut time = entries.first().and_then(|first| self.time_with(first.timestamp));
        let start = time;
        for (entry, index) in entries.iter().zip(records.start..).skip(1) {
            time = time.max(Some(entry.timestamp).filter(|timestamp| *timestamp >= 0));
            if time.is_some_and(|time| time >= earliest) {
                self.timing.span = start.map(|start| earliest.saturating_sub(start).max(1));
                self.timing.cut_calls = 0;
                return Some(index);
            }
        }
        None
    }

    /// Takes back a call whose verdicts are not used.
    pub(super) fn discard_call(&mut self, savepoint: Option<usize>) {
        if let Some(guest) = &mut self.guest {
            drop(guest.take_metrics());
        }
        if let (Some(state), Some(savepoint)) = (&mut self.state, savepoint) {
            state.rollback_to(savepoint);
        }
    }

    /// Fires the timers that are due at `now`, in the order of their times.
    fn fire_until(&mut self, now: i64, origin: &Origin<'_>) -> Result<(), Error> {
        let (mut chained, mut chained_since) = (0, None);
        loop {
            let Some(state) = &mut self.state else { return Ok(()) };
            let taken = timers::take_due(state, now, self.limits.batch_records);
            let due = taken.map_err(|_| state.take_failure().unwrap_or_else(|| state.full_error()))?;
            if due.is_empty() {
                return Ok(());
            }
            let earliest = self.fire(&due, origin)?;
            if earliest.is_some_and(|earliest| earliest <= now) {
                chained += 1;
                let since = *chained_since.get_or_insert_with(Instant::now);
                if chained > self.limits.chained_timers || since.elapsed() > MAX_CHAINED_TIME {
                    return Err(self.timer_loop(due.first(), now));
                }
            }
        }
    }

    fn timer_loop(&self, timer: Option<&Timer>, now: i64) -> Error {
        let (key, time) = timer.map_or((String::new(), 0), |timer| (printable(&timer.key), timer.time));
        let message = format!(
            "{}: its timers set timers that are due at once, {} times or for {} s; the last one has the key \
             `{key}` and the time {time}, and the event time of the partition is {now}. A timer must set the next one \
             for a later time; a record with a timestamp far in the future also causes this",
            self.plugin.name(),
            self.limits.chained_timers,
            MAX_CHAINED_TIME.as_secs()
        );
        Error::data("plugin.timer_loop", message)
    }

    /// Passes timers of one time to the plugin. Returns the earliest time of the timers that it has
    /// set.
    fn fire(&mut self, due: &[Timer], origin: &Origin<'_>) -> Result<Option<i64>, Error> {
        let mut timing = std::mem::take(&mut self.timing);
        let fired = self.fire_with(&mut timing, due, origin);
        self.timing = timing;
        fired
    }

    fn fire_with(&mut self, timing: &mut Timing, due: &[Timer], origin: &Origin<'_>) -> Result<Option<i64>, Error> {
        let mut earliest = None;
        let mut pending = vec![(0..due.len(), self.limits.timeout)];
        while let Some((range, timeout)) = pending.pop() {
            let timeout = if range.len() == 1 { self.limits.timeout } else { timeout };
            self.guest()?;
            timing.fill(&due[range.clone()], origin);
            let savepoint = begin_state(&mut self.state, &timing.due);
            let Some(guest) = &mut self.guest else { return Err(no_instance()) };
            let called = guest.process(timing.due.seal_as(CONTENT_TIMERS), timeout, &mut self.state);
            let set = guest.earliest_timer();
            let (counts, rejections) = (self.outcome.counts, self.outcome.rejections.len());
            let rules = Rules { call: Call::Timers, arena_bytes: Some(origin.arena_bytes), ..self.rules() };
            let crash = self.apply_verdicts(called, &timing.origins, 0..range.len(), &rules)?;
            self.end_state(savepoint, crash.is_some())?;
            match crash {
                None => {
                    earliest = earliest.into_iter().chain(set).min();
                    count_timers(&mut self.outcome.counts, counts);
                    for (index, reason) in self.outcome.rejections.drain(rejections..) {
                        timing.reject(&due[range.start + index], origin, reason);
                    }
                }
                Some(crash) if range.len() == 1 => {
                    let timer = &due[range.start];
                    self.crashes.record(Instant::now());
                    self.log_timer_crash(timer, origin, &crash);
                    timing.reject(timer, origin, Reason::new(crash.code, crash.message));
                    self.outcome.counts.rejected += 1;
                    self.outcome.counts.extra += 1;
                }
                Some(crash) => self.push_halves(range, &crash, timeout, &mut pending),
            }
        }
        Ok(earliest)
    }

    fn log_timer_crash(&mut self, timer: &Timer, origin: &Origin<'_>, crash: &GuestCrash) {
        let plugin = self.plugin.name();
        let Some(not_logged) = self.crash_log.admit(Instant::now()) else { return };
        if not_logged > 0 {
            tracing::warn!(
                plugin,
                "{not_logged} more records or timers were rejected because the plugin crashed on them"
            );
        }
        crash.log_output(plugin);
        tracing::warn!(
            plugin,
            code = crash.code,
            partition = origin.partition,
            key = printable(&timer.key),
            time = timer.time,
            "timer rejected: the plugin crashed on it: {}",
            crash.message
        );
    }
}

impl Timing {
    /// After a call that was not repeated. A wider span is tried seldom, because it may cost a
    /// repeated call.
    fn widen_span(&mut self, is_cut: bool) {
        self.cut_calls += u32::from(is_cut);
        if self.cut_calls >= CUT_CALLS_BEFORE_WIDER {
            self.cut_calls = 0;
            self.span = self.span.map(|span| span.saturating_mul(2));
        }
    }

    /// Fills the batches of a call.
    fn fill(&mut self, due: &[Timer], origin: &Origin<'_>) {
        self.due.reset();
        self.origins.reset();
        let topic = self.due.topic_index(origin.topic_name);
        for timer in due {
            let mut entry = self.due.record();
            entry.timestamp(timer.time).read_from(topic, origin.partition, -1).key(&timer.key);
            entry.finish();
            let mut entry = self.origins.record();
            entry.timestamp(timer.time.max(-1)).read_from(origin.topic, origin.partition, -1);
            entry.finish();
        }
    }

    fn reject(&mut self, timer: &Timer, origin: &Origin<'_>, reason: Reason) {
        let topic = self.rejected.records.topic_index(origin.topic_name);
        self.rejected.push_with(reason, |record| {
            record.timestamp(timer.time).read_from(topic, origin.partition, -1).key(&timer.key);
            record.header(headers::TIMER, Some(timer.time.to_string().as_bytes()));
        });
    }
}

/// Corrects the counts of a call with timers: they are no records, so that every record that they
/// emit, and each timer that is rejected, is an extra one (I3).
fn count_timers(counts: &mut Counts, before: Counts) {
    let timers = counts.records_in - before.records_in;
    let without_output = counts.dropped - before.dropped;
    counts.records_in = before.records_in;
    counts.dropped = before.dropped;
    counts.extra += timers - without_output;
}

/// A key for messages.
fn printable(key: &[u8]) -> String {
    String::from_utf8_lossy(key).escape_debug().take(200).collect()
}
