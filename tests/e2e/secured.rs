//! Secured brokers: the reason of a failed connection and every missing right is reported with its
//! remedy, and a job ends at once.

use std::time::{Duration, Instant};

use trunkline_tests::{Case, Exit, KafkaClient, LogWriter, SecuredKafka, need};

use crate::{LONG, SOURCE};

/// A job that cannot connect ends within this time, even on a busy machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Runs a job on one log file at a listener of the broker.
fn run_job(case: &mut Case, settings: &[(&str, &str)]) -> (Exit, Duration) {
    LogWriter::new(case.path("logs/access.log"), 700).append(10);
    case.pipeline("web", SOURCE);
    let started = Instant::now();
    let exit = case.start_with("a", &["--until-idle", "--json"], settings).wait(LONG);
    (exit, started.elapsed())
}

/// A connection that the broker, or the client, refuses.
struct Refused {
    name: &'static str,
    address: String,
    settings: Vec<(&'static str, String)>,
    /// A part of the last line of the output.
    expected: &'static str,
}

#[test]
fn failed_connections_are_explained_and_end_a_job() {
    let kafka = need!(SecuredKafka::shared());
    let file = |name: &str| kafka.file(name).display().to_string();
    let (ca, other_ca) = (file("ca.pem"), file("other-ca.pem"));
    let tls = ("TRUNKLINE_KAFKA_SECURITY_PROTOCOL", "ssl");
    let sasl_tls = ("TRUNKLINE_KAFKA_SECURITY_PROTOCOL", "sasl_ssl");
    let plain = ("TRUNKLINE_KAFKA_SASL_MECHANISM", "PLAIN");
    let scram = ("TRUNKLINE_KAFKA_SASL_MECHANISM", "SCRAM-SHA-256");
    let user = ("TRUNKLINE_KAFKA_SASL_USERNAME", "alice");
    let password = ("TRUNKLINE_KAFKA_SASL_PASSWORD", "alice-secret");
    let wrong_password = ("TRUNKLINE_KAFKA_SASL_PASSWORD", "hunter2-hunter2");
    let trusted = ("TRUNKLINE_KAFKA_SSL_CA_LOCATION", ca.as_str());
    let untrusted = ("TRUNKLINE_KAFKA_SSL_CA_LOCATION", other_ca.as_str());
    let by_address = kafka.mutual_tls().replace("localhost", "127.0.0.1");
    let case = |name, address: String, settings: &[(&'static str, &str)], expected| {
        let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Refused { name, address, settings, expected }
    };
    let cases = [
        case("password", kafka.sasl_tls(), &[sasl_tls, plain, user, wrong_password, trusted], "`sasl.password`"),
        case("mechanism", kafka.sasl_tls(), &[sasl_tls, scram, user, password, trusted], "`sasl.mechanism`"),
        case("untrusted", kafka.sasl_tls(), &[sasl_tls, plain, user, password, untrusted], "`ssl.ca.location`"),
        case("no-ca", kafka.sasl_tls(), &[sasl_tls, plain, user, password], "`ssl.ca.location`"),
        case("expired", kafka.expired(), &[tls, trusted], "the certificate has expired"),
        case("host", by_address, &[tls, trusted], "the certificate is for another host"),
        case("no-protocol", kafka.sasl_tls(), &[], "`security.protocol`"),
        case("plaintext-to-sasl", kafka.sasl_plaintext(), &[], "`security.protocol`"),
        case("tls-to-plaintext", kafka.plaintext(), &[tls, trusted], "`security.protocol`"),
        case("no-certificate", kafka.mutual_tls(), &[tls, trusted], "`ssl.certificate.location`"),
    ];
    for Refused { name, address, settings, expected } in cases {
        let mut case = Case::new(name, &KafkaClient::new(address.clone()));
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (exit, elapsed) = run_job(&mut case, &settings);
        assert_eq!(exit.code, Some(3), "{name}: {}", exit.describe());
        let port = address.rsplit(':').next().unwrap();
        let last = exit.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && last.contains(expected), "{name}: {}", exit.describe());
        assert!(last.contains(&format!(":{port}")), "{name}: the address is missing in {last}");
        assert!(elapsed < CONNECT_LIMIT, "{name}: {elapsed:?}");
        assert!(!exit.stderr.contains("hunter2") && !exit.stderr.contains("alice-secret"), "{name}");
    }
}

/// The settings of `alice`, who has only the rights that a test grants.
fn alice(kafka: &SecuredKafka) -> Vec<(&'static str, String)> {
    vec![
        ("TRUNKLINE_KAFKA_SECURITY_PROTOCOL", "sasl_ssl".to_owned()),
        ("TRUNKLINE_KAFKA_SASL_MECHANISM", "PLAIN".to_owned()),
        ("TRUNKLINE_KAFKA_SASL_USERNAME", "alice".to_owned()),
        ("TRUNKLINE_KAFKA_SASL_PASSWORD", "alice-secret".to_owned()),
        ("TRUNKLINE_KAFKA_SSL_CA_LOCATION", kafka.file("ca.pem").display().to_string()),
    ]
}

#[test]
fn missing_rights_are_named_and_end_a_job() {
    let kafka = need!(SecuredKafka::shared());
    let mut case = Case::new("rights", &KafkaClient::new(kafka.sasl_tls()));
    let settings = alice(kafka);
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let name = case.name().to_owned();
    let (topic, letters) = (format!("{name}.web"), format!("{name}.dead-letters"));
    let mut run = |expected: &[&str]| {
        let (exit, elapsed) = run_job(&mut case, &settings);
        assert_ne!(exit.code, Some(0), "{}", exit.describe());
        assert!(expected.iter().all(|text| exit.stderr.contains(text)), "{expected:?}: {}", exit.describe());
        assert!(elapsed < Duration::from_secs(60), "{elapsed:?}: {}", exit.describe());
    };

    // All missing topics are named at once.
    run(&[&topic, &letters, "_trunkline.checkpoints", "Create and Describe"]);

    // Topics that exist need no right to create topics; the next missing right is that to the
    // transactional id or group.
    for (topic, partitions) in
        [("_trunkline.checkpoints", 8), ("_trunkline.intents", 8), ("_trunkline.schemas", 1), ("_trunkline.tasks", 32)]
    {
        if !kafka.has_topic(topic) {
            kafka.create_topic(topic, partitions);
        }
    }
    kafka.create_topic(&topic, 4);
    kafka.create_topic(&letters, 4);
    kafka.allow(&["Read", "Write", "Describe"], &["--topic", "_trunkline."]);
    kafka.allow(&["Describe"], &["--topic", &name]);
    run(&[&format!("{name}.tasks"), "right Read on the group"]);
    kafka.allow(&["Read"], &["--group", &name]);
    run(&[&format!("transactional id `{name}.{name}.web"), "rights Describe and Write on the transactional id"]);
    kafka.allow(&["Write", "Describe"], &["--transactional-id", &name]);
    run(&[&topic, "right Write on this topic"]);
    kafka.allow(&["Read", "Write"], &["--topic", &name]);
    let (exit, _) = run_job(&mut case, &settings);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    assert_eq!(kafka.count(&topic), exit.summary().of(&name, "web").output);
}

#[test]
fn client_certificates_and_keys_are_accepted_as_files() {
    let kafka = need!(SecuredKafka::shared());
    let file = |name: &str| kafka.file(name).display().to_string();
    let (ca, certificate, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let settings = [
        ("TRUNKLINE_KAFKA_SECURITY_PROTOCOL", "ssl"),
        ("TRUNKLINE_KAFKA_SSL_CA_LOCATION", ca.as_str()),
        ("TRUNKLINE_KAFKA_SSL_CERTIFICATE_LOCATION", certificate.as_str()),
        ("TRUNKLINE_KAFKA_SSL_KEY_LOCATION", key.as_str()),
    ];
    let mut case = Case::new("mutual", &KafkaClient::new(kafka.mutual_tls()));
    let (exit, _) = run_job(&mut case, &settings);
    // The user of this certificate has no rights: the connection itself works.
    assert!(exit.stderr.contains("Create and Describe"), "{}", exit.describe());
}
