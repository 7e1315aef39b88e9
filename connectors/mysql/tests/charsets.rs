//! Character sets: every code becomes the character that the server's own conversion makes of it.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use common::{Bench, Server};

/// Inserts every valid code of some lengths, `group` of them in one row: in the charset, and as the
/// server converts them to utf8mb4. Codes that the server does not store, although it converts
/// them, are left out.
fn insert_codes(server: &Server, database: &str, charset: &str, length: u32, prefix: &str, count: u32, group: u32) {
    let line_feed = server.run(&format!("SELECT HEX(CONVERT('\n' USING {charset}))"));
    // A valid code is one character that keeps its bytes.
    let rows = server.run(&format!(
        "SET group_concat_max_len = 16777216, sql_log_bin = 0; USE {database};
         CREATE TEMPORARY TABLE probe (n INT PRIMARY KEY, b VARBINARY(4), c VARCHAR(4) CHARACTER SET {charset});
         INSERT IGNORE INTO probe SELECT n, b, b FROM (
           SELECT n, UNHEX(CONCAT('{prefix}', LPAD(HEX(n), {digits}, '0'))) AS b FROM codes WHERE n < {count}
         ) x;
         SELECT GROUP_CONCAT(HEX(c) ORDER BY n SEPARATOR ' ') FROM probe
         WHERE HEX(c) = HEX(b) AND CHAR_LENGTH(c) = 1 AND CONVERT(c USING utf8mb4) IS NOT NULL GROUP BY n DIV {group}",
        digits = 2 * length - u32::try_from(prefix.len()).unwrap(),
    ));
    for row in rows.lines() {
        let codes: Vec<&str> = row.split_terminator(' ').collect();
        insert_row(server, &format!("{database}.`{charset}`"), charset, line_feed.trim(), &codes);
    }
}

/// Inserts codes in one row. Where the server refuses the row, its halves are inserted.
fn insert_row(server: &Server, table: &str, charset: &str, line_feed: &str, codes: &[&str]) {
    let row = codes.join(line_feed);
    let sql =
        format!("INSERT INTO {table} (c, e) VALUES (_{charset} x'{row}', CONVERT(_{charset} x'{row}' USING utf8mb4))");
    if server.try_run(&sql).is_err() && codes.len() > 1 {
        let (first, second) = codes.split_at(codes.len() / 2);
        insert_row(server, table, charset, line_feed, first);
        insert_row(server, table, charset, line_feed, second);
    }
}

fn check(server: &Server) {
    let database = server.database();
    let recursion = if server.is_mariadb() { "max_recursive_iterations" } else { "cte_max_recursion_depth" };
    server.run(&format!(
        "SET {recursion} = 100000; USE {database}; CREATE TABLE codes (n INT PRIMARY KEY);
         INSERT INTO codes SELECT n FROM (WITH RECURSIVE q (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM q WHERE n < 65535) SELECT n FROM q) t"
    ));
    let charsets = server
        .run("SELECT CHARACTER_SET_NAME FROM information_schema.CHARACTER_SETS WHERE CHARACTER_SET_NAME <> 'binary'");
    let charsets: Vec<&str> = charsets.lines().collect();
    assert!(charsets.len() > 35, "{charsets:?}");
    let options = server.options(&format!("\"{database}.*\", \"!{database}.codes\""));
    let mut stream = Bench::new(&options);
    stream.read();
    for charset in &charsets {
        server.run(&format!(
            "USE {database}; CREATE TABLE `{charset}` (id INT PRIMARY KEY AUTO_INCREMENT, c LONGTEXT CHARACTER SET {charset}, e LONGTEXT CHARACTER SET utf8mb4)"
        ));
        // ASCII ends at 7F, although the conversion keeps other bytes.
        insert_codes(server, &database, charset, 1, "", if *charset == "ascii" { 128 } else { 256 }, 256);
        insert_codes(server, &database, charset, 2, "", 65_536, 4096);
        match *charset {
            "ujis" | "eucjpms" => insert_codes(server, &database, charset, 3, "8F", 65_536, 4096),
            "utf8mb4" | "utf8mb3" | "utf8" => {
                for lead in ["E3", "EF"] {
                    insert_codes(server, &database, charset, 3, lead, 65_536, 8192);
                }
            }
            "utf16" | "utf16le" => {
                for lead in ["D83D", "3DD8", "DBFF"] {
                    insert_codes(server, &database, charset, 4, lead, 65_536, 8192);
                }
            }
            "utf32" => {
                for lead in ["0000", "0001", "0010"] {
                    insert_codes(server, &database, charset, 4, lead, 65_536, 8192);
                }
            }
            "gb18030" => {
                // The Basic Multilingual Plane, and the ends of the planes after it.
                for lead in (0x81..=0x84).chain([0x90, 0x9a, 0xe3]) {
                    for digit in 0x30..=0x39 {
                        insert_codes(server, &database, charset, 4, &format!("{lead:02X}{digit:02X}"), 65_536, 65_536);
                    }
                }
            }
            _ => {}
        }
    }
    stream.read();
    let mut snapshot = Bench::new(&options);
    snapshot.read();
    for (bench, way) in [(&stream, "stream"), (&snapshot, "snapshot")] {
        let mut codes = 0;
        for record in &bench.seen {
            let (decoded, expected) = (record.after()["c"].as_str().unwrap(), record.after()["e"].as_str().unwrap());
            for (decoded, expected) in decoded.split('\n').zip(expected.split('\n')) {
                assert_eq!(
                    decoded,
                    expected,
                    "{} {way}: {:04x?}",
                    record.table,
                    expected.chars().map(u32::from).collect::<Vec<_>>()
                );
                codes += 1;
            }
            assert_eq!(decoded, expected);
        }
        assert!(codes > 350_000, "{codes} codes");
        let tables: std::collections::BTreeSet<&str> = bench.seen.iter().map(|record| record.table.as_str()).collect();
        assert_eq!(tables.len(), charsets.len());
    }
}

#[test]
fn every_code_is_decoded_as_the_server_converts_it() {
    // The servers convert millions of codes, which takes several minutes.
    if std::env::var_os("TRUNKLINE_TEST_LONG").is_none() {
        eprintln!("SKIP every_code_is_decoded_as_the_server_converts_it: only with TRUNKLINE_TEST_LONG=1");
        return;
    }
    for server in Server::start_each("--max-allowed-packet=256M") {
        check(&server);
    }
}

#[test]
fn members_of_enum_and_set_are_decoded_by_their_charset() {
    for server in Server::shared_each() {
        let database = server.database();
        let mut stream = Bench::new(&server.options(&format!("\"{database}.*\"")));
        stream.read();
        server.run(&format!(
            "USE {database}; CREATE TABLE m (id INT PRIMARY KEY, e ENUM('髙','山﨑') CHARACTER SET eucjpms, s SET('ⅰ','ⅱ') CHARACTER SET eucjpms, t VARCHAR(9) CHARACTER SET eucjpms);
             INSERT INTO m VALUES (1, '山﨑', 'ⅰ,ⅱ', '髙橋 山﨑 ⅰ')"
        ));
        stream.read();
        let mut snapshot = Bench::new(&server.options(&format!("\"{database}.*\"")));
        snapshot.read();
        for bench in [&stream, &snapshot] {
            let row = bench.seen[0].after();
            assert_eq!((&row["e"], &row["s"], &row["t"]), (&"山﨑".into(), &"ⅰ,ⅱ".into(), &"髙橋 山﨑 ⅰ".into()));
        }
    }
}
