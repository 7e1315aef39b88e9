//! All transactional ids, and the steps that touch more than one of transaction, partitions, groups and internal log.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Instant;

use kafka_protocol::ResponseError;

use super::{Cell, MAX_EPOCH, NO_EPOCH, NO_PRODUCER_ID, Phase, Transaction};
use crate::clock::now_ms;
use crate::group::Groups;
use crate::log::Appended;
use crate::log::batch::{BatchHeader, Refusal};
use crate::store::{Change, Key, Store};
use crate::sync::{lock, read, write};
use crate::topics::Topics;
use crate::topics::config::TopicConfig;
use crate::topics::partition::Partition;

/// Producer ids are taken from the internal log in blocks, so that most requests for one write nothing.
const PRODUCER_ID_BLOCK: i64 = 1000;

/// Most transactional ids: a client that makes up names must not fill the memory.
const MAX_TRANSACTIONAL_IDS: usize = 100_000;

/// Producer ids that are taken and not given out yet.
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
    cells: RwLock<HashMap<String, Arc<Mutex<Cell>>>>,
    producer_ids: Mutex<ProducerIds>,
}

/// Who a request says it comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requester<'request> {
    pub(crate) transactional_id: &'request str,
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
}

impl Coordinator {
    /// Restores every transactional id, and finishes what the last run of the broker left decided but not done.
    pub(crate) fn open(store: Arc<Store>, topics: Arc<Topics>, groups: Arc<Groups>) -> io::Result<Self> {
        let records: Vec<(String, Transaction)> = store.scan(|key| match key {
            Key::Transaction(id) => Some(id.clone()),
            _ => None,
        })?;
        let next = store.get(&Key::ProducerIds)?.unwrap_or(0);
        let wrap = |transaction| Arc::new(Mutex::new(Cell { transaction, is_removed: false, failed_at: None }));
        let coordinator = Self {
            store,
            topics,
            groups,
            cells: RwLock::new(records.into_iter().map(|(id, transaction)| (id, wrap(transaction))).collect()),
            producer_ids: Mutex::new(ProducerIds { next, block_end: next }),
        };
        coordinator.tick();
        coordinator.abort_orphans();
        Ok(coordinator)
    }

