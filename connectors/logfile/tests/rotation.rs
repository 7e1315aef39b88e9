//! Rotation in all forms: every line is emitted once, whether or not the source ran during the
//! rotation.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use common::{TestSource, logged, numbered, numbered_lines, sorted, warnings};

/// Runs a case following and until idle, each without and with restarts.
fn in_every_mode(case: impl Fn(&mut TestSource, &dyn Fn(&mut TestSource))) {
    let keep = |_: &mut TestSource| {};
    let restart = |source: &mut TestSource| source.stop();
    case(&mut TestSource::following(""), &keep);
    case(&mut TestSource::following(""), &restart);
    case(&mut TestSource::new(""), &keep);
    case(&mut TestSource::new(""), &restart);
}

#[test]
fn a_renamed_file_is_continued() {
    in_every_mode(|source, between| {
        source.append("a.log", numbered("old", 0..5));
        assert_eq!(source.read().take(), numbered_lines("old", 0..5));
        between(source);
        source.append("a.log", numbered("late", 0..3));
        source.rename("a.log", "a.log.1");
        source.append("a.log", numbered("new", 0..3));
        let expected = [numbered_lines("late", 0..3), numbered_lines("new", 0..3)].concat();
        assert_eq!(source.read().take(), expected);
        between(source);
        source.append("a.log.1", "after the renaming\n");
        source.append("a.log", "newest\n");
        let mut seen = source.read().take();
        seen.sort();
        assert_eq!(seen, ["after the renaming", "newest"]);
    });
}

#[test]
fn a_renamed_file_keeps_its_path_and_ordering_key() {
    let mut source = TestSource::following("");
    source.append("a.log", "one\n");
    source.read();
    source.rename("a.log", "a.log.1");
    source.append("a.log.1", "two\n");
    source.append("a.log", "three\n");
    source.read();
    let path = source.path("a.log").to_string_lossy().into_owned();
    assert!(
        source.seen.iter().all(|seen| seen.path == path && seen.ordering_key == source.seen[0].ordering_key),
        "{:?}",
        source.seen
    );
    assert_eq!(source.seen.iter().map(|seen| seen.offset).collect::<Vec<_>>(), [0, 4, 0]);
}

#[test]
fn several_rotations_while_down_are_read_oldest_first() {
    let mut source = TestSource::new("");
    source.append("a.log", "1\n");
    source.read();
    source.stop();
    source.append("a.log", "2\n");
    source.rename("a.log", "a.log.2");
    source.append("a.log.1", "3\n");
    source.append("a.log", "4\n");
    source.age("a.log.2", 300);
    source.age("a.log.1", 200);
    source.age("a.log", 100);
    assert_eq!(source.read().texts(), ["1", "2", "3", "4"]);
}

#[test]
fn a_file_renamed_to_an_unmatched_path_is_finished() {
    for until_idle in [false, true] {
        let mut source = TestSource::new("paths = [\"*.log\"]");
        source.until_idle = until_idle;
        source.append("a.log", "1\n");
        source.read();
        if until_idle {
            source.stop();
        }
        source.append("a.log", "2\n3 without newline");
        source.rename("a.log", "a.log.1");
        source.append("a.log", "4\n");
        source.read_until(4);
        let mut seen = source.take();
        seen.sort();
        assert_eq!(seen, ["1", "2", "3 without newline", "4"]);
        // Its position is removed.
        source.read_while(|source| source.position.len() > 1);
        source.stop();
        assert!(source.read().take().is_empty());
    }
}

#[test]
fn copytruncate_is_continued_in_the_copy() {
    in_every_mode(|source, between| {
        source.append("a.log", numbered("old", 0..50));
        assert_eq!(source.read().take().len(), 50);
        between(source);
        source.append("a.log", numbered("late", 0..3));
        source.copy_truncate("a.log", "a.log.1");
        source.append("a.log", numbered("new", 0..100));
        let mut seen = source.read().take();
        let mut expected = [numbered_lines("late", 0..3), numbered_lines("new", 0..100)].concat();
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected);
        between(source);
        assert!(source.read().take().is_empty());
        // A second rotation, which renames the copy.
        source.rename("a.log.1", "a.log.2");
        source.copy_truncate("a.log", "a.log.1");
        source.append("a.log", "again\n");
        assert_eq!(source.read().take(), ["again"]);
    });
}

