//! Tables that appear, change their key, share a joined name, or are not readable.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::{Bench, PATIENCE, Seen, Server, fold, options};

fn ops(records: &[Seen]) -> Vec<String> {
    records.iter().map(|record| format!("{} {}", record.op(), record.key.as_deref().unwrap_or("-"))).collect()
}

/// The values of a column in all records.
fn values<'a>(records: impl IntoIterator<Item = &'a Seen>, column: &str) -> BTreeSet<String> {
    records.into_iter().map(|record| record.after()[column].to_string()).collect()
}

/// Fills until the source has emitted this number of records.
fn fill_until(bench: &mut Bench, records: usize) {
    let begun = Instant::now();
    while bench.seen.len() < records {
        assert!(begun.elapsed() < PATIENCE, "{} of {records} records", bench.seen.len());
        bench.fill(Duration::from_millis(50)).unwrap();
    }
}

#[test]
fn a_changed_collation_restarts_the_snapshot() {
    for server in Server::shared_each() {
        let database = server.database();
        let rows: Vec<String> = (0..2000)
            .map(|number| format!("('{}key{number:05}')", if number % 10 == 0 { "KEY" } else { "key" }))
            .collect();
        let collation = if server.is_mariadb() { "utf8mb4_uca1400_ai_ci" } else { "utf8mb4_0900_ai_ci" };
        server.run(&format!(
            "USE {database}; CREATE TABLE t (k VARCHAR(20) COLLATE {collation} PRIMARY KEY); INSERT INTO t VALUES {}",
            rows.join(",")
        ));
        for stops in [false, true] {
            let mut bench = Bench::new(&format!("{}chunk_rows = 27", server.options(&format!("\"{database}.*\""))));
            bench.max_records = 50;
            fill_until(&mut bench, 600);
            let (from, to) = match stops {
                false => (collation, "utf8mb4_bin"),
                true => ("utf8mb4_bin", collation),
            };
            if stops {
                bench.stop();
            }
            server.run(&format!("ALTER TABLE {database}.t CONVERT TO CHARACTER SET utf8mb4 COLLATE {to}"));
            bench.read();
            assert_eq!(values(&bench.seen, "k").len(), 2000, "{from} to {to}");
        }
    }
}

#[test]
fn a_changed_primary_key_restarts_the_snapshot() {
    for server in Server::shared_each() {
        let database = server.database();
        let rows: Vec<String> = (0..3000).map(|number| format!("({number}, {})", number * 7919 % 3001)).collect();
        server.run(&format!(
            "USE {database}; CREATE TABLE t (a INT, b INT, PRIMARY KEY (a, b)); INSERT INTO t VALUES {}",
            rows.join(",")
        ));
        for (key, stops) in [("b, a", false), ("a, b", true), ("b", false)] {
            let mut bench = Bench::new(&format!("{}chunk_rows = 20", server.options(&format!("\"{database}.*\""))));
            bench.max_records = 50;
            fill_until(&mut bench, 500);
            if stops {
                bench.stop();
            }
            server.run(&format!("ALTER TABLE {database}.t DROP PRIMARY KEY, ADD PRIMARY KEY ({key})"));
            bench.read();
            assert_eq!(values(&bench.seen, "a").len(), 3000, "{key}");
        }
        // Without a key it is read as a whole.
        let mut bench = Bench::new(&format!("{}chunk_rows = 20", server.options(&format!("\"{database}.*\""))));
        bench.max_records = 50;
        fill_until(&mut bench, 500);
        server.run(&format!("ALTER TABLE {database}.t DROP PRIMARY KEY"));
        bench.read();
        assert_eq!(values(&bench.seen, "a").len(), 3000);
    }
}

