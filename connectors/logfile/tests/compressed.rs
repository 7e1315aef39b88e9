//! Compressed files: padding, damage, formats, and files that are not complete yet.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::{TestSource, logged, numbered, numbered_lines, sorted, warnings, write_gzip};
use trunkline_connector::{Domain, Retry};

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

/// A retry does not resolve this error.
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

/// The file is still being written.
#[test]
fn an_incomplete_compressed_file_is_reported_at_the_end_of_a_run() {
    let mut source = TestSource::new("rotate_wait = \"1h\"");
    write_gzip(&source.path("a.log.gz"), b"one\n");
    let content = std::fs::read(source.path("a.log.gz")).unwrap();
    std::fs::write(source.path("a.log.gz"), &content[..content.len() / 2]).unwrap();
    let ((), lines) = logged(|| {
        source.read();
    });
    assert!(source.seen.is_empty());
    assert!(warnings(&lines).len() == 1 && warnings(&lines)[0].contains("a.log.gz was not read"), "{lines:?}");
    std::fs::write(source.path("a.log.gz"), content).unwrap();
    assert_eq!(source.read().take(), ["one"]);
}
