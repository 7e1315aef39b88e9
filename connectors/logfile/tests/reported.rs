//! Inputs from bug reports about log shippers. The comment of each test names its row in the list
//! of cases.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use common::{TEST_TIMEOUT, TestSource, logged, numbered, numbered_lines, warnings, write_gzip};
use trunkline_connector::{Domain, Retry};

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

/// Logs 1.
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

/// Logs 2.
#[test]
fn loops_of_symbolic_links_end_and_paths_avoid_links() {
    let mut source = TestSource::new("paths = [\"logs/**/*.log\"]");
    source.append("logs/x.log", "x\n");
    source.append("logs/sub/y.log", "y\n");
    source.append("outside/z.log", "z\n");
    for (target, link) in [
        (".", "logs/a0"),
        (".", "logs/a1"),
        ("..", "logs/sub/up"),
        ("sub", "logs/aside"),
        ("../outside", "logs/out"),
        ("../logs", "outside/back"),
        ("self.log", "logs/self.log"),
        ("nowhere", "logs/broken.log"),
    ] {
        symlink(target, source.path(link)).unwrap();
    }
    let ((), lines) = logged(|| {
        source.read();
    });
    let folder = source.path("logs").to_string_lossy().into_owned();
    let mut seen: Vec<(&str, &str)> =
        source.seen.iter().map(|seen| (seen.path.strip_prefix(&folder).unwrap(), seen.text.as_str())).collect();
    seen.sort_unstable();
    assert_eq!(seen, [("/out/z.log", "z"), ("/sub/y.log", "y"), ("/x.log", "x")]);
    assert!(warnings(&lines).is_empty(), "{lines:?}");
}

/// Logs 5.
#[test]
fn zero_padding_and_trailing_bytes_after_a_gzip_file_are_accepted() {
    let mut source = TestSource::new("");
    write_gzip(&source.path("padded.log.gz"), b"one\n");
    source.append("padded.log.gz", [0; 1000]);
    write_gzip(&source.path("trailing.log.gz"), b"two\n");
    source.append("trailing.log.gz", "signature");
    let ((), lines) = logged(|| {
        source.read();
    });
    assert_eq!(sorted(source.take()), ["one", "two"]);
    let warned = warnings(&lines);
    assert!(warned.len() == 1 && warned[0].contains("trailing.log.gz"), "{lines:?}");
    source.stop();
    assert!(source.read().take().is_empty() && source.lag().is_caught_up());
}

/// Logs 5: an error that no retry resolves.
#[test]
fn a_damaged_file_fails_a_run_and_is_warned_about_once_while_following() {
    let damage = |source: &TestSource| {
        write_gzip(&source.path("a.log.gz"), numbered("line", 0..5000).as_bytes());
        let mut bytes = std::fs::read(source.path("a.log.gz")).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 40].fill(0xff);
        std::fs::write(source.path("a.log.gz"), bytes).unwrap();
        source.append("b.log", "other\n");
    };
    let mut source = TestSource::new("");
    damage(&source);
    let error = source.try_read().unwrap_err();
    assert_eq!((error.domain, error.code, error.retry), (Domain::Data, "logfile.damaged", Retry::Never));
    assert!(error.message().contains("a.log.gz") && error.message().contains("exclude"), "{error}");
    assert!(source.texts().contains(&"other") && source.texts().contains(&"line 0"));

    let mut source = TestSource::following("");
    damage(&source);
    let ((), lines) = logged(|| {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(2500) {
            source.fill(1000, Duration::from_millis(100)).unwrap();
        }
    });
    assert_eq!(warnings(&lines).len(), 1, "{lines:?}");
    let before = source.seen.len();
    // A file that is replaced is read again.
    source.remove("a.log.gz");
    write_gzip(&source.path("a.log.gz"), numbered("line", 0..5000).as_bytes());
    source.read_while(|source| source.seen.len() < before + 1000 && !source.texts().contains(&"line 4999"));
}

