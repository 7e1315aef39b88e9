//! Thousands of random steps compared with a model: produce, commit, abort, fence, restart, kill.
//!
//! A request is answered before the next one is sent, or the broker is killed before its answer is
//! read and the request is sent again. So the model knows the exact contents of the log.
//! `TRUNKLINE_TEST_SEED` and `TRUNKLINE_TEST_STEPS` select another run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::Request;

use crate::common::{TestBroker, is_foreign, unique};
use crate::durability::Process;
use crate::raw::{From, Raw, batch, encode, produce};

const PARTITIONS: i32 = 3;
const PRODUCERS: usize = 4;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % limit as u64) as usize
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

/// The model of one offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Plain,
    Open(usize),
    Committed,
    Aborted,
    Marker,
}

#[derive(Debug, Default)]
struct ProducerModel {
    transactional_id: String,
    producer_id: i64,
    epoch: i16,
    sequences: BTreeMap<i32, i32>,
    partitions: BTreeSet<i32>,
    pending_offset: Option<i64>,
    is_open: bool,
    /// Uses `transaction.version` 2: no request adds partitions, and every end changes the epoch.
    has_version_2: bool,
}

struct Model {
    random: Random,
    process: Process,
    raw: Raw,
    topic: String,
    group: String,
    logs: Vec<Vec<Entry>>,
    producers: Vec<ProducerModel>,
    committed_offset: i64,
    kills: usize,
    checks: usize,
}

