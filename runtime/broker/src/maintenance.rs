//! Background work: timeouts many times a second; checkpoints, retention and compaction
//! periodically.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::clock::now_ms;
use crate::state::BrokerState;
use crate::topics::Topic;
use crate::topics::partition::Partition;

/// Precision of session, rebalance and transaction timeouts.
const TICK: Duration = Duration::from_millis(50);
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);
/// An idle producer is removed after this long, `producer.id.expiration.ms`.
const PRODUCER_EXPIRATION_MS: i64 = 24 * 3600 * 1000;

/// Applies the timeouts of groups and transactions.
pub(crate) async fn tick(broker: Arc<BrokerState>, mut stopping: watch::Receiver<bool>) {
    let offsets_retention_ms = broker.options.offsets_retention.as_millis() as i64;
    while !is_stopping_within(&mut stopping, TICK).await {
        broker.groups.tick(&broker.store, offsets_retention_ms);
        broker.transactions.tick();
    }
}

/// Runs checkpoints, retention, compaction and expiry.
pub(crate) async fn run(broker: Arc<BrokerState>, mut stopping: watch::Receiver<bool>) {
    let mut cleaned = Instant::now();
    let mut expired = Instant::now();
    let pause = CHECKPOINT_INTERVAL.min(broker.options.cleanup_interval);
    while !is_stopping_within(&mut stopping, pause).await {
        let is_cleaning_due = cleaned.elapsed() >= broker.options.cleanup_interval;
        let is_expiry_due = expired.elapsed() >= EXPIRY_INTERVAL;
        let (broker_for_work, stopping_for_work) = (Arc::clone(&broker), stopping.clone());
        // On its own thread: it syncs files, and reads and writes segments.
        let work = tokio::task::spawn_blocking(move || {
            for topic in broker_for_work.topics.all() {
                for partition in topic.partitions() {
                    if *stopping_for_work.borrow() {
                        return;
                    }
                    maintain(&topic, &partition, is_cleaning_due, is_expiry_due);
                }
            }
            if is_expiry_due {
                let unused_since = now_ms() - broker_for_work.options.transactional_id_expiration.as_millis() as i64;
                broker_for_work.transactions.expire(unused_since);
            }
        });
        if work.await.is_err() {
            tracing::error!("maintenance panicked; the next round runs as usual");
        }
        if is_cleaning_due {
            cleaned = Instant::now();
        }
        if is_expiry_due {
            expired = Instant::now();
        }
    }
}

async fn is_stopping_within(stopping: &mut watch::Receiver<bool>, pause: Duration) -> bool {
    tokio::time::timeout(pause, stopping.wait_for(|stopping| *stopping)).await.is_ok()
}

fn maintain(topic: &Topic, partition: &Partition, is_cleaning_due: bool, is_expiry_due: bool) {
    let report = |what: &str, error: &dyn std::fmt::Display| {
        tracing::warn!(topic = topic.name, partition = partition.index, %error, "{what}");
    };
    if is_cleaning_due {
        if let Err(error) = partition.move_start(|log| log.apply_retention(&topic.config(), now_ms())) {
            report("cannot remove old segments", &error);
        }
        if topic.config().cleanup_compact
            && let Err(error) = partition.compact(&topic.config())
        {
            report("cannot compact", &error);
        }
    }
    if is_expiry_due {
        partition.with_log(|log| log.expire_producers(now_ms() - PRODUCER_EXPIRATION_MS));
    }
    if partition.with_log(|log| log.is_checkpoint_due())
        && let Err(error) = partition.checkpoint()
    {
        report("cannot write a checkpoint", &error);
    }
}
