//! Secured brokers: the reason of a failed connection and every missing right is reported with its
//! remedy, and a job ends at once.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use trunkline_tests::{
    Case, Exit, KafkaClient, LogWriter, Record, Right, SecuredKafka, TokenServer, need, repetitions, repository, wait,
};

use crate::{LONG, SOURCE, access_logs};

/// A job that cannot connect ends within this time, even on a busy machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// A changed right is in effect within this time. A run that still ends otherwise is a failure.
const RIGHT_LIMIT: Duration = Duration::from_secs(20);

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
        case("mechanism", kafka.oauth(), &[sasl_tls, scram, user, password, trusted], "`sasl.mechanism`"),
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
    // The broker applies a new right a moment after it has accepted it.
    let mut run = |succeeds: bool, expected: &[&str]| {
        let begun = Instant::now();
        loop {
            let (exit, elapsed) = run_job(&mut case, &settings);
            let is_expected =
                (exit.code == Some(0)) == succeeds && expected.iter().all(|text| exit.stderr.contains(text));
            if is_expected || begun.elapsed() > RIGHT_LIMIT {
                assert!(is_expected, "{expected:?}: {}", exit.describe());
                assert!(elapsed < Duration::from_secs(60), "{elapsed:?}: {}", exit.describe());
                return exit;
            }
        }
    };

    // All missing topics are named at once.
    run(false, &[&topic, &letters, "_trunkline.checkpoints", "Create and Describe"]);

    // Topics that exist need no right to create topics; the next missing right is that to the
    // transactional id or group.
    for (topic, partitions) in [
        ("_trunkline.checkpoints", 8),
        ("_trunkline.intents", 8),
        ("_trunkline.schemas", 1),
        ("_trunkline.tasks", 32),
        ("_trunkline.audit", 1),
    ] {
        if !kafka.has_topic(topic) {
            kafka.create_topic(topic, partitions);
        }
    }
    kafka.create_topic(&topic, 4);
    kafka.create_topic(&letters, 4);
    kafka.allow(&["Read", "Write", "Describe"], &["--topic", "_trunkline."]);
    kafka.allow(&["Describe"], &["--topic", &name]);
    run(false, &[&format!("{name}.tasks"), "right Read on the group"]);
    kafka.allow(&["Read"], &["--group", &name]);
    run(false, &[&format!("transactional id `{name}.{name}.web"), "rights Describe and Write on the transactional id"]);
    kafka.allow(&["Write", "Describe"], &["--transactional-id", &name]);
    run(false, &[&topic, "right Write on the topic"]);
    kafka.allow(&["Read", "Write"], &["--topic", &name]);
    let exit = run(true, &[]);
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

/// The settings of a client that gets its tokens from `server`.
fn oauth(kafka: &SecuredKafka, server: &TokenServer) -> Vec<(&'static str, String)> {
    vec![
        ("TRUNKLINE_KAFKA_SECURITY", "oauth".to_owned()),
        ("TRUNKLINE_KAFKA_SSL_CA_LOCATION", kafka.file("ca.pem").display().to_string()),
        ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL", server.url()),
        ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_CLIENT_ID", TokenServer::ID.to_owned()),
        ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET", TokenServer::SECRET.to_owned()),
        ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_SCOPE", "kafka".to_owned()),
    ]
}