/// Logs 6.
#[test]
fn zstd_and_xz_files_are_read_and_other_formats_are_refused() {
    let content = numbered("line", 0..3000);
    let mut source = TestSource::new("");
    let xz = |content: &[u8]| {
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    // Rotated and compressed while it is read, and resumed anywhere.
    source.append("a.log", &content);
    source.fill(500, Duration::from_secs(5)).unwrap();
    source.stop();
    std::fs::write(source.path("a.log.1.zst"), zstd::encode_all(content.as_bytes(), 3).unwrap()).unwrap();
    source.remove("a.log");
    source.fill(500, Duration::from_secs(5)).unwrap();
    source.stop();
    std::fs::write(source.path("a.log.1.xz"), xz(content.as_bytes())).unwrap();
    source.remove("a.log.1.zst");
    assert_eq!(source.read().take(), numbered_lines("line", 0..3000));

    source.append("b.log.bz2", b"BZh91AY&SY\x00\x00\n\n");
    let (error, lines) = logged(|| source.try_read().unwrap_err());
    assert_eq!(error.domain, Domain::Data);
    assert!(error.message().contains("b.log.bz2") && error.message().contains("bzip2"), "{error}");
    assert!(source.take().is_empty() && warnings(&lines).len() == 1, "{lines:?}");
}

/// Logs 7: the log is a link, and its target is renamed.
#[test]
fn rotation_of_a_links_target_loses_no_line() {
    for following in [false, true] {
        let mut source = TestSource::new("paths = [\"logs/*.log\"]");
        source.until_idle = !following;
        source.append("real/0.log", numbered("old", 0..100));
        std::fs::create_dir_all(source.path("logs")).unwrap();
        symlink("../real/0.log", source.path("logs/x.log")).unwrap();
        assert_eq!(source.read().take().len(), 100);
        if !following {
            source.stop();
        }
        source.append("real/0.log", numbered("late", 0..50));
        source.rename("real/0.log", "real/0.log.1");
        source.append("real/0.log", numbered("new", 0..30));
        source.read_until(80);
        let expected = [numbered_lines("late", 0..50), numbered_lines("new", 0..30)].concat();
        assert_eq!(sorted(source.take()), sorted(expected));
        source.stop();
        assert!(source.read().take().is_empty());
    }
}

/// Logs 7: the same with `copytruncate`.
#[test]
fn copytruncate_of_a_links_target_loses_no_line() {
    for following in [false, true] {
        let mut source = TestSource::new("paths = [\"logs/*.log\"]");
        source.until_idle = !following;
        source.append("real/0.log", numbered("old", 0..100));
        std::fs::create_dir_all(source.path("logs")).unwrap();
        symlink("../real/0.log", source.path("logs/x.log")).unwrap();
        assert_eq!(source.read().take().len(), 100);
        source.stop();
        source.append("real/0.log", numbered("late", 0..50));
        source.copy_truncate("real/0.log", "real/0.log.1");
        source.append("real/0.log", numbered("new", 0..30));
        source.read_until(80);
        let expected = [numbered_lines("late", 0..50), numbered_lines("new", 0..30)].concat();
        assert_eq!(sorted(source.take()), sorted(expected));
    }
}

/// Logs 7: `olddir` is another folder.
#[test]
fn files_moved_to_another_folder_while_down_are_finished() {
    for target in ["logs/old/a.log-20261128", "archive/a.log-20261128", "a.log-20261128"] {
        let mut source = TestSource::new("paths = [\"logs/*.log\"]");
        source.append("logs/a.log", numbered("old", 0..100));
        assert_eq!(source.read().take().len(), 100);
        source.stop();
        source.append("logs/a.log", "late\n");
        std::fs::create_dir_all(source.path(target).parent().unwrap()).unwrap();
        source.rename("logs/a.log", target);
        source.append("logs/a.log", "new\n");
        let ((), lines) = logged(|| {
            source.read();
        });
        assert_eq!(sorted(source.take()), ["late", "new"], "{target}");
        assert!(warnings(&lines).is_empty(), "{lines:?}");
    }
}

/// Logs 7: a link to the current log is switched.
#[test]
fn a_switched_link_loses_no_line() {
    for following in [false, true] {
        let mut source = TestSource::new("paths = [\"current\"]");
        source.until_idle = !following;
        source.append("app-1.log", "one\n");
        symlink("app-1.log", source.path("current")).unwrap();
        assert_eq!(source.read().take(), ["one"]);
        if !following {
            source.stop();
        }
        source.append("app-1.log", "late\n");
        source.append("app-2.log", "two\n");
        source.remove("current");
        symlink("app-2.log", source.path("current")).unwrap();
        source.read_until(2);
        assert_eq!(sorted(source.take()), ["late", "two"]);
    }
    // The folder of the log is the link.
    let mut source = TestSource::new("paths = [\"current/*.log\"]");
    source.append("releases/1/a.log", "one\n");
    source.append("releases/2/a.log", "two\n");
    symlink("releases/1", source.path("current")).unwrap();
    assert_eq!(source.read().take(), ["one"]);
    source.stop();
    source.append("releases/1/a.log", "late\n");
    source.remove("current");
    symlink("releases/2", source.path("current")).unwrap();
    assert_eq!(sorted(source.read().take()), ["late", "two"]);
}

/// Logs 7: the log does not claim that a file was read to its end when that is unknown.
#[test]
fn a_file_removed_while_down_is_warned_about_unless_it_was_rotated() {
    let mut source = TestSource::new("");
    source.append("a.log", "1\n");
    source.append("b.log.1", "2\n");
    source.append("c.log", "3\n");
    source.read();
    source.stop();
    source.append("a.log", "unread\n");
    source.remove("a.log");
    source.remove("b.log.1");
    let ((), lines) = logged(|| {
        source.read();
    });
    let warned = warnings(&lines);
    assert!(warned.len() == 1 && warned[0].contains("a.log") && warned[0].contains("byte 2"), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("b.log.1 was removed")), "{lines:?}");
}

