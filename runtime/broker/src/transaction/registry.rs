//! All transactional ids, and the steps that involve transactions, partitions, groups and the
//! internal log.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Instant;

use kafka_protocol::ResponseError;

use super::{Identity, MAX_EPOCH, NO_PRODUCER_ID, Phase, Transaction, TransactionSlot, TransactionVersion};
use crate::clock::now_ms;
use crate::error::ApiError;
use crate::group::Groups;
use crate::log::Appended;
use crate::log::batch::{BatchHeader, Marker};
use crate::store::{Change, Key, Store};
use crate::sync::{lock, read, write};
use crate::topics::Topics;
use crate::topics::config::TopicConfig;
use crate::topics::partition::Partition;

/// Producer ids are reserved in blocks, so that most requests write nothing.
const PRODUCER_ID_BLOCK: i64 = 1000;

/// Limit on transactional ids: clients with generated ids must not exhaust the memory.
const MAX_TRANSACTIONAL_IDS: usize = 100_000;

/// Reserved producer ids.
#[derive(Debug)]
struct ProducerIds {
    next: i64,
    block_end: i64,
}

/// The transaction coordinator.
#[derive(Debug)]
pub(crate) struct Coordinator {
    store: Arc<Store>,
    topics: Arc<Topics>,
    groups: Arc<Groups>,
    slots: RwLock<HashMap<String, Arc<Mutex<TransactionSlot>>>>,
    producer_ids: Mutex<ProducerIds>,
}

/// The producer that a request names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requester<'request> {
    pub(crate) transactional_id: &'request str,
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
}

impl Requester<'_> {
    /// The producer id and epoch, if the request names them.
    fn identity(&self) -> Option<Identity> {
        (self.producer_id != NO_PRODUCER_ID).then_some((self.producer_id, self.epoch))
    }
}

impl Coordinator {
    /// Restores every transactional id, and completes transactions that the previous run decided.
    pub(crate) fn open(store: Arc<Store>, topics: Arc<Topics>, groups: Arc<Groups>) -> io::Result<Self> {
        let records: Vec<(String, Transaction)> = store.scan(|key| match key {
            Key::Transaction(id) => Some(id.clone()),
            _ => None,
        })?;
        let next = store.get(&Key::ProducerIds)?.unwrap_or(0);
        let wrap =
            |transaction| Arc::new(Mutex::new(TransactionSlot { transaction, is_removed: false, failed_at: None }));
        let coordinator = Self {
            store,
            topics,
            groups,
            slots: RwLock::new(records.into_iter().map(|(id, transaction)| (id, wrap(transaction))).collect()),
            producer_ids: Mutex::new(ProducerIds { next, block_end: next }),
        };
        coordinator.tick();
        coordinator.abort_unknown_transactions();
        Ok(coordinator)
    }

    /// Aborts transactions that are open in a partition and unknown to the coordinator. A power
    /// failure that removes the end of the internal log can cause them. Without the abort they
    /// would block all `read_committed` readers.
    fn abort_unknown_transactions(&self) {
        let mut known: HashSet<(i64, String, i32)> = HashSet::new();
        for (_, slot) in self.all() {
            let slot = lock(&slot);
            let producer_id = slot.transaction.producer_id;
            known.extend(
                slot.transaction.partitions.iter().map(|(topic, partition)| (producer_id, topic.clone(), *partition)),
            );
        }
        for topic in self.topics.all() {
            for partition in topic.partitions() {
                let open: Vec<(i64, i16)> = partition.with_log(|log| {
                    let producers = log.producers().iter();
                    let open = producers.filter(|(_, producer)| producer.transaction_start.is_some());
                    open.map(|(id, producer)| (id, producer.epoch)).collect()
                });
                for (producer_id, epoch) in open {
                    if known.contains(&(producer_id, topic.name.clone(), partition.index)) {
                        continue;
                    }
                    tracing::warn!(
                        topic = topic.name,
                        partition = partition.index,
                        producer_id,
                        "aborting a transaction that the coordinator does not know"
                    );
                    if let Err(error) =
                        partition.end_transaction(producer_id, epoch, Marker::of_coordinator(false), &topic.config())
                    {
                        tracing::error!(
                            topic = topic.name,
                            error = error.message,
                            "cannot abort the unknown transaction"
                        );
                    }
                }
            }
        }
    }