impl Model {
    /// Sends a request until it is answered. At random the broker dies before its answer is read.
    fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        if self.random.one_in(60) {
            let _ = self.raw.stream.write_all(&encode(version, request));
            if self.random.one_in(2) {
                // Reading the answer makes sure that the request was executed.
                let _ = self.raw.read();
            }
            self.kill();
        }
        self.raw.call(version, request)
    }

    fn kill(&mut self) {
        self.process.kill_and_restart();
        self.kills += 1;
        self.raw = Raw::connect(&self.process.address);
    }

    fn restart(&mut self) {
        self.process.stop_and_restart();
        self.raw = Raw::connect(&self.process.address);
    }

    fn id(&self, number: usize) -> TransactionalId {
        TransactionalId(self.producers[number].transactional_id.clone().into())
    }

    /// Assigns the transactional id to a new producer. The open transaction is aborted.
    fn init(&mut self, number: usize) {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(self.id(number)))
            .with_transaction_timeout_ms(600_000);
        let response = self.call(4, &request);
        assert_eq!(response.error_code, 0);
        let before = (self.producers[number].producer_id, self.producers[number].epoch);
        let after = (response.producer_id.0, response.producer_epoch);
        assert!(after > before, "{after:?} does not fence {before:?}");
        self.finish(number, false);
        let producer = &mut self.producers[number];
        (producer.producer_id, producer.epoch) = after;
        producer.sequences.clear();
    }

    /// Ends a transaction in the model.
    fn finish(&mut self, number: usize, commit: bool) {
        let partitions = std::mem::take(&mut self.producers[number].partitions);
        for partition in partitions {
            let log = &mut self.logs[partition as usize];
            let mut had_records = false;
            for entry in log.iter_mut().filter(|entry| **entry == Entry::Open(number)) {
                *entry = if commit { Entry::Committed } else { Entry::Aborted };
                had_records = true;
            }
            if had_records {
                log.push(Entry::Marker);
            }
        }
        let pending = self.producers[number].pending_offset.take();
        if commit {
            self.committed_offset = pending.unwrap_or(self.committed_offset);
        }
        self.producers[number].is_open = false;
    }

    fn produce_plain(&mut self) {
        let partition = self.random.below(PARTITIONS as usize) as i32;
        let count = 1 + self.random.below(5) as i32;
        // Not idempotent, so it is not sent when its outcome could be unknown.
        let plain = From { producer_id: -1, epoch: -1, sequence: -1, is_transactional: false };
        let (error, offset) = self.produce_to(partition, None, batch(plain, count));
        assert_eq!((error, offset), (0, self.logs[partition as usize].len() as i64));
        self.logs[partition as usize].extend((0..count).map(|_| Entry::Plain));
    }

    fn produce_to(&mut self, partition: i32, id: Option<String>, records: Vec<u8>) -> (i16, i64) {
        let partition =
            produce_request::PartitionProduceData::default().with_index(partition).with_records(Some(records.into()));
        let topic = produce_request::TopicProduceData::default()
            .with_name(TopicName(self.topic.clone().into()))
            .with_partition_data(vec![partition]);
        let request = ProduceRequest::default()
            .with_acks(-1)
            .with_transactional_id(id.clone().map(|id| TransactionalId(id.into())))
            .with_topic_data(vec![topic]);
        let version = if id.as_deref().is_some_and(|id| id.starts_with("tx2")) { 12 } else { 9 };
        let response = if id.is_some() { self.call(version, &request) } else { self.raw.call(9, &request) };
        let partition = &response.responses[0].partition_responses[0];
        (partition.error_code, partition.base_offset)
    }

    fn produce_transactional(&mut self, number: usize) {
        let partition = self.random.below(PARTITIONS as usize) as i32;
        if self.producers[number].has_version_2 {
            self.producers[number].partitions.insert(partition);
            self.producers[number].is_open = true;
        } else if !self.producers[number].partitions.contains(&partition) {
            let topic = AddPartitionsToTxnTopic::default()
                .with_name(TopicName(self.topic.clone().into()))
                .with_partitions(vec![partition]);
            let request = AddPartitionsToTxnRequest::default()
                .with_v3_and_below_transactional_id(self.id(number))
                .with_v3_and_below_producer_id(ProducerId(self.producers[number].producer_id))
                .with_v3_and_below_producer_epoch(self.producers[number].epoch)
                .with_v3_and_below_topics(vec![topic]);
            let response = self.call(2, &request);
            let result = &response.results_by_topic_v3_and_below[0].results_by_partition[0];
            assert_eq!(result.partition_error_code, 0);
            self.producers[number].partitions.insert(partition);
            self.producers[number].is_open = true;
        }
        let count = 1 + self.random.below(5) as i32;
        let producer = &self.producers[number];
        let sequence = producer.sequences.get(&partition).copied().unwrap_or(0);
        let from = From { producer_id: producer.producer_id, epoch: producer.epoch, sequence, is_transactional: true };
        let id = Some(producer.transactional_id.clone());
        let expected = self.logs[partition as usize].len() as i64;
        let times = if self.random.one_in(5) { 2 } else { 1 };
        for _ in 0..times {
            let result = self.produce_to(partition, id.clone(), batch(from, count));
            assert_eq!(result, (0, expected));
        }
        self.logs[partition as usize].extend((0..count).map(|_| Entry::Open(number)));
        self.producers[number].sequences.insert(partition, sequence + count);
    }

    fn send_offset(&mut self, number: usize) {
        let offset = self.random.below(1000) as i64;
        let producer_id = ProducerId(self.producers[number].producer_id);
        let epoch = self.producers[number].epoch;
        let has_version_2 = self.producers[number].has_version_2;
        if !has_version_2 {
            let add = AddOffsetsToTxnRequest::default()
                .with_transactional_id(self.id(number))
                .with_producer_id(producer_id)
                .with_producer_epoch(epoch)
                .with_group_id(GroupId(self.group.clone().into()));
            assert_eq!(self.call(3, &add).error_code, 0);
        }
        self.producers[number].is_open = true;
        let partition = TxnOffsetCommitRequestPartition::default().with_committed_offset(offset);
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(TopicName(self.topic.clone().into()))
            .with_partitions(vec![partition]);
        let commit = TxnOffsetCommitRequest::default()
            .with_transactional_id(self.id(number))
            .with_group_id(GroupId(self.group.clone().into()))
            .with_producer_id(producer_id)
            .with_producer_epoch(epoch)
            .with_topics(vec![topic]);
        let version = if has_version_2 { 5 } else { 3 };
        assert_eq!(self.call(version, &commit).topics[0].partitions[0].error_code, 0);
        self.producers[number].pending_offset = Some(offset);
    }

    fn end(&mut self, number: usize, commit: bool) {
        let request = EndTxnRequest::default()
            .with_transactional_id(self.id(number))
            .with_producer_id(ProducerId(self.producers[number].producer_id))
            .with_producer_epoch(self.producers[number].epoch)
            .with_committed(commit);
        if self.producers[number].has_version_2 {
            return self.end_version_2(number, &request);
        }
        let response = self.call(3, &request);
        if !self.producers[number].is_open {
            // No open transaction; or a retry of the previous end.
            let allowed = [0, ResponseError::InvalidTxnState.code()];
            assert!(allowed.contains(&response.error_code), "{}", response.error_code);
            return;
        }
        assert_eq!(response.error_code, 0);
        self.finish(number, commit);
    }

    fn end_version_2(&mut self, number: usize, request: &EndTxnRequest) {
        let response = self.call(5, request);
        if !self.producers[number].is_open && request.committed {
            assert_eq!(response.error_code, ResponseError::InvalidTxnState.code());
            return;
        }
        assert_eq!(response.error_code, 0);
        self.finish(number, request.committed);
        let producer = &mut self.producers[number];
        let next = (producer.producer_id, producer.epoch + 1);
        assert_eq!((response.producer_id.0, response.producer_epoch), next);
        producer.epoch += 1;
        producer.sequences.clear();
    }

    /// The producer before the last InitProducerId is fenced.
    fn try_as_zombie(&mut self, number: usize) {
        let producer = &self.producers[number];
        if producer.epoch == 0 {
            return;
        }
        let from =
            From { producer_id: producer.producer_id, epoch: producer.epoch - 1, sequence: 0, is_transactional: true };
        let id = producer.transactional_id.clone();
        let (error, _) = produce(&mut self.raw, &self.topic, Some(&id), batch(from, 1));
        assert_eq!(error, ResponseError::InvalidProducerEpoch.code());
        let request = EndTxnRequest::default()
            .with_transactional_id(self.id(number))
            .with_producer_id(ProducerId(from.producer_id))
            .with_producer_epoch(from.epoch)
            .with_committed(true);
        assert_eq!(self.raw.call(3, &request).error_code, ResponseError::ProducerFenced.code());
    }

    /// Compares the broker with the model.
    fn check(&mut self) {
        self.checks += 1;
        for partition in 0..PARTITIONS {
            let log = &self.logs[partition as usize];
            let end = log.len() as i64;
            let first_open = log.iter().position(|entry| matches!(entry, Entry::Open(_)));
            let stable_end = first_open.map_or(end, |at| at as i64);
            assert_eq!(list_end(&mut self.raw, &self.topic, partition, 0), end);
            assert_eq!(list_end(&mut self.raw, &self.topic, partition, 1), stable_end);
            let from = self.random.below(log.len() + 1) as i64;
            let is_record = |entry: &Entry| *entry != Entry::Marker;
            let is_visible = |entry: &Entry| matches!(entry, Entry::Plain | Entry::Committed);
            let offsets = |until: i64, accepts: &dyn Fn(&Entry) -> bool| -> Vec<i64> {
                (from..until).filter(|offset| accepts(&log[*offset as usize])).collect()
            };
            let all = read(&mut self.raw, &self.topic, partition, from, end, 0);
            assert_eq!(all, offsets(end, &is_record), "partition {partition} from {from}");
            let stable = read(&mut self.raw, &self.topic, partition, from, stable_end, 1);
            assert_eq!(stable, offsets(stable_end, &is_visible), "partition {partition} from {from}, committed");
        }
        let topic = OffsetFetchRequestTopic::default()
            .with_name(TopicName(self.topic.clone().into()))
            .with_partition_indexes(vec![0]);
        let request = OffsetFetchRequest::default()
            .with_group_id(GroupId(self.group.clone().into()))
            .with_topics(Some(vec![topic]))
            .with_require_stable(true);
        let response = self.raw.call(7, &request);
        let answer = &response.topics[0].partitions[0];
        if self.producers.iter().any(|producer| producer.pending_offset.is_some()) {
            assert_eq!(answer.error_code, ResponseError::UnstableOffsetCommit.code());
        } else {
            assert_eq!((answer.error_code, answer.committed_offset), (0, self.committed_offset));
        }
    }
}

