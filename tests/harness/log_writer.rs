//! The writer of access logs.

use std::fs;
use std::io::Read;

use trunkline_tests::LogWriter;

#[test]
fn one_seed_gives_the_same_lines_with_and_without_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut straight = LogWriter::new(path("a.log"), 7);
    straight.append(300);
    let mut rotated = LogWriter::new(path("b.log"), 7);
    rotated.append(100);
    rotated.rotate(&path("b.log.1"));
    rotated.append(100);
    rotated.copy_truncate(&path("b.log.2"));
    rotated.append(100);
    assert_eq!((rotated.lines(), rotated.bytes()), (300, straight.bytes()));
    let pieces = ["b.log.1", "b.log.2", "b.log"].map(|name| fs::read(path(name)).unwrap());
    assert_eq!(pieces.concat(), fs::read(path("a.log")).unwrap());

    LogWriter::gzip(&path("b.log.1"));
    let mut unpacked = Vec::new();
    let packed = fs::File::open(path("b.log.1.gz")).unwrap();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, pieces[0]);
    assert!(!path("b.log.1").exists());

    let mut other = LogWriter::new(path("c.log"), 8);
    other.append(300);
    assert_ne!(fs::read(path("c.log")).unwrap(), fs::read(path("a.log")).unwrap());
}
