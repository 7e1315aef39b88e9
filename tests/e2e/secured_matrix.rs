//! Every pair of security protocol and mechanism on Apache Kafka: a job runs with the right
//! credentials, and ends at once with the reason and the remedy with wrong ones.

use std::time::Duration;

use trunkline_tests::{Case, Exit, Kafka, KafkaClient, LogWriter, SecuredKafka, TokenServer, need};

use crate::{LONG, SOURCE};

/// A job with wrong credentials ends within this time, even on a busy machine. On an idle one it
/// takes less than two seconds.
const REFUSED_LIMIT: Duration = Duration::from_secs(20);

/// Jobs that run at the same time.
const JOBS: usize = 4;

type Settings = Vec<(&'static str, String)>;

/// A listener and a mechanism.
#[derive(Clone)]
struct Pair {
    name: String,
    address: String,
    right: Settings,
    wrong: Settings,
    /// A part of the message about the wrong credentials.
    remedy: &'static str,
}

fn job(name: &str, address: &str, settings: &Settings) -> (Exit, u64) {
    let mut case = Case::new(name, &KafkaClient::new(address.to_owned()));
    for (variable, value) in settings {
        case.set(variable, value);
    }
    LogWriter::new(case.path("logs/access.log"), 704).append(10);
    case.pipeline("web", SOURCE);
    let exit = case.start("a", &["--until-idle", "--json"]).wait(LONG);
    let output = if exit.code == Some(0) { exit.summary().of(case.name(), "web").output } else { 0 };
    (exit, output)
}

fn check(pair: &Pair) {
    let (exit, output) = job(&pair.name, &pair.address, &pair.right);
    assert!(exit.code == Some(0) && output == 10, "{}: {}", pair.name, exit.describe());
    let (exit, _) = job(&pair.name, &pair.address, &pair.wrong);
    let last = exit.stderr.lines().last().unwrap_or_default();
    let port = pair.address.rsplit(':').next().unwrap();
    assert_eq!(exit.code, Some(3), "{}: {}", pair.name, exit.describe());
    assert!(last.starts_with("error: ") && last.contains(pair.remedy), "{}: {}", pair.name, exit.describe());
    // A token is refused by its server, any other login by the broker.
    let is_token = pair.remedy.contains("oauthbearer");
    assert!(is_token || last.contains(&format!(":{port}")), "{}: the address is missing in {last}", pair.name);
    assert!(exit.elapsed < REFUSED_LIMIT, "{}: {:?}", pair.name, exit.elapsed);
    assert!(!exit.stderr.contains("hunter2") && !exit.stderr.contains("admin-secret"), "{}", pair.name);
    println!("{}: refused after {:?}", pair.name, exit.elapsed);
}

#[test]
fn every_protocol_accepts_every_mechanism_and_explains_wrong_credentials() {
    let kafka = need!(SecuredKafka::shared());
    let tokens = TokenServer::start(&kafka.file("oauth.key"), Duration::from_secs(60));
    let ca = kafka.file("ca.pem").display().to_string();
    let mut pairs = Vec::new();
    for (protocol, passwords, oauth) in [
        ("sasl_ssl", kafka.sasl_tls(), kafka.oauth()),
        ("sasl_plaintext", kafka.sasl_plaintext(), kafka.sasl_plaintext()),
    ] {
        let base = |mechanism: &str| -> Settings {
            let mut settings = vec![
                ("TRUNKLINE_KAFKA_SECURITY_PROTOCOL", protocol.to_owned()),
                ("TRUNKLINE_KAFKA_SASL_MECHANISM", mechanism.to_owned()),
            ];
            // Without TLS the property is not used.
            if protocol == "sasl_ssl" {
                settings.push(("TRUNKLINE_KAFKA_SSL_CA_LOCATION", ca.clone()));
            }
            settings
        };
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let login = |password: &str| {
                let user = ("TRUNKLINE_KAFKA_SASL_USERNAME", "admin".to_owned());
                [base(mechanism), vec![user, ("TRUNKLINE_KAFKA_SASL_PASSWORD", password.to_owned())]].concat()
            };
            pairs.push(Pair {
                name: format!("{protocol}-{}", mechanism.to_lowercase()),
                address: passwords.clone(),
                right: login("admin-secret"),
                wrong: login("hunter2-hunter2"),
                remedy: "check `sasl.username`, `sasl.password` and `sasl.mechanism`",
            });
        }
        let login = |secret: &str| {
            let mut settings = vec![
                ("TRUNKLINE_KAFKA_SECURITY", "oauth".to_owned()),
                ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL", tokens.url()),
                ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_CLIENT_ID", TokenServer::ID.to_owned()),
                ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET", secret.to_owned()),
                ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_SCOPE", "kafka".to_owned()),
            ];
            settings.extend(base("OAUTHBEARER"));
            settings
        };
        pairs.push(Pair {
            name: format!("{protocol}-oauthbearer"),
            address: oauth,
            right: login(TokenServer::SECRET),
            wrong: login("hunter2-hunter2"),
            remedy: "check `sasl.oauthbearer.token.endpoint.url`",
        });
    }
    let chunks: Vec<Vec<Pair>> =
        (0..JOBS).map(|start| pairs.iter().skip(start).step_by(JOBS).cloned().collect()).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = chunks.iter().map(|pairs| scope.spawn(|| pairs.iter().for_each(check))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// The commands in the message create exactly the topics that the job needs.
#[test]
fn missing_topics_that_may_not_be_created_are_named_with_their_commands() {
    let kafka = need!(Kafka::any());
    let mut case = Case::new("missing", kafka);
    case.set("TRUNKLINE_TOPICS_CREATE", "false");
    // State topics that other tests have not created.
    let prefix = format!("{}.", case.name());
    case.set("TRUNKLINE_PREFIX", &prefix);
    LogWriter::new(case.path("logs/access.log"), 705).append(10);
    case.pipeline("web", SOURCE);
    let run = || case.start("a", &["--until-idle", "--json"]).wait(LONG);
    let refused = run();
    assert_eq!(refused.code, Some(3), "{}", refused.describe());
    assert!(refused.stderr.contains("`topics.create` is false"), "{}", refused.describe());
    let last = refused.stderr.lines().last().unwrap_or_default();
    let mut created = 0;
    for command in last.split("kafka-topics.sh ").skip(1) {
        let words: Vec<&str> = command.trim_end_matches(['.', ';', ' ']).split_whitespace().collect();
        let after = |flag: &str| words.iter().skip_while(|word| **word != flag).nth(1).unwrap().trim_end_matches(';');
        assert_eq!(after("--bootstrap-server"), kafka.brokers());
        let configs = words.iter().zip(words.iter().skip(1)).filter(|(flag, _)| **flag == "--config");
        let configs: Vec<_> = configs.map(|(_, pair)| pair.trim_end_matches(';').split_once('=').unwrap()).collect();
        kafka.create_topic_with(after("--topic"), after("--partitions").parse().unwrap(), &configs);
        created += 1;
    }
    // The topic of the records, that of dead letters, and five of the worker.
    assert_eq!(created, 7, "{last}");
    assert!(kafka.has_topic(&format!("{}.web", case.name())));
    let exit = run();
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    assert_eq!(exit.summary().of(case.name(), "web").output, 10);
}