    pub(crate) fn all(&self) -> Vec<(String, Arc<Mutex<TransactionSlot>>)> {
        read(&self.slots).iter().map(|(id, slot)| (id.clone(), Arc::clone(slot))).collect()
    }

    /// A copy of the state of a transactional id.
    pub(crate) fn get(&self, id: &str) -> Option<Transaction> {
        let slot = read(&self.slots).get(id).cloned()?;
        let slot = lock(&slot);
        (!slot.is_removed).then(|| slot.transaction.clone())
    }

    /// A new producer id.
    pub(crate) fn new_producer_id(&self) -> Result<i64, ResponseError> {
        let mut ids = lock(&self.producer_ids);
        if ids.next == ids.block_end {
            let block_end = ids.block_end + PRODUCER_ID_BLOCK;
            self.save(Key::ProducerIds, &block_end)?;
            ids.block_end = block_end;
        }
        let id = ids.next;
        ids.next += 1;
        Ok(id)
    }

    fn save(&self, key: Key, value: &impl serde::Serialize) -> Result<(), ResponseError> {
        let saved = Change::put(key, value).and_then(|change| self.store.apply(vec![change]));
        // Retriable: the disk may have room again at the next attempt.
        saved.map_err(|_| ResponseError::CoordinatorNotAvailable)
    }

    /// Persists the next state of a transaction and then installs it.
    fn advance(&self, id: &str, slot: &mut TransactionSlot, next: Transaction) -> Result<(), ResponseError> {
        let next = Transaction { updated_ms: now_ms(), ..next };
        self.save(Key::Transaction(id.to_owned()), &next)?;
        slot.transaction = next;
        Ok(())
    }

