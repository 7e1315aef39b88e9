//! A mock host for `cargo test` on the native target. It passes records to a transform in the byte
//! layout of the worker, and returns verdicts, log lines, metrics and state. The documentation of
//! the crate has an example.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::batch::Headers;
use crate::config::ConfigError;
use crate::host::Level;
use crate::state::{Packed, PackedValues};
use crate::verdict::write_header;
use crate::{Inputs, Transform, runner};

thread_local! {
    static CALL_STATE: RefCell<CallState> = RefCell::new(CallState::default());
}

#[derive(Debug, Default)]
struct CallState {
    log: Vec<(Level, String)>,
    counters: BTreeMap<String, u64>,
    histograms: BTreeMap<String, Vec<f64>>,
    now_ms: u64,
    state: MockState,
}

/// The state of the one topic partition that the mock host has.
#[derive(Debug, Clone, Default)]
struct MockState {
    /// Values, and the times at which they expire.
    entries: BTreeMap<Vec<u8>, (Vec<u8>, Option<i64>)>,
    /// The greatest timestamp of the records, including the current batch.
    time: i64,
    /// The same before the current batch; `None` before the first timestamp.
    event_time: Option<i64>,
    timers: BTreeMap<Vec<u8>, i64>,
    /// The earliest time that a timer got in the last call, even if it was moved later.
    earliest_timer: Option<i64>,
    in_process: bool,
}

fn with_state<R>(call: impl FnOnce(&mut MockState) -> R) -> R {
    CALL_STATE.with_borrow_mut(|state| {
        assert!(state.state.in_process, "state and timers are available in `record`, `process` and `timer` only");
        call(&mut state.state)
    })
}

pub(crate) fn state_get(keys: &Packed) -> PackedValues {
    with_state(|state| {
        let mut values = PackedValues::default();
        for value in keys.iter().map(|key| state.entries.get(key).map(|(value, _)| value)) {
            values.bytes.extend_from_slice(value.map_or(&[], |value| value));
            values.lengths.push(value.map_or(-1, |value| value.len() as i32));
        }
        values
    })
}

/// `entries`: keys and values in turn.
pub(crate) fn state_put(entries: &Packed, ttl_ms: Option<u64>) {
    with_state(|state| {
        let ttl = ttl_ms.map(|ttl| i64::try_from(ttl).unwrap_or(i64::MAX));
        let expires_at = ttl.map(|ttl| state.time.saturating_add(ttl));
        let mut items = entries.iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            state.entries.insert(key.to_vec(), (value.to_vec(), expires_at));
        }
    });
}

pub(crate) fn state_delete(keys: &Packed) {
    with_state(|state| keys.iter().for_each(|key| drop(state.entries.remove(key))));
}

pub(crate) fn state_range(start: &[u8], end: &[u8], limit: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
    with_state(|state| {
        let from_start = state.entries.range(start.to_vec()..).take_while(|(key, _)| key.as_slice() < end);
        from_start.take(limit as usize).map(|(key, (value, _))| (key.clone(), value.clone())).collect()
    })
}

pub(crate) fn timers_set(timers: Vec<(Vec<u8>, i64)>) {
    with_state(|state| {
        let earliest = timers.iter().map(|(_, time)| *time).min();
        state.earliest_timer = state.earliest_timer.into_iter().chain(earliest).min();
        state.timers.extend(timers);
    });
}

pub(crate) fn timers_delete(keys: Vec<Vec<u8>>) {
    with_state(|state| keys.iter().for_each(|key| _ = state.timers.remove(key)));
}

pub(crate) fn timers_get(keys: Vec<Vec<u8>>) -> Vec<Option<i64>> {
    with_state(|state| keys.iter().map(|key| state.timers.get(key).copied()).collect())
}

pub(crate) fn event_time() -> Option<i64> {
    with_state(|state| state.event_time)
}

