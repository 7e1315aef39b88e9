//! Rotation in all its forms: every line once, whoever was running when it happened.

mod common;

use common::{Bench, numbered, numbered_lines};

/// Runs a case with the source running all the time, with a restart before the rotation, and with restarts everywhere.
fn in_every_mode(case: impl Fn(&mut Bench, &dyn Fn(&mut Bench))) {
    let keep = |_: &mut Bench| {};
    let restart = |bench: &mut Bench| bench.stop();
    case(&mut Bench::following(""), &keep);
    case(&mut Bench::following(""), &restart);
    case(&mut Bench::new(""), &keep);
    case(&mut Bench::new(""), &restart);
}

#[test]
fn renamed_while_read_or_while_down() {
    in_every_mode(|bench, between| {
        bench.append("a.log", numbered("old", 0..5));
        assert_eq!(bench.read().take(), numbered_lines("old", 0..5));
        between(bench);
        bench.append("a.log", numbered("late", 0..3));
        bench.rename("a.log", "a.log.1");
        bench.append("a.log", numbered("new", 0..3));
        let expected = [numbered_lines("late", 0..3), numbered_lines("new", 0..3)].concat();
        assert_eq!(bench.read().take(), expected);
        between(bench);
        bench.append("a.log.1", "after the renaming\n");
        bench.append("a.log", "newest\n");
        let mut seen = bench.read().take();
        seen.sort();
        assert_eq!(seen, ["after the renaming", "newest"]);
    });
}

#[test]
fn a_renamed_file_keeps_its_path_and_lane() {
    let mut bench = Bench::following("");
    bench.append("a.log", "one\n");
    bench.read();
    bench.rename("a.log", "a.log.1");
    bench.append("a.log.1", "two\n");
    bench.append("a.log", "three\n");
    bench.read();
    let path = bench.path("a.log").to_string_lossy().into_owned();
    assert!(bench.seen.iter().all(|seen| seen.path == path && seen.lane == bench.seen[0].lane), "{:?}", bench.seen);
    assert_eq!(bench.seen.iter().map(|seen| seen.offset).collect::<Vec<_>>(), [0, 4, 0]);
}

#[test]
fn several_rotations_while_down_are_finished_oldest_first() {
    let mut bench = Bench::new("");
    bench.append("a.log", "1\n");
    bench.read();
    bench.stop();
    bench.append("a.log", "2\n");
    bench.rename("a.log", "a.log.2");
    bench.append("a.log.1", "3\n");
    bench.append("a.log", "4\n");
    bench.age("a.log.2", 300);
    bench.age("a.log.1", 200);
    bench.age("a.log", 100);
    assert_eq!(bench.read().texts(), ["1", "2", "3", "4"]);
}

#[test]
fn renamed_to_where_no_glob_reaches() {
    for until_idle in [false, true] {
        let mut bench = Bench::new("paths = [\"*.log\"]");
        bench.until_idle = until_idle;
        bench.append("a.log", "1\n");
        bench.read();
        if until_idle {
            bench.stop();
        }
        bench.append("a.log", "2\n3 without newline");
        bench.rename("a.log", "a.log.1");
        bench.append("a.log", "4\n");
        bench.read_until(4);
        let mut seen = bench.take();
        seen.sort();
        assert_eq!(seen, ["1", "2", "3 without newline", "4"]);
        // Finished and forgotten: one position is left.
        bench.read_while(|bench| bench.position.len() > 1);
        bench.stop();
        assert!(bench.read().take().is_empty());
    }
}

#[test]
fn copied_and_truncated() {
    in_every_mode(|bench, between| {
        bench.append("a.log", numbered("old", 0..50));
        assert_eq!(bench.read().take().len(), 50);
        between(bench);
        bench.append("a.log", numbered("late", 0..3));
        bench.copy_truncate("a.log", "a.log.1");
        bench.append("a.log", numbered("new", 0..100));
        let mut seen = bench.read().take();
        let mut expected = [numbered_lines("late", 0..3), numbered_lines("new", 0..100)].concat();
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected);
        between(bench);
        assert!(bench.read().take().is_empty());
        // Once more, with the copies moved on.
        bench.rename("a.log.1", "a.log.2");
        bench.copy_truncate("a.log", "a.log.1");
        bench.append("a.log", "again\n");
        assert_eq!(bench.read().take(), ["again"]);
    });
}

