//! DescribeProducers, DescribeTransactions, ListTransactions (KIP-664).

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_producers_response::{PartitionResponse, ProducerState, TopicResponse};
use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use kafka_protocol::messages::list_transactions_response::TransactionState as ListedTransaction;
use kafka_protocol::messages::{
    DescribeProducersRequest, DescribeProducersResponse, DescribeTransactionsRequest, DescribeTransactionsResponse,
    ListTransactionsRequest, ListTransactionsResponse, ProducerId, TopicName, TransactionalId,
};
use kafka_protocol::protocol::StrBytes;

use super::text;
use crate::clock::now_ms;
use crate::log::PartitionLog;
use crate::request::Call;
use crate::transaction::{Phase, Transaction};

pub(crate) fn describe_producers(call: &Call<'_>, request: DescribeProducersRequest) -> DescribeProducersResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = call.broker.topics.get(&asked.name);
        let describe = |index: i32| {
            let response = PartitionResponse::default().with_partition_index(index);
            match topic.as_ref().and_then(|topic| topic.partition(index)) {
                Some(partition) => response.with_active_producers(partition.with_log(|log| active_producers(log))),
                None => response.with_error_code(ResponseError::UnknownTopicOrPartition.code()),
            }
        };
        let partitions = asked.partition_indexes.into_iter().map(describe).collect();
        topics.push(TopicResponse::default().with_name(asked.name).with_partitions(partitions));
    }
    DescribeProducersResponse::default().with_topics(topics)
}

fn active_producers(log: &PartitionLog) -> Vec<ProducerState> {
    let describe = |(id, producer): (i64, &crate::log::producer_state::Producer)| {
        ProducerState::default()
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(i32::from(producer.epoch))
            .with_last_sequence(producer.last_sequence())
            .with_last_timestamp(producer.last_timestamp)
            .with_coordinator_epoch(producer.coordinator_epoch)
            .with_current_txn_start_offset(producer.transaction_start.unwrap_or(-1))
    };
    log.producers().iter().map(describe).collect()
}

pub(crate) fn describe_transactions(
    call: &Call<'_>,
    request: DescribeTransactionsRequest,
) -> DescribeTransactionsResponse {
    let describe = |id: TransactionalId| {
        let found = call.broker.transactions.get(&id);
        let state = TransactionState::default().with_transactional_id(id);
        match found {
            Some(transaction) => describe(state, &transaction),
            None => state.with_error_code(ResponseError::TransactionalIdNotFound.code()),
        }
    };
    DescribeTransactionsResponse::default()
        .with_transaction_states(request.transactional_ids.into_iter().map(describe).collect())
}

fn describe(state: TransactionState, transaction: &Transaction) -> TransactionState {
    let mut by_topic: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (topic, partition) in &transaction.partitions {
        by_topic.entry(topic).or_default().push(*partition);
    }
    let topics = by_topic
        .into_iter()
        .map(|(topic, partitions)| TopicData::default().with_topic(TopicName(text(topic))).with_partitions(partitions));
    state
        .with_transaction_state(text(transaction.phase.name()))
        .with_transaction_timeout_ms(transaction.timeout_ms)
        .with_transaction_start_time_ms(transaction.started_ms)
        .with_producer_id(ProducerId(transaction.producer_id))
        .with_producer_epoch(transaction.epoch)
        .with_topics(topics.collect())
}

pub(crate) fn list_transactions(call: &Call<'_>, request: ListTransactionsRequest) -> ListTransactionsResponse {
    let is_known = |state: &StrBytes| Phase::ALL.iter().any(|phase| phase.name() == &**state);
    let unknown = request.state_filters.iter().filter(|state| !is_known(state)).cloned().collect();
    let now = now_ms();
    let mut listed = Vec::new();
    for (id, _) in call.broker.transactions.all() {
        let Some(transaction) = call.broker.transactions.get(&id) else { continue };
        let states = &request.state_filters;
        let has_state = states.is_empty() || states.iter().any(|state| &**state == transaction.phase.name());
        let producers = &request.producer_id_filters;
        let has_producer = producers.is_empty() || producers.contains(&ProducerId(transaction.producer_id));
        let age = now - transaction.started_ms;
        let is_old = request.duration_filter < 0 || transaction.started_ms >= 0 && age >= request.duration_filter;
        if has_state && has_producer && is_old {
            listed.push(
                ListedTransaction::default()
                    .with_transactional_id(TransactionalId(text(id)))
                    .with_producer_id(ProducerId(transaction.producer_id))
                    .with_transaction_state(text(transaction.phase.name())),
            );
        }
    }
    ListTransactionsResponse::default().with_transaction_states(listed).with_unknown_state_filters(unknown)
}
