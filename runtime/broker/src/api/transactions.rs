//! InitProducerId, AddPartitionsToTxn, AddOffsetsToTxn, TxnOffsetCommit, EndTxn (KIP-98, KIP-360,
//! KIP-447).

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
    EndTxnRequest, EndTxnResponse, InitProducerIdRequest, InitProducerIdResponse, ProducerId, TxnOffsetCommitRequest,
    TxnOffsetCommitResponse,
};

use super::code;
use super::offsets::check_offset;
use crate::clock::now_ms;
use crate::group::GroupSlot;
use crate::group::membership::Identity;
use crate::group::offsets::Committed;
use crate::group::state::Phase;
use crate::request::Call;
use crate::transaction::{NO_EPOCH, NO_PRODUCER_ID, Requester, TransactionVersion};

pub(crate) fn init_producer_id(call: &Call<'_>, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let result = match &request.transactional_id {
        None => call.broker.transactions.new_producer_id().map(|id| (id, 0)),
        Some(id) if id.is_empty() => Err(ResponseError::InvalidRequest),
        Some(id) => init_transactional(call, id, &request),
    };
    let result = result.map_err(|error| fenced_code(call.version, 4, error));
    let (producer_id, epoch) = result.unwrap_or((NO_PRODUCER_ID, NO_EPOCH));
    InitProducerIdResponse::default()
        .with_error_code(code(&result))
        .with_producer_id(ProducerId(producer_id))
        .with_producer_epoch(epoch)
}

fn init_transactional(call: &Call<'_>, id: &str, request: &InitProducerIdRequest) -> Result<(i64, i16), ResponseError> {
    let max_timeout = call.broker.options.max_transaction_timeout.as_millis() as i64;
    if request.transaction_timeout_ms <= 0 || i64::from(request.transaction_timeout_ms) > max_timeout {
        return Err(ResponseError::InvalidTransactionTimeout);
    }
    if (request.producer_id.0 < 0) != (request.producer_epoch < 0) {
        return Err(ResponseError::InvalidRequest);
    }
    let requester =
        Requester { transactional_id: id, producer_id: request.producer_id.0, epoch: request.producer_epoch };
    call.broker.transactions.init_producer(requester, request.transaction_timeout_ms)
}

/// Older clients do not know PRODUCER_FENCED; they get INVALID_PRODUCER_EPOCH.
fn fenced_code(version: i16, first: i16, error: ResponseError) -> ResponseError {
    if error == ResponseError::ProducerFenced && version < first { ResponseError::InvalidProducerEpoch } else { error }
}

pub(crate) fn add_partitions_to_txn(call: &Call<'_>, request: AddPartitionsToTxnRequest) -> AddPartitionsToTxnResponse {
    let requester = Requester {
        transactional_id: &request.v3_and_below_transactional_id,
        producer_id: request.v3_and_below_producer_id.0,
        epoch: request.v3_and_below_producer_epoch,
    };
    let asked = || {
        let topics = request.v3_and_below_topics.iter();
        topics.flat_map(|topic| topic.partitions.iter().map(|index| (topic.name.to_string(), *index)))
    };
    let exists = |topic: &str, index: i32| call.broker.topics.partition(topic, index).is_some();
    let all_exist = asked().all(|(topic, index)| exists(&topic, index));
    let result = if all_exist {
        call.broker
            .transactions
            .add(requester, asked().collect(), None)
            .map_err(|error| fenced_code(call.version, 2, error))
    } else {
        // All or nothing: existing partitions are not added if another one does not exist.
        Err(ResponseError::OperationNotAttempted)
    };
    let mut topics = Vec::with_capacity(request.v3_and_below_topics.len());
    for topic in &request.v3_and_below_topics {
        let answer = |index: &i32| {
            let error =
                if exists(&topic.name, *index) { code(&result) } else { ResponseError::UnknownTopicOrPartition.code() };
            AddPartitionsToTxnPartitionResult::default().with_partition_index(*index).with_partition_error_code(error)
        };
        topics.push(
            AddPartitionsToTxnTopicResult::default()
                .with_name(topic.name.clone())
                .with_results_by_partition(topic.partitions.iter().map(answer).collect()),
        );
    }
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics)
}

