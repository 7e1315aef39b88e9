//! Many files, few descriptors, and writers that do not wait for the reader.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{TEST_TIMEOUT, TestSource};
use trunkline_connector::Fill;

/// Number of descriptors of this process for files of a folder.
fn open_in(folder: &std::path::Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter_map(|link| std::fs::read_link(link.path()).ok()).filter(|target| target.starts_with(folder)).count()
}

#[test]
fn five_thousand_files_are_read_with_sixty_four_descriptors() {
    const FILES: usize = 5000;
    let mut source = TestSource::new("max_open_files = 64");
    for file in 0..FILES {
        std::fs::write(source.path(&format!("f-{file}.log")), format!("{file} a\n{file} b\n{file} without newline"))
            .unwrap();
    }
    let begun = Instant::now();
    while source.fill(500, Duration::from_secs(5)).unwrap() != Fill::CaughtUp {
        let open = open_in(source.folder.path());
        assert!(open <= 64, "{open} descriptors");
        assert!(begun.elapsed() < 4 * TEST_TIMEOUT);
    }
    assert_eq!((source.seen.len(), source.position.len()), (3 * FILES, FILES));
    assert!(source.lag().is_caught_up());
    assert!(source.budget.used() < 32 << 20, "{}", source.budget.used());
    // A restart opens only changed files.
    source.stop();
    source.append("f-17.log", "\nand more\n");
    source.read();
    assert_eq!(source.texts()[3 * FILES..], ["and more"]);
}

#[test]
fn a_busy_file_does_not_delay_the_others() {
    let mut source = TestSource::new("max_open_files = 2");
    let busy: String = (0..200_000).map(|number| format!("busy {number} {}\n", "~".repeat(40))).collect();
    source.append("busy.log", busy);
    for other in ["x.log", "y.log", "z.log"] {
        source.append(other, format!("{other}\n"));
        source.age("busy.log", 1000);
    }
    let mut batches = 0;
    while source.seen.iter().filter(|seen| !seen.text.starts_with("busy")).count() < 3 {
        source.fill(1000, Duration::from_secs(5)).unwrap();
        batches += 1;
    }
    assert!(batches < 60, "the others were read after {batches} batches of 200");
}

/// A writer that does not wait for its reader and rotates by renaming.
#[test]
fn lines_of_a_rotating_writer_are_read_once() {
    const LINES: usize = 20_000;
    for (restart, rename) in [(false, true), (true, true)] {
        let mut source = TestSource::following("rotate_wait = \"50ms\"");
        let folder: PathBuf = source.folder.path().to_owned();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let path = folder.join("w.log");
                let mut file = std::fs::File::create(&path).unwrap();
                for number in 0..LINES {
                    // Each line is written in two parts, so that the reader meets incomplete lines.
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
            let begun = Instant::now();
            let mut fills = 0;
            while source.seen.len() < LINES || !done.load(Ordering::Acquire) {
                source.fill(300, Duration::from_millis(50)).unwrap();
                fills += 1;
                if restart && fills % 10 == 0 {
                    source.stop();
                }
                assert!(begun.elapsed() < 2 * TEST_TIMEOUT, "{} of {LINES} lines", source.seen.len());
            }
        });
        source.read();
        let mut numbers: Vec<usize> =
            source.seen.iter().map(|seen| seen.text.split(' ').nth(1).unwrap().parse().unwrap()).collect();
        assert!(source.seen.iter().all(|seen| seen.text.ends_with(" end")));
        numbers.sort_unstable();
        assert_eq!(numbers, (0..LINES).collect::<Vec<_>>());
    }
}

#[test]
fn a_change_ends_the_wait_of_a_fill() {
    let mut source = TestSource::following("poll_interval = \"1h\"");
    source.append("a.log", "one\n");
    source.read();
    let path = source.path("a.log");
    let (begin, begun) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            begun.recv().unwrap();
            std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"two\n").unwrap();
        });
        begin.send(()).unwrap();
        let start = Instant::now();
        while source.seen.len() < 2 {
            source.fill(10, Duration::from_secs(20)).unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(15), "woken after {:?}", start.elapsed());
    });
}

