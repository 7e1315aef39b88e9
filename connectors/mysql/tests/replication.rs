//! The replication protocol with real servers: TLS modes, authentication plugins, and interrupted
//! connections. A source opens its query connection first; the tests change the server before it
//! opens the replication connection.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::proxy::Proxy;
use common::{Bench, Kind, PATIENCE, Server, options};
use trunkline_connector::{Domain, Error, Fill, Retry};

/// A certificate for 127.0.0.1, and its issuer.
struct Certificate {
    folder: tempfile::TempDir,
}

impl Certificate {
    /// `None` without openssl.
    fn new(name: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let run =
            |arguments: &str| Command::new("openssl").args(arguments.split(' ')).current_dir(folder.path()).output();
        if run("version").is_err() {
            eprintln!("SKIP no openssl for certificates");
            return None;
        }
        std::fs::write(folder.path().join("names"), format!("subjectAltName={name}\n")).unwrap();
        for arguments in [
            &format!("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority-{name} -keyout ca.key -out ca.pem"),
            "req -newkey rsa:2048 -nodes -subj /CN=server -keyout server.key -out server.csr",
            "x509 -req -days 2 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out server.pem",
        ] {
            let output = run(arguments).unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Some(Self { folder })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn server(&self, kind: Kind) -> Option<Server> {
        let folder = self.path().display();
        let options = format!("--ssl-ca={folder}/ca.pem --ssl-cert={folder}/server.pem --ssl-key={folder}/server.key");
        Server::start_kind(kind, &options)
    }
}

/// Opens both connections. The second of two servers may lack transactions of the first one: that
/// error comes after the authentication, so it proves that the user was accepted.
fn open(options: &str) -> Result<(), Error> {
    match Bench::new(&format!("{options}snapshot = \"never\"\n")).fill(Duration::from_millis(200)) {
        Err(error) if error.code != "mysql.behind_position" => Err(error),
        _ => Ok(()),
    }
}

#[test]
fn each_tls_mode_verifies_what_it_promises() {
    let (Some(good), Some(of_another_name), Some(foreign)) =
        (Certificate::new("IP:127.0.0.1"), Certificate::new("DNS:elsewhere"), Certificate::new("IP:127.0.0.1"))
    else {
        return;
    };
    for kind in [Kind::MySql, Kind::MariaDb] {
        let (Some(server), Some(renamed)) = (good.server(kind), of_another_name.server(kind)) else { continue };
        let create = "CREATE USER tls IDENTIFIED BY 'x' REQUIRE SSL; GRANT REPLICATION SLAVE, REPLICATION CLIENT, SELECT ON *.* TO tls";
        server.run(create);
        renamed.run(create);
        let ca = |certificate: &Certificate| format!("tls_ca = \"{}/ca.pem\"\n", certificate.path().display());
        let to = |port: u16, tls: &str| format!("{}tls = \"{tls}\"\n", options(port, "tls:x", "\"none.*\""));
        for (tls, ca) in [
            ("prefer", String::new()),
            ("require", String::new()),
            ("verify_ca", ca(&good)),
            ("verify_identity", ca(&good)),
        ] {
            // A user who must use TLS.
            open(&format!("{}{ca}", to(server.port, tls))).unwrap();
        }
        // A user who must present a certificate, on both connections.
        server.run("CREATE USER certified IDENTIFIED BY 'x' REQUIRE X509; GRANT REPLICATION SLAVE, REPLICATION CLIENT, SELECT ON *.* TO certified");
        let certified =
            format!("{}tls = \"verify_identity\"\n{}", options(server.port, "certified:x", "\"none.*\""), ca(&good));
        let presenting = |certificate: &str, key: &str| {
            let folder = good.path().display();
            open(&format!("{certified}tls_cert = \"{folder}/{certificate}\"\ntls_key = \"{folder}/{key}\"\n"))
        };
        presenting("server.pem", "server.key").unwrap();
        let error = open(&certified).unwrap_err();
        assert_eq!((error.code, error.domain), ("mysql.access_denied", Domain::Config), "{error}");
        assert!(error.message().contains("set `tls_cert` and `tls_key`"), "{error}");
        for (certificate, key) in [("server.pem", "none.key"), ("none.pem", "server.key")] {
            let error = presenting(certificate, key).unwrap_err();
            assert_eq!((error.code, error.domain), ("mysql.tls_cert", Domain::Config), "{error}");
        }
        open(&format!("{}{}", to(renamed.port, "verify_ca"), ca(&of_another_name))).unwrap();
        let error = open(&to(server.port, "disable")).unwrap_err();
        assert_eq!((error.code, error.domain), ("mysql.access_denied", Domain::Config), "{error}");
        // The query connection meets a valid certificate, the replication connection another one.
        let both = good.path().join("both.pem");
        let authorities =
            [&good, &of_another_name].map(|from| std::fs::read_to_string(from.path().join("ca.pem")).unwrap());
        std::fs::write(&both, authorities.concat()).unwrap();
        let both = format!("tls_ca = \"{}\"\n", both.display());
        let proxy = Proxy::new(server.port, renamed.port, || {});
        open(&format!("{}{both}", to(proxy.port, "verify_ca"))).unwrap();
        for (tls, ca, why) in
            [("verify_identity", &both, "for another host"), ("verify_ca", &ca(&good), "set `tls_ca`")]
        {
            let error = open(&format!("{}{ca}", to(proxy.port, tls))).unwrap_err();
            assert_eq!((error.code, error.domain), ("mysql.tls", Domain::External), "{tls}: {error}");
            assert!(error.message().contains(why) && error.retry == Retry::Never, "{tls}: {error}");
        }
        // The query connection finds the same faults.
        for (port, tls, ca, why) in [
            (renamed.port, "verify_identity", ca(&of_another_name), "for another host"),
            (server.port, "verify_ca", ca(&foreign), "set `tls_ca`"),
        ] {
            let error = open(&format!("{}{ca}", to(port, tls))).unwrap_err();
            assert_eq!((error.code, error.retry), ("mysql.tls", Retry::Never), "{error}");
            assert!(error.message().contains(why), "{error}");
        }
        // Authorities without a mode verify the name, too.
        let default = |port: u16, certificate: &Certificate| {
            open(&format!("{}{}", options(port, "tls:x", "\"none.*\""), ca(certificate)))
        };
        default(server.port, &good).unwrap();
        let error = default(renamed.port, &of_another_name).unwrap_err();
        assert!(error.code == "mysql.tls" && error.message().contains("for another host"), "{error}");
        drop(renamed);

        // The replication connection meets a server without TLS.
        let Some(plain) = Server::shared_mariadb() else { continue };
        if kind == Kind::MariaDb {
            let proxy = Proxy::new(server.port, plain.port, || {});
            let user =
                |tls: &str| format!("{}tls = \"{tls}\"\n", options(proxy.port, "cdc:p%40ss%2Fword", "\"none.*\""));
            open(&user("prefer")).unwrap();
            let error = open(&user("require")).unwrap_err();
            assert_eq!((error.code, error.domain), ("mysql.tls", Domain::External), "{error}");
            assert!(error.message().contains("does not offer TLS") && error.retry == Retry::Never, "{error}");
        }
    }
}

#[test]
fn each_authentication_plugin_is_supported() {
    const GRANT: &str = "GRANT REPLICATION SLAVE, REPLICATION CLIENT, SELECT ON *.* TO";
    for server in Server::shared_each() {
        let plugins: &[&str] = match server.kind {
            Kind::MySql => &["caching_sha2_password", "sha256_password", "mysql_native_password"],
            Kind::MariaDb => &["mysql_native_password"],
        };
        let mut known = 0;
        for plugin in plugins {
            // New servers issue old plugins.
            let identified = |password: &str| match server.kind {
                Kind::MySql => format!("IDENTIFIED WITH {plugin} BY '{password}'"),
                Kind::MariaDb => format!("IDENTIFIED BY '{password}'"),
            };
            let user = format!("by_{plugin}");
            let created = server.try_run(&format!("CREATE USER {user} {}; {GRANT} {user}", identified("sëcret")));
            if let Err(error) = created {
                assert!(error.contains("1524"), "{error}");
                eprintln!("SKIP {:?} has no {plugin}", server.kind);
                continue;
            }
            known += 1;
            let port = server.port;
            let to = |port: u16, password: &str, tls: &str| {
                format!("{}tls = \"{tls}\"\n", options(port, &format!("{user}:{password}"), "\"none.*\""))
            };
            // A password in the server's cache and one that is not, with TLS and without.
            open(&to(port, "s%C3%ABcret", "prefer")).unwrap();
            let client = ["FLUSH PRIVILEGES", "SELECT 1"].map(str::to_owned);
            for flush in client {
                let proxy = Proxy::new(port, port, move || drop(server.run(&flush)));
                open(&to(proxy.port, "s%C3%ABcret", "prefer")).unwrap();
                // The query connection sends the password of sha256_password over TLS only.
                if *plugin != "sha256_password" {
                    open(&to(proxy.port, "s%C3%ABcret", "disable")).unwrap();
                }
            }
            // A password that changes between the connections is rejected, and never printed.
            let change = format!("ALTER USER {user} {}", identified("other"));
            let proxy = Proxy::new(port, port, move || drop(server.run(&change)));
            let error = open(&to(proxy.port, "s%C3%ABcret", "prefer")).unwrap_err();
            assert_eq!((error.code, error.domain), ("mysql.privilege", Domain::Config), "{plugin}: {error}");
            assert!(error.message().contains("Access denied") && !error.message().contains("sëcret"), "{error}");
            // No password, at first and after a change of the plugin.
            server.run(&format!("ALTER USER {user} {}", identified("")));
            open(&to(port, "", "prefer")).unwrap();
            if *plugin != "sha256_password" {
                open(&to(port, "", "disable")).unwrap();
            }
            server.run(&format!("DROP USER {user}"));
        }
        assert!(known > 0);
    }
}

#[test]
fn a_plugin_changed_by_the_server_uses_its_key_without_tls() {
    let Some(server) = Server::shared() else { return };
    let created = server.try_run(
        "CREATE USER changing IDENTIFIED WITH caching_sha2_password BY 'x'; GRANT REPLICATION SLAVE, REPLICATION CLIENT, SELECT ON *.* TO changing",
    );
    created.unwrap();
    let change = "ALTER USER changing IDENTIFIED WITH sha256_password BY 'x'";
    if server.try_run(change).is_err() {
        eprintln!("SKIP this MySQL has no sha256_password");
        return;
    }
    server.run("ALTER USER changing IDENTIFIED WITH caching_sha2_password BY 'x'");
    let to = |port: u16, tls: &str| format!("{}tls = \"{tls}\"\n", options(port, "changing:x", "\"none.*\""));
    // The query connection requires a cached password without TLS.
    open(&to(server.port, "prefer")).unwrap();
    let proxy = Proxy::new(server.port, server.port, move || drop(server.run(change)));
    open(&to(proxy.port, "disable")).unwrap();
}

/// Every row of the table is emitted once, in the order of the ids.
fn assert_all(bench: &Bench, server: &Server, table: &str) {
    let ids: Vec<String> = bench.seen.iter().map(|record| record.after()["id"].to_string()).collect();
    let rows = server.run(&format!("SELECT id FROM {table} ORDER BY id"));
    assert!(ids == rows.lines().collect::<Vec<_>>(), "{} of {} rows", ids.len(), rows.lines().count());
}

#[test]
fn a_compressed_transaction_interrupted_anywhere_resumes_with_the_next_row() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&format!("CREATE TABLE {database}.a (id INT PRIMARY KEY AUTO_INCREMENT, v VARBINARY(1000))"));
    let proxy = Proxy::new(server.port, server.port, || {});
    let options = options(proxy.port, "cdc:p%40ss%2Fword", &format!("\"{database}.*\""));
    let mut bench = Bench::new(&format!("{options}snapshot = \"never\"\ncolumns = [\"*.*.id\"]\n"));
    bench.max_records = 100;
    bench.read();
    bench.stop();
    // With a position, a source verifies the history of the binlog over a connection in between.
    proxy.set_connections_per_open(3);
    // 2 MB that do not compress, in one event that contains many small ones.
    server.run(&format!(
        "USE {database}; SET binlog_transaction_compression = ON;
         INSERT INTO a (v) SELECT RANDOM_BYTES(1000) FROM (WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 1000) SELECT n FROM s) t;
         BEGIN;
         INSERT INTO a (v) SELECT RANDOM_BYTES(1000) FROM (WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 1000) SELECT n FROM s) t;
         UPDATE a SET v = 'updated' WHERE id = 0;
         INSERT INTO a (v) VALUES ('last'); COMMIT;
         SET binlog_transaction_compression = OFF; INSERT INTO a (v) VALUES ('plain')"
    ));
    // Cuts in the greeting, the header, the first transaction, the second, and again everywhere.
    proxy.cut([60, 2_000, 300_000, 900_000, 1_500_000, 1_900_000, 700_000, 1_100_000]);
    let begun = Instant::now();
    let (mut fills, mut failures) = (0, 0);
    loop {
        assert!(begun.elapsed() < PATIENCE, "{} rows", bench.seen.len());
        match bench.fill(Duration::from_millis(300)) {
            Ok(Fill::CaughtUp) if proxy.cuts_left() == 0 => break,
            Ok(_) => fills += 1,
            Err(error) => {
                assert_eq!((error.code, error.domain), ("mysql.unreachable", Domain::External), "{error}");
                failures += 1;
                bench.stop();
            }
        }
        // A crash during the unpacking.
        if fills % 3 == 2 {
            fills += 1;
            bench.stop();
        }
    }
    assert!(failures >= 4, "{failures} connections were cut while they were read");
    assert_eq!(bench.seen.len(), 2002);
    assert_all(&bench, server, &format!("{database}.a"));
}

#[test]
fn a_server_without_checksums_is_supported() {
    for server in Server::start_each("--binlog-checksum=NONE") {
        let database = server.database();
        server.run(&format!("CREATE TABLE {database}.a (id INT PRIMARY KEY AUTO_INCREMENT, v INT)"));
        let mut bench = Bench::new(&server.options(&format!("\"{database}.*\"")));
        bench.read();
        let insert = || server.run(&format!("INSERT INTO {database}.a (v) VALUES (1), (2), (3)"));
        insert();
        bench.read();
        // A change of the setting takes effect with the next file.
        server.run("SET GLOBAL binlog_checksum = CRC32");
        insert();
        bench.read();
        bench.stop();
        bench.read();
        insert();
        bench.read();
        server.run("SET GLOBAL binlog_checksum = NONE");
        insert();
        bench.read();
        assert_eq!(bench.seen.len(), 12);
        assert_all(&bench, &server, &format!("{database}.a"));
    }
}
