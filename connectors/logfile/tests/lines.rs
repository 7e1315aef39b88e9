//! What a line is: ends of lines and files, lengths, charsets, compression, globs.

mod common;

use std::io::Write;
use std::time::Duration;

use common::{Bench, numbered, numbered_lines, write_gzip};
use trunkline_connector::{Domain, Fill};

#[test]
fn line_ends() {
    let mut bench = Bench::new("");
    bench.append("a.log", "one\r\n\ntwo\rx\n\r\n\rthree\n");
    assert_eq!(bench.read().texts(), ["one", "", "two\rx", "", "\rthree"]);
    assert_eq!(bench.seen.iter().map(|seen| seen.offset).collect::<Vec<_>>(), [0, 5, 6, 12, 14]);
    let mut bench = Bench::new("delimiter = \"--\"");
    bench.append("a.log", "one--two\r\n---");
    assert_eq!(bench.read().texts(), ["one", "two\r\n", "-"]);
}

#[test]
fn a_last_line_without_newline_waits_while_following() {
    for options in ["", "eof = \"wait\""] {
        let mut bench = Bench::following(options);
        bench.append("a.log", "one\ntw");
        assert_eq!(bench.read().take(), ["one"]);
        bench.append("a.log", "o\nthree\n");
        assert_eq!(bench.read().take(), ["two", "three"]);
    }
    let mut bench = Bench::new("eof = \"wait\"");
    bench.append("a.log", "one\ntwo");
    assert_eq!(bench.read().take(), ["one"]);
}

#[test]
fn a_last_line_is_handed_out_at_once_until_idle_and_its_newline_is_no_line() {
    let mut bench = Bench::new("");
    bench.append("a.log", "one\ntwo");
    assert_eq!(bench.read().take(), ["one", "two"]);
    for restart in [true, false] {
        if restart {
            bench.stop();
        }
        bench.append("a.log", "\r\nthree\nfour");
        assert_eq!(bench.read().take(), ["three", "four"]);
    }
    assert!(bench.lag().is_caught_up());
}

#[test]
fn a_last_line_is_handed_out_after_a_rest() {
    let mut bench = Bench::following("eof = \"emit\"\neof_after = \"50ms\"");
    bench.append("a.log", "one\ntwo");
    bench.read_until(2);
    assert_eq!(bench.texts(), ["one", "two"]);
    let mut bench = Bench::following("eof = \"emit\"\neof_after = \"1h\"");
    bench.append("a.log", "one\ntwo");
    assert_eq!(bench.read().texts(), ["one"]);
}

#[test]
fn a_last_line_of_a_finished_file_is_handed_out_in_every_mode() {
    let mut bench = Bench::following("eof = \"wait\"");
    bench.append("a.log", "one\ntwo");
    bench.append("b.log", "x");
    write_gzip(&bench.path("c.log.gz"), b"three\nfour");
    bench.read_until(3);
    bench.rename("a.log", "a.log.1");
    bench.read_until(4);
    bench.remove("b.log");
    bench.read_until(5);
    let mut seen = bench.take();
    seen.sort();
    assert_eq!(seen, ["four", "one", "three", "two", "x"]);
}

#[test]
fn oversize_lines_are_rejected_with_their_beginning() {
    let mut bench = Bench::new("max_line_bytes = 10");
    bench.append("a.log", "0123456789\n0123456789X\n");
    bench.append("a.log", "y".repeat(1_000_000));
    bench.append("a.log", "\nshort\n");
    assert_eq!(bench.read().texts(), ["0123456789", "short"]);
    let found: Vec<_> =
        bench.rejected.iter().map(|line| (line.offset, line.bytes.as_slice(), line.code.as_str())).collect();
    assert_eq!(found, [(11, &b"0123456789"[..], "line.oversize"), (23, &b"yyyyyyyyyy"[..], "line.oversize")]);
    assert!(bench.rejected[1].message.contains("1000000 bytes"), "{}", bench.rejected[1].message);
    assert!(bench.budget.used() < 2 << 20, "{}", bench.budget.used());
}

#[test]
fn oversize_lines_are_cut_off_at_a_character() {
    let mut bench = Bench::new("max_line_bytes = 10\noversize = \"truncate\"");
    bench.append("a.log", "012345678ä\nx\n");
    assert_eq!(bench.read().texts(), ["012345678", "x"]);
}