#[test]
fn a_copy_is_not_read_before_the_original_is_truncated() {
    in_every_mode(|bench, between| {
        bench.append("a.log", numbered("old", 0..5));
        bench.read().take();
        std::fs::copy(bench.path("a.log"), bench.path("a.log.1")).unwrap();
        assert!(bench.read().take().is_empty());
        between(bench);
        // Written between the copy and the truncation, and read in time.
        bench.append("a.log", "between\n");
        assert_eq!(bench.read().take(), ["between"]);
        bench.truncate("a.log");
        assert!(bench.read().take().is_empty());
        bench.append("a.log", "new\n");
        assert_eq!(bench.read().take(), ["new"]);
        between(bench);
        assert!(bench.read().take().is_empty());
    });
}

#[test]
fn a_copy_outside_of_the_globs_is_still_finished() {
    for restart in [false, true] {
        let mut bench = Bench::new("paths = [\"*.log\"]");
        bench.append("a.log", numbered("old", 0..5));
        bench.read().take();
        if restart {
            bench.stop();
        }
        bench.append("a.log", "late\n");
        bench.copy_truncate("a.log", "a.log.1");
        bench.append("a.log", "new\n");
        let mut seen = bench.read().take();
        seen.sort();
        assert_eq!(seen, ["late", "new"]);
    }
}

#[test]
fn truncated_without_a_copy() {
    in_every_mode(|bench, between| {
        bench.append("a.log", numbered("old", 0..5));
        bench.append("a.log", "rest");
        bench.read();
        bench.seen.retain(|seen| seen.text != "rest");
        bench.take();
        between(bench);
        bench.truncate("a.log");
        bench.append("a.log", "new\n");
        let seen = bench.read().take();
        assert_eq!(seen.last().unwrap(), "new", "{seen:?}");
        assert!(seen.iter().all(|line| line == "new" || line == "rest"), "{seen:?}");
        between(bench);
        assert!(bench.read().take().is_empty());
    });
}

#[test]
fn a_position_past_the_end_is_a_truncation() {
    let mut bench = Bench::new("");
    bench.append("a.log", numbered("old", 0..100));
    bench.read().take();
    bench.stop();
    bench.truncate("a.log");
    bench.append("a.log", "new\n");
    assert_eq!(bench.read().take(), ["new"]);
    assert_eq!(bench.position.len(), 1, "{:?}", bench.position.keys());
}

#[test]
fn compressed_after_rotation() {
    in_every_mode(|bench, between| {
        bench.append("a.log", numbered("old", 0..200));
        assert_eq!(bench.read().take().len(), 200);
        between(bench);
        bench.append("a.log", "late\n");
        bench.rename("a.log", "a.log.1");
        bench.gzip("a.log.1", "a.log.1.gz");
        bench.append("a.log", "new\n");
        let mut seen = bench.read().take();
        seen.sort();
        assert_eq!(seen, ["late", "new"]);
        between(bench);
        bench.rename("a.log.1.gz", "a.log.2.gz");
        assert!(bench.read().take().is_empty());
        between(bench);
        assert!(bench.read().take().is_empty());
    });
}

#[test]
fn compressed_under_a_matched_name_and_seen_at_every_length() {
    // Longer than what is compared, so that its beginning alone does not tell the whole.
    let content = numbered("a line that is long enough to make a file of some size", 0..200);
    let mut bench = Bench::new("rotate_wait = \"3s\"");
    bench.append("a.log", &content);
    bench.read().take();
    bench.rename("a.log", "a.log.1");
    bench.gzip_keep("a.log.1", "../packed");
    let packed = std::fs::read(bench.path("../packed")).unwrap();
    for len in [1, 2, 10, 11, 40, 100, packed.len() / 2, packed.len()] {
        println!("{len} of {} bytes", packed.len());
        std::fs::write(bench.path("a.log.1.tmp"), &packed[..len]).unwrap();
        assert!(bench.read().take().is_empty(), "{len} of {} bytes", packed.len());
    }
    bench.rename("a.log.1.tmp", "a.log.1.gz");
    bench.remove("a.log.1");
    assert!(bench.read().take().is_empty());
}