    /// Aborts what is open in a partition but not known here. It takes the loss of the end of the internal log, by a power
    /// cut, to get there; left alone it would hold back every reader for ever.
    fn abort_orphans(&self) {
        let mut known: HashSet<(i64, String, i32)> = HashSet::new();
        for (_, cell) in self.all() {
            let cell = lock(&cell);
            let producer_id = cell.transaction.producer_id;
            known.extend(
                cell.transaction.partitions.iter().map(|(topic, partition)| (producer_id, topic.clone(), *partition)),
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
                        "a transaction that nobody owns is aborted"
                    );
                    if let Err(refusal) = partition.end_transaction(producer_id, epoch, false, &topic.config()) {
                        tracing::error!(topic = topic.name, error = refusal.message, "cannot abort it");
                    }
                }
            }
        }
    }

    pub(crate) fn all(&self) -> Vec<(String, Arc<Mutex<Cell>>)> {
        read(&self.cells).iter().map(|(id, cell)| (id.clone(), Arc::clone(cell))).collect()
    }

    /// A copy of the state of a transactional id.
    pub(crate) fn get(&self, id: &str) -> Option<Transaction> {
        let cell = read(&self.cells).get(id).cloned()?;
        let cell = lock(&cell);
        (!cell.is_removed).then(|| cell.transaction.clone())
    }

    /// A producer id that nobody had.
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
        // Retriable: the disk may have room again when the client comes back.
        saved.map_err(|_| ResponseError::CoordinatorNotAvailable)
    }

    /// Saves the next state of a transaction and then takes it on.
    fn advance(&self, id: &str, cell: &mut Cell, next: Transaction) -> Result<(), ResponseError> {
        let next = Transaction { updated_ms: now_ms(), ..next };
        self.save(Key::Transaction(id.to_owned()), &next)?;
        cell.transaction = next;
        Ok(())
    }

    /// Works on a transactional id that exists.
    fn with<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut MutexGuard<'_, Cell>) -> Result<T, ResponseError>,
    ) -> Result<T, ResponseError> {
        let cell = read(&self.cells).get(id).cloned().ok_or(ResponseError::InvalidProducerIdMapping)?;
        let mut cell = lock(&cell);
        if cell.is_removed { Err(ResponseError::InvalidProducerIdMapping) } else { work(&mut cell) }
    }

    /// Gives a transactional id to a producer and takes it from whoever had it. What that one had open is aborted.
    pub(crate) fn init_producer(&self, requester: Requester<'_>, timeout_ms: i32) -> Result<(i64, i16), ResponseError> {
        let id = requester.transactional_id;
        loop {
            let found = read(&self.cells).get(id).cloned();
            let Some(cell) = found else {
                let transaction = Transaction::new(self.new_producer_id()?, timeout_ms);
                let identity = (transaction.producer_id, transaction.epoch);
                let mut cells = write(&self.cells);
                if cells.contains_key(id) {
                    continue;
                }
                if cells.len() >= MAX_TRANSACTIONAL_IDS {
                    return Err(ResponseError::PolicyViolation);
                }
                self.save(Key::Transaction(id.to_owned()), &transaction)?;
                let cell = Cell { transaction, is_removed: false, failed_at: None };
                cells.insert(id.to_owned(), Arc::new(Mutex::new(cell)));
                return Ok(identity);
            };
            let mut cell = lock(&cell);
            if !cell.is_removed {
                return self.init_known(requester, timeout_ms, &mut cell);
            }
        }
    }

    fn init_known(
        &self,
        requester: Requester<'_>,
        timeout_ms: i32,
        cell: &mut Cell,
    ) -> Result<(i64, i16), ResponseError> {
        let id = requester.transactional_id;
        if cell.transaction.phase.is_ending() {
            self.complete(id, cell)?;
        }
        let current = &cell.transaction;
        if requester.producer_id != NO_PRODUCER_ID {
            let is_current = (requester.producer_id, requester.epoch) == (current.producer_id, current.epoch);
            let is_retry = requester.producer_id == current.producer_id && requester.epoch == current.last_epoch;
            if is_retry && current.last_epoch != NO_EPOCH && current.phase == Phase::Empty {
                return Ok((current.producer_id, current.epoch));
            }
            if !is_current {
                return Err(ResponseError::ProducerFenced);
            }
        }
        if current.phase == Phase::Ongoing {
            let fenced = current.fenced();
            self.advance(id, cell, fenced)?;
            self.complete(id, cell)?;
        }
        let current = &cell.transaction;
        let mut next = Transaction { timeout_ms, phase: Phase::Empty, last_epoch: current.epoch, ..current.clone() };
        if current.epoch >= MAX_EPOCH {
            next.producer_id = self.new_producer_id()?;
            next.epoch = 0;
            next.last_epoch = NO_EPOCH;
        } else {
            next.epoch = current.epoch + 1;
        }
        self.advance(id, cell, next)?;
        Ok((cell.transaction.producer_id, cell.transaction.epoch))
    }

    /// Adds partitions, or a group whose offsets will be committed, to the open transaction; begins one if none is open.
    pub(crate) fn add(
        &self,
        requester: Requester<'_>,
        partitions: Vec<(String, i32)>,
        group: Option<String>,
    ) -> Result<(), ResponseError> {
        let id = requester.transactional_id;
        self.with(id, |cell| {
            cell.transaction.check_producer(requester.producer_id, requester.epoch)?;
            let current = &cell.transaction;
            let is_there = current.phase == Phase::Ongoing
                && partitions.iter().all(|partition| current.partitions.contains(partition))
                && group.iter().all(|group| current.groups.contains(group));
            if is_there {
                return Ok(());
            }
            let next = current.extended(partitions, group)?;
            self.advance(id, cell, next)
        })
    }

    /// Appends a transactional batch, if its partition is part of the open transaction of its producer.
    pub(crate) fn append(
        &self,
        transactional_id: &str,
        partition: &Partition,
        header: &BatchHeader,
        records: &[u8],
        config: &TopicConfig,
    ) -> Result<Appended, Refusal> {
        let refuse =
            |error: ResponseError| Refusal::new(error, format!("transactional id {transactional_id:?}: {error}"));
        let cell = read(&self.cells).get(transactional_id).cloned();
        let cell = cell.ok_or_else(|| refuse(ResponseError::InvalidProducerIdMapping))?;
        let cell = lock(&cell);
        let transaction = &cell.transaction;
        transaction
            .check_append(header.producer_id, header.producer_epoch, &partition.topic, partition.index)
            .map_err(refuse)?;
        partition.append(header, records, config)
    }

    /// Runs `commit` if the producer has a transaction open that the group was added to.
    pub(crate) fn commit_offsets(
        &self,
        requester: Requester<'_>,
        group: &str,
        commit: impl FnOnce() -> Result<(), ResponseError>,
    ) -> Result<(), ResponseError> {
        self.with(requester.transactional_id, |cell| {
            let current = &cell.transaction;
            current.check_producer(requester.producer_id, requester.epoch)?;
            if current.phase != Phase::Ongoing || !current.groups.contains(group) {
                return Err(ResponseError::InvalidTxnState);
            }
            commit()
        })
    }

    /// Ends the open transaction.
    pub(crate) fn end(&self, requester: Requester<'_>, commit: bool) -> Result<(), ResponseError> {
        let id = requester.transactional_id;
        self.with(id, |cell| {
            cell.transaction.check_producer(requester.producer_id, requester.epoch)?;
            if let Some(decided) = cell.transaction.ending(commit)? {
                self.advance(id, cell, decided)?;
                self.complete(id, cell)?;
            }
            Ok(())
        })
    }

    /// Carries a decision out. Can be repeated: a partition in which nothing is open any more gets no second marker.
    fn complete(&self, id: &str, cell: &mut Cell) -> Result<(), ResponseError> {
        let result = self.carry_out(id, &cell.transaction);
        match result {
            Ok(completed) => {
                cell.transaction = completed;
                cell.failed_at = None;
                Ok(())
            }
            Err(message) => {
                tracing::error!(
                    transactional_id = id,
                    error = message,
                    "cannot carry out the end of a transaction, will try again"
                );
                cell.failed_at = Some(Instant::now());
                Err(ResponseError::ConcurrentTransactions)
            }
        }
    }

    fn carry_out(&self, id: &str, transaction: &Transaction) -> Result<Transaction, String> {
        let commit = transaction.phase == Phase::PrepareCommit;
        for (name, index) in &transaction.partitions {
            let Some(topic) = self.topics.get(name) else { continue };
            let Some(partition) = topic.partition(*index) else { continue };
            let ended = partition.end_transaction(transaction.producer_id, transaction.epoch, commit, &topic.config());
            match ended {
                Err(refusal) if refusal.error != ResponseError::UnknownTopicOrPartition => return Err(refusal.message),
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

    /// Aborts what has timed out, and finishes what could not be finished.
    pub(crate) fn tick(&self) {
        let now = now_ms();
        for (id, cell) in self.all() {
            let mut cell = lock(&cell);
            if cell.is_removed {
                continue;
            }
            if cell.transaction.has_timed_out(now) {
                tracing::info!(transactional_id = id, "a transaction has timed out and is aborted");
                let fenced = cell.transaction.fenced();
                if self.advance(&id, &mut cell, fenced).is_err() {
                    continue;
                }
            }
            if cell.transaction.phase.is_ending() {
                // An error is logged there, and the next tick comes.
                let _ = self.complete(&id, &mut cell);
            }
        }
    }

    /// Forgets transactional ids that nobody used since before `before`.
    pub(crate) fn expire(&self, before: i64) {
        for (id, cell) in self.all() {
            let mut cell = lock(&cell);
            let is_at_rest =
                matches!(cell.transaction.phase, Phase::Empty | Phase::CompleteCommit | Phase::CompleteAbort);
            let is_old = cell.transaction.updated_ms < before;
            if is_at_rest && is_old && self.store.apply(vec![Change::remove(Key::Transaction(id.clone()))]).is_ok() {
                cell.is_removed = true;
                drop(cell);
                write(&self.cells).remove(&id);
            }
        }
    }
}
