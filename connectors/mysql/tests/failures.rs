//! Servers that stop, lose data, or refuse.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, Kind, PATIENCE, Server, fold};
use trunkline_connector::{Domain, Fill, Retry};

#[test]
fn a_server_restart_within_a_transaction_loses_and_duplicates_nothing() {
    for server in Server::start_each("") {
        let database = server.database();
        server.run(&format!(
            "USE {database}; CREATE TABLE a (id INT PRIMARY KEY AUTO_INCREMENT, v INT); INSERT INTO a (v) VALUES (0)"
        ));
        let mut bench = Bench::new(&server.options(&format!("\"{database}.*\"")));
        bench.max_records = 10;
        bench.read();
        for round in 1..=3 {
            let values: Vec<String> = (0..200).map(|number| format!("({})", round * 1000 + number)).collect();
            // The kill hits a compressed transaction.
            let compressed =
                if round == 2 && !server.is_mariadb() { "SET binlog_transaction_compression = ON;" } else { "" };
            server.run(&format!("{compressed} INSERT INTO {database}.a (v) VALUES {}", values.join(",")));
            bench.fill(Duration::from_millis(100)).unwrap();
            if round == 2 {
                server.kill()
            } else {
                server.stop()
            }
            let begun = Instant::now();
            // The received events precede the failure.
            let error = loop {
                assert!(begun.elapsed() < PATIENCE);
                if let Err(error) = bench.fill(Duration::from_millis(100)) {
                    break error;
                }
            };
            assert_eq!(error.domain, Domain::External, "{error}");
            bench.stop();
            let error = bench.fill(Duration::from_millis(100)).unwrap_err();
            assert_eq!((error.domain, error.code), (Domain::External, "mysql.unreachable"));
            assert!(!error.to_string().contains("p@ss"));
            server.start_again();
            bench.read();
        }
        assert_eq!(bench.seen.len(), 601);
        assert_eq!(fold(&bench.seen).len(), 601);
    }
}

#[test]
fn a_purged_binlog_stops_the_source_or_restarts_its_snapshot() {
    for (kind, options, resnapshot) in [
        (Kind::MySql, "", "on_purged = \"resnapshot\""),
        (Kind::MySql, "--gtid-mode=OFF --enforce-gtid-consistency=OFF", "snapshot = \"when_needed\""),
        (Kind::MariaDb, "", "snapshot = \"when_needed\""),
    ] {
        let Some(server) = Server::start_kind(kind, options) else { continue };
        let database = server.database();
        server.run(&format!(
            "USE {database}; CREATE TABLE a (id INT PRIMARY KEY, v INT); INSERT INTO a VALUES (1, 1), (2, 2)"
        ));
        let options = server.options(&format!("\"{database}.*\""));
        let mut bench = Bench::new(&options);
        bench.read();
        bench.stop();
        assert_eq!(bench.take().len(), 2);
        server.run(&format!("USE {database}; UPDATE a SET v = 3 WHERE id = 1; DELETE FROM a WHERE id = 2; INSERT INTO a VALUES (3, 3); FLUSH BINARY LOGS; FLUSH BINARY LOGS; PURGE BINARY LOGS BEFORE NOW() + INTERVAL 1 DAY"));
        // The server keeps files in use, and notices a closed connection at its next heartbeat
        // only.
        let begun = Instant::now();
        while server.run("SHOW BINARY LOGS").lines().count() > 1 {
            assert!(begun.elapsed() < PATIENCE, "nothing is purged");
            server.run("PURGE BINARY LOGS BEFORE NOW() + INTERVAL 1 DAY");
        }
        let error = bench.try_read().unwrap_err();
        assert_eq!((error.code, error.domain), ("mysql.purged", Domain::Data));
        assert!(
            error.message().contains("on_purged") && error.message().contains("binlog_expire_logs_seconds"),
            "{error}"
        );
        bench.set_options(&format!("{options}{resnapshot}\n"));
        bench.read();
        assert_eq!(
            bench.take().iter().map(|record| record.after()["v"].as_i64()).collect::<Vec<_>>(),
            [Some(3), Some(3)]
        );
        server.run(&format!("INSERT INTO {database}.a VALUES (4, 4)"));
        bench.read();
        assert_eq!(bench.seen.len(), 1);
    }
}

