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

/// The work that is due in a round.
#[derive(Debug, Clone, Copy)]
struct Due {
    retention: bool,
    compaction: bool,
    expiry: bool,
}

/// When a kind of work last ran.
struct Schedule {
    interval: Duration,
    last: Instant,
}

impl Schedule {
    fn new(interval: Duration) -> Self {
        Self { interval, last: Instant::now() }
    }

    /// Whether the work is due. It is not due again before the next interval.
    fn take_due(&mut self) -> bool {
        let is_due = self.last.elapsed() >= self.interval;
        if is_due {
            self.last = Instant::now();
        }
        is_due
    }
}

/// Runs checkpoints, retention, compaction and expiry.
pub(crate) async fn run(broker: Arc<BrokerState>, mut stopping: watch::Receiver<bool>) {
    let mut retention = Schedule::new(broker.options.retention_check_interval);
    let mut compaction = Schedule::new(broker.options.compaction_interval);
    let mut expiry = Schedule::new(EXPIRY_INTERVAL);
    let pause = CHECKPOINT_INTERVAL.min(retention.interval).min(compaction.interval);
    while !is_stopping_within(&mut stopping, pause).await {
        let due = Due { retention: retention.take_due(), compaction: compaction.take_due(), expiry: expiry.take_due() };
        let (broker, stopping) = (Arc::clone(&broker), stopping.clone());
        // On its own thread: it syncs files, and reads and writes segments.
        let work = tokio::task::spawn_blocking(move || run_round(&broker, due, &stopping));
        if work.await.is_err() {
            tracing::error!("maintenance panicked; the next round runs as usual");
        }
    }
}

fn run_round(broker: &BrokerState, due: Due, stopping: &watch::Receiver<bool>) {
    for topic in broker.topics.all() {
        for partition in topic.partitions() {
            if *stopping.borrow() {
                return;
            }
            maintain(&topic, &partition, due);
        }
    }
    if due.expiry {
        let unused_since = now_ms() - broker.options.transactional_id_expiration.as_millis() as i64;
        broker.transactions.expire(unused_since);
    }
}

async fn is_stopping_within(stopping: &mut watch::Receiver<bool>, pause: Duration) -> bool {
    tokio::time::timeout(pause, stopping.wait_for(|stopping| *stopping)).await.is_ok()
}

fn maintain(topic: &Topic, partition: &Partition, due: Due) {
    let report = |what: &str, error: &dyn std::fmt::Display| {
        tracing::warn!(topic = topic.name, partition = partition.index, %error, "{what}");
    };
    if due.retention
        && let Err(error) = partition.move_start(|log| log.apply_retention(&topic.config(), now_ms()))
    {
        report("cannot remove old segments", &error);
    }
    if due.compaction
        && topic.config().cleanup_compact
        && let Err(error) = partition.compact(&topic.config())
    {
        report("cannot compact", &error);
    }
    if due.expiry {
        partition.with_log(|log| log.expire_producers(now_ms() - PRODUCER_EXPIRATION_MS));
    }
    if partition.with_log(|log| log.is_checkpoint_due())
        && let Err(error) = partition.checkpoint()
    {
        report("cannot write a checkpoint", &error);
    }
}
