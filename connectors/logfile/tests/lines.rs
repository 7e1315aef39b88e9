//! Lines: ends of lines and files, lengths, formats, charsets, compression, globs.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use common::{TestSource, logged, numbered, numbered_lines, sorted, warnings, write_gzip};
use trunkline_connector::{Domain, Fill};

#[test]
fn lines_end_at_the_delimiter() {
    let mut source = TestSource::new("");
    source.append("a.log", "one\r\n\ntwo\rx\n\r\n\rthree\n");
    assert_eq!(source.read().texts(), ["one", "", "two\rx", "", "\rthree"]);
    assert_eq!(source.seen.iter().map(|seen| seen.offset).collect::<Vec<_>>(), [0, 5, 6, 12, 14]);
    let mut source = TestSource::new("delimiter = \"--\"");
    source.append("a.log", "one--two\r\n---");
    assert_eq!(source.read().texts(), ["one", "two\r\n", "-"]);
}

#[test]
fn a_last_line_without_newline_waits_while_following() {
    for options in ["", "eof = \"wait\""] {
        let mut source = TestSource::following(options);
        source.append("a.log", "one\ntw");
        assert_eq!(source.read().take(), ["one"]);
        source.append("a.log", "o\nthree\n");
        assert_eq!(source.read().take(), ["two", "three"]);
    }
    let mut source = TestSource::new("eof = \"wait\"");
    source.append("a.log", "one\ntwo");
    assert_eq!(source.read().take(), ["one"]);
}

#[test]
fn until_idle_a_last_line_is_emitted_at_once_and_a_later_newline_ends_it() {
    let mut source = TestSource::new("");
    source.append("a.log", "one\ntwo");
    assert_eq!(source.read().take(), ["one", "two"]);
    for restart in [true, false] {
        if restart {
            source.stop();
        }
        source.append("a.log", "\r\nthree\nfour");
        assert_eq!(source.read().take(), ["three", "four"]);
    }
    assert!(source.lag().is_caught_up());
}

#[test]
fn eof_emit_emits_a_last_line_after_eof_after() {
    let mut source = TestSource::following("eof = \"emit\"\neof_after = \"50ms\"");
    source.append("a.log", "one\ntwo");
    source.read_until(2);
    assert_eq!(source.texts(), ["one", "two"]);
    let mut source = TestSource::following("eof = \"emit\"\neof_after = \"1h\"");
    source.append("a.log", "one\ntwo");
    assert_eq!(source.read().texts(), ["one"]);
}

#[test]
fn a_last_line_of_a_finished_file_is_emitted_in_every_mode() {
    let mut source = TestSource::following("eof = \"wait\"");
    source.append("a.log", "one\ntwo");
    source.append("b.log", "x");
    write_gzip(&source.path("c.log.gz"), b"three\nfour");
    source.read_until(3);
    source.rename("a.log", "a.log.1");
    source.read_until(4);
    source.remove("b.log");
    source.read_until(5);
    let mut seen = source.take();
    seen.sort();
    assert_eq!(seen, ["four", "one", "three", "two", "x"]);
}

#[test]
fn oversize_lines_are_rejected_with_their_beginning() {
    let mut source = TestSource::new("max_line_bytes = 10");
    source.append("a.log", "0123456789\n0123456789X\n");
    source.append("a.log", "y".repeat(1_000_000));
    source.append("a.log", "\nshort\n");
    assert_eq!(source.read().texts(), ["0123456789", "short"]);
    let found: Vec<_> =
        source.rejected.iter().map(|line| (line.offset, line.bytes.as_slice(), line.code.as_str())).collect();
    assert_eq!(found, [(11, &b"0123456789"[..], "line.oversize"), (23, &b"yyyyyyyyyy"[..], "line.oversize")]);
    assert!(source.rejected[1].message.contains("1000000 bytes"), "{}", source.rejected[1].message);
    assert!(source.budget.used() < 2 << 20, "{}", source.budget.used());
}

#[test]
fn oversize_lines_are_truncated_at_a_character() {
    let mut source = TestSource::new("max_line_bytes = 10\noversize = \"truncate\"");
    source.append("a.log", "012345678ä\nx\n");
    assert_eq!(source.read().texts(), ["012345678", "x"]);
}