#[test]
fn the_lag_reports_the_time_until_the_binlog_is_purged() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&format!("USE {database}; CREATE TABLE a (id INT PRIMARY KEY AUTO_INCREMENT, v INT)"));
    let rows = |count: usize| vec!["(0)"; count].join(",");
    let mut bench = Bench::new(&server.options(&format!("\"{database}.*\"")));
    bench.read();
    bench.stop();
    server.run(&format!("INSERT INTO {database}.a (v) VALUES {}", rows(40)));
    // The retention left shrinks by the lag of the source.
    let begun = Instant::now();
    let retention = Duration::from_secs(server.run("SELECT @@GLOBAL.binlog_expire_logs_seconds").parse().unwrap());
    bench.max_records = 10;
    while bench.seen.is_empty() {
        bench.fill(Duration::from_millis(100)).unwrap();
    }
    let left = bench.lag().retention_left.unwrap();
    assert!(
        left < retention && left + begun.elapsed() + Duration::from_secs(60) > retention,
        "{left:?} of {retention:?}"
    );
    bench.read();
    assert_eq!(bench.lag().retention_left, Some(retention), "everything has been read");
    server.run("SET GLOBAL binlog_expire_logs_auto_purge = OFF");
    bench.stop();
    bench.read();
    server.run("SET GLOBAL binlog_expire_logs_auto_purge = ON");
    assert_eq!(bench.lag().retention_left, None);
}

#[test]
fn a_server_that_rejects_is_distinguished_from_one_that_is_down() {
    let Some(server) = Server::start("") else { return };
    let database = server.database();
    let tables = format!("\"{database}.*\"");
    let failure = |options: &str| Bench::new(options).try_read().unwrap_err();
    let wrong = server.options(&tables).replace("p%40ss%2Fword", "wrong-secret");
    let error = failure(&wrong);
    assert_eq!((error.code, error.domain), ("mysql.access_denied", Domain::Config));
    assert!(!error.to_string().contains("wrong-secret"));
    server.run(&format!(
        "CREATE USER poor_{database} IDENTIFIED BY 'x'; GRANT SELECT ON {database}.* TO poor_{database}"
    ));
    let poor = format!("url = \"mysql://poor_{database}:x@127.0.0.1:{}\"\ntables = [{tables}]", server.port);
    let error = failure(&poor);
    assert_eq!((error.code, error.domain), ("mysql.privilege", Domain::Config), "{error}");
    // Without TLS the server can verify cached passwords only.
    server.run("FLUSH PRIVILEGES");
    let error = failure(&format!("{}tls = \"disable\"", server.options(&tables)));
    assert_eq!((error.code, error.domain), ("mysql.tls", Domain::Config), "{error}");
    for tls in ["require", "disable"] {
        Bench::new(&format!("{}tls = \"{tls}\"", server.options(&tables))).read();
    }
    let error = failure(&format!("{}tls = \"verify_identity\"", server.options(&tables)));
    assert_eq!((error.code, error.domain, error.retry), ("mysql.tls", Domain::External, Retry::Never), "{error}");
    assert!(error.message().contains("set `tls_ca`"), "{error}");
    let error = failure(&format!("{}tls = \"verify_ca\"\ntls_ca = \"/no/such.pem\"", server.options(&tables)));
    assert_eq!((error.code, error.domain), ("mysql.tls_ca", Domain::Config));
}