#[test]
fn rows_of_unreadable_tables_are_dropped_until_the_user_may_read_them() {
    for server in Server::shared_each() {
        let (first, second) = (server.database(), server.database());
        let user = format!("u_{first}");
        let replication = if server.is_mariadb() {
            "REPLICATION SLAVE, BINLOG MONITOR"
        } else {
            "REPLICATION SLAVE, REPLICATION CLIENT"
        };
        server.run(&format!(
            "CREATE TABLE {first}.t (id INT PRIMARY KEY); CREATE TABLE {second}.t LIKE {first}.t; INSERT INTO {first}.t VALUES (1); INSERT INTO {second}.t VALUES (1), (2), (3);
             CREATE USER {user} IDENTIFIED BY 'x'; GRANT {replication} ON *.* TO {user}; GRANT SELECT ON {first}.* TO {user}"
        ));
        let mut bench =
            Bench::new(&options(server.port, &format!("{user}:x"), &format!("\"{first}.*\", \"{second}.*\"")));
        bench.read();
        assert_eq!(bench.take().len(), 1);
        server.run(&format!("INSERT INTO {second}.t VALUES (4); CREATE TABLE {second}.u (id INT PRIMARY KEY); INSERT INTO {second}.u VALUES (5)"));
        bench.read();
        assert_eq!((bench.take().len(), bench.dropped), (0, 2), "rows that the user may not read");
        // While the source runs, and after a restart.
        server.run(&format!("GRANT SELECT ON {second}.t TO {user}; INSERT INTO {second}.t VALUES (6)"));
        bench.read();
        let rows = fold(&bench.take());
        assert_eq!(rows.len(), 5, "{rows:?}");
        bench.stop();
        server.run(&format!("GRANT SELECT ON {second}.* TO {user}"));
        bench.read();
        assert_eq!(ops(&bench.take()), ["r {\"id\":5}"]);
        bench.stop();
        assert!(bench.read().take().is_empty());
    }
}

#[test]
fn a_user_who_may_read_some_columns_only_is_rejected() {
    for server in Server::shared_each() {
        let database = server.database();
        let user = format!("u_{database}");
        let replication = if server.is_mariadb() {
            "REPLICATION SLAVE, BINLOG MONITOR"
        } else {
            "REPLICATION SLAVE, REPLICATION CLIENT"
        };
        server.run(&format!(
            "CREATE TABLE {database}.t (id INT PRIMARY KEY, name INT, secret INT); CREATE USER {user} IDENTIFIED BY 'x';
             GRANT {replication} ON *.* TO {user}; GRANT SELECT (id, name) ON {database}.t TO {user}"
        ));
        let options = options(server.port, &format!("{user}:x"), &format!("\"{database}.*\""));
        let error = Bench::new(&options).try_read().unwrap_err();
        assert_eq!((error.code, error.domain), ("mysql.column_privilege", trunkline_connector::Domain::Config));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let issues = Bench::new(&options).spec().preflight("tests.check.source", runtime.handle());
        let issue = issues.iter().find(|issue| issue.code == "mysql.check.column_privilege").unwrap();
        server.run(issue.fix.as_ref().unwrap());
        assert_eq!(Bench::new(&options).spec().preflight("tests.check.source", runtime.handle()), []);
        Bench::new(&options).read();
    }
}

#[test]
fn a_hidden_generated_key_is_the_key_of_snapshot_and_stream() {
    let Some(server) = Server::start("--sql-generate-invisible-primary-key=ON") else { return };
    let database = server.database();
    server.run("SET GLOBAL show_gipk_in_create_table_and_information_schema = OFF");
    server.run(&format!("USE {database}; CREATE TABLE t (v INT); INSERT INTO t VALUES (7), (8)"));
    let mut bench = Bench::new(&server.options(&format!("\"{database}.*\"")));
    bench.read();
    server.run(&format!("INSERT INTO {database}.t VALUES (9); UPDATE {database}.t SET v = 70 WHERE v = 7"));
    bench.read();
    let key = |number| format!("{{\"my_row_id\":{number}}}");
    let expected = [("r", 1), ("r", 2), ("c", 3), ("u", 1)].map(|(op, number)| format!("{op} {}", key(number)));
    assert_eq!(ops(&bench.seen), expected);
}