#[test]
fn oversize_lines_stop_the_source_before_them() {
    for long in ["0123456789ABC".to_owned(), "z".repeat(300_000)] {
        let mut source = TestSource::new("max_line_bytes = 10\noversize = \"error\"");
        source.append("a.log", format!("one\n{long}\nlast\n"));
        for _ in 0..3 {
            let error = source.try_read().unwrap_err();
            assert_eq!((error.domain, error.code), (Domain::Data, "logfile.oversize"));
            assert!(error.message().contains("byte 4"), "{error}");
        }
        assert_eq!(source.texts(), ["one"]);
        source.stop();
        assert!(source.try_read().is_err());
        assert_eq!(source.texts(), ["one"]);
    }
}

#[test]
fn charsets_are_decoded() {
    let mut source = TestSource::new("charset = \"utf-16le\"");
    let text: Vec<u8> = "\u{feff}äone\r\n\u{a61}two\nthree".encode_utf16().flat_map(u16::to_le_bytes).collect();
    source.append("a.log", &text);
    assert_eq!(source.read().texts(), ["äone", "\u{a61}two", "three"]);
    let mut source = TestSource::new("charset = \"windows-1252\"");
    source.append("a.log", b"caf\xe9\n");
    assert_eq!(source.read().texts(), ["café"]);
    let mut source = TestSource::new("");
    source.append("a.log", b"\xef\xbb\xbfa\xffb\xc3\n\xef\xbb\xbfc\n");
    assert_eq!(source.read().texts(), ["a\u{fffd}b\u{fffd}", "\u{feff}c"]);
}

#[test]
fn gzip_of_several_members_is_resumed_anywhere() {
    let mut source = TestSource::new("");
    let file = source.path("a.log.gz");
    for part in 0..3 {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(numbered("line", part * 1000..(part + 1) * 1000).as_bytes()).unwrap();
        source.append("a.log.gz", encoder.finish().unwrap());
    }
    while source.fill(100, Duration::from_secs(5)).unwrap() != Fill::CaughtUp {
        source.stop();
    }
    assert_eq!(source.texts(), numbered_lines("line", 0..3000));
    assert!(source.lag().is_caught_up());
    // A member that is added later in parts.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(numbered("line", 3000..4000).as_bytes()).unwrap();
    let member = encoder.finish().unwrap();
    for part in member.chunks(member.len() / 3 + 1) {
        source.append("a.log.gz", part);
        source.read();
    }
    assert_eq!(source.texts(), numbered_lines("line", 0..4000));
    assert!(file.exists());
}

#[test]
fn a_long_gzip_file_is_resumed_without_passing_the_deadline() {
    let mut source = TestSource::new("");
    let line = "~".repeat(99);
    write_gzip(&source.path("a.log.gz"), format!("{line}\n").repeat(200_000).as_bytes());
    let begun = std::time::Instant::now();
    let mut fills = 0;
    loop {
        let filled = source.fill(100_000, Duration::from_millis(2)).unwrap();
        fills += 1;
        if filled == Fill::CaughtUp {
            break;
        }
        if fills == 20 {
            source.stop();
        }
        assert!(begun.elapsed() < common::TEST_TIMEOUT);
    }
    assert_eq!(source.seen.len(), 200_000);
    assert!(source.seen.iter().enumerate().all(|(number, seen)| seen.offset == 100 * number as u64));
    // A stored offset that needs a long seek, in a file with other content.
    source.stop();
    let other = "#".repeat(99);
    write_gzip(&source.path("a.log.gz"), format!("{other}\n").repeat(200_000).as_bytes());
    source.seen.clear();
    source.read();
    assert_eq!(source.seen.len(), 200_000);
}