fn list_end(raw: &mut Raw, topic: &str, partition: i32, isolation: i8) -> i64 {
    let partition = ListOffsetsPartition::default().with_partition_index(partition).with_timestamp(-1);
    let topic =
        ListOffsetsTopic::default().with_name(TopicName(topic.to_owned().into())).with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default().with_isolation_level(isolation).with_topics(vec![topic]);
    raw.call(5, &request).topics[0].partitions[0].offset
}

/// The offsets of the records that a reader sees who follows the protocol.
fn read(raw: &mut Raw, topic: &str, partition: i32, from: i64, until: i64, isolation: i8) -> Vec<i64> {
    let mut position = from;
    let mut found = Vec::new();
    while position < until {
        let wanted = FetchPartition::default()
            .with_partition(partition)
            .with_fetch_offset(position)
            .with_partition_max_bytes(700);
        let wanted = FetchTopic::default().with_topic(TopicName(topic.to_owned().into())).with_partitions(vec![wanted]);
        let request =
            FetchRequest::default().with_max_bytes(1 << 20).with_isolation_level(isolation).with_topics(vec![wanted]);
        let response = raw.call(11, &request);
        let answer = &response.responses[0].partitions[0];
        assert_eq!(answer.error_code, 0);
        let mut aborted: Vec<(i64, i64)> = answer
            .aborted_transactions
            .iter()
            .flatten()
            .map(|transaction| (transaction.first_offset, transaction.producer_id.0))
            .collect();
        aborted.sort_unstable();
        let mut skipping = BTreeSet::new();
        let mut rest = &answer.records.as_ref().unwrap()[..];
        let before = position;
        while rest.len() >= 61 {
            let number = |at: usize| i64::from_be_bytes(rest[at..at + 8].try_into().unwrap());
            let (base_offset, producer_id) = (number(0), number(43));
            let size = 12 + i32::from_be_bytes(rest[8..12].try_into().unwrap()) as usize;
            if size > rest.len() {
                break;
            }
            let attributes = i16::from_be_bytes(rest[21..23].try_into().unwrap());
            let last_offset = base_offset + i64::from(i32::from_be_bytes(rest[23..27].try_into().unwrap()));
            while aborted.first().is_some_and(|(first, _)| *first <= last_offset) {
                skipping.insert(aborted.remove(0).1);
            }
            if attributes & 0x20 != 0 {
                // An abort marker ends the skipped range.
                if rest[68..70] == [0, 0] {
                    skipping.remove(&producer_id);
                }
            } else if attributes & 0x10 == 0 || !skipping.contains(&producer_id) {
                found.extend((base_offset..=last_offset).filter(|offset| *offset >= from));
            }
            position = last_offset + 1;
            rest = &rest[size..];
        }
        assert!(position > before, "no progress at {position} of {topic}/{partition}");
    }
    found.retain(|offset| *offset < until);
    found
}