/// Logs 8.
#[test]
fn a_file_replaced_by_a_grown_copy_is_continued() {
    for (following, rest) in [(true, ""), (false, ""), (true, "half")] {
        let mut source = TestSource::new("eof = \"wait\"");
        source.until_idle = !following;
        source.append("x.log", numbered("old", 0..100) + rest);
        assert_eq!(source.read().take().len(), 100);
        std::fs::copy(source.path("x.log"), source.path("temporary")).unwrap();
        source.append("temporary", format!(" line\n{}", numbered("new", 0..50)));
        if !following {
            source.stop();
        }
        source.rename("temporary", "x.log");
        let (line, expected) = (format!("{rest} line"), numbered_lines("new", 0..50));
        let ((), lines) = logged(|| {
            source.read_until(51);
            source.read();
        });
        assert_eq!(source.take(), [vec![line], expected].concat(), "following: {following}");
        assert!(warnings(&lines).is_empty(), "{lines:?}");
        source.append("x.log", "last\n");
        source.read_until(1);
        assert_eq!(source.take(), ["last"]);
        source.read_while(|source| !source.until_idle && source.position.len() > 1);
        source.stop();
        assert!(source.read().take().is_empty());
    }
}

/// Logs 8: an editor keeps a backup for a moment.
#[test]
fn a_file_saved_by_an_editor_is_continued() {
    let mut source = TestSource::following("paths = [\"*.log\"]");
    source.append("x.log", numbered("a line that is long enough to fill a head", 0..100));
    assert_eq!(source.read().take().len(), 100);
    let content = std::fs::read(source.path("x.log")).unwrap();
    source.rename("x.log", "x.log~");
    std::fs::write(source.path("x.log"), [content.as_slice(), b"added\n"].concat()).unwrap();
    source.remove("x.log~");
    source.read_until(1);
    assert_eq!(source.read().take(), ["added"]);
}