#[test]
fn compression_can_be_configured() {
    let mut source = TestSource::new("compression = \"none\"\nmax_line_bytes = 100\neof = \"wait\"");
    write_gzip(&source.path("a.log"), b"one\n");
    source.append("a.log", "\nplain\n");
    source.read();
    assert_eq!(source.texts().last(), Some(&"plain"));
    let mut source = TestSource::new("compression = \"gzip\"");
    source.append("a.log", "this is not a gzip file\n");
    write_gzip(&source.path("b.log"), b"one\n");
    let error = source.try_read().unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::Data, "logfile.damaged"));
    assert!(error.message().contains("a.log"), "{error}");
    assert_eq!(source.texts(), ["one"]);
}

#[test]
fn globs_and_exclusions_select_files() {
    let mut source =
        TestSource::new("paths = [\"x/*.log\", \"y/**/*.log\", \"./z/a?.txt\"]\nexclude = [\"*.tmp.log\", \"y/no/*\"]");
    for name in
        ["x/a.log", "x/.hidden.log", "x/sub/a.log", "x/a.tmp.log", "y/1/2/b.log", "y/no/c.log", "z/ab.txt", "z/abc.txt"]
    {
        source.append(name, format!("{name}\n"));
    }
    std::fs::create_dir_all(source.path("x/folder.log")).unwrap();
    let mut seen = source.read().take();
    seen.sort();
    assert_eq!(seen, ["x/a.log", "y/1/2/b.log", "z/ab.txt"]);
    let fifo = std::ffi::CString::new(source.path("x/fifo.log").to_string_lossy().into_owned()).unwrap();
    // SAFETY: the path is a string that ends in NUL and lives until the call returns.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let _socket = std::os::unix::net::UnixListener::bind(source.path("x/socket.log")).unwrap();
    source.append("x/b.log", "x/b.log\n");
    assert_eq!(source.read().take(), ["x/b.log"]);
}

#[test]
fn folders_may_be_created_and_removed() {
    let mut source = TestSource::following("paths = [\"logs/*.log\"]");
    assert!(source.read().take().is_empty());
    for round in 0..3 {
        source.append("logs/a.log", format!("{round}\n"));
        source.read_until(1);
        assert_eq!(source.take(), [round.to_string()]);
        std::fs::remove_dir_all(source.path("logs")).unwrap();
        source.read_while(|source| !source.position.is_empty());
    }
}

#[test]
fn read_from_end_applies_only_at_the_very_first_start() {
    let mut source = TestSource::new("read_from = \"end\"");
    source.append("a.log", "old\n");
    write_gzip(&source.path("g.log.gz"), b"old\n");
    assert!(source.read().take().is_empty());
    source.append("a.log", "new\n");
    source.append("b.log", "all of it\n");
    // The files have no order: their notifications may arrive apart.
    source.read_until(2);
    let mut lines = source.take();
    lines.sort_unstable();
    assert_eq!(lines, ["all of it", "new"]);
    // Without a file at the first start.
    let mut source = TestSource::new("read_from = \"end\"");
    assert!(source.read().take().is_empty());
    source.stop();
    source.append("a.log", "while down\n");
    assert_eq!(source.read().take(), ["while down"]);
}

#[test]
fn old_files_are_skipped_until_they_change() {
    let mut source = TestSource::new("ignore_older = \"1h\"");
    source.append("a.log", "old\n");
    source.append("b.log", "young\n");
    source.age("a.log", 7200);
    assert_eq!(source.read().take(), ["young"]);
    source.append("a.log", "new\n");
    assert_eq!(source.read().take(), ["old", "new"]);
}

#[test]
fn an_unreadable_file_delays_no_other_file_and_fails_the_run() {
    use std::os::unix::fs::PermissionsExt;
    let mut source = TestSource::new("");
    source.append("a.log", "secret\n");
    source.append("b.log", "open\n");
    let mode = |mode| std::fs::set_permissions(source.path("a.log"), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o000);
    if std::fs::File::open(source.path("a.log")).is_ok() {
        println!("SKIP an_unreadable_file_delays_no_other_file_and_fails_the_run: this user may read every file");
        return;
    }
    let error = source.try_read().unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "logfile.unreadable"));
    assert_eq!(source.texts(), ["open"]);
    assert!(!source.lag().is_caught_up());
}

