//! Character sets: every code becomes the character that the server's own conversion makes of it.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use common::{Bench, Seen, Server};

/// Some codes of a charset: an SQL expression of the bytes of code `n`, and the number of codes.
struct CodeRange {
    bytes: String,
    count: u32,
}

impl CodeRange {
    /// All codes of this length with this prefix, both in hexadecimal digits.
    fn all(prefix: &str, digits: u32, count: u32) -> Self {
        Self { bytes: format!("UNHEX(CONCAT('{prefix}', LPAD(HEX(n), {digits}, '0')))"), count }
    }

    /// Codes of this prefix whose last two bytes are from a range each: its start and its length.
    fn pairs(prefix: &str, (third, thirds): (u32, u32), (fourth, fourths): (u32, u32)) -> Self {
        let bytes = format!(
            "UNHEX(CONCAT('{prefix}', LPAD(HEX({third} + n DIV {fourths}), 2, '0'), LPAD(HEX({fourth} + n MOD {fourths}), 2, '0')))"
        );
        Self { bytes, count: thirds * fourths }
    }
}

/// All codes of a charset, and more bytes that are no code.
fn code_ranges(charset: &str, max_length: u32) -> Vec<CodeRange> {
    // ASCII ends at 7F, although the conversion keeps other bytes.
    let mut ranges = vec![CodeRange::all("", 2, if charset == "ascii" { 128 } else { 256 })];
    match charset {
        // A half of a surrogate pair is no character.
        "ucs2" => ranges.extend([CodeRange::all("", 4, 0xd800), CodeRange::pairs("", (0xe0, 32), (0, 256))]),
        "utf16" | "utf16le" => ranges.push(CodeRange::all("", 4, 1 << 16)),
        // No code of two bytes begins with an ASCII character.
        _ if max_length > 1 => ranges.push(CodeRange::pairs("", (0x80, 128), (0, 256))),
        _ => {}
    }
    let trail = (0x80, 64);
    match charset {
        "ujis" | "eucjpms" => ranges.push(CodeRange::pairs("8F", (0x80, 128), (0x80, 128))),
        "utf8mb3" | "utf8" => {
            ranges.extend((0xe0..=0xef).map(|lead| CodeRange::pairs(&format!("{lead:X}"), trail, trail)))
        }
        "utf8mb4" => {
            ranges.extend((0xe0..=0xef).map(|lead| CodeRange::pairs(&format!("{lead:X}"), trail, trail)));
            ranges.extend(["F090", "F09F", "F0AF", "F3A0", "F48F"].map(|lead| CodeRange::pairs(lead, trail, trail)));
        }
        "utf16" => ranges.extend(["D800", "D83D", "DBFF"].map(|lead| CodeRange::pairs(lead, (0xdc, 4), (0, 256)))),
        "utf16le" => ranges.extend(["00D8", "3DD8", "FFDB"].map(|lead| CodeRange::pairs(lead, (0x10, 240), (0xdc, 4)))),
        "utf32" => {
            ranges.extend([CodeRange::all("0000", 4, 0xd800), CodeRange::pairs("0000", (0xe0, 32), (0, 256))]);
            ranges.extend(["0001", "0010"].map(|lead| CodeRange::all(lead, 4, 1 << 16)));
        }
        "gb18030" => {
            // The Basic Multilingual Plane, and the ends of the planes after it.
            for lead in (0x81..=0x84).chain([0x90, 0x9a, 0xe3]) {
                for digit in 0x30..=0x39 {
                    ranges.push(CodeRange::pairs(&format!("{lead:X}{digit:X}"), (0x81, 126), (0x30, 10)));
                }
            }
        }
        _ => {}
    }
    ranges
}