/// Logs 8: what cannot be continued is reported.
#[test]
fn a_file_replaced_by_a_changed_copy_is_read_again_with_a_warning() {
    for following in [true, false] {
        let mut source = TestSource::new("");
        source.until_idle = !following;
        source.append("x.log", numbered("a line that is long enough to fill a head", 0..100));
        assert_eq!(source.read().take().len(), 100);
        if !following {
            source.stop();
        }
        let content = std::fs::read_to_string(source.path("x.log")).unwrap();
        std::fs::write(source.path("temporary"), content.replace("head 99\n", "HEAD 99\n")).unwrap();
        source.rename("temporary", "x.log");
        let ((), lines) = logged(|| {
            source.read_until(100);
        });
        let warned = warnings(&lines);
        assert!(warned.len() == 1 && warned[0].contains("x.log") && warned[0].contains("twice"), "{lines:?}");
    }
}

/// Logs 9.
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

/// Logs 11.
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

/// Logs 11: the copy that `copytruncate` made before the hole.
#[test]
fn copytruncate_under_a_writer_that_does_not_append_repeats_no_line() {
    for following in [false, true] {
        let mut source = TestSource::new("");
        source.until_idle = !following;
        let mut writer = File::create(source.path("a.log")).unwrap();
        for round in 0..3 {
            writer.write_all(numbered(&format!("round {round}"), 0..40).as_bytes()).unwrap();
            source.read_until(40);
            assert_eq!(source.read().take(), numbered_lines(&format!("round {round}"), 0..40));
            for number in (1..3).rev() {
                let (from, to) = (format!("a.log.{number}"), format!("a.log.{}", number + 1));
                let _ = std::fs::rename(source.path(&from), source.path(&to));
            }
            source.copy_truncate("a.log", "a.log.1");
        }
    }
}

/// Logs 12.
#[test]
fn equal_files_with_other_dates_or_numbers_are_all_read() {
    for names in [
        ["backup.log-20261125", "backup.log-20261126", "backup.log-20261127", "backup.log-20261128"],
        ["backup.log.1", "backup.log.2", "backup.log.3", "backup.log.10"],
        ["backup-2026-11-25.log", "backup-2026-11-26.log", "backup-2026-11-27.log", "backup-2026-11-28.log"],
        ["backup.log-20261125.gz", "backup.log-20261126.gz", "backup.log-20261127", "backup.log-20261128"],
    ] {
        for lines in [3, 300] {
            let content = numbered("backup done", 0..lines);
            let mut source = TestSource::new("");
            for name in names {
                match name.strip_suffix(".gz") {
                    Some(_) => write_gzip(&source.path(name), content.as_bytes()),
                    None => source.append(name, &content),
                }
            }
            assert_eq!(source.read().take().len(), 4 * lines, "{names:?}");
        }
    }
}

/// Logs 12: a copy that is not read is reported.
#[test]
fn an_unread_copy_is_warned_about_with_its_size() {
    let mut source = TestSource::new("");
    source.append("a.log", numbered("line", 0..10));
    std::fs::copy(source.path("a.log"), source.path("a.log.bak")).unwrap();
    let ((), lines) = logged(|| {
        source.read();
    });
    assert_eq!(source.seen.len(), 10);
    let warned = warnings(&lines);
    assert!(warned.len() == 1 && warned[0].contains("a.log.bak") && warned[0].contains("70 bytes"), "{lines:?}");
}

/// Logs 16: lines that are written after the rename or removal, through the old descriptor.
#[test]
fn lines_written_through_an_old_descriptor_are_read() {
    for removed in [false, true] {
        let mut source = TestSource::following("paths = [\"*.log\"]\nrotate_wait = \"1s\"");
        source.append("a.log", "one\n");
        source.age("a.log", 9);
        let mut writer = OpenOptions::new().append(true).open(source.path("a.log")).unwrap();
        writer.write_all(b"half").unwrap();
        source.age("a.log", 9);
        assert_eq!(source.read().take(), ["one"]);
        if removed {
            source.remove("a.log");
        } else {
            source.rename("a.log", "a.log.1");
        }
        for _ in 0..5 {
            source.fill(1000, Duration::from_millis(20)).unwrap();
        }
        assert!(source.seen.is_empty(), "half a line was emitted: {:?}", source.texts());
        writer.write_all(b" line\n").unwrap();
        writer.write_all(numbered("late", 0..5).as_bytes()).unwrap();
        source.read_until(6);
        assert_eq!(source.take(), [vec!["half line".to_owned()], numbered_lines("late", 0..5)].concat());
        // After the file was finished, too.
        source.read_while(|source| !source.position.is_empty());
        writer.write_all(b"later\n").unwrap();
        source.read_until(1);
        assert_eq!(source.take(), ["later"]);
    }
}