#[test]
fn rejected_lines_keep_their_bytes_and_offset() {
    let mut source = TestSource::new("parser = \"combined\"");
    source.append(
        "a.log",
        b"1.2.3.4 - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"-\"\nbad \xff line\n\n",
    );
    source.read();
    assert_eq!((source.seen.len(), source.rejected.len(), source.dropped), (1, 1, 1));
    let rejected = &source.rejected[0];
    assert_eq!((rejected.bytes.as_slice(), rejected.offset), (&b"bad \xff line"[..], 72));
    assert_eq!(
        (rejected.code.as_str(), rejected.path.as_str()),
        ("parse.combined", &*source.path("a.log").to_string_lossy())
    );
    assert!(rejected.message.contains("column 7"), "{}", rejected.message);
}

#[test]
fn ten_thousand_real_lines() {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/access-combined.log");
    let Ok(content) = std::fs::read(&data) else {
        println!("SKIP ten_thousand_real_lines: {} does not exist", data.display());
        return;
    };
    let mut source = TestSource::new("parser = \"combined\"");
    source.append("a.log", &content);
    source.read();
    // One line of the file is truncated: its user agent has no closing quote.
    assert_eq!((source.seen.len(), source.rejected.len()), (9999, 1));
    let line_starts = |offset: u64| offset == 0 || content[offset as usize - 1] == b'\n';
    assert!(source.seen.iter().all(|seen| line_starts(seen.offset)));
    let ok = source.seen.iter().filter(|seen| seen.text.contains("\"status\":200,")).count();
    let expected = content
        .split(|byte| *byte == b'\n')
        .filter(|line| line.windows(7).any(|part| part == b"\" 200 \x30" || part.starts_with(b"\" 200 ")))
        .count();
    assert_eq!(ok + source.rejected.len(), expected);
}

#[test]
fn names_that_are_not_utf8_are_read_and_delay_no_other_file() {
    let mut source = TestSource::new("paths = [\"logs/*.log\"]");
    source.append("logs/a.log", "plain\n");
    let invalid = |name: &[u8]| source.path("logs").join(OsStr::from_bytes(name));
    let (other, first, second) = (invalid(b"caf\xe9.txt"), invalid(b"caf\xe9.log"), invalid(b"caf\xe8.log"));
    std::fs::write(other, "not matched\n").unwrap();
    std::fs::write(&first, "first\n").unwrap();
    std::fs::write(second, "second\n").unwrap();
    assert_eq!(sorted(source.read().take()), ["first", "plain", "second"]);
    source.stop();
    let renamed = first.with_extension("log.1");
    OpenOptions::new().append(true).open(&first).unwrap().write_all(b"late\n").unwrap();
    std::fs::rename(&first, renamed).unwrap();
    source.read();
    assert_eq!(source.texts(), ["late"]);
    assert!(source.seen[0].path.ends_with("logs/caf\\xE9.log"), "{:?}", source.seen);
}