pub(crate) fn log(level: Level, message: &str) {
    CALL_STATE.with_borrow_mut(|state| state.log.push((level, message.to_owned())));
}

pub(crate) fn counter_add(name: &str, by: u64) {
    CALL_STATE.with_borrow_mut(|state| *state.counters.entry(name.to_owned()).or_default() += by);
}

pub(crate) fn histogram_record(name: &str, value: f64) {
    CALL_STATE.with_borrow_mut(|state| state.histograms.entry(name.to_owned()).or_default().push(value));
}

pub(crate) fn now_ms() -> u64 {
    CALL_STATE.with_borrow(|state| state.now_ms)
}

/// An input record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Input {
    /// The key; `None` = null.
    pub key: Option<Vec<u8>>,
    /// The value; `None` = null.
    pub value: Option<Vec<u8>>,
    /// The headers.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub timestamp: Option<i64>,
    /// Topic, partition and offset; `None` if the record was not read from a topic.
    pub origin: Option<(String, i32, i64)>,
}

impl Input {
    /// A record with this value and no other parts.
    pub fn value(value: impl AsRef<[u8]>) -> Self {
        Self { value: Some(value.as_ref().to_vec()), ..Self::default() }
    }

    /// Sets the key.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(key.as_ref().to_vec());
        self
    }

    /// Sets the timestamp in milliseconds since 1970.
    #[must_use]
    pub fn at(mut self, timestamp: i64) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), Some(value.as_ref().to_vec())));
        self
    }
}

/// An output record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Name of the output port; `default` for the default port.
    pub port: String,
    /// The record, with the origin of its input record.
    pub record: Input,
}

impl Output {
    /// The value as text.
    pub fn text(&self) -> Option<&str> {
        self.record.value.as_deref().and_then(|value| std::str::from_utf8(value).ok())
    }
}

/// The outcome of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The record was passed, possibly changed.
    Passed(Output),
    /// The record was dropped.
    Dropped,
    /// Other records replaced the record.
    Emitted(Vec<Output>),
    /// The record was rejected.
    Rejected {
        /// The code, such as `mask.not_json`.
        code: String,
        /// The message.
        message: String,
    },
}

impl Outcome {
    /// The output record of [`Outcome::Passed`].
    pub fn passed(&self) -> Option<&Output> {
        match self {
            Self::Passed(output) => Some(output),
            _ => None,
        }
    }
}

/// A timer that has fired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fired {
    /// Its collection.
    pub name: String,
    /// Its key.
    pub key: Vec<u8>,
    /// Its time.
    pub time: i64,
    /// What the transform made of it.
    pub outcome: Outcome,
}

impl Fired {
    /// The records that it emitted.
    pub fn emitted(&self) -> &[Output] {
        match &self.outcome {
            Outcome::Emitted(outputs) => outputs,
            _ => &[],
        }
    }
}

/// Limit on the timers that fire in one call, because a timer can set itself again.
const MAX_FIRED: usize = 100_000;

/// A transform with its configuration.
#[derive(Debug)]
pub struct MockHost<T> {
    transform: T,
    config: String,
    ports: Vec<String>,
    inputs: Inputs,
    fired: Vec<Fired>,
}

impl<T: Transform> MockHost<T> {
    /// Creates the transform from its `config` table. Resets the log, the metrics, the clock and
    /// the state of this thread.
    pub fn start(config: serde_json::Value) -> Result<Self, ConfigError> {
        CALL_STATE.with_borrow_mut(|state| *state = CallState::default());
        let config = config.to_string();
        let transform = T::new(ConfigError::read(&config)?)?;
        let mut ports = vec!["default".to_owned()];
        ports.extend(transform.ports());
        let inputs = transform.inputs();
        Ok(Self { transform, config, ports, inputs, fired: Vec::new() })
    }

    /// Replaces the transform by a new one, as after a crash: its memory is lost, the state stays.
    pub fn restart(&mut self) -> Result<(), ConfigError> {
        self.transform = T::new(ConfigError::read(&self.config)?)?;
        Ok(())
    }

