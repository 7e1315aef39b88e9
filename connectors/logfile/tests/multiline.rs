//! Events of several lines: complete ones, the last one of a file, restarts, and rotation.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::time::Duration;

use common::{TestSource, write_gzip};
use proptest::prelude::*;

/// Longer than any test waits for a file to rest.
const START: &str = "multiline = { start = '^[A-Z]', timeout = \"1h\" }";
const LOG: &str = "A\n a\n\n b\nB\nC\r\n c\r\nD\n d\n";
const EVENTS: [&str; 4] = ["A\n a\n\n b", "B", "C\r\n c", "D\n d"];

#[test]
fn lines_are_joined_to_events() {
    for option in
        [START, "multiline = { continuation = '^([ \\t]|$)' }", "multiline = { start = '^[^A-Z]|^$', negate = true }"]
    {
        let mut source = TestSource::new(option);
        source.append("a.log", LOG);
        assert_eq!(source.read().texts(), EVENTS, "{option}");
        let offsets: Vec<u64> = source.seen.iter().map(|seen| seen.offset).collect();
        assert_eq!(offsets, [0, 9, 11, 18]);
    }
}

#[test]
fn the_last_event_waits_for_more_lines_until_the_timeout() {
    let mut source = TestSource::following(START);
    source.append("a.log", "A\n a\nB\n b\n");
    assert_eq!(source.read().take(), ["A\n a"]);
    assert!(!source.lag().is_caught_up());
    source.append("a.log", " c\nC\n");
    assert_eq!(source.read().take(), ["B\n b\n c"]);
    let mut source = TestSource::following("multiline = { start = '^[A-Z]', timeout = \"50ms\" }");
    source.append("a.log", "A\n a\nB\n b\n");
    source.read_until(2);
    assert_eq!(source.take(), ["A\n a", "B\n b"]);
    assert!(source.lag().is_caught_up());
}

#[test]
fn a_restart_at_any_byte_reads_the_events_whole() {
    for stop in 0..=LOG.len() {
        let mut source = TestSource::following(START);
        source.append("a.log", &LOG[..stop]);
        source.read();
        let complete = source.seen.len();
        source.stop();
        source.append("a.log", &LOG[stop..]);
        source.read();
        source.stop();
        source.until_idle = true;
        assert_eq!(source.read().texts(), EVENTS, "after {stop} bytes and {complete} events");
    }
}

#[test]
fn events_survive_rotation_and_keep_their_order() {
    for restart in [false, true] {
        // The writer keeps the renamed file open for a while.
        let mut source = TestSource::following(&format!("{START}\nrotate_wait = \"1h\""));
        source.append("a.log", "A\n a\nB\n b\n");
        assert_eq!(source.read().take(), ["A\n a"]);
        source.rename("a.log", "a.log.1");
        if restart {
            source.stop();
        }
        source.append("a.log.1", " c\n");
        assert_eq!(source.read().take().len(), 0);
        source.append("a.log", "C\n c\nD\n");
        source.read_until(2);
        assert_eq!(source.take(), ["B\n b\n c", "C\n c"], "restart: {restart}");
    }
    // A copy, and a compressed file, continue the event.
    let mut source = TestSource::following(START);
    source.append("a.log", "A\n a\nB\n b\n");
    assert_eq!(source.read().take(), ["A\n a"]);
    source.append("a.log", " c\n");
    source.copy_truncate("a.log", "a.log.1");
    source.append("a.log", "C\n c\nD\n");
    source.read_until(2);
    assert_eq!(source.take(), ["B\n b\n c", "C\n c"]);
    source.stop();
    source.gzip("a.log", "a.log.2.gz");
    source.read_until(1);
    assert_eq!(source.take(), ["D"]);
}