#[test]
fn lines_of_other_formats_are_rejected_by_combined() {
    let rest = r#"- - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5 "-" "ua""#;
    let mut source = TestSource::new("parser = \"combined\"");
    source.append("a.log", format!("www.example.com:443 203.0.113.9 {rest}\n203.0.113.9, 10.0.0.1 {rest}\n"));
    source.read();
    assert_eq!((source.seen.len(), source.rejected.len()), (1, 1));
    assert!(source.seen[0].text.contains(r#""remote_addr":"203.0.113.9, 10.0.0.1","#), "{}", source.seen[0].text);
    assert!(source.rejected[0].message.contains("column 1,"), "{}", source.rejected[0].message);
    let mut source = TestSource::new("parser = \"vhost_combined\"");
    source.append("a.log", format!("www.example.com:443 203.0.113.9 {rest}\n"));
    assert!(source.read().seen[0].text.starts_with(r#"{"vhost":"www.example.com:443","remote_addr":"203.0.113.9","#));
    let mut source = TestSource::new("parser = \"nginx_main\"");
    source.append("a.log", format!("203.0.113.9 {rest} \"198.51.100.7\"\n"));
    assert!(source.read().seen[0].text.ends_with(r#""forwarded_for":"198.51.100.7"}"#));
}

#[test]
fn holes_before_a_line_are_skipped() {
    let line = r#"203.0.113.9 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5 "-" "ua""#;
    for hole in [3, 740, 5 << 20] {
        let mut source = TestSource::new("parser = \"combined\"");
        // A writer without O_APPEND keeps its offset when the file is truncated.
        let mut writer = File::create(source.path("a.log")).unwrap();
        writer.seek(SeekFrom::Start(hole)).unwrap();
        writer.write_all(format!("{line}\n{line}\n").as_bytes()).unwrap();
        let ((), lines) = logged(|| {
            while source.seen.len() < 2 {
                source.fill(1, Duration::from_millis(1)).unwrap();
                source.stop();
            }
            source.read();
        });
        assert_eq!((source.seen.len(), source.rejected.len()), (2, 0), "{hole}");
        assert!(source.seen[0].text.starts_with(r#"{"remote_addr":"203.0.113.9","#), "{}", source.seen[0].text);
        assert_eq!(source.seen[0].offset, hole);
        assert!(warnings(&lines)[0].contains("a.log") && warnings(&lines)[0].contains("zero bytes"), "{lines:?}");
    }
    let mut source = TestSource::new("delimiter = \"\\u0000\"");
    source.append("a.log", "\0one\0\0");
    assert_eq!(source.read().take(), ["", "one", ""]);
}

#[test]
fn a_byte_order_mark_takes_precedence_over_the_charset() {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let utf16be = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
    let contents =
        [utf16("\u{feff}äone\r\ntwo\n"), utf16be("\u{feff}äone\r\ntwo\n"), "\u{feff}äone\r\ntwo\n".as_bytes().to_vec()];
    for (options, contradictions) in
        [("", 0), ("charset = \"utf-8\"", 2), ("charset = \"utf-16be\"", 2), ("charset = \"windows-1252\"", 3)]
    {
        let mut source = TestSource::new(options);
        for (number, content) in contents.iter().enumerate() {
            source.append(&format!("{number}.log"), content);
        }
        let ((), lines) = logged(|| {
            while source.seen.len() < 6 {
                source.fill(1, Duration::from_secs(1)).unwrap();
            }
        });
        source.stop();
        assert_eq!(source.read().seen.len(), 6);
        assert_eq!(sorted(source.take()), ["two", "two", "two", "äone", "äone", "äone"], "{options}");
        assert_eq!(warnings(&lines).len(), contradictions, "{lines:?}");
    }
    let mut source = TestSource::new("");
    source.append("a.log", b"\xff\xfe\0\0a\0\0\0\n\0\0\0");
    let error = source.try_read().unwrap_err();
    assert!(error.message().contains("a.log") && error.message().contains("UTF-32"), "{error}");
}

#[test]
fn braces_and_negated_classes_in_globs_select_files() {
    let mut source =
        TestSource::new("paths = [\"{a,b/{c,d}}/[!x]*.{log,txt}\", \"[^x].out\"]\nexclude = [\"*{no,un}*\"]");
    for name in ["a/1.log", "a/x.log", "b/c/1.txt", "b/d/1.log", "b/e/1.log", "a/1.out", "y.out", "x.out", "a/no.log"] {
        source.append(name, format!("{name}\n"));
    }
    assert_eq!(sorted(source.read().take()), ["a/1.log", "b/c/1.txt", "b/d/1.log", "y.out"]);
}

#[test]
fn globs_without_a_file_are_warned_about() {
    let mut source = TestSource::new("paths = [\"*.log\", \"missing/*.log\", \"*.txt\"]\nexclude = [\"*.txt\"]");
    source.append("a.txt", "excluded\n");
    let ((), lines) = logged(|| {
        source.read();
    });
    let warned = warnings(&lines);
    assert_eq!(warned.len(), 3, "{lines:?}");
    assert!(warned[0].contains("`*.log` matches no file"), "{lines:?}");
    assert!(warned[1].contains("/missing does not exist"), "{lines:?}");
    assert!(warned[2].contains("excluded"), "{lines:?}");
    source.append("a.log", "x\n");
    let ((), lines) = logged(|| {
        source.read();
    });
    assert!(warnings(&lines).is_empty(), "{lines:?}");
}
