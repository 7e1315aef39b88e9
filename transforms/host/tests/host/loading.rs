//! Plugin files, other files, configurations, and the compile cache.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use trunkline_transform_host::{Host, HostOptions, Limits, LoadError};

use crate::support::{host, run, testing_plugin, testing_wasm, values};

#[test]
fn files_of_other_kinds_are_named_in_the_error() {
    let rejected = |bytes: &[u8]| host().load_bytes("x.wasm", bytes).unwrap_err().to_string();
    for (bytes, found) in [
        (&b""[..], "empty"),
        (b"hello", "a text file"),
        (b"(module)", "WebAssembly text"),
        (b"\x7fELF\x02\x01", "a native library"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\0asm\x07\0\0\0", "WebAssembly of an unknown version"),
        (b"\xff\xfe\0", "an unknown binary file"),
    ] {
        let message = rejected(bytes);
        assert!(
            message.starts_with(&format!("`x.wasm` is {found}")) && message.contains("wasm32-unknown-unknown"),
            "{message}"
        );
    }
    let plain_module = wat::parse_str("(module (func (export \"process\")))").unwrap();
    assert!(matches!(
        host().load_bytes("x.wasm", &plain_module),
        Err(LoadError::WrongWorld { .. } | LoadError::NoWorld { .. })
    ));
    let imports = wat::parse_str(r#"(module (import "env" "f" (func)))"#).unwrap();
    let message = rejected(&imports);
    assert!(message.contains("core module that cannot be encoded as a component"), "{message}");
    let mut damaged = testing_wasm().to_vec();
    damaged.truncate(damaged.len() / 2);
    assert!(matches!(host().load_bytes("x.wasm", &damaged), Err(LoadError::Compile { .. })));
    assert!(matches!(host().load_bytes("x.wasm", b"\0asm\x0d\0\x01\0junk"), Err(LoadError::Compile { .. })));
}

#[test]
fn plugins_are_loaded_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.wasm");
    assert!(matches!(host().load(&path), Err(LoadError::Read { .. })));
    fs::write(&path, testing_wasm()).unwrap();
    let plugin = host().load(&path).unwrap();
    assert_eq!((plugin.name(), plugin.hash()), ("mine.wasm", testing_plugin().hash()));
    // With a cache, too, the hash is the one of 64 bits.
    let cached = Host::new(HostOptions { cache_dirs: vec![folder.path().join("cache")] }).unwrap();
    assert_eq!(cached.load(&path).unwrap().hash(), xxhash_rust::xxh3::xxh3_64(testing_wasm()));
    assert_eq!(plugin.hash(), xxhash_rust::xxh3::xxh3_64(testing_wasm()));
    assert!(host().bundled("mine.wasm").is_none());
}

#[test]
fn rejected_configuration_names_its_key() {
    let rejected = |config| testing_plugin().start(&config, &Limits::default()).unwrap_err();
    let error = rejected(json!({ "trap_on": "" }));
    assert_eq!((error.key.as_deref(), error.message.as_str()), (Some("trap_on"), "is empty; expected a text"));
    let error = rejected(json!({ "trap_onn": "x" }));
    assert_eq!(error.key.as_deref(), Some("trap_onn"));
    assert!(error.message.ends_with("did you mean `trap_on`?"), "{error}");
    assert_eq!(rejected(json!("text")).key, None);
    assert!(testing_plugin().start(&serde_json::Value::Null, &Limits::default()).is_ok());
}

fn cached_host(folder: &Path) -> Host {
    Host::new(HostOptions { cache_dirs: vec![folder.to_owned()] }).unwrap()
}

fn entries(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

fn assert_works(host: &Host) {
    let plugin = host.load_bytes("testing.wasm", testing_wasm()).unwrap();
    let mut instance = plugin.start(&json!({ "upper_on": "a" }), &Limits::default()).unwrap();
    assert_eq!(values(&run(&mut instance, &["a"]).0), ["A"]);
}

#[test]
fn compiled_plugin_is_reused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    assert_works(&cached_host(&dir));
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let [entry] = entries(&dir, "cwasm").try_into().unwrap();
    let written = fs::metadata(&entry).unwrap().modified().unwrap();
    assert_works(&cached_host(&dir));
    assert_eq!(fs::metadata(&entry).unwrap().modified().unwrap(), written, "read from the cache, not written again");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "no temporary file remains");
}

#[test]
fn damaged_or_foreign_cache_entry_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    assert_works(&cached_host(folder.path()));
    let [entry] = entries(folder.path(), "cwasm").try_into().unwrap();
    let good = fs::read(&entry).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for bad in [&flipped[..], &good[..good.len() - 1], b"", b"not code"] {
        fs::write(&entry, bad).unwrap();
        assert_works(&cached_host(folder.path()));
        assert_eq!(fs::read(&entry).unwrap().len(), good.len(), "written again");
    }
    // the body of a different engine, with a matching checksum
    let [sum] = entries(folder.path(), "sum").try_into().unwrap();
    let foreign = b"\x7fELF of another version";
    fs::write(&entry, foreign).unwrap();
    let plugin = fs::read_to_string(&sum).unwrap().split_whitespace().last().unwrap().to_owned();
    let checksum = xxhash_rust::xxh3::xxh3_128(foreign);
    fs::write(&sum, format!("{} {checksum:032x} {plugin}\n", foreign.len())).unwrap();
    assert_works(&cached_host(folder.path()));
    assert_eq!(fs::read(&entry).unwrap().len(), good.len());
}

#[test]
fn cache_directory_that_others_may_write_to_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert_works(&cached_host(folder.path()));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn instances_outlive_their_host() {
    let host = Host::new(HostOptions::default()).unwrap();
    let plugin = host.load_bytes("testing.wasm", testing_wasm()).unwrap();
    drop(host);
    let limits = Limits { timeout: std::time::Duration::from_millis(100), ..Limits::default() };
    let mut instance = plugin.start(&json!({ "loop_on": "forever" }), &limits).unwrap();
    drop(plugin);
    let (_, rejected, _) = run(&mut instance, &["forever"]);
    assert_eq!(rejected.reasons[0].code, "plugin.timeout");
}