#[test]
fn oversize_lines_stop_the_source_before_them() {
    for long in ["0123456789ABC".to_owned(), "z".repeat(300_000)] {
        let mut bench = Bench::new("max_line_bytes = 10\noversize = \"error\"");
        bench.append("a.log", format!("one\n{long}\nlast\n"));
        for _ in 0..3 {
            let error = bench.try_read().unwrap_err();
            assert_eq!((error.domain, error.code), (Domain::Data, "logfile.oversize"));
            assert!(error.message().contains("byte 4"), "{error}");
        }
        assert_eq!(bench.texts(), ["one"]);
        bench.stop();
        assert!(bench.try_read().is_err());
        assert_eq!(bench.texts(), ["one"]);
    }
}

#[test]
fn charsets() {
    let mut bench = Bench::new("charset = \"utf-16le\"");
    let text: Vec<u8> = "\u{feff}äone\r\n\u{a61}two\nthree".encode_utf16().flat_map(u16::to_le_bytes).collect();
    bench.append("a.log", &text);
    assert_eq!(bench.read().texts(), ["äone", "\u{a61}two", "three"]);
    let mut bench = Bench::new("charset = \"windows-1252\"");
    bench.append("a.log", b"caf\xe9\n");
    assert_eq!(bench.read().texts(), ["café"]);
    let mut bench = Bench::new("");
    bench.append("a.log", b"\xef\xbb\xbfa\xffb\xc3\n\xef\xbb\xbfc\n");
    assert_eq!(bench.read().texts(), ["a\u{fffd}b\u{fffd}", "\u{feff}c"]);
}

#[test]
fn gzip_of_several_members_is_resumed_anywhere() {
    let mut bench = Bench::new("");
    let file = bench.path("a.log.gz");
    for part in 0..3 {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(numbered("line", part * 1000..(part + 1) * 1000).as_bytes()).unwrap();
        bench.append("a.log.gz", encoder.finish().unwrap());
    }
    while bench.fill(100, Duration::from_secs(5)).unwrap() != Fill::CaughtUp {
        bench.stop();
    }
    assert_eq!(bench.texts(), numbered_lines("line", 0..3000));
    assert!(bench.lag().is_caught_up());
    // A member that is added later, and a part of one that is completed later.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(numbered("line", 3000..4000).as_bytes()).unwrap();
    let member = encoder.finish().unwrap();
    for part in member.chunks(member.len() / 3 + 1) {
        bench.append("a.log.gz", part);
        bench.read();
    }
    assert_eq!(bench.texts(), numbered_lines("line", 0..4000));
    assert!(file.exists());
}

#[test]
fn a_long_gzip_file_is_resumed_without_passing_the_deadline() {
    let mut bench = Bench::new("");
    let line = "~".repeat(99);
    write_gzip(&bench.path("a.log.gz"), format!("{line}\n").repeat(200_000).as_bytes());
    let begun = std::time::Instant::now();
    let mut fills = 0;
    loop {
        // The work of a fill goes on in the next one.
        let filled = bench.fill(100_000, Duration::from_millis(2)).unwrap();
        fills += 1;
        if filled == Fill::CaughtUp {
            break;
        }
        if fills == 20 {
            bench.stop();
        }
        assert!(begun.elapsed() < common::PATIENCE);
    }
    assert_eq!(bench.seen.len(), 200_000);
    assert!(bench.seen.iter().enumerate().all(|(number, seen)| seen.offset == 100 * number as u64));
    // One position past a long way, and other content there.
    bench.stop();
    let other = "#".repeat(99);
    write_gzip(&bench.path("a.log.gz"), format!("{other}\n").repeat(200_000).as_bytes());
    bench.seen.clear();
    bench.read();
    assert_eq!(bench.seen.len(), 200_000);
}

#[test]
fn compression_can_be_said() {
    let mut bench = Bench::new("compression = \"none\"\nmax_line_bytes = 100\neof = \"wait\"");
    write_gzip(&bench.path("a.log"), b"one\n");
    bench.append("a.log", "\nplain\n");
    bench.read();
    assert_eq!(bench.texts().last(), Some(&"plain"));
    let mut bench = Bench::new("compression = \"gzip\"");
    bench.append("a.log", "this is no gzip file\n");
    write_gzip(&bench.path("b.log"), b"one\n");
    let error = bench.try_read().unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "logfile.unreadable"));
    assert!(error.message().contains("a.log"), "{error}");
    assert_eq!(bench.texts(), ["one"]);
}

