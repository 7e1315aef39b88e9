//! Reads the committed records of assigned partitions, in the thread of a stage.
//!
//! Each broker has one connection with at most one request on it. While a stage works on
//! the records of an answer, the next one arrives: memory holds at most two answers of each broker
//! (I6). A broker without records answers after a wait that grows up to [`MAX_WAIT`], so that an
//! idle consumer costs next to nothing. A partition that must be asked meanwhile, because it was
//! assigned, moved or resumed, does not wait for that answer: the connection is closed, and opened
//! again.
//!
//! A position moves when records are handed over, and passes control batches and aborted records
//! (I2: positions are no commits).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kafka_protocol::messages::{FetchRequest, ListOffsetsRequest};
use trunkline_connector::{Result, TopicPartition};

use super::decompressor::Decompressor;
use super::partition::{FetchPartition, Position, Wanted};
use super::records::Room;
use super::requests::{FETCH_VERSIONS, FetchLimits, Isolation, LIST_OFFSETS_VERSIONS, fetch, first_offsets};
use crate::backoff::{Backoff, jitter};
use crate::kafka::client::Cluster;
use crate::kafka::partition_batches::PartitionBatches;
use crate::kafka::wire::Lost;
use crate::kafka::wire::brokers::{Brokers, CallError};
use crate::kafka::wire::connection::Connection;
use crate::kafka::wire::connection::readiness::Readiness;

/// The first wait of a broker without records.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// The longest wait: less than the time after which an answer counts as lost.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Time to connect to a broker, or to ask for the leaders: nothing is read meanwhile.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// Pauses between two attempts to connect, or to find the leaders.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Answers of one broker that are in memory when another one is requested.
const ANSWERS_BEFORE_REQUEST: usize = 1;

/// What a fetcher needs to know of its consumer.
pub(in crate::kafka) struct FetchOptions {
    /// The group of the consumer, for messages; `None`: it is in no group.
    pub(in crate::kafka) group: Option<String>,
    /// Brokers see this name.
    pub(in crate::kafka) client_id: String,
    /// A replica in this rack is read, if the brokers know one (KIP-392).
    pub(in crate::kafka) rack: String,
    pub(in crate::kafka) limits: FetchLimits,
    /// An offset that no longer exists is an error.
    pub(in crate::kafka) is_strict: bool,
    pub(in crate::kafka) isolation: Isolation,
}

impl FetchOptions {
    /// What the consumer does, in messages.
    pub(in crate::kafka::wire) fn doing(&self, topic: Option<&str>) -> String {
        let topic = topic.map_or(String::new(), |topic| format!(" topic `{topic}`"));
        match &self.group {
            Some(group) => format!("consuming{topic} in group `{group}`"),
            None => format!("reading{topic}"),
        }
    }
}

/// The assigned partitions of a consumer, and the connections over which they are read.
pub(in crate::kafka) struct Fetcher {
    pub(in crate::kafka::wire) options: FetchOptions,
    brokers: Brokers,
    pub(in crate::kafka::wire) partitions: BTreeMap<TopicPartition, FetchPartition>,
    links: HashMap<i32, Link>,
    /// Partitions with records that were not handed over.
    pub(in crate::kafka::wire) ready: VecDeque<TopicPartition>,
    is_paused: bool,
    decompressor: Decompressor,
    /// A partition may have to be asked that no request in flight asks for.
    pub(in crate::kafka::wire) is_changed: bool,
    /// When the leaders are to be looked up.
    pub(in crate::kafka::wire) lookup_at: Option<Instant>,
    lookup_backoff: Backoff,
    /// When the requests that are due were sent last.
    considered_at: Instant,
    last_serial: u64,
    pub(in crate::kafka::wire) answers: u64,
    max_wait: Duration,
}

/// What is known of one broker.
struct Link {
    connection: Option<Connection>,
    in_flight: Option<InFlight>,
    /// The answers of which something was not handed over.
    answers: Vec<Weak<()>>,
    wait: Duration,
    retry_at: Option<Instant>,
    backoff: Backoff,
}

/// A request without an answer.
struct InFlight {
    version: i16,
    request: Asked,
    wanted: BTreeMap<TopicPartition, Wanted>,
    /// When a broker without records answers.
    until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Records,
    FirstOffsets,
}

/// What a broker is to be asked, in this order.
#[derive(Default)]
struct Wants {
    first_offsets: Vec<(TopicPartition, Wanted)>,
    /// With the number of the partition's last answer.
    records: Vec<(u64, TopicPartition, Wanted)>,
}