#[test]
fn a_table_that_is_renamed_into_the_selection_gets_a_snapshot() {
    for server in Server::shared_each() {
        let (outside, inside) = (server.database(), server.database());
        for keyed in [true, false] {
            let (key, name) = if keyed { ("PRIMARY KEY", "x") } else { ("", "y") };
            server.run(&format!(
                "CREATE TABLE {outside}.{name} (id INT {key}); INSERT INTO {outside}.{name} VALUES (1), (2), (3)"
            ));
            let mut bench = Bench::new(&server.options(&format!("\"{inside}.*\"")));
            bench.read().take();
            server.run(&format!(
                "RENAME TABLE {outside}.{name} TO {inside}.{name}; INSERT INTO {inside}.{name} VALUES (4)"
            ));
            bench.read();
            let seen = bench.take();
            assert_eq!(values(&seen, "id").len(), 4, "{:?}", ops(&seen));
            if !keyed {
                assert_eq!(seen.len(), 4, "no row twice: {:?}", ops(&seen));
            }
            bench.stop();
            assert!(bench.read().take().is_empty());
            // Away and back again: its rows may have changed meanwhile.
            server.run(&format!(
                "ALTER TABLE {inside}.{name} RENAME TO {outside}.{name}; UPDATE {outside}.{name} SET id = 10 WHERE id = 1;
                 ALTER TABLE {outside}.{name} RENAME {inside}.{name}"
            ));
            bench.read();
            assert_eq!(values(&bench.take(), "id").len(), 4, "{name}");
            server.run(&format!("DROP TABLE {inside}.{name}"));
            bench.read();
            assert!(
                bench.position.keys().all(|key| !key.ends_with(&format!(".{name}"))),
                "{:?}",
                bench.position.keys()
            );
        }
    }
}

#[test]
fn a_table_restored_outside_of_the_binlog_gets_a_snapshot() {
    for server in Server::shared_each() {
        let database = server.database();
        let mut bench = Bench::new(&server.options(&format!("\"{database}.*\"")));
        bench.read();
        server.run(&format!(
            "SET sql_log_bin = 0; CREATE TABLE {database}.t (id INT PRIMARY KEY); INSERT INTO {database}.t VALUES (1), (2); SET sql_log_bin = 1; INSERT INTO {database}.t VALUES (3)"
        ));
        bench.read();
        assert_eq!(values(&bench.seen, "id").len(), 3, "{:?}", ops(&bench.seen));
        // A creation that may find an existing table proves nothing.
        server.run(&format!(
            "SET sql_log_bin = 0; CREATE TABLE {database}.u (id INT PRIMARY KEY); INSERT INTO {database}.u VALUES (1), (2); SET sql_log_bin = 1;
             CREATE TABLE IF NOT EXISTS {database}.u (id INT PRIMARY KEY); INSERT INTO {database}.u VALUES (3)"
        ));
        bench.take();
        bench.read();
        assert_eq!(values(&bench.seen, "id").len(), 3, "{:?}", ops(&bench.seen));
    }
}

#[test]
fn tables_with_the_same_joined_name_are_different() {
    for server in Server::start_each("") {
        server.run(
            "CREATE DATABASE `dd.b`; CREATE DATABASE dd; CREATE TABLE `dd.b`.c (id INT PRIMARY KEY); CREATE TABLE dd.`b.c` LIKE `dd.b`.c;
             INSERT INTO `dd.b`.c VALUES (1), (2); INSERT INTO dd.`b.c` VALUES (1), (2)",
        );
        let mut bench = Bench::new(&server.options("\"dd*.*\""));
        bench.read();
        assert_eq!(bench.take().len(), 4);
        // The runtime stops a source whose topic does not distinguish them.
        let data_set = |database: &str, table: &str| {
            vec![("trunkline.database", database.into()), ("trunkline.table", table.into())]
        };
        assert_eq!(bench.data_sets, [data_set("dd", "b.c"), data_set("dd.b", "c")]);
        let keys: Vec<&str> = bench.position.keys().map(String::as_str).collect();
        assert_eq!(keys, ["stream", "table/dd%2Eb.c", "table/dd.b%2Ec"]);
        server.run("INSERT INTO `dd.b`.c VALUES (3); INSERT INTO dd.`b.c` VALUES (3)");
        bench.read();
        server.run("CREATE TABLE dd.late (id INT PRIMARY KEY); INSERT INTO dd.late VALUES (1)");
        bench.read();
        assert_eq!(bench.data_sets[2..], [data_set("dd", "late")]);
        bench.seen.pop();
        let names =
            |record: &Seen| (record.headers["trunkline.database"].clone(), record.headers["trunkline.table"].clone());
        let seen: Vec<_> = bench.take().iter().map(names).collect();
        assert_eq!(seen, [("dd.b".to_owned(), "c".to_owned()), ("dd".to_owned(), "b.c".to_owned())]);
        // The ambiguous key of an earlier version: both tables are read again, and the key is
        // removed.
        bench.stop();
        bench.position.retain(|key, _| !key.starts_with("table/"));
        bench.position.insert("table/dd.b.c".to_owned(), b"\"done\"".to_vec());
        bench.read();
        assert_eq!(bench.seen.len(), 7);
        assert!(!bench.position.contains_key("table/dd.b.c"));
    }
}