#[test]
fn the_later_of_two_sources_with_one_name_continues() {
    for server in Server::shared_each() {
        let database = server.database();
        server.run(&format!("USE {database}; CREATE TABLE a (id INT PRIMARY KEY)"));
        let options = server.options(&format!("\"{database}.*\""));
        let (mut first, mut second) = (Bench::new(&options), Bench::new(&options));
        second.task = first.task.clone();
        first.until_idle = false;
        first.read();
        second.read();
        let begun = Instant::now();
        let error = loop {
            assert!(begun.elapsed() < PATIENCE, "the first source was not ended");
            if let Err(error) = first.fill(Duration::from_millis(100)) {
                break error;
            }
        };
        assert_eq!(error.domain, Domain::External, "{error}");
        server.run(&format!("INSERT INTO {database}.a VALUES (1)"));
        second.read();
        assert_eq!(second.seen.len(), 1);
    }
}

#[test]
fn a_server_without_binlog_is_rejected() {
    let Some(server) = Server::start("--skip-log-bin --gtid-mode=OFF --enforce-gtid-consistency=OFF") else { return };
    let error = Bench::new(&server.options("\"a.*\"")).fill(Duration::ZERO).unwrap_err();
    assert_eq!((error.code, error.domain), ("mysql.server", Domain::Config));
    assert!(error.message().contains("log_bin"));
}

#[test]
fn a_binlog_without_column_names_stops_the_source() {
    for server in Server::start_each("--binlog-row-metadata=MINIMAL") {
        let database = server.database();
        server.run(&format!("USE {database}; CREATE TABLE a (id INT PRIMARY KEY)"));
        let mut bench = Bench::new(&server.options(&format!("\"{database}.*\"")));
        assert_eq!(bench.read().fill(Duration::ZERO).unwrap(), Fill::CaughtUp);
        server.run(&format!("INSERT INTO {database}.a VALUES (1)"));
        let error = bench.try_read().unwrap_err();
        assert_eq!((error.code, error.domain), ("mysql.row_metadata", Domain::Data));
        let set = if server.is_mariadb() { "GLOBAL" } else { "PERSIST" };
        assert!(error.message().contains(&format!("SET {set} binlog_row_metadata = 'FULL'")), "{error}");
    }
}

/// Stops within a transaction of 100 rows.
fn read_half(bench: &mut Bench) {
    let begun = Instant::now();
    while bench.seen.len() < 40 {
        assert!(begun.elapsed() < PATIENCE);
        bench.fill(Duration::from_millis(100)).unwrap();
    }
}

/// Reads the rest at the replica. The first server then returns without the changes since, so it is
/// behind.
fn assert_resumes_and_never_goes_back(bench: &mut Bench, server: &Server, tables: &str) {
    bench.read();
    assert_eq!(bench.seen.len(), 301);
    assert_eq!(fold(&bench.seen).len(), 301);
    server.start_again();
    bench.set_options(&server.options(tables));
    let error = bench.try_read().unwrap_err();
    assert_eq!((error.code, error.domain), ("mysql.behind_position", Domain::External), "{error}");
}

