//! Writes single rows of a compacted topic, outside of transactions.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use trunkline_connector::{Error, Result};

use super::client::Cluster;
use super::delivery::{DeliveryContext, check_delivery, poll};
use super::logins::LoginLease;

/// A row that was not acknowledged within this time counts as not written.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two looks at the client's events.
const SERVE_INTERVAL: Duration = Duration::from_millis(20);

/// A client that got no answer for this time may have lost its brokers.
const SILENCE: Duration = Duration::from_secs(2);

/// Limit on the rows that wait for an acknowledgement: far fewer than the client's queue holds.
const MAX_ROWS_IN_FLIGHT: usize = 1000;

/// Writes rows, each of them acknowledged by all replicas in sync. For rows that no transaction has
/// to cover: state that does not move with records.
pub struct RowWriter {
    _login: LoginLease,
    producer: BaseProducer<DeliveryContext>,
}

impl RowWriter {
    /// Creates the client, which connects with the first row.
    pub fn new(cluster: &Cluster, client_id: &str) -> Result<Self> {
        let timeout = TIMEOUT.as_millis().to_string();
        let mut config = cluster.config(&[("client.id", client_id)]);
        config.set("acks", "all").set("message.timeout.ms", timeout).set("linger.ms", "0");
        config.set("max.in.flight.requests.per.connection", "1");
        let context = DeliveryContext::new(cluster, &config, cluster.limits().batch_bytes());
        let producer: BaseProducer<DeliveryContext> = cluster.create(&config, context)?;
        // SAFETY: the lease is dropped before the client.
        let login = unsafe { cluster.attach_login(producer.client().native_ptr()) };
        Ok(Self { _login: login, producer })
    }

    /// Writes a row, or removes it (no value). Waits for the acknowledgement, at most for `limit`.
    pub fn write(&self, topic: &str, partition: i32, key: &[u8], value: Option<&[u8]>, limit: Duration) -> Result<()> {
        self.producer.context().reset();
        self.send(topic, partition, key, value)?;
        self.wait_for_delivery(topic, limit)
    }

    /// Writes rows, or removes those without a value, in this order. Waits for the
    /// acknowledgements.
    pub fn write_all(&self, topic: &str, partition: i32, rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<()> {
        for rows in rows.chunks(MAX_ROWS_IN_FLIGHT) {
            self.producer.context().reset();
            for (key, value) in rows {
                self.send(topic, partition, key, value.as_deref())?;
            }
            self.wait_for_delivery(topic, TIMEOUT + SERVE_INTERVAL)?;
        }
        Ok(())
    }

    fn send(&self, topic: &str, partition: i32, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(partition).key(key);
        record.payload = value;
        let failed = |error| self.producer.context().cluster().failed(&format!("writing to topic `{topic}`"), &error);
        self.producer.send(record).map_err(|(error, _)| failed(error))
    }

    fn wait_for_delivery(&self, topic: &str, limit: Duration) -> Result<()> {
        let doing = format!("writing to topic `{topic}`");
        let begun = Instant::now();
        let limit = limit.min(TIMEOUT + SERVE_INTERVAL);
        while self.producer.in_flight_count() > 0 {
            poll(&self.producer, SERVE_INTERVAL);
            if begun.elapsed() >= SILENCE.min(limit) {
                self.producer.context().set_lost();
            }
            if begun.elapsed() > limit {
                let error = Error::external("kafka.unreachable", format!("{doing}: no answer from the brokers"));
                return Err(self.producer.context().cluster().connection().explain(error));
            }
        }
        check_delivery(&self.producer)
    }
}
