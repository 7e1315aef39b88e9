//! The latency of a change in MySQL until its record can be read, at 500 inserts per second, with
//! the default commit interval and with a short one, on Apache Kafka and on the embedded broker.
//! The reference of the short interval is a bare producer with the same interval: it shows the
//! broker's own delays. Percentiles are those of one round's records.

use std::time::{Duration, Instant};

use rdkafka::message::Message;
use rdkafka::producer::Producer;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};

use crate::client::{self, LIMIT, PARTITIONS};
use crate::latency::{end, reader};
use crate::measure::{Sampling, percentile};
use crate::mysql::Bench;
use crate::table::{Row, Target};

/// Records per second.
const RATE: u32 = 500;
/// The short commit interval.
const SHORT: Duration = Duration::from_millis(10);
/// The pause after a transaction, as in the worker: a broker that is still ending it would refuse
/// the next one.
const MIN_TXN_GAP: Duration = Duration::from_millis(2);

impl Bench<'_> {
    /// The latencies from just before an insert until its record can be read.
    pub(crate) fn latencies(&self, broker: &str, sampling: Sampling) -> Vec<Row> {
        eprintln!("insert -> record readable, {broker}");
        let mut rows = Vec::new();
        let mut add = |name: &str, reference: &[Vec<f64>], measured: &[Vec<f64>], most_p50, most_p99| {
            let each = |rounds: &[Vec<f64>], share| rounds.iter().map(|values| percentile(values, share)).collect();
            for (name, share, target) in
                [(format!("{name}, p50"), 0.5, most_p50), ("  p99".to_owned(), 0.99, Target::AtMost(most_p99))]
            {
                rows.push(Row {
                    name,
                    unit: "ms",
                    reference: each(reference, share),
                    measured: each(measured, share),
                    target,
                });
            }
        };
        let by_default: Vec<_> = (0..sampling.rounds).map(|round| self.latency(round, "", sampling.run)).collect();
        add(&format!("insert -> record, {broker}"), &[], &by_default, Target::AtMost(120.0), 250.0);
        let (bare, short): (Vec<_>, Vec<_>) = (0..sampling.rounds)
            .map(|round| {
                let more = format!("commit_interval = \"{SHORT:?}\"");
                (self.bare_latency(round, sampling.run), self.latency(round, &more, sampling.run))
            })
            .unzip();
        add("  with commit_interval = \"10ms\"", &bare, &short, Target::None, 25.0);
        rows
    }

    /// The milliseconds from each insert until its record can be read.
    fn latency(&self, round: usize, more: &str, during: Duration) -> Vec<f64> {
        let table = format!("late{round}{}", more.len());
        self.mysql.run(&format!(
            "DROP TABLE IF EXISTS bench.{table}; CREATE TABLE bench.{table} (id BIGINT PRIMARY KEY, note VARCHAR(100))"
        ));
        let case = self.case("bench-late", &table, more);
        let (mut worker, consumer) = self.following(&case, &table);
        let count = count(during);
        let started = Instant::now();
        let url = self.mysql.root_url();
        let inserting = std::thread::spawn({
            let table = table.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut connection = MySqlConnection::connect(&url).await.unwrap();
                    let insert = format!("INSERT INTO bench.{table} VALUES (?, 'a note of this row')");
                    let mut sent = Vec::with_capacity(count);
                    for number in 0..count {
                        tokio::time::sleep_until((started + moment(number)).into()).await;
                        sent.push(started.elapsed());
                        let insert = sqlx::query(AssertSqlSafe(insert.as_str())).bind(number as i64);
                        insert.execute(&mut connection).await.unwrap();
                    }
                    sent
                })
            }
        });
        let mut seen = vec![Duration::ZERO; count];
        let mut left = count;
        while left > 0 {
            assert!(started.elapsed() < LIMIT && worker.is_running(), "{left} records left: {}", worker.stderr());
            if let Some(Ok(record)) = consumer.poll(Duration::from_millis(1)) {
                let value: serde_json::Value = serde_json::from_slice(record.payload().unwrap()).unwrap();
                let number = value["after"]["id"].as_i64().unwrap();
                if let Ok(number) = usize::try_from(number) {
                    seen[number] = started.elapsed();
                    left -= 1;
                }
            }
        }
        end(worker);
        let sent = inserting.join().unwrap();
        sent.iter().zip(&seen).map(|(sent, seen)| (*seen - *sent).as_secs_f64() * 1e3).collect()
    }

    /// The milliseconds from the due time of each record of a bare producer until it can be read.
    fn bare_latency(&self, round: usize, during: Duration) -> Vec<f64> {
        let topic = format!("bench-bare-late-{round}");
        self.kafka.create_topic(&topic, PARTITIONS);
        let consumer = reader(self.kafka, &topic);
        // As in the worker: with delivery reports a flush would take 20 ms longer.
        let settings = [("delivery.report.only.error", "true")];
        let producer = client::transactional_producer(self.kafka.brokers(), &topic, &settings);
        let count = count(during);
        let started = Instant::now();
        let sending = std::thread::spawn({
            let topic = topic.clone();
            move || {
                let mut number = 0;
                while number < count {
                    let begun = Instant::now();
                    producer.begin_transaction().unwrap();
                    while number < count && begun.elapsed() < SHORT {
                        if let Some(early) = moment(number).checked_sub(started.elapsed()) {
                            std::thread::park_timeout(early);
                        } else {
                            client::send(&producer, &topic, number as i32 % PARTITIONS, &number.to_be_bytes());
                            number += 1;
                        }
                    }
                    client::wait_for_delivery(&producer);
                    producer.commit_transaction(LIMIT).unwrap();
                    std::thread::park_timeout(MIN_TXN_GAP);
                }
            }
        });
        let mut late = Vec::with_capacity(count);
        while late.len() < count {
            assert!(started.elapsed() < LIMIT, "{} of {count} records arrived", late.len());
            if let Some(Ok(record)) = consumer.poll(Duration::from_millis(1)) {
                let number = usize::from_be_bytes(record.payload().unwrap().try_into().unwrap());
                late.push((started.elapsed() - moment(number)).as_secs_f64() * 1e3);
            }
        }
        sending.join().unwrap();
        client::delete_topic(self.kafka.brokers(), &topic);
        late
    }
}

fn count(during: Duration) -> usize {
    (during.as_secs_f64() * f64::from(RATE)) as usize
}

/// The due time of a record since the start.
fn moment(number: usize) -> Duration {
    Duration::from_secs(1) / RATE * number as u32
}