    /// Like [`MockHost::restart`], with another configuration.
    pub fn restart_with(&mut self, config: serde_json::Value) -> Result<(), ConfigError> {
        self.config = config.to_string();
        self.restart()?;
        self.ports.truncate(1);
        self.ports.extend(self.transform.ports());
        self.inputs = self.transform.inputs();
        Ok(())
    }

    /// Processes a batch. After an error, the state is as before. The transform sees the parts of
    /// the records that it [reads](Transform::inputs); the others are null.
    ///
    /// The timers that the records make due fire as in a worker: see [`MockHost::take_fired`]. Then
    /// the transform gets the records one by one.
    ///
    /// # Panics
    /// If the transform panics or uses a port that it does not declare, or if timers set timers
    /// without end.
    pub fn process(&mut self, records: &[Input]) -> Result<Vec<Outcome>, String> {
        let before = CALL_STATE.with_borrow(|call| call.state.clone());
        let fired = self.fired.len();
        let outcomes = self.process_in_order(records, &before);
        if outcomes.is_err() {
            CALL_STATE.with_borrow_mut(|call| call.state = before);
            self.fired.truncate(fired);
        }
        outcomes
    }

    fn process_in_order(&mut self, records: &[Input], before: &MockState) -> Result<Vec<Outcome>, String> {
        let greatest = records.iter().filter_map(|record| record.timestamp).max().unwrap_or(0);
        let is_due = |state: &MockState| {
            let mut times = state.timers.values().copied().chain(state.earliest_timer);
            times.any(|time| time <= state.time.max(greatest))
        };
        if !is_due(before) {
            let outcomes = self.call(records, greatest, false)?;
            if !CALL_STATE.with_borrow(|call| is_due(&call.state)) {
                return Ok(outcomes);
            }
            CALL_STATE.with_borrow_mut(|call| call.state = before.clone());
        }
        let mut outcomes = Vec::new();
        for record in records {
            self.fire(record.timestamp.unwrap_or(0))?;
            outcomes.extend(self.call(std::slice::from_ref(record), record.timestamp.unwrap_or(0), false)?);
        }
        self.fire(0)?;
        Ok(outcomes)
    }

    /// One call of the transform, with records or timers of at most this time.
    fn call(&mut self, entries: &[Input], time: i64, are_timers: bool) -> Result<Vec<Outcome>, String> {
        CALL_STATE.with_borrow_mut(|call| {
            call.state.time = call.state.time.max(time);
            call.state.earliest_timer = None;
            call.state.in_process = true;
        });
        let inputs = if are_timers { Inputs::ALL } else { self.inputs };
        let called = runner::process(&mut self.transform, &seal(entries, inputs, are_timers));
        CALL_STATE.with_borrow_mut(|call| {
            call.state.in_process = false;
            let time = call.state.time;
            if entries.iter().any(|entry| entry.timestamp.is_some()) {
                call.state.event_time = Some(time);
            }
            call.state.entries.retain(|_, (_, expires_at)| expires_at.is_none_or(|expires_at| expires_at > time));
        });
        let without_parts: Vec<Input> =
            entries.iter().map(|entry| Input { timestamp: entry.timestamp, ..Input::default() }).collect();
        Ok(self.outcomes(&called?, if are_timers { &without_parts } else { entries }))
    }