#[test]
fn random_steps_with_kills_match_the_model() {
    if is_foreign() {
        return;
    }
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let seed = number("TRUNKLINE_TEST_SEED", 1);
    let steps = number("TRUNKLINE_TEST_STEPS", 2000);
    println!("seed {seed}, {steps} steps");
    let data = tempfile::tempdir().unwrap();
    let process = Process::start(data.path(), "127.0.0.1:0");
    let mut helper = TestBroker::own(|_| {});
    helper.address.clone_from(&process.address);
    let topic = helper.topic("model", PARTITIONS, &[("internal.segment.bytes", "20000")]);
    let raw = Raw::connect(&process.address);
    let producer = |number: usize| {
        let has_version_2 = number.is_multiple_of(2);
        let transactional_id = unique(if has_version_2 { "tx2" } else { "tx" });
        ProducerModel { transactional_id, producer_id: -1, epoch: -1, has_version_2, ..Default::default() }
    };
    let mut model = Model {
        random: Random(seed),
        process,
        raw,
        topic,
        group: unique("group"),
        logs: (0..PARTITIONS).map(|_| Vec::new()).collect(),
        producers: (0..PRODUCERS).map(producer).collect(),
        committed_offset: -1,
        kills: 0,
        checks: 0,
    };
    for number in 0..PRODUCERS {
        model.init(number);
    }
    for _ in 0..steps {
        let number = model.random.below(PRODUCERS);
        match model.random.below(100) {
            0..15 => model.produce_plain(),
            15..55 => model.produce_transactional(number),
            55..62 => model.send_offset(number),
            62..78 => model.end(number, true),
            78..85 => model.end(number, false),
            85..88 => model.init(number),
            88..90 => model.try_as_zombie(number),
            90 => model.kill(),
            91 => model.restart(),
            _ => model.check(),
        }
    }
    model.check();
    let records: usize = model.logs.iter().map(Vec::len).sum();
    println!("{records} offsets, {} kills, {} checks", model.kills, model.checks);
}
