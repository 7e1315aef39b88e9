//! The embedded broker with TLS and users: kcat, the Java client and workers log in, and clients
//! without the right password do not.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use trunkline_tests::{Case, Exit, KafkaClient, LogWriter, Process, Tool, need, wait, worker_binary};

use crate::{LONG, SOURCE};

const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

const PASSWORD: &str = "hunter2 with % and #";

/// A broker with a certificate for this machine and the user `worker`.
struct SecuredBroker {
    process: Process,
    folder: tempfile::TempDir,
    port: u16,
}

impl SecuredBroker {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        for (name, ca) in [("ca", None), ("broker", Some("ca")), ("other-ca", None)] {
            let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
            let mut openssl = Command::new("openssl");
            openssl.args(["req", "-x509"]).args(key).args(["-subj", &format!("/CN={name}")]);
            openssl.arg("-keyout").arg(file(&format!("{name}.key"))).arg("-out").arg(file(&format!("{name}.pem")));
            if let Some(ca) = ca {
                openssl.arg("-CA").arg(file(&format!("{ca}.pem"))).arg("-CAkey").arg(file(&format!("{ca}.key")));
                openssl.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
                openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
            }
            let made = openssl.output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        fs::write(file("users.toml"), format!("worker = \"{PASSWORD}\"\nother = \"${{file:other}}\"\n")).unwrap();
        fs::write(file("other"), "from a file\n").unwrap();
        let mut command = Command::new(worker_binary());
        // Beyond loopback: TLS and users make that possible without --insecure.
        command.args(["broker", "--listen", "0.0.0.0:0", "--data"]).arg(file("data"));
        command.arg("--tls-cert").arg(file("broker.pem")).arg("--tls-key").arg(file("broker.key"));
        command.arg("--users").arg(file("users.toml")).arg("--auto-create-topics");
        let process = Process::spawn(command, &file("log"));
        let port = wait::until("the broker prints its address", LONG, || {
            let printed = fs::read_to_string(file("log.stdout")).unwrap_or_default();
            printed.strip_suffix('\n').and_then(|line| line.rsplit(':').next()?.parse().ok())
        });
        Self { process, folder, port }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The arguments with which kcat logs in.
    fn login(&self, mechanism: &str, user: &str, password: &str) -> Vec<String> {
        let properties = [
            "security.protocol=sasl_ssl".to_owned(),
            format!("sasl.mechanism={mechanism}"),
            format!("sasl.username={user}"),
            format!("sasl.password={password}"),
            format!("ssl.ca.location={}", self.file("ca.pem")),
        ];
        let address = ["-b".to_owned(), self.address()];
        address.into_iter().chain(properties.into_iter().flat_map(|property| ["-X".to_owned(), property])).collect()
    }
}

fn run(kcat: &Tool, login: &[String], arguments: &[&str]) -> Exit {
    let login: Vec<&str> = login.iter().map(String::as_str).collect();
    kcat.try_run(&[&login[..], arguments].concat())
}

#[test]
fn kcat_writes_and_reads_over_tls_and_no_one_without_the_password() {
    let kcat = need!(Tool::find("kcat"));
    let broker = SecuredBroker::start();
    // Larger than a record of TLS, and than the buffers of a socket in sum.
    let lines: Vec<String> = (0..2_000).map(|number| format!("{number} {}", "x".repeat(2_000))).collect();
    let text = lines.join("\n");
    // librdkafka before 2.6.1, which kcat may have, sends a wrong nonce with SCRAM; Apache Kafka
    // refuses it, too.
    for (mechanism, user, password) in [("PLAIN", "worker", PASSWORD), ("PLAIN", "other", "from a file")] {
        let topic = format!("{mechanism}.{user}");
        let login = broker.login(mechanism, user, password);
        let borrowed: Vec<&str> = login.iter().map(String::as_str).collect();
        let written = kcat.try_run_with_input(&text, &[&borrowed[..], &["-P", "-t", &topic]].concat());
        assert_eq!(written.code, Some(0), "{mechanism}: {}", written.describe());
        let read = run(&kcat, &login, &["-C", "-t", &topic, "-e", "-q", "-o", "beginning"]);
        assert!(read.code == Some(0) && read.stdout.lines().eq(&lines), "{mechanism}: {}", read.describe());
    }

    let wrong = ["worker", "unknown"].into_iter().flat_map(|user| MECHANISMS.map(|mechanism| (mechanism, user)));
    for (mechanism, user) in wrong {
        let exit = run(&kcat, &broker.login(mechanism, user, "wrong"), &["-L", "-m", "3"]);
        assert_ne!(exit.code, Some(0), "{mechanism} {user}");
        assert!(exit.stderr.contains("invalid user name or password"), "{mechanism} {user}: {}", exit.describe());
    }
    // Without a login, without TLS, and with another authority.
    let ca = format!("ssl.ca.location={}", broker.file("ca.pem"));
    let other = format!("ssl.ca.location={}", broker.file("other-ca.pem"));
    for properties in [
        &["-X", "security.protocol=ssl", "-X", &ca][..],
        &[],
        &["-X", "security.protocol=ssl", "-X", &other],
        &[
            "-X",
            "security.protocol=sasl_plaintext",
            "-X",
            "sasl.mechanism=PLAIN",
            "-X",
            "sasl.username=worker",
            "-X",
            "sasl.password=a",
        ],
    ] {
        let exit = kcat.try_run(&[&["-b", &broker.address(), "-L", "-m", "3"], properties].concat());
        assert_ne!(exit.code, Some(0), "{properties:?}: {}", exit.describe());
        assert!(!exit.stdout.contains("topic \"PLAIN"), "{properties:?}: {}", exit.stdout);
    }
    let log = broker.process.stderr();
    assert!(log.contains("a login was refused") && !log.contains("hunter2"), "{log}");
}

/// Apache Kafka's own client, which shares no code with librdkafka.
#[test]
fn the_java_client_logs_in_with_every_mechanism_over_tls() {
    const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
    let tool = need!(Tool::find("kafka-tool"));
    let broker = SecuredBroker::start();
    let address = broker.address();
    let config = broker.folder.path().join("client.properties");
    let write_config = |mechanism: &str, password: &str| {
        let kind = if mechanism == "PLAIN" { "plain.Plain" } else { "scram.Scram" };
        let module = format!("org.apache.kafka.common.security.{kind}LoginModule");
        let text = format!(
            "security.protocol=SASL_SSL\nsasl.mechanism={mechanism}\nssl.truststore.type=PEM\n\
             ssl.truststore.location={}\nsasl.jaas.config={module} required username=\"worker\" password=\"{password}\";\n",
            broker.file("ca.pem")
        );
        fs::write(&config, text).unwrap();
    };
    let config_path = config.display().to_string();
    let base = [TOPICS, "--bootstrap-server", &address, "--command-config", &config_path];
    for mechanism in MECHANISMS {
        write_config(mechanism, PASSWORD);
        let topic = format!("java-{mechanism}");
        tool.run(&[&base[..], &["--create", "--topic", &topic]].concat());
        let listed = tool.run(&[&base[..], &["--list"]].concat());
        assert!(listed.lines().any(|line| line == topic), "{listed}");
    }
    write_config("SCRAM-SHA-512", "wrong");
    let exit = tool.try_run(&[&base[..], &["--list"]].concat());
    assert!(exit.code != Some(0), "{}", exit.describe());
    assert!(format!("{}{}", exit.stdout, exit.stderr).contains("invalid user name or password"), "{}", exit.describe());
}

#[test]
fn a_worker_logs_in_to_the_embedded_broker() {
    let kcat = need!(Tool::find("kcat"));
    let broker = SecuredBroker::start();
    let ca = broker.file("ca.pem");
    let settings = |password: &'static str| {
        [
            ("TRUNKLINE_KAFKA_SECURITY", "scram"),
            ("TRUNKLINE_KAFKA_SASL_USERNAME", "worker"),
            ("TRUNKLINE_KAFKA_SASL_PASSWORD", password),
            ("TRUNKLINE_KAFKA_SSL_CA_LOCATION", ca.as_str()),
        ]
    };
    let case = Case::new("secured-broker", &KafkaClient::new(broker.address()));
    let mut log = LogWriter::new(case.path("logs/access.log"), 703);
    log.append(10);
    case.pipeline("web", SOURCE);
    let exit = case.start_with("a", &["--until-idle", "--json"], &settings("wrong")).wait(LONG);
    let last = exit.stderr.lines().last().unwrap_or_default();
    assert!(exit.code == Some(3) && last.contains("`sasl.password`"), "{}", exit.describe());
    assert!(exit.elapsed < Duration::from_secs(20), "{:?}", exit.elapsed);
    for mechanism in MECHANISMS {
        log.append(1_000);
        let login = [&settings(PASSWORD)[..], &[("TRUNKLINE_KAFKA_SASL_MECHANISM", mechanism)]].concat();
        let exit = case.start_with("a", &["--until-idle", "--json"], &login).wait(LONG);
        assert_eq!(exit.code, Some(0), "{mechanism}: {}", exit.describe());
        assert_eq!(exit.summary().of(case.name(), "web").output, log.lines(), "{mechanism}");
    }
    let login = broker.login("PLAIN", "worker", PASSWORD);
    let topic = format!("{}.web", case.name());
    let read = run(&kcat, &login, &["-C", "-t", &topic, "-e", "-q", "-o", "beginning", "-f", "%k\\n"]);
    assert_eq!(read.stdout.lines().count() as u64, log.lines(), "{}", read.describe());
    assert!(Path::new(&broker.file("data")).is_dir());
}