    /// Fires the timers that are due at the partition's time, or at `time` if that is later.
    fn fire(&mut self, time: i64) -> Result<(), String> {
        for _ in 0..MAX_FIRED {
            let due = CALL_STATE.with_borrow_mut(|call| {
                let now = call.state.time.max(time);
                let due = call.state.timers.iter().map(|(key, time)| (*time, key.clone())).min();
                let (time, key) = due.filter(|(time, _)| *time <= now)?;
                call.state.timers.remove(&key);
                Some((time, key))
            });
            let Some((time, key)) = due else { return Ok(()) };
            let timer = Input { key: Some(key.clone()), timestamp: Some(time), ..Input::default() };
            let outcome = self.call(&[timer], time, true)?.pop().unwrap_or(Outcome::Dropped);
            let at = key.iter().position(|byte| *byte == 0);
            let (name, key) = at.map_or((&[][..], &key[..]), |at| (&key[..at], &key[at + 1..]));
            let name = String::from_utf8_lossy(name).into_owned();
            self.fired.push(Fired { name, key: key.to_vec(), time, outcome });
        }
        panic!("more than {MAX_FIRED} timers fired at one record: a timer must set the next one for a later time");
    }

    /// Advances the event time without a record, as the option `timers.idle` of a transform does:
    /// the timers until `time` fire.
    pub fn advance_time(&mut self, time: i64) -> Result<(), String> {
        self.fire(time)?;
        CALL_STATE.with_borrow_mut(|call| {
            let time = call.state.time.max(time);
            (call.state.time, call.state.event_time) = (time, Some(time));
            call.state.entries.retain(|_, (_, expires_at)| expires_at.is_none_or(|expires_at| expires_at > time));
        });
        Ok(())
    }

    /// The timers that have fired since the last call of this function, in order.
    pub fn take_fired(&mut self) -> Vec<Fired> {
        std::mem::take(&mut self.fired)
    }

    /// The entries of the state in the order of their keys, with the names of their collections.
    pub fn state(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let entries = |call: &CallState| {
            call.state.entries.iter().map(|(key, (value, _))| (key.clone(), value.clone())).collect()
        };
        CALL_STATE.with_borrow(entries)
    }

    /// Sets an entry of a collection, as stored: for tests of a lookup, a row of the table.
    pub fn set_state(&mut self, collection: &str, key: &str, value: &[u8]) {
        let key = [collection.as_bytes(), &[0], key.as_bytes()].concat();
        CALL_STATE.with_borrow_mut(|call| _ = call.state.entries.insert(key, (value.to_vec(), None)));
    }

    /// Flushes the transform.
    pub fn flush(&mut self) -> Result<Vec<Output>, String> {
        let verdicts = runner::flush(&mut self.transform)?;
        Ok(self
            .outcomes(&verdicts, &[Input::default()])
            .into_iter()
            .flat_map(|outcome| match outcome {
                Outcome::Emitted(outputs) => outputs,
                _ => Vec::new(),
            })
            .collect())
    }

    /// The transform.
    pub fn transform(&self) -> &T {
        &self.transform
    }

    /// The log lines since the start.
    pub fn log(&self) -> Vec<(Level, String)> {
        CALL_STATE.with_borrow(|state| state.log.clone())
    }

    /// The value of a counter.
    pub fn counter(&self, name: &str) -> u64 {
        CALL_STATE.with_borrow(|state| state.counters.get(name).copied().unwrap_or_default())
    }

    /// The observations of a histogram.
    pub fn histogram(&self, name: &str) -> Vec<f64> {
        CALL_STATE.with_borrow(|state| state.histograms.get(name).cloned().unwrap_or_default())
    }

    /// Sets the clock.
    pub fn set_now_ms(&mut self, now_ms: u64) {
        CALL_STATE.with_borrow_mut(|state| state.now_ms = now_ms);
    }

    fn outcomes(&self, verdicts: &[u8], records: &[Input]) -> Vec<Outcome> {
        let mut reader = Reader { rest: &verdicts[16..] };
        records
            .iter()
            .map(|record| {
                let [kind, parts, low, high] = reader.take::<4>();
                let port = u16::from_le_bytes([low, high]);
                match kind {
                    0 => Outcome::Passed(self.output(port, record.clone())),
                    1 => Outcome::Dropped,
                    2 => Outcome::Passed(self.output(port, Input { value: reader.nullable(), ..record.clone() })),
                    3 => Outcome::Passed(self.output(port, reader.parts(parts, record))),
                    4 => {
                        let count = u32::from_le_bytes(reader.take::<4>());
                        Outcome::Emitted((0..count).map(|_| self.emitted(&mut reader, record)).collect())
                    }
                    _ => Outcome::Rejected { code: reader.text(), message: reader.text() },
                }
            })
            .collect()
    }