#[test]
fn a_source_without_data_waits_past_the_deadline_until_a_change_or_a_wake_up() {
    const PAUSE: Duration = Duration::from_millis(300);
    let mut source = TestSource::following("poll_interval = \"1h\"");
    source.append("a.log", "one\n");
    source.read();
    source.max_wait = Duration::from_secs(60);
    let fill = |source: &mut TestSource, end: &(dyn Fn() + Sync)| {
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::park_timeout(PAUSE);
                end();
            });
            let start = Instant::now();
            assert_eq!(source.fill(10, PAUSE / 10).unwrap(), Fill::CaughtUp);
            start.elapsed()
        })
    };
    let path = source.path("a.log");
    let append = || std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"two\n").unwrap();
    let waited = fill(&mut source, &append);
    assert!((PAUSE / 2..Duration::from_secs(30)).contains(&waited), "{waited:?}");
    assert_eq!(source.texts(), ["one", "two"]);
    let wake = source.waker();
    let waited = fill(&mut source, &*wake);
    assert!((PAUSE / 2..Duration::from_secs(30)).contains(&waited), "{waited:?}");
}

/// Processor time of this thread in nanoseconds.
fn thread_cpu() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid until the call returns.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Processor time of a line that a followed file gets, among `files` files.
fn cost_of_a_line(files: usize) -> u64 {
    const LINES: usize = 150;
    let mut source = TestSource::following("poll_interval = \"1h\"\nmax_open_files = 2000");
    for file in 0..files {
        source.append(&format!("{file}.log"), "the first line of a service that says little\n");
    }
    source.read_until(files);
    source.read().take();
    let mut costs: Vec<u64> = Vec::new();
    for line in 0..LINES {
        source.append(&format!("{}.log", line % files), "a line\n");
        let (before, begun) = (thread_cpu(), Instant::now());
        while source.seen.len() <= line {
            source.fill(10, Duration::from_secs(1)).unwrap();
            assert!(begun.elapsed() < TEST_TIMEOUT);
        }
        costs.push(thread_cpu() - before);
    }
    costs.sort_unstable();
    costs[LINES / 2]
}

/// A notification names the file that has changed, and the source looks at no others.
#[test]
fn the_cost_of_a_line_does_not_grow_with_the_number_of_files() {
    let (few, many) = (cost_of_a_line(10), cost_of_a_line(1_000));
    println!("CPU of a line: {} us among 10 files, {} us among 1,000", few / 1_000, many / 1_000);
    // A scan for each line would cost a hundred times as much; colder caches cost three times.
    assert!(many < 8 * few, "{few} ns among 10 files, {many} ns among 1,000");
}

/// The kernel reports a change of the file's content in the folder of the name that the writer
/// used, which no source watches here. The scans at an interval find it.
#[test]
fn changes_without_a_notification_are_found() {
    let mut source = TestSource::following("poll_interval = \"50ms\"");
    source.append("a.log", "one\n");
    source.append("b.log", "one\n");
    let elsewhere = tempfile::tempdir_in(source.folder.path().parent().unwrap()).unwrap();
    let other_name = elsewhere.path().join("other");
    std::fs::hard_link(source.path("a.log"), &other_name).unwrap();
    source.read_until(2);
    source.read().take();
    std::fs::OpenOptions::new().append(true).open(&other_name).unwrap().write_all(b"two\n").unwrap();
    source.read_until(1);
    assert_eq!(source.take(), ["two"]);
}

/// Many files change at once, are created, renamed and removed, while others are read.
#[test]
fn no_notification_is_lost_while_a_scan_runs() {
    const LINES: usize = 3_000;
    let mut source = TestSource::following("poll_interval = \"1h\"\nmax_open_files = 8");
    let files = source.files.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..LINES {
                // Each new name makes the source scan; the lines before and after it must not be
                // overlooked.
                let file = if number % 10 == 9 { number } else { number % 7 };
                files.append(&format!("{file}.log"), format!("line {number}\n"));
            }
        });
        let mut last = (0, Instant::now());
        while source.seen.len() < LINES {
            source.fill(50, Duration::from_millis(50)).unwrap();
            if source.seen.len() > last.0 {
                last = (source.seen.len(), Instant::now());
            }
            // A lost notification would delay a line until the next scan, in an hour.
            assert!(last.1.elapsed() < TEST_TIMEOUT / 2, "{} of {LINES} lines", source.seen.len());
        }
    });
    let mut seen: Vec<usize> = source.take().iter().map(|line| line[5..].parse().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..LINES).collect::<Vec<_>>());
}

/// All files begin equally, and their names differ only in the suffix.
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