/// Logs, "Refused or not understood": byte order marks.
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

/// Logs, "Refused or not understood": globs.
#[test]
fn braces_and_negated_classes_in_globs_select_files() {
    let mut source =
        TestSource::new("paths = [\"{a,b/{c,d}}/[!x]*.{log,txt}\", \"[^x].out\"]\nexclude = [\"*{no,un}*\"]");
    for name in ["a/1.log", "a/x.log", "b/c/1.txt", "b/d/1.log", "b/e/1.log", "a/1.out", "y.out", "x.out", "a/no.log"] {
        source.append(name, format!("{name}\n"));
    }
    assert_eq!(sorted(source.read().take()), ["a/1.log", "b/c/1.txt", "b/d/1.log", "y.out"]);
}

/// Logs, "Messages": globs that match nothing.
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

/// Scale 2: the same heads and stems.
#[test]
fn two_thousand_rotated_files_are_read_in_linear_time() {
    const FILES: usize = 2000;
    let banner = "a banner that all files have ".repeat(80);
    for name in [|number: usize| format!("app.log.{number}"), |number| format!("app.log-2026{number:04}")] {
        let mut source = TestSource::new("");
        for number in 0..FILES {
            std::fs::write(source.path(&name(number + 1)), format!("{banner}\nline {number}\n")).unwrap();
        }
        let begun = Instant::now();
        assert_eq!(source.read().take().len(), 2 * FILES);
        assert!(begun.elapsed() < TEST_TIMEOUT, "{:?}", begun.elapsed());
        // Restored from a backup: all inodes are others.
        source.stop();
        for number in 0..FILES {
            let path = source.path(&name(number + 1));
            std::fs::copy(&path, source.path("copy")).unwrap();
            std::fs::rename(source.path("copy"), path).unwrap();
        }
        let begun = Instant::now();
        assert!(source.read().take().is_empty());
        assert!(begun.elapsed() < TEST_TIMEOUT, "{:?}", begun.elapsed());
    }
}

/// Scale 9.
#[test]
fn all_sources_share_one_inotify_instance() {
    let sources: Vec<TestSource> = (0..5)
        .map(|_| {
            let mut source = TestSource::following("");
            source.append("a.log", "one\n");
            source.read();
            source
        })
        .collect();
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    assert_eq!(targets.filter(|target| target == std::path::Path::new("anon_inode:inotify")).count(), 1);
    drop(sources);
}

/// Positions of earlier versions have no `real_path`.
#[test]
fn positions_of_earlier_versions_are_resumed() {
    let mut source = TestSource::new("paths = [\"logs/*.log\"]");
    source.append("real/0.log", numbered("old", 0..100));
    std::fs::create_dir_all(source.path("logs")).unwrap();
    symlink("../real/0.log", source.path("logs/x.log")).unwrap();
    assert_eq!(source.read().take().len(), 100);
    source.stop();
    for value in source.position.values_mut() {
        let mut stored: serde_json::Value = serde_json::from_slice(value).unwrap();
        assert!(stored["real_path"].as_str().unwrap().ends_with("real/0.log"), "{stored}");
        stored.as_object_mut().unwrap().remove("real_path");
        for key in ["path", "offset", "head", "tail", "size", "mtime", "lane"] {
            assert!(stored.get(key).is_some(), "{stored} has no {key}");
        }
        *value = serde_json::to_vec(&stored).unwrap();
    }
    source.append("real/0.log", "late\n");
    source.rename("real/0.log", "real/0.log.1");
    source.append("real/0.log", "new\n");
    assert_eq!(sorted(source.read().take()), ["late", "new"]);
}