    fn emitted(&self, reader: &mut Reader<'_>, record: &Input) -> Output {
        let [_, parts, low, high] = reader.take::<4>();
        self.output(u16::from_le_bytes([low, high]), reader.parts(parts, record))
    }

    fn output(&self, port: u16, record: Input) -> Output {
        let name = self.ports.get(usize::from(port));
        let Some(name) = name else { panic!("port {port} is not declared; ports: {:?}", self.ports) };
        Output { port: name.clone(), record }
    }
}

/// Parses the output of [`crate::Verdicts`]. It is well-formed by construction, so a slice out of
/// range may panic.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        taken.copy_from_slice(self.bytes(N));
        taken
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(len);
        self.rest = rest;
        bytes
    }

    fn nullable(&mut self) -> Option<Vec<u8>> {
        let len = usize::try_from(i32::from_le_bytes(self.take::<4>())).ok()?;
        Some(self.bytes(len).to_vec())
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.nullable().unwrap_or_default()).into_owned()
    }

    fn parts(&mut self, parts: u8, record: &Input) -> Input {
        let mut changed = record.clone();
        if parts & 1 != 0 {
            changed.key = self.nullable();
        }
        if parts & 2 != 0 {
            changed.value = self.nullable();
        }
        if parts & 4 != 0 {
            let block = self.nullable().unwrap_or_default();
            changed.headers =
                Headers::over(&block).map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect();
        }
        if parts & 8 != 0 {
            changed.timestamp = Some(i64::from_le_bytes(self.take::<8>())).filter(|timestamp| *timestamp >= 0);
        }
        changed
    }
}

/// Packs records or timers as a host does, without the parts that the transform does not read.
fn seal(records: &[Input], inputs: Inputs, are_timers: bool) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    let mut table = Vec::new();
    let mut topics: Vec<&str> = Vec::new();
    for record in records {
        let (topic, partition, offset) = record
            .origin
            .as_ref()
            .map_or(("", 0, -1), |(topic, partition, offset)| (topic.as_str(), *partition, *offset));
        let topic = topics.iter().position(|known| *known == topic).unwrap_or_else(|| {
            topics.push(topic);
            topics.len() - 1
        });
        table.extend_from_slice(&record.timestamp.unwrap_or(-1).to_le_bytes());
        table.extend_from_slice(&offset.to_le_bytes());
        table.extend_from_slice(&partition.to_le_bytes());
        table.extend_from_slice(&(topic as u32).to_le_bytes()); // the port, 0, is its upper half
        let mut headers = Vec::new();
        for (name, value) in record.headers.iter().filter(|_| inputs.headers) {
            write_header(&mut headers, name, value.as_deref());
        }
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        for part in [key.filter(|_| inputs.key), value.filter(|_| inputs.value), Some(headers.as_slice())] {
            table.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            table.extend_from_slice(&part.map_or(-1, |part| part.len() as i32).to_le_bytes());
            bytes.extend_from_slice(part.unwrap_or_default());
        }
    }
    let topics_at = bytes.len();
    for topic in &topics {
        bytes.extend_from_slice(&(topic.len() as u32).to_le_bytes());
        bytes.extend_from_slice(topic.as_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let table_at = bytes.len();
    bytes.extend_from_slice(&table);
    let header = [records.len() as u32, table_at as u32, topics_at as u32, topics.len() as u32, u32::from(are_timers)];
    bytes[..8].copy_from_slice(b"TLB1\x01\0\0\0");
    for (index, word) in header.into_iter().enumerate() {
        bytes[8 + index * 4..12 + index * 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
