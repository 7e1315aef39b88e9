//! Tables against a map, and with every kind of damage.

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// In memory where that is possible: writes sync their files.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Writes changes, and takes them over into the model. A merge keeps the guard while it uses the
/// folder.
fn write(tables: &mut Tables, model: &mut Model, changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>, guard: &Arc<()>) {
    let fill = |writer: &mut TableWriter| changes.iter().try_for_each(|(key, value)| writer.add(key, value.as_deref()));
    for (key, value) in changes {
        match value {
            Some(value) => drop(model.insert(key.clone(), value.clone())),
            None => drop(model.remove(key)),
        }
    }
    tables.write(json!({ "rows": model.len() }), fill).unwrap();
    tables.merge_if_due(guard.clone()).unwrap();
}

fn rows_from(tables: &Tables, start: &[u8]) -> Result<Model, TableError> {
    let mut rows = tables.rows_from(start)?;
    let mut found = Model::new();
    let mut last = None;
    while let Some((key, value)) = rows.next()? {
        assert!(last.is_none_or(|last| last < key.to_vec()), "rows out of order");
        last = Some(key.to_vec());
        found.insert(key.to_vec(), value.to_vec());
    }
    Ok(found)
}

fn check(tables: &mut Tables, model: &Model, probes: &[Vec<u8>]) {
    assert_eq!(tables.checkpoint(), Some(&json!({ "rows": model.len() })));
    assert_eq!(rows_from(tables, &[]).unwrap(), *model);
    for probe in probes.iter().chain(model.keys()) {
        assert_eq!(tables.get(probe).unwrap(), model.get(probe).map(Vec::as_slice));
    }
    for probe in probes {
        let expected: Model = model.range(probe.clone()..).map(|(key, value)| (key.clone(), value.clone())).collect();
        assert_eq!(rows_from(tables, probe).unwrap(), expected);
    }
}

/// Short keys that collide, keys with long common prefixes, and some that fill blocks.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => proptest::collection::vec(0..3u8, 0..4),
        4 => (0..400u32).prop_map(|number| format!("a-common-prefix-of-all-{number:06}").into_bytes()),
        1 => (0..4u8, 3_000..9_000usize).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

fn changes() -> impl Strategy<Value = BTreeMap<Vec<u8>, Option<Vec<u8>>>> {
    let size = prop_oneof![20 => 0..100usize, 1 => 3_000..20_000usize];
    let value = proptest::option::weighted(0.8, (any::<u8>(), size).prop_map(|(byte, len)| vec![byte; len]));
    proptest::collection::btree_map(key(), value, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn tables_agree_with_a_map(
        writes in proptest::collection::vec((changes(), any::<bool>()), 1..40),
        probes in proptest::collection::vec(key(), 8),
    ) {
        let folder = folder();
        let (mut tables, mut model) = (Tables::open(folder.path()).unwrap(), Model::new());
        let guard = Arc::new(());
        for (changes, reopens) in &writes {
            write(&mut tables, &mut model, changes, &guard);
            if *reopens {
                // A merge that runs is stopped. What it has written may be left over.
                drop(tables);
                while Arc::strong_count(&guard) > 1 {
                    std::thread::yield_now();
                }
                tables = Tables::open(folder.path()).unwrap();
            }
        }
        check(&mut tables, &model, &probes);
    }
}

/// Files in this folder that this process has open.
fn open_files(folder: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter_map(|link| fs::read_link(link.path()).ok()).filter(|path| path.starts_with(folder)).count()
}

#[test]
fn open_files_are_bounded_while_tables_are_written_and_merged() {
    let folder = folder();
    let mut tables = Tables::open(folder.path()).unwrap();
    let mut most = 0;
    for turn in 0..100u32 {
        let fill = |writer: &mut TableWriter| {
            (0..200u32).try_for_each(|number| writer.add(format!("{number:04}-{turn}").as_bytes(), Some(&[0; 100])))?;
            most = most.max(open_files(folder.path()));
            Ok(())
        };
        tables.write(json!({}), fill).unwrap();
        most = most.max(open_files(folder.path()));
        tables.merge_if_due(()).unwrap();
        most = most.max(open_files(folder.path()));
    }
    assert!((MERGE_AT..=MAX_FILES).contains(&most), "{most} files");
}

#[test]
fn many_rows_are_merged_and_removed_ones_vanish() {
    let folder = folder();
    let (mut tables, mut model) = (Tables::open(folder.path()).unwrap(), Model::new());
    let key = |number: u32| format!("key-{number:07}").into_bytes();
    let mut number = 1u64;
    for turn in 0..60u32 {
        // More rows than a part of a table has, in all.
        let mut changes = BTreeMap::new();
        for _ in 0..4_000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = (number >> 20 & 7 > 0).then(|| vec![turn as u8; 20]);
            changes.insert(key((number >> 33) as u32 % 100_000), value);
        }
        write(&mut tables, &mut model, &changes, &Arc::default());
        assert!(tables.tables.len() <= MAX_TABLES);
    }
    assert!(model.len() > 65_536);
    let probes: Vec<_> = [0, 17_000, 65_536, 99_999, 100_000].map(key).into_iter().collect();
    check(&mut tables, &model, &probes);
    tables.take_merged(true).unwrap();
    let all: Vec<_> = tables.tables.clone();
    let merged = merge(&all, false, (&folder.path().join("merged"), 1_000_000), &AtomicBool::new(false));
    let merged = Arc::new(merged.unwrap().unwrap());
    let mut rows = Merge::new(std::slice::from_ref(&merged), &[]).unwrap();
    let mut count = 0;
    while let Some((_, value)) = rows.next().unwrap() {
        assert!(value.is_some(), "a removed row remains");
        count += 1;
    }
    assert_eq!(count, model.len());
    assert!(merged.index_bytes() < 3 * count, "{} bytes for {count} rows", merged.index_bytes());
    drop(tables);
    // Files that the manifest does not name are removed.
    let mut tables = Tables::open(folder.path()).unwrap();
    check(&mut tables, &model, &probes);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), tables.tables.len() + 1);
}