#[test]
fn a_source_resumes_at_a_replica() {
    let (Some(server), Some(replica)) = (Server::start(""), Server::start("--log-replica-updates=ON")) else { return };
    // Both servers start without transactions of their history.
    replica.run("RESET BINARY LOGS AND GTIDS");
    let database = server.database();
    server.run(&format!(
        "USE {database}; CREATE TABLE a (id INT PRIMARY KEY AUTO_INCREMENT, v INT); INSERT INTO a (v) VALUES (0)"
    ));
    server.run("CREATE USER repl IDENTIFIED BY 'x'; GRANT REPLICATION SLAVE ON *.* TO repl; DROP USER cdc");
    replica.run("DROP USER cdc; RESET BINARY LOGS AND GTIDS");
    server.run(
        "CREATE USER cdc IDENTIFIED BY 'p@ss/word'; GRANT REPLICATION SLAVE, REPLICATION CLIENT, SELECT ON *.* TO cdc",
    );
    replica.run(&format!(
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {}, SOURCE_USER = 'repl', SOURCE_PASSWORD = 'x', SOURCE_SSL = 1, \
         SOURCE_AUTO_POSITION = 1; START REPLICA",
        server.port
    ));
    let tables = format!("\"{database}.*\"");
    let mut bench = Bench::new(&server.options(&tables));
    bench.max_records = 10;
    bench.read();
    let insert = |server: &Server, round: u32| {
        let values: Vec<String> = (0..100).map(|number| format!("({})", round * 1000 + number)).collect();
        server
            .run(&format!("SET gtid_next = 'AUTOMATIC:tag'; INSERT INTO {database}.a (v) VALUES {}", values.join(",")));
    };
    insert(&server, 1);
    read_half(&mut bench);
    insert(&server, 2);
    let executed = server.run("SELECT @@GLOBAL.gtid_executed").replace("\\n", "");
    assert_eq!(replica.run(&format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{executed}', 30)")), "0");
    server.stop();
    bench.set_options(&replica.options(&tables));
    insert(&replica, 3);
    assert_resumes_and_never_goes_back(&mut bench, &server, &tables);
}

#[test]
fn a_source_resumes_at_a_replica_of_mariadb() {
    let start = |options: &str| Server::start_kind(Kind::MariaDb, options);
    let (Some(server), Some(replica)) = (start(""), start("--log-slave-updates=ON")) else { return };
    // Both servers start without transactions of their history.
    server.run("DROP USER cdc; RESET MASTER");
    replica.run("DROP USER cdc; RESET MASTER");
    let database = server.database();
    server.run(&format!(
        "USE {database}; CREATE TABLE a (id INT PRIMARY KEY AUTO_INCREMENT, v INT); INSERT INTO a (v) VALUES (0);
         CREATE USER repl IDENTIFIED BY 'x'; GRANT REPLICATION SLAVE ON *.* TO repl;
         CREATE USER cdc IDENTIFIED BY 'p@ss/word'; GRANT REPLICATION SLAVE, BINLOG MONITOR, SELECT ON *.* TO cdc"
    ));
    replica.run(&format!(
        "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {}, MASTER_USER = 'repl', MASTER_PASSWORD = 'x', MASTER_USE_GTID = slave_pos; START SLAVE",
        server.port
    ));
    let tables = format!("\"{database}.*\"");
    let mut bench = Bench::new(&server.options(&tables));
    bench.max_records = 10;
    bench.read();
    let insert = |server: &Server, round: u32, domain: u32| {
        let values: Vec<String> = (0..100).map(|number| format!("({})", round * 1000 + number)).collect();
        server.run(&format!(
            "SET SESSION gtid_domain_id = {domain}; INSERT INTO {database}.a (v) VALUES {}",
            values.join(",")
        ));
    };
    insert(&server, 1, 0);
    read_half(&mut bench);
    insert(&server, 2, 7);
    let written = server.run("SELECT @@GLOBAL.gtid_binlog_pos");
    assert_eq!(replica.run(&format!("SELECT MASTER_GTID_WAIT('{written}', 30)")), "0");
    server.stop();
    replica.run("STOP SLAVE");
    bench.set_options(&replica.options(&tables));
    insert(&replica, 3, 0);
    assert_resumes_and_never_goes_back(&mut bench, &server, &tables);
    // Its own writes give the server the same number of transactions, but different ones.
    insert(&server, 4, 0);
    let error = bench.try_read().unwrap_err();
    assert_eq!((error.code, error.domain), ("mysql.behind_position", Domain::Data), "{error}");
    assert_eq!(bench.seen.len(), 301);
}

#[test]
fn a_position_of_another_vendor_is_rejected() {
    let (Some(mysql), Some(mariadb)) = (Server::shared(), Server::shared_mariadb()) else { return };
    for (first, second) in [(mysql, mariadb), (mariadb, mysql)] {
        let mut bench = Bench::new(&first.options("\"nothing.*\""));
        bench.read();
        bench.set_options(&second.options("\"nothing.*\""));
        let error = bench.try_read().unwrap_err();
        assert_eq!((error.code, error.domain), ("mysql.other_server", Domain::Data), "{error}");
    }
}