#[test]
fn globs_and_exclusions() {
    let mut bench =
        Bench::new("paths = [\"x/*.log\", \"y/**/*.log\", \"./z/a?.txt\"]\nexclude = [\"*.tmp.log\", \"y/no/*\"]");
    for name in
        ["x/a.log", "x/.hidden.log", "x/sub/a.log", "x/a.tmp.log", "y/1/2/b.log", "y/no/c.log", "z/ab.txt", "z/abc.txt"]
    {
        bench.append(name, format!("{name}\n"));
    }
    std::fs::create_dir_all(bench.path("x/folder.log")).unwrap();
    let mut seen = bench.read().take();
    seen.sort();
    assert_eq!(seen, ["x/a.log", "y/1/2/b.log", "z/ab.txt"]);
    let fifo = std::ffi::CString::new(bench.path("x/fifo.log").to_string_lossy().into_owned()).unwrap();
    // SAFETY: the path is a string that ends in NUL and lives until the call returns.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let _socket = std::os::unix::net::UnixListener::bind(bench.path("x/socket.log")).unwrap();
    bench.append("x/b.log", "x/b.log\n");
    assert_eq!(bench.read().take(), ["x/b.log"]);
}

#[test]
fn folders_come_and_go() {
    let mut bench = Bench::following("paths = [\"logs/*.log\"]");
    assert!(bench.read().take().is_empty());
    for round in 0..3 {
        bench.append("logs/a.log", format!("{round}\n"));
        bench.read_until(1);
        assert_eq!(bench.take(), [round.to_string()]);
        std::fs::remove_dir_all(bench.path("logs")).unwrap();
        bench.read_while(|bench| !bench.position.is_empty());
    }
}

#[test]
fn from_the_end_only_at_the_very_first_start() {
    let mut bench = Bench::new("read_from = \"end\"");
    bench.append("a.log", "old\n");
    write_gzip(&bench.path("g.log.gz"), b"old\n");
    assert!(bench.read().take().is_empty());
    bench.append("a.log", "new\n");
    bench.append("b.log", "all of it\n");
    assert_eq!(bench.read().take(), ["new", "all of it"]);
    // Also if there was no file at the first start.
    let mut bench = Bench::new("read_from = \"end\"");
    assert!(bench.read().take().is_empty());
    bench.stop();
    bench.append("a.log", "while down\n");
    assert_eq!(bench.read().take(), ["while down"]);
}

#[test]
fn old_files_are_not_begun_until_they_change() {
    let mut bench = Bench::new("ignore_older = \"1h\"");
    bench.append("a.log", "old\n");
    bench.append("b.log", "young\n");
    bench.age("a.log", 7200);
    assert_eq!(bench.read().take(), ["young"]);
    bench.append("a.log", "new\n");
    assert_eq!(bench.read().take(), ["old", "new"]);
}

#[test]
fn an_unreadable_file_does_not_stop_the_others_and_is_not_passed_over() {
    use std::os::unix::fs::PermissionsExt;
    let mut bench = Bench::new("");
    bench.append("a.log", "secret\n");
    bench.append("b.log", "open\n");
    let mode = |mode| std::fs::set_permissions(bench.path("a.log"), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o000);
    if std::fs::File::open(bench.path("a.log")).is_ok() {
        println!("skipped: this user may read every file");
        return;
    }
    let error = bench.try_read().unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "logfile.unreadable"));
    assert_eq!(bench.texts(), ["open"]);
    assert!(!bench.lag().is_caught_up());
}

#[test]
fn rejected_lines_keep_their_bytes_and_place() {
    let mut bench = Bench::new("parser = \"combined\"");
    bench.append(
        "a.log",
        b"1.2.3.4 - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"-\"\nbad \xff line\n\n",
    );
    bench.read();
    assert_eq!((bench.seen.len(), bench.rejected.len(), bench.dropped), (1, 1, 1));
    let rejected = &bench.rejected[0];
    assert_eq!((rejected.bytes.as_slice(), rejected.offset), (&b"bad \xff line"[..], 72));
    assert_eq!(
        (rejected.code.as_str(), rejected.path.as_str()),
        ("parse.combined", &*bench.path("a.log").to_string_lossy())
    );
    assert!(rejected.message.contains("column 7"), "{}", rejected.message);
}

#[test]
fn ten_thousand_real_lines() {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/access-combined.log");
    let Ok(content) = std::fs::read(&data) else {
        println!("skipped: {} is not there", data.display());
        return;
    };
    let mut bench = Bench::new("parser = \"combined\"");
    bench.append("a.log", &content);
    bench.read();
    // One line of the file was cut off when it was written: its user agent has no closing quote.
    assert_eq!((bench.seen.len(), bench.rejected.len()), (9999, 1));
    let line_starts = |offset: u64| offset == 0 || content[offset as usize - 1] == b'\n';
    assert!(bench.seen.iter().all(|seen| line_starts(seen.offset)));
    let ok = bench.seen.iter().filter(|seen| seen.text.contains("\"status\":200,")).count();
    let expected = content
        .split(|byte| *byte == b'\n')
        .filter(|line| line.windows(7).any(|part| part == b"\" 200 \x30" || part.starts_with(b"\" 200 ")))
        .count();
    assert_eq!(ok + bench.rejected.len(), expected);
}
