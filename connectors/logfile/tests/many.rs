//! Many files, few descriptors; writers that do not wait for us.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Bench, PATIENCE};
use trunkline_connector::Fill;

/// Descriptors of this process that lead into a folder.
fn open_in(folder: &std::path::Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter_map(|link| std::fs::read_link(link.path()).ok()).filter(|target| target.starts_with(folder)).count()
}

#[test]
fn five_thousand_files_with_sixty_four_descriptors() {
    const FILES: usize = 5000;
    let mut bench = Bench::new("max_open_files = 64");
    for file in 0..FILES {
        std::fs::write(bench.path(&format!("f-{file}.log")), format!("{file} a\n{file} b\n{file} without newline"))
            .unwrap();
    }
    let begun = std::time::Instant::now();
    while bench.fill(500, Duration::from_secs(5)).unwrap() != Fill::CaughtUp {
        let open = open_in(bench.folder.path());
        assert!(open <= 64, "{open} descriptors");
        assert!(begun.elapsed() < 4 * PATIENCE);
    }
    assert_eq!((bench.seen.len(), bench.position.len()), (3 * FILES, FILES));
    assert!(bench.lag().is_caught_up());
    assert!(bench.budget.used() < 32 << 20, "{}", bench.budget.used());
    // A restart opens nothing that did not change.
    bench.stop();
    bench.append("f-17.log", "\nand more\n");
    bench.read();
    assert_eq!(bench.texts()[3 * FILES..], ["and more"]);
}

#[test]
fn a_busy_file_does_not_keep_the_others_waiting() {
    let mut bench = Bench::new("max_open_files = 2");
    let busy: String = (0..200_000).map(|number| format!("busy {number} {}\n", "~".repeat(40))).collect();
    bench.append("busy.log", busy);
    for other in ["x.log", "y.log", "z.log"] {
        bench.append(other, format!("{other}\n"));
        bench.age("busy.log", 1000);
    }
    let mut batches = 0;
    while bench.seen.iter().filter(|seen| !seen.text.starts_with("busy")).count() < 3 {
        bench.fill(1000, Duration::from_secs(5)).unwrap();
        batches += 1;
    }
    assert!(batches < 60, "the others came after {batches} batches of 200");
}

/// A writer that never stops for its reader, with rotation by renaming as a logger does it itself.
#[test]
fn a_writer_that_rotates_while_it_is_read() {
    const LINES: usize = 20_000;
    for (restart, rename) in [(false, true), (true, true)] {
        let mut bench = Bench::following("rotate_wait = \"50ms\"");
        let folder: PathBuf = bench.folder.path().to_owned();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let path = folder.join("w.log");
                let mut file = std::fs::File::create(&path).unwrap();
                for number in 0..LINES {
                    // Lines are written in two parts, so that a reader sees halves.
                    file.write_all(format!("line {number} ").as_bytes()).unwrap();
                    file.write_all(b"end\n").unwrap();
                    if rename && number % 997 == 996 {
                        for old in (1..30).rev() {
                            let _ = std::fs::rename(
                                folder.join(format!("w.log.{old}")),
                                folder.join(format!("w.log.{}", old + 1)),
                            );
                        }
                        std::fs::rename(&path, folder.join("w.log.1")).unwrap();
                        file = std::fs::File::create(&path).unwrap();
                    }
                }
                done.store(true, Ordering::Release);
            });
            let begun = std::time::Instant::now();
            let mut fills = 0;
            while bench.seen.len() < LINES || !done.load(Ordering::Acquire) {
                bench.fill(300, Duration::from_millis(50)).unwrap();
                fills += 1;
                if restart && fills % 10 == 0 {
                    bench.stop();
                }
                assert!(begun.elapsed() < 2 * PATIENCE, "{} of {LINES} lines", bench.seen.len());
            }
        });
        bench.read();
        let mut numbers: Vec<usize> =
            bench.seen.iter().map(|seen| seen.text.split(' ').nth(1).unwrap().parse().unwrap()).collect();
        assert!(bench.seen.iter().all(|seen| seen.text.ends_with(" end")));
        numbers.sort_unstable();
        assert_eq!(numbers, (0..LINES).collect::<Vec<_>>());
    }
}

#[test]
fn a_change_wakes_a_waiting_fill() {
    let mut bench = Bench::following("poll_interval = \"1h\"");
    bench.append("a.log", "one\n");
    bench.read();
    let path = bench.path("a.log");
    let (begin, begun) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            begun.recv().unwrap();
            std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"two\n").unwrap();
        });
        begin.send(()).unwrap();
        let start = std::time::Instant::now();
        while bench.seen.len() < 2 {
            bench.fill(10, Duration::from_secs(20)).unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(15), "woken after {:?}", start.elapsed());
    });
}