/// The source is killed while the last event of a file waits, and the log is rotated before or
/// after that. The event arrives whole, and before the events of the new file.
#[test]
fn a_waiting_event_precedes_the_new_file_after_a_kill() {
    const NEW: &str = "E\n e\nF\n";
    let old = LOG.len();
    // Bytes of the old file at the first kill, and of the new file at the second one.
    let written = [2, 9, 16, old].into_iter().flat_map(|first| [0, 1, NEW.len()].map(|second| (first, second)));
    for (first, second) in written {
        for (is_committed, rotations) in [(true, 1), (false, 1), (false, 2)] {
            let mut source = TestSource::following(&format!("{START}\nrotate_wait = \"1h\""));
            let kill = |source: &mut TestSource| match is_committed {
                true => {
                    source.read();
                    source.stop();
                }
                false => {
                    // What it reads is lost.
                    let _ = source.fill(1, Duration::from_millis(1)).unwrap();
                    source.kill(100);
                }
            };
            source.append("a.log", &LOG[..first]);
            kill(&mut source);
            source.append("a.log", &LOG[first..]);
            kill(&mut source);
            source.rename("a.log", "a.log-20260101");
            source.append("a.log", &NEW[..second]);
            kill(&mut source);
            source.append("a.log", &NEW[second..]);
            let mut expected = [&EVENTS[..], &["E\n e", "F"][..]].concat();
            if rotations == 2 {
                kill(&mut source);
                source.rename("a.log", "a.log-20260102");
                source.append("a.log", "G\n");
                expected.push("G");
            }
            source.until_idle = is_committed;
            if !is_committed {
                // The last event waits for more lines.
                expected.pop();
                source.read_until(expected.len());
            }
            let case = format!("{first} and {second} bytes, committed: {is_committed}, {rotations} rotations");
            assert_eq!(source.read().texts(), expected, "{case}");
        }
    }
}

#[test]
fn the_last_event_of_a_compressed_file_is_complete() {
    let mut source = TestSource::following(START);
    write_gzip(&source.path("a.log.gz"), b"A\n a\nB\n b");
    source.read_until(2);
    assert_eq!(source.take(), ["A\n a", "B\n b"]);
}

#[test]
fn long_events_end_before_the_line_that_exceeds_a_limit() {
    let mut source = TestSource::new("multiline = { start = '^[A-Z]', max_lines = 3 }");
    source.append("a.log", "A\n 1\n 2\n 3\n 4\nB\n");
    assert_eq!(source.read().texts(), ["A\n 1\n 2", " 3\n 4", "B"]);
    let mut source = TestSource::new(&format!("{START}\nmax_line_bytes = 8"));
    source.append("a.log", format!("A\n 12\n 34\n 56\n{}\n x\nB\n", "y".repeat(300_000)));
    assert_eq!(source.read().texts(), ["A\n 12", " 34\n 56", " x", "B"]);
    assert_eq!((source.rejected.len(), source.rejected[0].code.as_str()), (1, "line.oversize"));
}

#[test]
fn parsers_of_events_join_their_lines() {
    let mut source = TestSource::new("parser = \"java\"");
    source.append("a.log", "2026-03-01 10:00:00,123 [main] INFO a.B - x\njava.lang.Error: y\n\tat a.B\n");
    source.append("a.log", "2026-03-01 10:00:00,124 [main] INFO a.B - z\n");
    assert_eq!(source.read().texts(), ["x", "z"]);
    let mut source = TestSource::new("parser = \"cri\"\nmultiline = \"java\"");
    for text in ["F failed", "P java.lang.Error: y", "F  and z", "F \tat a.B", "F next", "P half"] {
        source.append("a.log", format!("2016-10-06T00:17:09Z stdout {text}\n"));
    }
    assert_eq!(source.read().texts(), ["failed\njava.lang.Error: y and z\n\tat a.B", "next", "half"]);
    assert!(source.rejected.is_empty());
    let mut source = TestSource::new("parser = \"cri\"\nmultiline = \"none\"");
    source.append("a.log", "2016-10-06T00:17:09Z stdout P a\n2016-10-06T00:17:09Z stdout F b\n");
    assert_eq!(source.read().texts(), ["a", "b"]);
}