#[test]
fn a_merge_takes_the_tables_that_are_not_much_larger_than_the_newer_ones() {
    assert_eq!(merged_tables(&[10; 16]), 16);
    let sizes = |last: u64| [vec![10; 16], vec![last]].concat();
    assert_eq!((merged_tables(&sizes(320)), merged_tables(&sizes(321))), (17, 16));
    // A small write does not keep the others from being merged.
    assert_eq!(merged_tables(&[1, 100, 100, 100, 10_000]), 4);
    assert_eq!(merged_tables(&[1, 10, 100, 1_000]), 2);
}

/// One changed byte, or a file that is cut, is reported; the rows are never different.
#[test]
fn every_damaged_byte_and_every_cut_is_detected() {
    let folder = folder();
    let (mut tables, mut model) = (Tables::open(folder.path()).unwrap(), Model::new());
    for turn in 0..2u8 {
        let changes = (0..70u8).map(|key| (vec![turn, key], Some(vec![key; 40]))).chain([(vec![1, 200], None)]);
        write(&mut tables, &mut model, &changes.collect(), &Arc::default());
    }
    drop(tables);
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 3);
    let mut damages = 0;
    for path in names {
        let whole = fs::read(&path).unwrap();
        let is_detected = || {
            let outcome = Tables::open(folder.path()).and_then(|mut tables| {
                let rows = rows_from(&tables, &[])?;
                model.keys().try_for_each(|key| tables.get(key).map(|value| assert_eq!(value, Some(&*model[key]))))?;
                Ok((rows, tables.checkpoint().cloned()))
            });
            match outcome {
                Err(TableError::Damaged(_)) => true,
                Ok((rows, checkpoint)) => {
                    assert_eq!((rows, checkpoint), (model.clone(), Some(json!({ "rows": model.len() }))));
                    false
                }
                Err(other) => panic!("{other}"),
            }
        };
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, bytes).unwrap();
            // The last byte of the manifest is a line end, which means nothing.
            assert!(is_detected() || (path.ends_with(MANIFEST) && at + 1 == whole.len()), "byte {at} of {path:?}");
            damages += 1;
        }
        for len in (0..whole.len() - 1).step_by(7) {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(is_detected(), "{len} bytes of {path:?}");
        }
        fs::write(&path, &whole).unwrap();
        assert!(!is_detected());
    }
    assert!(damages > 7_000, "{damages}");
    // A table that another one has replaced.
    let (first, second) = (folder.path().join("0"), folder.path().join("1"));
    fs::copy(second, first).unwrap();
    assert!(matches!(Tables::open(folder.path()), Err(TableError::Damaged(_))));
}