#[test]
fn a_copy_is_not_read_before_the_original_is_truncated() {
    in_every_mode(|source, between| {
        source.append("a.log", numbered("old", 0..5));
        source.read().take();
        std::fs::copy(source.path("a.log"), source.path("a.log.1")).unwrap();
        assert!(source.read().take().is_empty());
        between(source);
        // Written between the copy and the truncation, and read in time.
        source.append("a.log", "between\n");
        assert_eq!(source.read().take(), ["between"]);
        source.truncate("a.log");
        assert!(source.read().take().is_empty());
        source.append("a.log", "new\n");
        assert_eq!(source.read().take(), ["new"]);
        between(source);
        assert!(source.read().take().is_empty());
    });
}

#[test]
fn an_unmatched_copy_is_finished() {
    for restart in [false, true] {
        let mut source = TestSource::new("paths = [\"*.log\"]");
        source.append("a.log", numbered("old", 0..5));
        source.read().take();
        if restart {
            source.stop();
        }
        source.append("a.log", "late\n");
        source.copy_truncate("a.log", "a.log.1");
        source.append("a.log", "new\n");
        let mut seen = source.read().take();
        seen.sort();
        assert_eq!(seen, ["late", "new"]);
    }
}

#[test]
fn a_truncated_file_without_a_copy_is_read_from_its_beginning() {
    in_every_mode(|source, between| {
        source.append("a.log", numbered("old", 0..5));
        source.append("a.log", "rest");
        source.read();
        source.seen.retain(|seen| seen.text != "rest");
        source.take();
        between(source);
        source.truncate("a.log");
        source.append("a.log", "new\n");
        let seen = source.read().take();
        assert_eq!(seen.last().unwrap(), "new", "{seen:?}");
        assert!(seen.iter().all(|line| line == "new" || line == "rest"), "{seen:?}");
        between(source);
        assert!(source.read().take().is_empty());
    });
}

#[test]
fn a_position_past_the_end_is_a_truncation() {
    let mut source = TestSource::new("");
    source.append("a.log", numbered("old", 0..100));
    source.read().take();
    source.stop();
    source.truncate("a.log");
    source.append("a.log", "new\n");
    assert_eq!(source.read().take(), ["new"]);
    assert_eq!(source.position.len(), 1, "{:?}", source.position.keys());
}

#[test]
fn a_compressed_file_is_continued() {
    in_every_mode(|source, between| {
        source.append("a.log", numbered("old", 0..200));
        assert_eq!(source.read().take().len(), 200);
        between(source);
        source.append("a.log", "late\n");
        source.rename("a.log", "a.log.1");
        source.gzip("a.log.1", "a.log.1.gz");
        source.append("a.log", "new\n");
        let mut seen = source.read().take();
        seen.sort();
        assert_eq!(seen, ["late", "new"]);
        between(source);
        source.rename("a.log.1.gz", "a.log.2.gz");
        assert!(source.read().take().is_empty());
        between(source);
        assert!(source.read().take().is_empty());
    });
}

#[test]
fn a_compressed_file_is_recognised_at_every_length() {
    // Longer than the compared beginning.
    let content = numbered("a line that is long enough to make a file of some size", 0..200);
    let mut source = TestSource::new("rotate_wait = \"3s\"");
    source.append("a.log", &content);
    source.read().take();
    source.rename("a.log", "a.log.1");
    source.gzip_keep("a.log.1", "../packed");
    let packed = std::fs::read(source.path("../packed")).unwrap();
    for len in [1, 2, 10, 11, 40, 100, packed.len() / 2, packed.len()] {
        println!("{len} of {} bytes", packed.len());
        std::fs::write(source.path("a.log.1.tmp"), &packed[..len]).unwrap();
        assert!(source.read().take().is_empty(), "{len} of {} bytes", packed.len());
    }
    source.rename("a.log.1.tmp", "a.log.1.gz");
    source.remove("a.log.1");
    assert!(source.read().take().is_empty());
}