/// Inserts the valid codes of ranges, up to 4096 of them in one row: in the charset, and as the
/// server converts each of them to utf8mb4. Without the strict mode, the server stores `?` for a
/// code without a character, as it converts it.
fn insert_codes(server: &Server, database: &str, charset: &str, ranges: &[CodeRange]) {
    let mut sql = format!(
        "SET sql_mode = '', group_concat_max_len = 1048576; USE {database};
         CREATE TABLE `{charset}` (id INT PRIMARY KEY AUTO_INCREMENT, c LONGTEXT CHARACTER SET {charset}, e LONGTEXT CHARACTER SET utf8mb4);
         CREATE TEMPORARY TABLE probe (n INT PRIMARY KEY, b VARBINARY(4), c VARCHAR(4) CHARACTER SET {charset});"
    );
    for CodeRange { bytes, count } in ranges {
        // A valid code is one character that keeps its bytes.
        sql += &format!(
            "DELETE FROM probe;
             INSERT IGNORE INTO probe SELECT n, b, b FROM (SELECT n, {bytes} AS b FROM codes WHERE n < {count}) x;
             INSERT INTO `{charset}` (c, e)
             SELECT GROUP_CONCAT(c ORDER BY n SEPARATOR '\n'), GROUP_CONCAT(CONVERT(c USING utf8mb4) ORDER BY n SEPARATOR '\n')
             FROM probe WHERE HEX(c) = HEX(b) AND CHAR_LENGTH(c) = 1 GROUP BY n DIV 4096;"
        );
    }
    server.run(&sql);
}

/// Compares the codes of charsets. Returns their number.
fn check(server: &Server, is_checked: impl Fn(&str) -> bool) -> usize {
    let database = server.database();
    let recursion = if server.is_mariadb() { "max_recursive_iterations" } else { "cte_max_recursion_depth" };
    server.run(&format!(
        "SET {recursion} = 100000; USE {database}; CREATE TABLE codes (n INT PRIMARY KEY);
         INSERT INTO codes SELECT n FROM (WITH RECURSIVE q (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM q WHERE n < 65535) SELECT n FROM q) t"
    ));
    let charsets = server.run(
        "SELECT CHARACTER_SET_NAME, MAXLEN FROM information_schema.CHARACTER_SETS WHERE CHARACTER_SET_NAME <> 'binary'",
    );
    let charsets: Vec<(&str, u32)> = charsets
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, length)| (name, length.parse().unwrap()))
        .collect();
    assert!(charsets.len() > 35, "{charsets:?}");
    let charsets: Vec<(&str, u32)> = charsets.into_iter().filter(|(name, _)| is_checked(name)).collect();
    let options = server.options(&format!("\"{database}.*\", \"!{database}.codes\", \"!{database}.probe\""));
    let mut stream = Bench::new(&options);
    stream.read();
    for (charset, max_length) in &charsets {
        insert_codes(server, &database, charset, &code_ranges(charset, *max_length));
    }
    stream.read();
    let mut snapshot = Bench::new(&options);
    snapshot.read();
    let counts = [(&stream, "stream"), (&snapshot, "snapshot")].map(|(bench, way)| {
        let tables: std::collections::BTreeSet<&str> = bench.seen.iter().map(|record| record.table.as_str()).collect();
        assert_eq!(tables.len(), charsets.len(), "{way}: {tables:?}");
        bench.seen.iter().map(|record| compare(record, way)).sum::<usize>()
    });
    assert_eq!(counts[0], counts[1]);
    server.run(&format!("DROP DATABASE {database}"));
    counts[0]
}

/// Compares the codes of a record. Returns their number.
fn compare(record: &Seen, way: &str) -> usize {
    let (decoded, expected) = (record.after()["c"].as_str().unwrap(), record.after()["e"].as_str().unwrap());
    for (decoded, expected) in decoded.split('\n').zip(expected.split('\n')) {
        let code_points = || expected.chars().map(u32::from).collect::<Vec<_>>();
        assert_eq!(decoded, expected, "{} {way}: {:04x?}", record.table, code_points());
    }
    assert_eq!(decoded, expected);
    decoded.split('\n').count()
}

#[test]
fn every_code_is_decoded_as_the_server_converts_it() {
    for server in Server::shared_each() {
        // The charsets of one and two bytes whose characters the server provides. All others are
        // checked with TRUNKLINE_TEST_LONG=1.
        let is_long = std::env::var_os("TRUNKLINE_TEST_LONG").is_some();
        let short = ["sjis", "big5", "gb2312", "ujis", "eucjpms", "latin1"];
        let codes = check(server, |charset| is_long || short.contains(&charset));
        let expected = if is_long { 350_000 } else { 50_000 };
        assert!(codes > expected, "{:?}: {codes} codes", server.kind);
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