/// The broker verifies signature, audience and expiry of each token, and ends a connection whose
/// token has expired.
#[test]
fn a_worker_outlives_several_oauth_tokens() {
    const LIFETIME: Duration = Duration::from_secs(4);
    let kafka = need!(SecuredKafka::shared());
    let server = TokenServer::start(&kafka.file("oauth.key"), LIFETIME);
    let mut case = Case::new("tokens", &KafkaClient::new(kafka.oauth()));
    for (name, value) in oauth(kafka, &server) {
        case.set(name, &value);
    }
    case.set("TRUNKLINE_LOG", "debug");
    let topic = format!("{}.web", case.name());
    let mut log = LogWriter::new(case.path("logs/access.log"), 701);
    log.append(10);
    case.pipeline("web", &access_logs());
    let mut worker = case.start("a", &[]);
    // The source waits while two tokens expire, and writes with a third one.
    for _ in 0..2 {
        let lines = log.lines();
        let written = || (kafka.has_topic(&topic) && kafka.count(&topic) == lines).then_some(());
        wait::until("all lines are written", LONG, written);
        let last = server.issued();
        wait::until("two tokens have expired", LONG, || (server.issued() >= last + 3).then_some(()));
        log.append(10);
    }
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    for forbidden in ["hunter2", "eyJ", "cannot connect to Kafka", "cannot get a token", "refuses its token"] {
        assert!(!exit.stderr.contains(forbidden), "{forbidden}: {}", exit.describe());
    }
    let summary = case.until_idle("a", LONG);
    assert_eq!(kafka.count(&topic), log.lines());
    assert_eq!(summary.of(case.name(), "lake").output, log.lines());
}