/// A key that the configuration names is the key of every record, of the snapshot and the stream.
#[test]
fn a_named_key_replaces_the_primary_key() {
    for server in Server::shared_each() {
        let database = server.database();
        server.run(&format!(
            "USE {database}; CREATE TABLE u (v INT, b VARCHAR(9) NOT NULL, a INT NOT NULL, UNIQUE (a, b)); INSERT INTO u VALUES (1, 'x', 1), (2, 'x', 2);
             CREATE TABLE p (id INT PRIMARY KEY, mail VARCHAR(9) NOT NULL UNIQUE); INSERT INTO p VALUES (1, 'one'), (2, 'two')"
        ));
        let options = server.options(&format!("\"{database}.*\""));
        let keys = format!("key = {{ \"{database}.u\" = [\"a\", \"b\"], \"{database}.p\" = [\"mail\"] }}\n");
        let mut bench = Bench::new(&format!("{options}{keys}"));
        bench.read();
        let sorted = |records: &[Seen]| ops(records).into_iter().collect::<BTreeSet<String>>();
        let both = |operations: [&str; 4]| operations.into_iter().map(str::to_owned).collect::<BTreeSet<String>>();
        assert_eq!(
            sorted(&bench.take()),
            both([r#"r {"a":1,"b":"x"}"#, r#"r {"a":2,"b":"x"}"#, r#"r {"mail":"one"}"#, r#"r {"mail":"two"}"#])
        );
        server.run(&format!(
            "USE {database}; INSERT INTO u VALUES (3, 'y', 1); UPDATE u SET v = 4 WHERE a = 2; UPDATE p SET id = 3 WHERE id = 2; INSERT INTO p VALUES (4, 'four')"
        ));
        bench.read();
        assert_eq!(
            sorted(&bench.take()),
            both([r#"c {"a":1,"b":"y"}"#, r#"u {"a":2,"b":"x"}"#, r#"u {"mail":"two"}"#, r#"c {"mail":"four"}"#])
        );
        let wrong =
            Bench::new(&format!("{options}key = {{ \"{database}.p\" = [\"nail\"] }}\n")).try_read().unwrap_err();
        assert!(wrong.code == "mysql.key" && wrong.message().contains("`nail`"), "{wrong}");
    }
}

#[test]
fn the_columns_of_a_unique_index_are_the_key_of_a_table_without_a_primary_key() {
    for server in Server::shared_each() {
        let database = server.database();
        let rows = (0..300).map(|a| format!("({a}, 'b{a}', {a})")).collect::<Vec<_>>().join(", ");
        // The index of `u`, `v` and `h` is the key. The others are nullable, prefixed, merged by a
        // mask, or excluded.
        server.run(&format!(
            "USE {database}; CREATE TABLE u (v INT, b VARCHAR(9) NOT NULL, a INT NOT NULL, UNIQUE z (a, b), UNIQUE y (b)); INSERT INTO u VALUES {rows};
             CREATE TABLE v (a INT NOT NULL, b INT NOT NULL, UNIQUE y (b, a), UNIQUE x (a, b)); INSERT INTO v VALUES (1, 2);
             CREATE TABLE h (a VARCHAR(9) NOT NULL UNIQUE); INSERT INTO h VALUES ('1');
             CREATE TABLE n (a INT, UNIQUE (a)); INSERT INTO n VALUES (1);
             CREATE TABLE p (a VARCHAR(9) NOT NULL, UNIQUE (a(3))); INSERT INTO p VALUES ('1');
             CREATE TABLE m (a VARCHAR(9) NOT NULL UNIQUE, v INT); INSERT INTO m VALUES ('1', 1);
             CREATE TABLE e (a VARCHAR(9) NOT NULL UNIQUE, v INT); INSERT INTO e VALUES ('hidden', 1)"
        ));
        let options = format!(
            "{}chunk_rows = 50\ncolumns = [\"!*.e.a\"]\nmasks = [{{ columns = [\"*.m.a\"], fixed = \"x\" }}, {{ columns = [\"*.h.a\"], hash = \"sha256\" }}]\n",
            server.options(&format!("\"{database}.*\""))
        );
        let mut bench = Bench::new(&options);
        bench.read();
        let snapshot = bench.take();
        let of = |records: &[Seen], table: &str| {
            let name = format!("{database}.{table}");
            let keys = records.iter().filter(|record| record.table == name).map(|record| record.key.clone());
            keys.map(Option::unwrap_or_default).collect::<BTreeSet<String>>()
        };
        let expected: BTreeSet<String> = (0..300).map(|a| format!("{{\"a\":{a},\"b\":\"b{a}\"}}")).collect();
        assert!(of(&snapshot, "u") == expected, "{:?}", of(&snapshot, "u").first());
        assert_eq!(snapshot.len(), 306);
        // Both ways lead to the same keys and schemas.
        server.run(&format!(
            "USE {database}; CREATE TABLE c AS SELECT * FROM u; UPDATE u SET v = v + 1; UPDATE h SET a = a; DELETE FROM h; INSERT INTO h VALUES ('1');
             DELETE FROM v; INSERT INTO v VALUES (1, 2); INSERT INTO n VALUES (2), (NULL); INSERT INTO p VALUES ('2'); UPDATE m SET v = 2; UPDATE e SET v = 2"
        ));
        bench.read();
        let stream = bench.take();
        let schemas = |records: &[Seen], table: &str| {
            let name = format!("{database}.{table}");
            let records = records.iter().filter(|record| record.table == name);
            records.filter_map(|record| record.headers.get("trunkline.schema").cloned()).collect::<BTreeSet<String>>()
        };
        for table in ["u", "v", "h", "n", "p", "m", "e"] {
            assert!(of(&stream, table) == of(&snapshot, table), "{table}: {:?}", of(&stream, table).first());
            assert_eq!(schemas(&stream, table), schemas(&snapshot, table), "{table}");
        }
        for table in ["n", "p", "m", "e"] {
            assert_eq!(of(&snapshot, table), BTreeSet::from([String::new()]), "{table}");
        }
        assert!(!format!("{snapshot:?}{stream:?}").contains("hidden"));

        // A changed key is a delete and a create, also after a restart. Without its index the
        // table has the key of the next one, or none.
        bench.stop();
        server.run(&format!(
            "USE {database}; UPDATE u SET a = 1000 WHERE a = 2; ALTER TABLE u DROP INDEX z, ALGORITHM = COPY; DELETE FROM u WHERE a = 3;
             DROP INDEX y ON u; INSERT INTO u VALUES (1, 'c', 7)"
        ));
        bench.read();
        assert_eq!(
            ops(&bench.take()),
            [
                r#"d {"a":2,"b":"b2"}"#,
                r#"tombstone {"a":2,"b":"b2"}"#,
                r#"c {"a":1000,"b":"b2"}"#,
                r#"d {"b":"b3"}"#,
                r#"tombstone {"b":"b3"}"#,
                "c -"
            ]
        );
    }
}

#[test]
fn an_index_that_is_dropped_during_the_snapshot_restarts_it() {
    for server in Server::shared_each() {
        let database = server.database();
        let rows = (0..400).map(|a| format!("({a}, 0)")).collect::<Vec<_>>().join(", ");
        server.run(&format!(
            "USE {database}; CREATE TABLE u (a INT NOT NULL UNIQUE, v INT); INSERT INTO u VALUES {rows}"
        ));
        let options = format!("{}chunk_rows = 20\n", server.options(&format!("\"{database}.*\"")));
        let mut bench = Bench::new(&options);
        bench.max_records = 20;
        fill_until(&mut bench, 40);
        // Two rows with the same value: chunks of the lost key would skip one of them.
        server.run(&format!("USE {database}; DROP INDEX a ON u; UPDATE u SET a = 300, v = 1 WHERE a = 301"));
        bench.max_records = 1000;
        bench.read();
        // The change precedes the new snapshot, which has its row too.
        let is_read = |record: &&Seen| record.key.is_none() && record.op() == "r";
        let without_key: Vec<&Seen> = bench.seen.iter().filter(is_read).collect();
        let rows: BTreeSet<String> = without_key.iter().map(|record| record.after().to_string()).collect();
        assert_eq!((without_key.len(), rows.len()), (400, 400));
    }
}

/// Replaces a number in the data file of a MyISAM table by infinity, which no server stores.
fn damage(server: &Server, database: &str, table: &str, number: f64) {
    server.run(&format!("FLUSH TABLES {database}.{table}"));
    let path = server.files(database).join(format!("{table}.MYD"));
    let mut bytes = std::fs::read(&path).unwrap();
    let at: Vec<usize> = (0..bytes.len() - 7).filter(|at| bytes[*at..at + 8] == number.to_le_bytes()).collect();
    let [at] = at.as_slice() else { panic!("{at:?}") };
    bytes[*at..at + 8].copy_from_slice(&f64::INFINITY.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn a_row_that_cannot_be_decoded_is_rejected_by_snapshot_and_stream() {
    for server in Server::shared_each() {
        let database = server.database();
        // Read in chunks, and in a consistent read.
        for (table, key) in [("t", "PRIMARY KEY"), ("k", "")] {
            let rows = (1..=5).map(|id| format!("({id}, {id}.7182818, 'secret', 0)")).collect::<Vec<_>>().join(", ");
            server.run(&format!(
                "USE {database}; CREATE TABLE {table} (id INT {key}, d DOUBLE, s CHAR(10), v INT) ENGINE = MyISAM CHARACTER SET latin1;
                 INSERT INTO {table} VALUES {rows}"
            ));
            damage(server, &database, table, 3.718_281_8);
        }
        let stops = format!("{}chunk_rows = 2\n", server.options(&format!("\"{database}.*\"")));
        let error = Bench::new(&stops).try_read().unwrap_err();
        assert_eq!(error.code, "mysql.malformed", "{error}");

        let rejects = format!("{stops}on_malformed = \"dead_letter\"\n");
        let mut bench = Bench::new(&rejects);
        let mut masked = Bench::new(&format!("{rejects}masks = [{{ columns = [\"*.*.s\"], fixed = \"x\" }}]\n"));
        // The columns as the server sends them, each after its length.
        let packed = format!("{}{}{}{}", "0403000000", "08000000000000f07f", "06736563726574", "0400000000");
        for (op, count) in [("r", 4), ("u", 4)] {
            for (bench, has_bytes) in [(&mut bench, true), (&mut masked, false)] {
                bench.read();
                for table in ["t", "k"] {
                    let name = format!("{database}.{table}");
                    let ids: Vec<String> = bench
                        .seen
                        .iter()
                        .filter(|record| record.table == name && record.op() == op)
                        .map(|record| record.after()["id"].to_string())
                        .collect();
                    assert_eq!(ids, ["1", "2", "4", "5"], "{op} {table}");
                    let found: Vec<&(Seen, String)> =
                        bench.rejected.iter().filter(|(record, _)| record.table == name).collect();
                    let [(record, code)] = found.as_slice() else { panic!("{op} {table}: {found:?}") };
                    assert_eq!(code, "mysql.malformed");
                    let is_snapshot = op == "r";
                    let key = (is_snapshot && table == "t").then(|| "{\"id\":3}".to_owned());
                    assert_eq!(record.key, key, "{op} {table}");
                    assert_eq!(record.value.is_some(), has_bytes, "{op} {table}");
                    if is_snapshot && has_bytes {
                        assert_eq!(record.value, Some(packed.clone().into()), "{table}");
                    }
                    assert_eq!(
                        record.headers.get("trunkline.snapshot").map(String::as_str),
                        is_snapshot.then_some("true")
                    );
                    assert_eq!(record.headers.contains_key("trunkline.gtid"), !is_snapshot);
                    for header in ["trunkline.binlog_file", "trunkline.binlog_pos", "trunkline.row"] {
                        assert!(!record.headers[header].is_empty(), "{header}");
                    }
                }
                assert_eq!(bench.seen.len(), 2 * count);
                // The positions include the rejected rows.
                bench.stop();
                bench.read();
                assert_eq!((bench.seen.len(), bench.rejected.len()), (2 * count, 2));
                bench.seen.clear();
                bench.rejected.clear();
            }
            server.run(&format!("USE {database}; UPDATE t SET v = v + 1; UPDATE k SET v = v + 1"));
        }
    }
}