#[test]
fn a_field_in_quotes_has_several_lines() {
    let log = "id,note,n\n1,\"two\nlines, \"\"quoted\"\"\",x\n2,plain,y\n3,\"\n\n\",z\n";
    let expected = [
        r#"{"id":"1","note":"two\nlines, \"quoted\"","n":"x"}"#,
        r#"{"id":"2","note":"plain","n":"y"}"#,
        r#"{"id":"3","note":"\n\n","n":"z"}"#,
    ];
    let options = "parser = \"csv\"\nmultiline = \"csv\"";
    for stop in 0..=log.len() {
        let mut source = TestSource::following(options);
        source.append("a.log", &log[..stop]);
        source.read();
        source.stop();
        source.append("a.log", &log[stop..]);
        // A record is complete with its last line: nothing waits for the next one.
        source.read_until(3);
        assert_eq!(source.texts(), expected, "after {stop} bytes");
        assert!(source.rejected.is_empty());
    }
    // A quote that is never closed.
    let mut source = TestSource::new("parser = \"csv\"\ncolumns = [\"a\"]\nmultiline = \"csv\"");
    source.append("a.log", "\"open\n1\n");
    source.read();
    assert_eq!((source.rejected.len(), source.rejected[0].bytes.as_slice()), (1, &b"\"open\n1"[..]));
}

#[test]
fn lines_in_utf_16_are_joined_to_events() {
    for (label, mark, encode) in [
        ("utf-16le", &b"\xff\xfe"[..], u16::to_le_bytes as fn(u16) -> [u8; 2]),
        ("utf-16be", b"\xfe\xff", u16::to_be_bytes),
    ] {
        let text: Vec<u8> = LOG.encode_utf16().flat_map(encode).collect();
        let marked = [mark, text.as_slice()].concat();
        for (options, content) in [(format!("{START}\ncharset = \"{label}\""), text), (START.to_owned(), marked)] {
            let mut source = TestSource::new(&options);
            source.append("a.log", content);
            assert_eq!(source.read().texts(), EVENTS, "{options}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The writer appends parts of lines and rotates the log between two events, while the source
    /// is killed before it commits what it has read. Each event arrives once, whole and in order.
    #[test]
    fn events_arrive_in_order_while_the_source_is_killed(
        steps in prop::collection::vec((1_usize..30, 0_u8..4, 1_usize..4), 20..40),
    ) {
        let events: Vec<String> =
            (0..24).map(|number| format!("E {number}{}", "\n  more".repeat(number % 4))).collect();
        let log: Vec<(String, bool)> = events
            .iter()
            .flat_map(|event| event.lines().map(|line| (format!("{line}\n"), line.starts_with('E'))))
            .collect();
        let options = "multiline = { start = '^E', timeout = \"1h\" }\nrotate_wait = \"1h\"";
        let mut source = TestSource::following(options);
        let (mut line, mut written, mut rotations) = (0, 0, 0);
        for (bytes, action, records) in steps.iter().cycle().take(400) {
            if let Some((text, begins)) = log.get(line) {
                if written == 0 && *begins && *action == 3 && line > 0 {
                    source.rename("a.log", &format!("a.log-202601{:02}", rotations + 1));
                    rotations += 1;
                }
                let end = (written + bytes).min(text.len());
                source.append("a.log", &text[written..end]);
                (line, written) = if end == text.len() { (line + 1, 0) } else { (line, end) };
            } else if steps.len() < 400 && line >= log.len() {
                break;
            }
            match action {
                0 => source.kill(*records),
                1 => source.stop(),
                _ => {
                    source.fill(*records, Duration::from_millis(1)).unwrap();
                }
            }
        }
        while let Some((text, _)) = log.get(line) {
            source.append("a.log", &text[written..]);
            (line, written) = (line + 1, 0);
        }
        source.stop();
        source.until_idle = true;
        prop_assert_eq!(source.read().take(), events);
    }
}