#[test]
fn compressed_beside_the_original_which_goes_later() {
    in_every_mode(|bench, between| {
        bench.append("a.log", numbered("old", 0..20));
        bench.rename("a.log", "a.log.1");
        bench.read().take();
        bench.gzip_keep("a.log.1", "a.log.1.gz");
        assert!(bench.read().take().is_empty());
        between(bench);
        bench.remove("a.log.1");
        assert!(bench.read().take().is_empty());
        between(bench);
        assert!(bench.read().take().is_empty());
        if !bench.until_idle {
            bench.read_while(|bench| bench.position.len() != 1);
            bench.stop();
            assert!(bench.read().take().is_empty());
        }
    });
}

#[test]
fn removed_while_it_is_read() {
    let mut bench = Bench::following("");
    bench.append("a.log", numbered("line", 0..1000));
    bench.fill(10, std::time::Duration::from_secs(5)).unwrap();
    bench.append("a.log", "last, without newline");
    bench.remove("a.log");
    bench.read_until(1001);
    assert_eq!(bench.texts()[1000], "last, without newline");
    bench.read_while(|bench| !bench.position.is_empty());
    assert_eq!(bench.seen.len(), 1001);
}

#[test]
fn a_compressed_log_that_was_removed_does_not_hold_up_the_next_one() {
    let mut bench = Bench::following("rotate_wait = \"1h\"");
    common::write_gzip(&bench.path("a.log.1.gz"), b"old\n");
    assert_eq!(bench.read_until(1).take(), ["old"]);
    bench.remove("a.log.1.gz");
    bench.append("a.log", "new\n");
    assert_eq!(bench.read_until(1).take(), ["new"]);
}

#[test]
fn removed_while_down() {
    let mut bench = Bench::new("");
    bench.append("a.log", "1\n");
    bench.append("b.log", "2\n");
    bench.read().take();
    bench.stop();
    bench.remove("a.log");
    assert!(bench.read().take().is_empty());
    assert_eq!(bench.position.len(), 1);
}

#[test]
fn another_file_under_the_same_inode() {
    in_every_mode(|bench, between| {
        bench.append("a.log", numbered("old", 0..5));
        bench.read().take();
        between(bench);
        // Truncating and writing past the old offset in one go is what a reused inode looks like.
        std::fs::write(bench.path("a.log"), numbered("another", 0..50)).unwrap();
        bench.rename("a.log", "b.log");
        assert_eq!(bench.read().take(), numbered_lines("another", 0..50));
    });
}

#[test]
fn tiny_files_alike_are_files_of_their_own() {
    in_every_mode(|bench, between| {
        bench.append("a.log", "x\n");
        bench.append("b.log", "x\n");
        assert_eq!(bench.read().take(), ["x", "x"]);
        between(bench);
        bench.append("c.log", "x\n");
        bench.append("a2.log", "x\n");
        assert_eq!(bench.read().take(), ["x", "x"]);
        between(bench);
        // A rotation whose old and new file are alike.
        bench.rename("a.log", "a.log.1");
        bench.append("a.log", "x\n");
        assert_eq!(bench.read().take(), ["x"]);
    });
}

#[test]
fn long_files_that_begin_alike_are_files_of_their_own() {
    let banner = format!("{}\n", "banner ".repeat(500));
    let mut bench = Bench::new("");
    bench.append("a.log", format!("{banner}a\n"));
    bench.append("b.log", format!("{banner}b\n"));
    assert_eq!(bench.read().take().len(), 4);
    bench.append("c.log", format!("{banner}c\n"));
    assert_eq!(bench.read().take().len(), 2);
    // Truncated, and grown past the old offset with the same beginning.
    bench.stop();
    std::fs::write(bench.path("a.log"), format!("{banner}A and more\n")).unwrap();
    assert_eq!(bench.read().take().len(), 2);
}

#[test]
fn symbolic_and_hard_links_are_read_once() {
    let mut bench = Bench::following("");
    bench.append("real/a.txt", "1\n");
    std::os::unix::fs::symlink(bench.path("real/a.txt"), bench.path("link.log")).unwrap();
    std::fs::hard_link(bench.path("real/a.txt"), bench.path("hard.log")).unwrap();
    std::os::unix::fs::symlink(bench.path("nowhere"), bench.path("dangling.log")).unwrap();
    assert_eq!(bench.read().take(), ["1"]);
    bench.append("real/a.txt", "2\n");
    assert_eq!(bench.read().take(), ["2"]);
}