#[test]
fn tokens_that_cannot_be_had_are_explained_and_end_a_job() {
    let kafka = need!(SecuredKafka::shared());
    let server = TokenServer::start(&kafka.file("oauth.key"), Duration::from_secs(60));
    let base = oauth(kafka, &server);
    let with = |name: &'static str, value: &str| {
        let other = base.iter().filter(|(known, _)| *known != name).cloned();
        other.chain([(name, value.to_owned())]).collect::<Vec<_>>()
    };
    let iam = |credentials: &[(&'static str, &str)]| {
        let mut settings = vec![
            ("TRUNKLINE_KAFKA_SECURITY", "aws_msk_iam".to_owned()),
            ("TRUNKLINE_KAFKA_REGION", "eu-central-1".to_owned()),
            ("TRUNKLINE_KAFKA_SSL_CA_LOCATION", kafka.file("ca.pem").display().to_string()),
            ("AWS_CONFIG_FILE", "/nonexistent".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ];
        settings.extend(credentials.iter().map(|(name, value)| (*name, (*value).to_owned())));
        settings
    };
    let secret = "TRUNKLINE_KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET";
    let url = "TRUNKLINE_KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL";
    let no_page = server.url().replace("/token", "/hunter2");
    let cases = [
        ("secret", with(secret, "wrong-hunter2"), "invalid_client; check `sasl.oauthbearer.token.endpoint.url`"),
        ("page", with(url, &no_page), "answered 401"),
        ("no-aws", iam(&[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")]), "no AWS credentials were found"),
        // This broker does not know AWS.
        (
            "iam",
            iam(&[("AWS_ACCESS_KEY_ID", "AKTEST"), ("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")]),
            "the broker refused the token: with MSK, check that the IAM policy allows `kafka-cluster:Connect`",
        ),
    ];
    for (name, settings, expected) in cases {
        let mut case = Case::new(name, &KafkaClient::new(kafka.oauth()));
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (exit, elapsed) = run_job(&mut case, &settings);
        assert_eq!(exit.code, Some(3), "{name}: {}", exit.describe());
        let last = exit.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && last.contains(expected), "{name}: {}", exit.describe());
        assert!(elapsed < CONNECT_LIMIT, "{name}: {elapsed:?}");
        let shown = exit.stderr.replace("/hunter2 answered", "");
        assert!(!shown.contains("hunter2"), "{name}: {}", exit.describe());
    }
}

/// The broker verifies the signature and the expiry of each token as MSK does, and ends a
/// connection whose token has expired.
#[test]
fn a_worker_outlives_several_tokens_of_msk_iam() {
    let kafka = need!(SecuredKafka::shared());
    let address = need!(kafka.iam());
    let settings = |case: &mut Case, id: &str, secret: &str| {
        for (name, value) in [
            ("TRUNKLINE_KAFKA_SECURITY", "aws_msk_iam"),
            ("TRUNKLINE_KAFKA_REGION", "eu-central-1"),
            ("TRUNKLINE_KAFKA_SSL_CA_LOCATION", kafka.file("ca.pem").to_str().unwrap()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_ACCESS_KEY_ID", id),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ] {
            case.set(name, value);
        }
    };
    let mut case = Case::new("iam-refused", &KafkaClient::new(address.clone()));
    settings(&mut case, "AKTEST", "hunter2hunter2");
    let (exit, elapsed) = run_job(&mut case, &[]);
    assert_eq!(exit.code, Some(3), "{}", exit.describe());
    assert!(exit.stderr.contains("the broker refused the token: with MSK"), "{}", exit.describe());
    assert!(elapsed < CONNECT_LIMIT && !exit.stderr.contains("hunter2"), "{elapsed:?}: {}", exit.describe());

    // A token ends with the credentials that signed it. This program gives new ones for 7 s each
    // time.
    let mut case = Case::new("iam", &KafkaClient::new(address));
    settings(&mut case, "", "");
    let (issued, program) = (case.path("issued"), case.path("credentials"));
    let script = format!(
        "#!/bin/bash\necho >> {}\necho '{{\"Version\":1,\"AccessKeyId\":\"AKTEST\",\"SecretAccessKey\":\"SKTESTSK\",\
         \"Expiration\":\"'$(date -u -d '+7 seconds' +%FT%TZ)'\"}}'\n",
        issued.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(case.path("aws"), format!("[default]\ncredential_process = {}\n", program.display())).unwrap();
    let config = case.path("aws");
    case.set("AWS_CONFIG_FILE", config.to_str().unwrap());
    let tokens = || fs::read_to_string(&issued).map_or(0, |lines| lines.lines().count());
    let topic = format!("{}.web", case.name());
    let mut log = LogWriter::new(case.path("logs/access.log"), 703);
    log.append(10);
    case.pipeline("web", SOURCE);
    let mut worker = case.start("a", &[]);
    for _ in 0..repetitions(1, 4) {
        let written = || (kafka.has_topic(&topic) && kafka.count(&topic) == log.lines()).then_some(());
        wait::until("all lines are written", LONG, written);
        let last = tokens();
        wait::until("a token has expired", LONG, || (tokens() >= last + 2).then_some(()));
        log.append(10);
    }
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    for forbidden in ["SKTESTSK", "cannot connect to Kafka", "cannot get a token", "refused the token"] {
        assert!(!exit.stderr.contains(forbidden), "{forbidden}: {}", exit.describe());
    }
    case.until_idle("a", LONG);
    assert_eq!(kafka.count(&topic), log.lines());
}

/// The rights that `trunkline acls` prints for a use of the pipelines of a case.
fn printed_rights(case: &Case, used: &str) -> Vec<Right> {
    let exit = case.run_command("acls", &[], &["--format", "json", "--for", used], LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    let list: serde_json::Value = serde_json::from_str(&exit.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let mut rights = Vec::new();
    for resource in list.as_array().unwrap() {
        let right = |operation: &serde_json::Value| Right {
            resource: text(&resource["resource_type"]),
            name: text(&resource["name"]),
            is_prefix: resource["pattern_type"] == "prefixed",
            operation: text(operation),
        };
        rights.extend(resource["operations"].as_array().unwrap().iter().map(right));
    }
    rights
}

/// A pipeline of `pipelines/` in which each right is used.
#[test]
fn a_pipeline_runs_under_exactly_the_rights_that_are_printed() {
    let kafka = need!(SecuredKafka::shared());
    let mut case = Case::new("acls", &KafkaClient::new(kafka.sasl_tls()));
    for (name, value) in alice(kafka) {
        case.set(name, &value);
    }
    case.set("TRUNKLINE_PREFIX", &format!("{}.", case.name()));
    let text = fs::read_to_string(repository().join("pipelines/access-logs.toml")).unwrap();
    let text = text.replace("name = \"access-logs\"", "name = \"$NAME\"");
    let text = text.replace("access-logs/*.log", "$DIR/logs/*.log").replace("/tmp/trunkline-lake", "$DIR/lake");
    case.pipeline("access-logs", &text);
    let rights = printed_rights(&case, "worker");
    let mut runs = 0;
    // The broker applies a changed right a moment after it has accepted it.
    let mut run_until = |is_expected: &dyn Fn(&Exit) -> bool| {
        let mut run = || {
            runs += 1;
            // New lines each time, one of them a dead letter, so that every step has something to
            // do.
            let mut log = LogWriter::new(case.path(&format!("logs/{runs}.log")), 710 + runs);
            log.append(5);
            log.append_raw(b"cut off\n");
            case.start("a", &["--until-idle", "--json"]).wait(LONG)
        };
        let mut exit = run();
        let begun = Instant::now();
        while !is_expected(&exit) && begun.elapsed() < RIGHT_LIMIT {
            exit = run();
        }
        exit
    };
    let succeeded = |exit: &Exit| exit.code == Some(0);
    let failed = |exit: &Exit| exit.code != Some(0);

    // First without the rights to create topics: all missing topics are named at once.
    let (create, others): (Vec<_>, Vec<_>) = rights.iter().cloned().partition(|right| right.operation == "Create");
    kafka.grant(&others);
    let exit = run_until(&failed);
    assert_eq!(exit.code, Some(3), "{}", exit.describe());
    let last = exit.stderr.lines().last().unwrap_or_default();
    for right in &create {
        assert!(last.contains(&right.name), "{}: {}", right.name, exit.describe());
    }
    assert!(last.contains("Create and Describe"), "{last}");
    kafka.grant(&create);
    let exit = run_until(&succeeded);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());

    let check = || case.run_command("validate", &[], &["--check"], LONG);
    let checked = wait::until("all rights are in effect", LONG, || Some(check()).filter(|exit| exit.code == Some(0)));
    assert!(checked.stdout.contains("ok"), "{}", checked.describe());

    // Now without some of the others. (`missing_rights_are_named_and_end_a_job` has those of the
    // source.)
    let chosen = [
        ("topic", ".web", "Read"),
        ("topic", ".dead-letters", "Write"),
        ("topic", ".checkpoints", "Read"),
        ("topic", ".intents", "Write"),
        ("group", ".lake", "Read"),
        ("transactional-id", ".lake.", "Write"),
    ];
    let chosen = chosen.map(|(resource, end, operation)| {
        let is_meant =
            |right: &&Right| right.resource == resource && right.name.ends_with(end) && right.operation == operation;
        others.iter().find(is_meant).unwrap_or_else(|| panic!("no right {operation} on {end} in {others:?}"))
    });
    // With `--long` without each of them.
    let revoked: Vec<&Right> = if repetitions(0, 1) == 1 { others.iter().collect() } else { chosen.to_vec() };
    for right in revoked {
        kafka.revoke(std::slice::from_ref(right));
        let name = right.name.trim_end_matches('.');
        let names_right =
            |line: &str| line.starts_with("error: ") && line.contains(name) && line.contains(&right.operation);
        // The right that was granted before may not be in effect yet either.
        let exit = run_until(&|exit| failed(exit) && exit.stderr.lines().any(names_right));
        assert!(matches!(exit.code, Some(1 | 3)), "{right:?}: {}", exit.describe());
        if right.name.ends_with(".web") || right.resource == "group" {
            let checked = check();
            assert_eq!(checked.code, Some(3), "{right:?}: {}", checked.describe());
            let message = format!("`{}`: missing rights: {}", right.name, right.operation);
            assert!(checked.stderr.contains(&message), "{right:?}: {}", checked.describe());
        }
        assert!(exit.stderr.lines().any(names_right), "{right:?}: {}", exit.describe());
        assert!(exit.stderr.contains("`trunkline acls` prints the command"), "{right:?}: {}", exit.describe());
        kafka.grant(std::slice::from_ref(right));
    }

    // Nothing was lost: the last run delivers what the others left.
    let exit = run_until(&succeeded);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    let summary = exit.summary();
    let lines = 5 * runs;
    assert_eq!(summary.of(case.name(), "web").output, lines);
    assert_eq!(summary.of(case.name(), "lake").output, lines);
    kafka.revoke(&rights);
    commands_need_exactly_the_printed_rights(kafka, &case);
}

/// The samples with transforms that keep state, tables and ports, in one worker.
#[test]
fn sample_pipelines_run_under_exactly_the_rights_that_are_printed() {
    let kafka = need!(SecuredKafka::shared());
    let mut case = Case::new("sample-acls", &KafkaClient::new(kafka.sasl_tls()));
    for (name, value) in alice(kafka) {
        case.set(name, &value);
    }
    case.set("TRUNKLINE_PREFIX", &format!("{}.", case.name()));
    let samples = ["fleet", "fraud", "iot", "payments"];
    for sample in samples {
        let folder = repository().join("pipelines");
        let text = fs::read_to_string(folder.join(sample).with_extension("toml")).unwrap();
        let (here, there) = (format!("\"{sample}/"), format!("\"{}/{sample}/", folder.display()));
        let text =
            text.replace(&here, &there).replace(&format!("/tmp/trunkline-{sample}"), &format!("$DIR/lake/{sample}"));
        case.pipeline(sample, &text);
    }
    let rights = printed_rights(&case, "worker");
    kafka.grant(&rights);
    let exit = wait::until("the rights are in effect", RIGHT_LIMIT * 3, || {
        let exit = case.start("a", &["--until-idle", "--json"]).wait(LONG);
        let is_denied = exit.stderr.contains("kafka.access_denied");
        assert!(exit.code == Some(0) || is_denied, "{}", exit.describe());
        (exit.code == Some(0)).then_some(exit)
    });
    let summary = exit.summary();
    for (sample, sink) in [("fleet", "alerts"), ("fraud", "alerts"), ("iot", "averages"), ("payments", "totals")] {
        assert!(summary.of(sample, sink).output > 0, "{sample}.{sink}: {}", exit.describe());
    }
    kafka.revoke(&rights);
}

/// A use, a command, its arguments before and after the pipelines, and its name in the audit log.
type CommandLine<'a> = (&'a str, &'a str, &'a [&'a str], &'a [&'a str], &'a str);

/// Runs each command with the rights of its use alone. All of them are in the audit log then.
fn commands_need_exactly_the_printed_rights(kafka: &SecuredKafka, case: &Case) {
    let (name, lake) = (case.name().to_owned(), format!("{}.lake", case.name()));
    let copy = format!("url=\"file:{}\"", case.path("copy").display());
    let letters = format!("{name}.dead-letters");
    kafka.create_topic(&format!("{name}.redriven"), 1);
    let redriven = format!("{name}.redriven");
    let to =
        Right { resource: "topic".to_owned(), name: redriven.clone(), is_prefix: false, operation: "Write".to_owned() };
    let commands: [CommandLine<'_>; 6] = [
        ("tap", "tap", &[&lake], &["--from", "earliest", "--no-follow"], "tap"),
        ("tap", "dlq", &["show", &name], &["--limit", "1"], "dlq show"),
        ("pause", "pause", &[&name], &[], "pause"),
        ("offsets", "offsets", &["reset"], &[&lake, "--yes"], "offsets set"),
        ("redrive", "dlq", &["redrive", &name], &["--to-topic", &redriven], "dlq redrive"),
        ("replay", "replay", &[], &[&name, "--from", "earliest", "--into", &copy], "replay"),
    ];
    for (used, verb, before, after, recorded) in commands {
        let mut rights = printed_rights(case, used);
        rights.extend((used == "redrive").then(|| to.clone()));
        kafka.grant(&rights);
        let begun = Instant::now();
        let exit = loop {
            let exit = case.run_command(verb, before, after, LONG);
            // The broker applies a new right a moment after it has accepted it.
            if exit.code == Some(0) || begun.elapsed() > RIGHT_LIMIT {
                break exit;
            }
        };
        assert_eq!(exit.code, Some(0), "{used} {rights:?}: {}", exit.describe());
        assert!(exit.stderr.contains(&format!("\"command\":\"{recorded}\"")), "{verb}: {}", exit.describe());
        kafka.revoke(&rights);
    }
    assert!(kafka.count(&redriven) > 0 && kafka.count(&letters) > 0);
    let recorded = kafka.count(&format!("{name}._trunkline.audit"));
    let mut rights = printed_rights(case, "tap");
    rights.retain(|right| !right.name.ends_with("_trunkline.audit"));
    kafka.grant(&rights);
    let exit = wait::until("a reader needs no right to write", RIGHT_LIMIT, || {
        let exit = case.run_command("tap", &[&lake], &["--from", "earliest", "--no-follow"], LONG);
        (exit.code == Some(0)).then_some(exit)
    });
    let warning = "warning: `tap` is not recorded in the audit log: ";
    assert!(!exit.stdout.is_empty() && exit.stderr.contains(warning), "{}", exit.describe());
    assert_eq!(kafka.count(&format!("{name}._trunkline.audit")), recorded);
    kafka.revoke(&rights);
    let log = kafka.read(&format!("{name}._trunkline.audit"));
    let entries: Vec<serde_json::Value> = log.iter().map(Record::json).collect();
    for (.., recorded) in commands {
        let entry = entries.iter().find(|entry| entry["command"] == recorded);
        let entry = entry.unwrap_or_else(|| panic!("{recorded} is not in {entries:?}"));
        let filled = |key: &str| entry[key].as_str().is_some_and(|text| !text.is_empty());
        assert!(filled("user") && filled("host") && filled("time") && entry["arguments"].is_object(), "{entry}");
        assert_eq!(entry["cluster"], format!("{name}.{name}"), "{entry}");
    }
}

/// A password that is corrected, or rotated, while the worker runs.
#[test]
fn sighup_gives_all_clients_the_changed_password() {
    let kafka = need!(SecuredKafka::shared());
    let mut case = Case::new("rotation", &KafkaClient::new(kafka.sasl_tls()));
    let secret = case.path("secrets/kafka");
    fs::create_dir(case.path("secrets")).unwrap();
    fs::write(&secret, "old-hunter2\n").unwrap();
    let settings =
        "[kafka]\nsecurity = \"plain\"\n\"sasl.username\" = \"admin\"\n\"sasl.password\" = \"${secret:kafka}\"\n";
    fs::write(case.path("trunkline.toml"), settings).unwrap();
    for (name, value) in [
        ("TRUNKLINE_CONFIG", case.path("trunkline.toml")),
        ("TRUNKLINE_SECRETS", case.path("secrets")),
        ("TRUNKLINE_KAFKA_SSL_CA_LOCATION", kafka.file("ca.pem")),
    ] {
        case.set(name, value.to_str().unwrap());
    }
    let mut log = LogWriter::new(case.path("logs/access.log"), 702);
    log.append(10);
    case.pipeline("web", SOURCE);
    let topic = format!("{}.web", case.name());
    let mut worker = case.start("a", &[]);
    let refused = || worker.stderr().contains("check `sasl.username`, `sasl.password`").then_some(());
    wait::until("the broker has refused the old password", LONG, refused);
    fs::write(&secret, "admin-secret\n").unwrap();
    worker.sighup();
    let written = || (kafka.has_topic(&topic) && kafka.count(&topic) == log.lines()).then_some(());
    wait::until("the worker writes with the new password", LONG, written);
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    assert!(exit.stderr.contains("the clients of Kafka use the changed credentials"), "{}", exit.describe());
    assert!(exit.stderr.contains("every user of this machine may read the secret in"), "{}", exit.describe());
    assert!(!exit.stderr.contains("hunter2") && !exit.stderr.contains("admin-secret"), "{}", exit.describe());
}