impl Fetcher {
    /// A fetcher without partitions. Nothing is connected before there are some.
    pub(in crate::kafka) fn new(cluster: &Cluster, options: FetchOptions) -> Self {
        Self {
            brokers: Brokers::new(cluster, &options.client_id),
            options,
            partitions: BTreeMap::new(),
            links: HashMap::new(),
            ready: VecDeque::new(),
            is_paused: false,
            decompressor: Decompressor::default(),
            is_changed: false,
            lookup_at: None,
            lookup_backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE),
            considered_at: Instant::now(),
            last_serial: 0,
            answers: 0,
            max_wait: MAX_WAIT,
        }
    }

    /// The brokers that are asked for other things than records.
    pub(in crate::kafka) fn brokers(&mut self) -> &mut Brokers {
        &mut self.brokers
    }

    /// Limits the wait of a broker without records, and with it the age of the watermarks.
    pub(in crate::kafka) fn limit_wait(&mut self, max_wait: Duration) {
        self.max_wait = max_wait.clamp(FIRST_WAIT, MAX_WAIT);
    }

    pub(in crate::kafka::wire) fn next_serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    /// Adds partitions, which continue at the group's committed offsets. See
    /// [`Fetcher::without_start`].
    pub(in crate::kafka) fn assign(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            let serial = self.next_serial();
            self.partitions.insert(partition.clone(), FetchPartition::new(serial));
        }
    }

    /// Removes partitions, and all that was fetched of them.
    pub(in crate::kafka) fn revoke(&mut self, partitions: &[TopicPartition]) {
        partitions.iter().for_each(|partition| drop(self.partitions.remove(partition)));
        if self.partitions.is_empty() {
            self.links.clear();
            self.ready.clear();
            self.decompressor.release();
        }
    }

    /// Whether no partition is assigned.
    pub(in crate::kafka) fn is_unassigned(&self) -> bool {
        self.partitions.is_empty()
    }

    /// The partitions whose committed offset was not read. Nothing is fetched of them before
    /// [`Fetcher::set_start`].
    pub(in crate::kafka) fn without_start(&self) -> Vec<TopicPartition> {
        if self.is_paused {
            return Vec::new();
        }
        let is_without = |partition: &FetchPartition| partition.position == Position::Committed && !partition.is_paused;
        let found = self.partitions.iter().filter(|(_, partition)| is_without(partition));
        found.map(|(partition, _)| partition.clone()).collect()
    }

    /// Notes the committed offset of an assigned partition; -1 where there is none. It does not
    /// change the position of a partition that has one.
    pub(in crate::kafka) fn set_start(&mut self, partition: &TopicPartition, committed: i64) -> Result<()> {
        let serial = self.next_serial();
        let Some(found) = self.partitions.get_mut(partition) else { return Ok(()) };
        if found.position != Position::Committed {
            return Ok(());
        }
        if committed < 0 && self.options.is_strict {
            return Err(self.deleted(partition));
        }
        found.move_to(if committed < 0 { Position::First } else { Position::At(committed) }, serial);
        self.is_changed = true;
        Ok(())
    }

    /// Continues an assigned partition at `offset`, or at its first record if that is negative.
    pub(in crate::kafka) fn seek(&mut self, partition: &TopicPartition, offset: i64) {
        let serial = self.next_serial();
        if let Some(found) = self.partitions.get_mut(partition) {
            found.move_to(if offset < 0 { Position::First } else { Position::At(offset) }, serial);
            self.is_changed = true;
        }
    }

    /// Hands nothing over and fetches nothing until [`Fetcher::resume`]. What was fetched is kept.
    pub(in crate::kafka) fn pause(&mut self) {
        self.is_paused = true;
    }

    /// Pauses some partitions, and drops what was fetched of them.
    pub(in crate::kafka) fn pause_partitions(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            let serial = self.next_serial();
            if let Some(found) = self.partitions.get_mut(partition) {
                found.drop_fetched(serial);
                found.is_paused = true;
            }
        }
    }

    /// Continues all partitions.
    pub(in crate::kafka) fn resume(&mut self) {
        self.is_paused = false;
        for partition in self.partitions.values_mut().filter(|partition| partition.is_paused) {
            partition.is_paused = false;
            self.is_changed = true;
        }
    }

    /// The offset up to which a partition was handed over, or passed; `None` before it is known.
    pub(in crate::kafka) fn position(&self, partition: &TopicPartition) -> Option<i64> {
        match self.partitions.get(partition)?.position {
            Position::At(offset) => Some(offset),
            Position::Committed | Position::First => None,
        }
    }

    /// Whether a partition was handed over, or passed, up to `end`. `None` if it is not assigned,
    /// or paused before its position is known.
    pub(in crate::kafka) fn has_reached(&self, partition: &TopicPartition, end: i64) -> Option<bool> {
        let found = self.partitions.get(partition)?;
        match found.position {
            Position::At(offset) => Some(offset >= end),
            Position::Committed | Position::First => (!found.is_paused).then_some(end <= 0),
        }
    }

    /// The offset after the last record of a partition, from the last answer.
    pub(in crate::kafka) fn high_watermark(&self, partition: &TopicPartition) -> Option<i64> {
        self.partitions.get(partition)?.high_watermark
    }

    /// Whether a partition was handed over up to its end, as the last answer knew it.
    pub(in crate::kafka) fn is_at_end(&self, partition: &TopicPartition) -> bool {
        self.partitions.get(partition).is_some_and(|found| match (found.position, found.end) {
            (Position::At(offset), Some(end)) => offset >= end,
            _ => false,
        })
    }

    /// The number of answers to fetches so far.
    #[cfg(test)]
    pub(in crate::kafka) fn answers(&self) -> u64 {
        self.answers
    }

    /// Whether a broker waits for records for longer than this.
    #[cfg(test)]
    pub(in crate::kafka) fn waits_longer_than(&self, wait: Duration) -> bool {
        let mut asked = self.links.values().filter_map(|link| link.in_flight.as_ref());
        asked.any(|asked| asked.until > Instant::now() + wait)
    }

    /// Copies fetched records to the batches of their partitions while there is room.
    pub(in crate::kafka) fn hand_over(&mut self, room: &mut Room, batches: &mut PartitionBatches) -> Result<()> {
        while !self.is_paused && !room.is_full() {
            let Some(name) = self.ready.front() else { break };
            let Some(partition) = self.partitions.get_mut(name) else {
                self.ready.pop_front();
                continue;
            };
            let Some(records) = partition.fetched.front_mut() else {
                self.ready.pop_front();
                continue;
            };
            let (batch, topic) = batches.of(name);
            let read = records.read(&mut self.decompressor, room, batch, (topic, name.partition));
            partition.position = Position::At(records.position());
            let is_done = match read {
                Ok(is_done) => is_done,
                Err(bad) => return Err(self.unreadable(&name.clone(), &bad)),
            };
            if is_done {
                partition.fetched.pop_front();
                // Every partition has its turn.
                let name = self.ready.pop_front();
                self.ready.extend(name.filter(|_| !partition.fetched.is_empty()));
            }
        }
        Ok(())
    }

    /// Takes the answers that have arrived, and sends the requests that are due. It waits only for
    /// a new connection, and for the leaders of partitions if they are not known.
    pub(in crate::kafka) fn progress(&mut self) -> Result<()> {
        if self.is_paused || self.partitions.is_empty() {
            return Ok(());
        }
        self.look_up_leaders()?;
        let nodes: Vec<i32> =
            self.links.iter().filter(|(_, link)| link.in_flight.is_some()).map(|(node, _)| *node).collect();
        for node in nodes {
            self.take_answer(node)?;
        }
        self.send_requests()
    }

    /// What poll(2) has to wait for.
    pub(in crate::kafka) fn readiness(&self) -> impl Iterator<Item = Readiness> {
        let links = self.links.values().filter(|link| !self.is_paused && link.in_flight.is_some());
        links.filter_map(|link| link.connection.as_ref()).map(Connection::readiness)
    }

    /// When there is something to do without an answer.
    pub(in crate::kafka) fn next_step(&self) -> Option<Instant> {
        if self.is_paused || self.partitions.is_empty() {
            return None;
        }
        if self.is_changed {
            return Some(Instant::now());
        }
        // Those before have been considered: an answer or a time below decides when they are asked.
        let is_new = |at: &Instant| *at > self.considered_at;
        let partitions = self.partitions.values().filter_map(FetchPartition::retry_at).filter(is_new);
        partitions.chain(self.links.values().filter_map(|link| link.retry_at)).chain(self.lookup_at).min()
    }

    fn look_up_leaders(&mut self) -> Result<()> {
        if self.lookup_at.is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        let mut topics: Vec<&str> = self.partitions.keys().map(|partition| partition.topic.as_ref()).collect();
        topics.dedup();
        self.lookup_at = Some(Instant::now() + jitter(self.lookup_backoff.advance()));
        match self.brokers.refresh(&topics, Instant::now() + CALL_LIMIT) {
            Ok(()) => {
                self.is_changed = true;
                let is_known = |name: &TopicPartition| self.brokers.leader(&name.topic, name.partition).is_some();
                if self.partitions.keys().all(is_known) {
                    self.lookup_at = None;
                    self.lookup_backoff.reset();
                }
                for (node, link) in &mut self.links {
                    let has_moved = |connection: &Connection| self.brokers.address(*node) != Some(connection.address());
                    if link.connection.as_ref().is_some_and(has_moved) {
                        link.close();
                    }
                }
                Ok(())
            }
            Err(CallError::Lost(lost)) => self.check_hope(lost),
            Err(CallError::Refused(error)) => Err(error.context(self.options.doing(None))),
        }
    }

    /// Another attempt may help, unless a setting is wrong.
    fn check_hope(&self, lost: Lost) -> Result<()> {
        let cluster = self.brokers.cluster();
        if cluster.connection().is_hopeless() {
            return Err(CallError::Lost(lost).explain(&self.options.doing(None), cluster));
        }
        tracing::debug!(reason = lost.0, doing = self.options.doing(None), "the consumer continues without a broker");
        Ok(())
    }

    /// Looks the leaders up, unless a lookup is planned.
    pub(in crate::kafka::wire) fn plan_lookup(&mut self) {
        self.lookup_at.get_or_insert_with(Instant::now);
    }

    fn take_answer(&mut self, node: i32) -> Result<()> {
        let Some(link) = self.links.get_mut(&node) else { return Ok(()) };
        let Some(connection) = &mut link.connection else {
            link.close();
            return Ok(());
        };
        let body = match connection.progress() {
            Ok(None) => return Ok(()),
            Ok(Some((_, body))) => body,
            Err(lost) => return self.lose(node, lost),
        };
        let Some(asked) = link.in_flight.take() else { return Ok(()) };
        self.is_changed = true;
        match asked.request {
            Asked::Records => match connection.decode::<FetchRequest>(asked.version, body) {
                Ok(answer) => {
                    let token = Arc::new(());
                    let has_records = self.note_records(node, &answer, &asked.wanted, &token)?;
                    if let Some(link) = self.links.get_mut(&node) {
                        link.wait = if has_records { FIRST_WAIT } else { (2 * link.wait).min(self.max_wait) };
                        link.answers.push(Arc::downgrade(&token));
                        link.backoff.reset();
                    }
                    if !has_records {
                        self.decompressor.release();
                    }
                }
                Err(lost) => return self.lose(node, lost),
            },
            Asked::FirstOffsets => match connection.decode::<ListOffsetsRequest>(asked.version, body) {
                Ok(answer) => self.note_first_offsets(&answer, &asked.wanted)?,
                Err(lost) => return self.lose(node, lost),
            },
        }
        Ok(())
    }

    /// Connects again after a pause. The partitions may have another leader.
    fn lose(&mut self, node: i32, lost: Lost) -> Result<()> {
        if let Some(link) = self.links.get_mut(&node) {
            if link.connection.is_some() {
                self.brokers.note_lost(&lost);
            }
            link.close();
            link.retry_at = Some(Instant::now() + jitter(link.backoff.advance()));
        }
        for partition in self.partitions.values_mut() {
            if partition.replica(Instant::now()) == Some(node) {
                partition.set_replica(None);
            }
        }
        self.is_changed = true;
        self.plan_lookup();
        self.check_hope(lost)
    }

    fn send_requests(&mut self) -> Result<()> {
        let now = Instant::now();
        self.considered_at = now;
        self.links.values_mut().for_each(|link| link.note_time(now));
        let is_due = self.partitions.values().filter_map(FetchPartition::retry_at).any(|at| at <= now);
        if !self.is_changed && !is_due && !self.links.values().any(Link::is_free) {
            return Ok(());
        }
        self.is_changed = false;
        for (node, wants) in self.wants(now) {
            let link = self.links.entry(node).or_insert_with(Link::new);
            if link.is_late_for(&wants, now) {
                link.close();
            }
            if link.is_free()
                && let Err(failure) = self.send(node, wants)
            {
                match failure {
                    CallError::Lost(lost) => self.lose(node, lost)?,
                    CallError::Refused(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// What each broker is to be asked.
    fn wants(&mut self, now: Instant) -> BTreeMap<i32, Wants> {
        let mut wants = BTreeMap::<i32, Wants>::new();
        let mut is_known = true;
        for (name, partition) in &self.partitions {
            if !partition.is_askable(now) {
                continue;
            }
            let leader = || self.brokers.leader(&name.topic, name.partition).map(|leader| leader.node);
            let Some(node) = partition.replica(now).or_else(leader) else {
                is_known = false;
                continue;
            };
            let of_node = wants.entry(node).or_default();
            match partition.position {
                Position::First => of_node.first_offsets.push((name.clone(), partition.wanted())),
                _ => of_node.records.push((partition.last_answer, name.clone(), partition.wanted())),
            }
        }
        if !is_known {
            self.plan_lookup();
        }
        wants
    }

    fn send(&mut self, node: i32, wants: Wants) -> Result<(), CallError> {
        let Some(link) = self.links.get_mut(&node) else { return Ok(()) };
        let deadline = Instant::now() + CALL_LIMIT;
        let connection = match &mut link.connection {
            Some(connection) => {
                connection.renew_login(self.brokers.cluster(), deadline)?;
                connection
            }
            None => link.connection.insert(self.brokers.take_connection(node, deadline)?),
        };
        let now = Instant::now();
        let asked = if wants.first_offsets.is_empty() {
            let Wants { mut records, .. } = wants;
            records.sort_by_key(|(last_answer, ..)| *last_answer);
            let wanted: Vec<_> = records.into_iter().map(|(_, name, wanted)| (name, wanted)).collect();
            let version = connection.version::<FetchRequest>(FETCH_VERSIONS)?;
            // A partition that is asked again later does not wait for this answer.
            let retry_at = self.partitions.values().filter_map(FetchPartition::retry_at).min();
            let wait = retry_at.map_or(link.wait, |at| at.saturating_duration_since(now).clamp(FIRST_WAIT, link.wait));
            connection.send(version, &fetch(version, &wanted, &self.options, wait))?;
            let wanted = wanted.into_iter().collect();
            InFlight { version, request: Asked::Records, wanted, until: now + wait }
        } else {
            let version = connection.version::<ListOffsetsRequest>(LIST_OFFSETS_VERSIONS)?;
            connection.send(version, &first_offsets(&wants.first_offsets))?;
            let wanted = wants.first_offsets.into_iter().collect();
            InFlight { version, request: Asked::FirstOffsets, wanted, until: now }
        };
        for name in asked.wanted.keys() {
            if let Some(partition) = self.partitions.get_mut(name) {
                partition.note_request();
            }
        }
        link.in_flight = Some(asked);
        // Writes it: the broker works while the stage does.
        self.take_answer(node).map_err(CallError::Refused)
    }
}

impl Link {
    fn new() -> Self {
        Self {
            connection: None,
            in_flight: None,
            answers: Vec::new(),
            wait: FIRST_WAIT,
            retry_at: None,
            backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE),
        }
    }

    fn close(&mut self) {
        self.connection = None;
        self.in_flight = None;
        self.wait = FIRST_WAIT;
    }

    /// Forgets answers that were handed over, and a pause that is over.
    fn note_time(&mut self, now: Instant) {
        self.answers.retain(|answer| answer.strong_count() > 0);
        self.retry_at = self.retry_at.filter(|at| *at > now);
    }

    /// Whether a request can be sent.
    fn is_free(&self) -> bool {
        self.in_flight.is_none() && self.has_room() && self.retry_at.is_none()
    }

    fn has_room(&self) -> bool {
        self.answers.len() <= ANSWERS_BEFORE_REQUEST
    }

    /// Whether the request in flight would delay one for another partition.
    fn is_late_for(&self, wants: &Wants, now: Instant) -> bool {
        let Some(asked) = &self.in_flight else { return false };
        if asked.request != Asked::Records || asked.until <= now + FIRST_WAIT || !self.has_room() {
            return false;
        }
        let is_missing = |name: &TopicPartition, wanted: &Wanted| asked.wanted.get(name) != Some(wanted);
        !wants.first_offsets.is_empty() || wants.records.iter().any(|(_, name, wanted)| is_missing(name, wanted))
    }
}
