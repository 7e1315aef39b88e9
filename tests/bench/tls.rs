//! The cost of TLS: a log file to a topic, through two listeners of one broker. One is plaintext;
//! the other one has SASL_SSL and a login by SCRAM-SHA-512. The broker decrypts on the same cores,
//! so its share of the cost is in the figure, too.

use trunkline_tests::{KafkaClient, SecuredKafka, Skip, worker_binary};

use crate::client;
use crate::measure::Sampling;
use crate::pipeline::{self, Run, SAMPLE, Settings};
use crate::records::{Lines, Log};
use crate::table::{Row, Target};

/// Least share of the speed without TLS.
const SHARE: f64 = 0.75;

/// The rows of `tls`.
pub(crate) fn rows(sampling: Sampling) -> Result<Vec<Row>, Skip> {
    let kafka = SecuredKafka::shared()?;
    let lines = Lines::generate(1, SAMPLE);
    pipeline::warm_up(kafka, &lines);
    let secured = KafkaClient::new(kafka.sasl_tls());
    let login: Settings = vec![
        ("TRUNKLINE_KAFKA_SECURITY", "scram".to_owned()),
        ("TRUNKLINE_KAFKA_SSL_CA_LOCATION", kafka.file("ca.pem").display().to_string()),
        ("TRUNKLINE_KAFKA_SASL_USERNAME", "admin".to_owned()),
        ("TRUNKLINE_KAFKA_SASL_PASSWORD", "admin-secret".to_owned()),
    ];
    let worker = worker_binary();
    let mut rows = Vec::new();
    for (name, parser) in
        [("SASL_SSL: log file -> topic, parser none", "none"), ("SASL_SSL: log file -> topic, combined", "combined")]
    {
        let read = |listener: &KafkaClient, settings: &Settings, log: &Log, count| {
            let (topic, run) = pipeline::read_log_with(listener, settings, &worker, log, parser, count);
            client::consume(&client::consumer(kafka.brokers(), "count", &[]), &topic, count);
            client::delete_topic(kafka.brokers(), &topic);
            run
        };
        let short = read(kafka, &Vec::new(), &Log::write(&lines, SAMPLE), SAMPLE);
        let count = sampling.records(short.per_second());
        let log = Log::write(&lines, count);
        eprintln!("{name}");
        let runs: [Vec<Run>; 2] = pipeline::alternate(
            sampling,
            |_| read(kafka, &Vec::new(), &log, count).report("PLAINTEXT", sampling),
            |_| read(&secured, &login, &log, count).report("SASL_SSL", sampling),
        );
        rows.extend(pipeline::compare_with_peer(name, "lines/s", Target::Share(SHARE), &runs));
    }
    Ok(rows)
}
