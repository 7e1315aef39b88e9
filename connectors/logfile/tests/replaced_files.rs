//! Files that are replaced, copied or removed, and files with equal content.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::os::unix::fs::MetadataExt;

use common::{TestSource, logged, numbered, numbered_lines, sorted, warnings, write_gzip};

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

/// An editor keeps a backup for a moment.
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

/// It is unknown whether such a file was read to its end.
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

#[test]
fn a_finished_file_that_is_matched_again_is_not_read_twice() {
    let mut source = TestSource::following("paths = [\"*.log\", \"*.log.1\"]");
    source.append("a.log", "one\n");
    assert_eq!(source.read().take(), ["one"]);
    source.rename("a.log", "a.moved");
    source.read_while(|source| !source.position.is_empty());
    source.rename("a.moved", "a.log.1");
    source.append("a.log.1", "late\n");
    source.append("a.log", "new\n");
    source.read_until(2);
    assert_eq!(sorted(source.read().take()), ["late", "new"]);
    source.stop();
    assert!(source.read().take().is_empty());
}

/// Device numbers change when a machine restarts.
#[test]
fn files_with_another_device_number_are_continued() {
    for lines in [3, 300] {
        let mut source = TestSource::new("");
        source.append("a.log", numbered("line", 0..lines));
        source.append("b.log", numbered("other", 0..lines));
        source.append("b.log.1", numbered("rotated", 0..lines));
        assert_eq!(source.read().take().len(), 3 * lines);
        source.stop();
        source.position =
            std::mem::take(&mut source.position).into_iter().map(|(key, value)| (format!("1{key}"), value)).collect();
        source.append("a.log", "late\n");
        assert_eq!(source.read().take(), ["late"]);
        assert_eq!(source.position.len(), 3, "{:?}", source.position.keys());
    }
}

/// The inode of a removed file is reused: by a file in a folder nearby, or by one that the globs
/// match.
#[test]
fn a_reused_inode_says_nothing_about_the_file_that_had_it_before() {
    for other in ["../nearby/y.log", "y.log"] {
        let mut source = TestSource::new("paths = [\"logs/*.log\"]");
        let other = format!("logs/{other}");
        source.append("logs/x.log", numbered("a line that is long enough to fill a head", 0..100));
        assert_eq!(source.read().take().len(), 100);
        source.stop();
        let content = std::fs::read_to_string(source.path("logs/x.log")).unwrap();
        source.remove("logs/x.log");
        source.append("logs/x.log", content.replace("head 99\n", "HEAD 99\n"));
        source.append(&other, numbered("a line of another file, which is longer than the first", 0..200));
        // Whether a file system reuses an inode at once depends on its kind.
        let inode = std::fs::metadata(source.path(&other)).unwrap().ino();
        let reused = |key: String| {
            let parts: Vec<&str> = key.split(':').collect();
            format!("{}:{inode}:{}", parts[0], parts[2])
        };
        source.position =
            std::mem::take(&mut source.position).into_iter().map(|(key, value)| (reused(key), value)).collect();
        let lines_of_other = if other.contains("..") { 0 } else { 200 };
        let ((), lines) = logged(|| {
            source.read_until(100 + lines_of_other);
        });
        let warned = warnings(&lines);
        assert!(
            warned.len() == 1 && warned[0].contains("x.log was replaced") && warned[0].contains("twice"),
            "{lines:?}"
        );
    }
}