pub(crate) fn add_offsets_to_txn(call: &Call<'_>, request: AddOffsetsToTxnRequest) -> AddOffsetsToTxnResponse {
    let requester = Requester {
        transactional_id: &request.transactional_id,
        producer_id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let result = if request.group_id.is_empty() {
        Err(ResponseError::InvalidGroupId)
    } else {
        call.broker.transactions.add(requester, Vec::new(), Some(request.group_id.to_string()))
    };
    let result = result.map_err(|error| fenced_code(call.version, 2, error));
    AddOffsetsToTxnResponse::default().with_error_code(code(&result))
}

pub(crate) fn end_txn(call: &Call<'_>, request: EndTxnRequest) -> EndTxnResponse {
    let requester = Requester {
        transactional_id: &request.transactional_id,
        producer_id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let version = TransactionVersion::of(call.version, 5);
    let result = call.broker.transactions.end(requester, request.committed, version);
    let result = result.map_err(|error| fenced_code(call.version, 2, error));
    let (producer_id, epoch) = match &result {
        Ok(identity) if version == TransactionVersion::V2 => *identity,
        _ => (NO_PRODUCER_ID, NO_EPOCH),
    };
    EndTxnResponse::default()
        .with_error_code(code(&result))
        .with_producer_id(ProducerId(producer_id))
        .with_producer_epoch(epoch)
}

pub(crate) fn txn_offset_commit(call: &Call<'_>, request: TxnOffsetCommitRequest) -> TxnOffsetCommitResponse {
    let requester = Requester {
        transactional_id: &request.transactional_id,
        producer_id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let mut errors: BTreeMap<(String, i32), ResponseError> = BTreeMap::new();
    let mut offsets = BTreeMap::new();
    for topic in &request.topics {
        for partition in &topic.partitions {
            let key = (topic.name.to_string(), partition.partition_index);
            let metadata = partition.committed_metadata.as_deref().unwrap_or_default();
            match check_offset(call, &key.0, key.1, metadata) {
                Err(error) => {
                    errors.insert(key, error);
                }
                Ok(()) => {
                    let committed = Committed {
                        offset: partition.committed_offset,
                        leader_epoch: partition.committed_leader_epoch,
                        metadata: metadata.to_owned(),
                        committed_ms: now_ms(),
                    };
                    offsets.insert(key, committed);
                }
            }
        }
    }
    let result = commit(call, requester, &request, offsets).map_err(|error| match error {
        ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
        other => other,
    });
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let answer = |index: i32| {
            let own = errors.get(&(topic.name.to_string(), index)).map(ResponseError::code);
            TxnOffsetCommitResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(own.unwrap_or(code(&result)))
        };
        let partitions = topic.partitions.iter().map(|partition| answer(partition.partition_index)).collect();
        topics.push(TxnOffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions));
    }
    TxnOffsetCommitResponse::default().with_topics(topics)
}

fn commit(
    call: &Call<'_>,
    requester: Requester<'_>,
    request: &TxnOffsetCommitRequest,
    offsets: BTreeMap<(String, i32), Committed>,
) -> Result<(), ResponseError> {
    let sender = Identity {
        member_id: &request.member_id,
        instance_id: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    // A producer that names no member is fenced only by its epoch.
    let names_no_member = sender.generation < 0 && sender.member_id.is_empty() && sender.instance_id.is_none();
    let broker = call.broker;
    if request.group_id.is_empty() {
        return Err(ResponseError::InvalidGroupId);
    }
    let version = TransactionVersion::of(call.version, 5);
    broker.transactions.commit_offsets(requester, version, &request.group_id, || {
        let work = |slot: &mut GroupSlot| {
            let is_standalone = names_no_member || sender.generation < 0 && slot.group.phase == Phase::Empty;
            if !is_standalone {
                slot.group.check(sender)?;
            }
            let committed =
                slot.offsets.commit_pending(&request.group_id, &broker.store, requester.producer_id, offsets);
            committed.map_err(|_| ResponseError::CoordinatorNotAvailable)
        };
        if sender.generation < 0 {
            return broker.groups.with_or_create(&request.group_id, work);
        }
        broker.groups.with(&request.group_id, work).unwrap_or(Err(ResponseError::IllegalGeneration))
    })
}