#[test]
fn a_compressed_copy_is_recognised_before_its_original_is_removed() {
    in_every_mode(|source, between| {
        source.append("a.log", numbered("old", 0..20));
        source.rename("a.log", "a.log.1");
        source.read().take();
        source.gzip_keep("a.log.1", "a.log.1.gz");
        assert!(source.read().take().is_empty());
        between(source);
        source.remove("a.log.1");
        assert!(source.read().take().is_empty());
        between(source);
        assert!(source.read().take().is_empty());
        if !source.until_idle {
            source.read_while(|source| source.position.len() != 1);
            source.stop();
            assert!(source.read().take().is_empty());
        }
    });
}

#[test]
fn a_file_that_is_removed_while_it_is_read_is_finished() {
    let mut source = TestSource::following("");
    source.append("a.log", numbered("line", 0..1000));
    source.fill(10, std::time::Duration::from_secs(5)).unwrap();
    source.append("a.log", "last, without newline");
    source.remove("a.log");
    source.read_until(1001);
    assert_eq!(source.texts()[1000], "last, without newline");
    source.read_while(|source| !source.position.is_empty());
    assert_eq!(source.seen.len(), 1001);
}

#[test]
fn a_removed_gzip_file_does_not_delay_the_next_file() {
    let mut source = TestSource::following("rotate_wait = \"1h\"");
    common::write_gzip(&source.path("a.log.1.gz"), b"old\n");
    assert_eq!(source.read_until(1).take(), ["old"]);
    source.remove("a.log.1.gz");
    source.append("a.log", "new\n");
    assert_eq!(source.read_until(1).take(), ["new"]);
}

#[test]
fn the_position_of_a_file_removed_while_down_is_removed() {
    let mut source = TestSource::new("");
    source.append("a.log", "1\n");
    source.append("b.log", "2\n");
    source.read().take();
    source.stop();
    source.remove("a.log");
    assert!(source.read().take().is_empty());
    assert_eq!(source.position.len(), 1);
}

#[test]
fn other_content_with_the_same_inode_is_read() {
    in_every_mode(|source, between| {
        source.append("a.log", numbered("old", 0..5));
        source.read().take();
        between(source);
        // A truncation and a write past the old offset look like a reused inode.
        std::fs::write(source.path("a.log"), numbered("another", 0..50)).unwrap();
        source.rename("a.log", "b.log");
        assert_eq!(source.read().take(), numbered_lines("another", 0..50));
    });
}

#[test]
fn equal_tiny_files_are_all_read() {
    in_every_mode(|source, between| {
        source.append("a.log", "x\n");
        source.append("b.log", "x\n");
        assert_eq!(source.read().take(), ["x", "x"]);
        between(source);
        source.append("c.log", "x\n");
        source.append("a2.log", "x\n");
        assert_eq!(source.read().take(), ["x", "x"]);
        between(source);
        // A rotation whose old and new file are equal.
        source.rename("a.log", "a.log.1");
        source.append("a.log", "x\n");
        assert_eq!(source.read().take(), ["x"]);
    });
}

#[test]
fn long_files_with_equal_beginnings_are_all_read() {
    let banner = format!("{}\n", "banner ".repeat(500));
    let mut source = TestSource::new("");
    source.append("a.log", format!("{banner}a\n"));
    source.append("b.log", format!("{banner}b\n"));
    assert_eq!(source.read().take().len(), 4);
    source.append("c.log", format!("{banner}c\n"));
    assert_eq!(source.read().take().len(), 2);
    // Truncated and grown past the old offset, with the same beginning.
    source.stop();
    std::fs::write(source.path("a.log"), format!("{banner}A and more\n")).unwrap();
    assert_eq!(source.read().take().len(), 2);
}

#[test]
fn files_with_several_links_are_read_once() {
    let mut source = TestSource::following("");
    source.append("real/a.txt", "1\n");
    std::os::unix::fs::symlink(source.path("real/a.txt"), source.path("link.log")).unwrap();
    std::fs::hard_link(source.path("real/a.txt"), source.path("hard.log")).unwrap();
    std::os::unix::fs::symlink(source.path("nowhere"), source.path("dangling.log")).unwrap();
    assert_eq!(source.read().take(), ["1"]);
    source.append("real/a.txt", "2\n");
    assert_eq!(source.read().take(), ["2"]);
}

/// `olddir` of logrotate is another folder.
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

/// The copy was made before the hole in the file.
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

/// A writer keeps its descriptor when the file is renamed or removed.
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