    /// Runs `work` on an existing transactional id.
    fn with<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut MutexGuard<'_, TransactionSlot>) -> Result<T, ResponseError>,
    ) -> Result<T, ResponseError> {
        let slot = read(&self.slots).get(id).cloned().ok_or(ResponseError::InvalidProducerIdMapping)?;
        let mut slot = lock(&slot);
        if slot.is_removed { Err(ResponseError::InvalidProducerIdMapping) } else { work(&mut slot) }
    }

    /// Assigns a transactional id to a producer, fences the previous one and aborts its open
    /// transaction.
    pub(crate) fn init_producer(&self, requester: Requester<'_>, timeout_ms: i32) -> Result<(i64, i16), ResponseError> {
        let id = requester.transactional_id;
        loop {
            let found = read(&self.slots).get(id).cloned();
            let Some(slot) = found else {
                let transaction = Transaction::new(self.new_producer_id()?, timeout_ms);
                let identity = (transaction.producer_id, transaction.epoch);
                let mut slots = write(&self.slots);
                if slots.contains_key(id) {
                    continue;
                }
                if slots.len() >= MAX_TRANSACTIONAL_IDS {
                    return Err(ResponseError::PolicyViolation);
                }
                self.save(Key::Transaction(id.to_owned()), &transaction)?;
                let slot = TransactionSlot { transaction, is_removed: false, failed_at: None };
                slots.insert(id.to_owned(), Arc::new(Mutex::new(slot)));
                return Ok(identity);
            };
            let mut slot = lock(&slot);
            if !slot.is_removed {
                return self.init_known(requester, timeout_ms, &mut slot);
            }
        }
    }

    fn init_known(
        &self,
        requester: Requester<'_>,
        timeout_ms: i32,
        slot: &mut TransactionSlot,
    ) -> Result<(i64, i16), ResponseError> {
        let id = requester.transactional_id;
        if slot.transaction.phase.is_ending() {
            self.complete(id, slot)?;
        }
        let current = &slot.transaction;
        let named = requester.identity();
        if named.is_some() && named != Some((current.producer_id, current.epoch)) {
            // Only the current producer can repeat the request that gave it its identity.
            let is_retry = named == current.last_identity && current.phase != Phase::Ongoing;
            return if is_retry {
                Ok((current.producer_id, current.epoch))
            } else {
                Err(ResponseError::ProducerFenced)
            };
        }
        if current.phase == Phase::Ongoing {
            let fenced = current.fenced();
            self.advance(id, slot, fenced)?;
            self.complete(id, slot)?;
        }
        let current = &slot.transaction;
        let mut next = Transaction { timeout_ms, phase: Phase::Empty, last_identity: named, ..current.clone() };
        if current.epoch >= MAX_EPOCH {
            next.producer_id = self.new_producer_id()?;
            next.epoch = 0;
        } else {
            next.epoch = current.epoch + 1;
        }
        self.advance(id, slot, next)?;
        Ok((slot.transaction.producer_id, slot.transaction.epoch))
    }

    /// Adds partitions, or a group for offsets, to the transaction. Starts a transaction if none is
    /// open.
    pub(crate) fn add(
        &self,
        requester: Requester<'_>,
        partitions: Vec<(String, i32)>,
        group: Option<String>,
    ) -> Result<(), ResponseError> {
        let id = requester.transactional_id;
        self.with(id, |slot| {
            let current = &slot.transaction;
            current.check_producer(requester.producer_id, requester.epoch)?;
            let is_there = partitions.iter().all(|(topic, partition)| current.has_partition(topic, *partition))
                && group.iter().all(|group| current.has_group(group));
            if is_there {
                return Ok(());
            }
            let next = current.extended(partitions, group, TransactionVersion::V1)?;
            self.advance(id, slot, next)
        })
    }

    /// Appends a transactional batch, if its partition is part of the producer's open transaction.
    /// With version 2 the append adds the partition.
    pub(crate) fn append(
        &self,
        transactional_id: &str,
        version: TransactionVersion,
        partition: &Partition,
        batch: (&BatchHeader, &[u8]),
        config: &TopicConfig,
    ) -> Result<Appended, ApiError> {
        let (header, records) = batch;
        let refuse = |error: ResponseError| {
            let code = match error {
                // Produce has used this code since before PRODUCER_FENCED existed.
                ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
                other => other,
            };
            ApiError::new(code, format!("transactional id {transactional_id:?}: {code}"))
        };
        let slot = read(&self.slots).get(transactional_id).cloned();
        let slot = slot.ok_or_else(|| refuse(ResponseError::InvalidProducerIdMapping))?;
        let mut slot = lock(&slot);
        let current = &slot.transaction;
        current.check_producer(header.producer_id, header.producer_epoch).map_err(refuse)?;
        if !current.has_partition(&partition.topic, partition.index) {
            if slot.is_removed || version == TransactionVersion::V1 {
                return Err(refuse(ResponseError::InvalidTxnState));
            }
            let added = [(partition.topic.clone(), partition.index)];
            let next = current.extended(added, None, version).map_err(refuse)?;
            self.advance(transactional_id, &mut slot, next).map_err(refuse)?;
        }
        partition.append(header, records, config)
    }

    /// Runs `commit` if the producer has an open transaction that includes the group. With version
    /// 2 the request adds the group.
    pub(crate) fn commit_offsets(
        &self,
        requester: Requester<'_>,
        version: TransactionVersion,
        group: &str,
        commit: impl FnOnce() -> Result<(), ResponseError>,
    ) -> Result<(), ResponseError> {
        let id = requester.transactional_id;
        self.with(id, |slot| {
            let current = &slot.transaction;
            current.check_producer(requester.producer_id, requester.epoch)?;
            if !current.has_group(group) {
                if version == TransactionVersion::V1 {
                    return Err(ResponseError::InvalidTxnState);
                }
                let next = current.extended([], Some(group.to_owned()), version)?;
                self.advance(id, slot, next)?;
            }
            commit()
        })
    }

    /// Ends the open transaction. Returns the producer id and the epoch for the next one.
    pub(crate) fn end(
        &self,
        requester: Requester<'_>,
        commit: bool,
        version: TransactionVersion,
    ) -> Result<(i64, i16), ResponseError> {
        let id = requester.transactional_id;
        self.with(id, |slot| {
            let named = (requester.producer_id, requester.epoch);
            if let Some(decided) = slot.transaction.ending(named, commit, version)? {
                self.decide(id, slot, decided)?;
                self.complete(id, slot)?;
            }
            Ok((slot.transaction.producer_id, slot.transaction.epoch))
        })
    }

    /// Persists the decision about a transaction.
    fn decide(&self, id: &str, slot: &mut TransactionSlot, mut decided: Transaction) -> Result<(), ResponseError> {
        if decided.needs_producer_id() {
            decided.next_producer_id = Some(self.new_producer_id()?);
        }
        self.advance(id, slot, decided)
    }

    /// Completes a decided transaction. Repeatable: a partition without an open transaction gets no
    /// second marker.
    fn complete(&self, id: &str, slot: &mut TransactionSlot) -> Result<(), ResponseError> {
        let result = self.write_outcome(id, &slot.transaction);
        match result {
            Ok(completed) => {
                slot.transaction = completed;
                slot.failed_at = None;
                Ok(())
            }
            Err(message) => {
                tracing::error!(transactional_id = id, error = message, "cannot complete a transaction; retrying");
                slot.failed_at = Some(Instant::now());
                Err(ResponseError::ConcurrentTransactions)
            }
        }
    }

    fn write_outcome(&self, id: &str, transaction: &Transaction) -> Result<Transaction, String> {
        let commit = transaction.phase == Phase::PrepareCommit;
        let marker = Marker::of_coordinator(commit);
        for (name, index) in &transaction.partitions {
            let Some(topic) = self.topics.get(name) else { continue };
            let Some(partition) = topic.partition(*index) else { continue };
            let ended = partition.end_transaction(transaction.producer_id, transaction.epoch, marker, &topic.config());
            match ended {
                Err(error) if error.code != ResponseError::UnknownTopicOrPartition => return Err(error.message),
                _ => {}
            }
        }
        let completed = Transaction { updated_ms: now_ms(), ..transaction.completed() };
        let put = Change::put(Key::Transaction(id.to_owned()), &completed);
        let change = put.map_err(|error| error.to_string())?;
        let ended =
            self.groups.end_transaction(&self.store, &transaction.groups, transaction.producer_id, commit, change);
        ended.map_err(|error| error.to_string())?;
        Ok(completed)
    }

    /// Aborts transactions that timed out, and retries incomplete ends.
    pub(crate) fn tick(&self) {
        let now = now_ms();
        for (id, slot) in self.all() {
            let mut slot = lock(&slot);
            if slot.is_removed {
                continue;
            }
            if slot.transaction.has_timed_out(now) {
                tracing::info!(transactional_id = id, "aborting a transaction that timed out");
                let aborted = slot.transaction.timed_out();
                if self.decide(&id, &mut slot, aborted).is_err() {
                    continue;
                }
            }
            if slot.transaction.phase.is_ending() {
                // `complete` logs the error, and the next tick retries.
                let _ = self.complete(&id, &mut slot);
            }
        }
    }

    /// Removes transactional ids that were not used since before `before`.
    pub(crate) fn expire(&self, before: i64) {
        for (id, slot) in self.all() {
            let mut slot = lock(&slot);
            let is_at_rest =
                matches!(slot.transaction.phase, Phase::Empty | Phase::CompleteCommit | Phase::CompleteAbort);
            let is_old = slot.transaction.updated_ms < before;
            if is_at_rest && is_old && self.store.apply(vec![Change::remove(Key::Transaction(id.clone()))]).is_ok() {
                slot.is_removed = true;
                drop(slot);
                write(&self.slots).remove(&id);
            }
        }
    }
}
