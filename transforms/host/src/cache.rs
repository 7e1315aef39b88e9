//! Compiled plugins on disk. A Rust plugin compiles in tens of milliseconds, a Python one in seconds.
//!
//! An entry is a file of native code, named after the hash of the plugin's bytes and of everything about the engine that code depends
//! on (wasmtime's version, its configuration, the processor). A file beside it holds its length and checksum, because the engine only
//! checks an entry's head and would run a damaged body. An entry that does not fit is compiled again; a cache that cannot be written is
//! done without.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::Engine;
use wasmtime::component::Component;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

/// The directory, known to be private.
#[derive(Debug)]
pub(crate) struct CompileCache {
    dir: PathBuf,
}

impl CompileCache {
    /// Makes the directory if needed. `None`, with a warning, if it cannot be used.
    pub(crate) fn open(dir: PathBuf) -> Option<Self> {
        match prepare(&dir) {
            Ok(()) => Some(Self { dir }),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "compiled plugins are not kept");
                None
            }
        }
    }

    pub(crate) fn get(&self, engine: &Engine, wasm: &[u8]) -> Option<Component> {
        let entry = self.entry(engine, wasm);
        let expected = fs::read(sum_of(&entry)).ok()?;
        let code = fs::read(&entry).ok()?;
        if checksum(&code) != expected {
            tracing::warn!(entry = %entry.display(), "a compiled plugin is damaged and compiled again");
            return None;
        }
        drop(code);
        // SAFETY: the bytes must be what `Component::serialize` wrote, unchanged. The directory is the worker's own (mode 0700, checked
        // when it was opened), entries appear in it by rename only, and the checksum just read is that of the bytes that were written.
        // Whether this engine made them is checked by wasmtime itself.
        match unsafe { Component::deserialize_file(engine, &entry) } {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(entry = %entry.display(), error = %format!("{error:#}"), "a compiled plugin is compiled again");
                None
            }
        }
    }

    pub(crate) fn put(&self, engine: &Engine, wasm: &[u8], component: &Component) {
        let entry = self.entry(engine, wasm);
        let written = component.serialize().map_err(|error| io::Error::other(format!("{error:#}"))).and_then(|code| {
            write_whole(&entry, &code)?;
            write_whole(&sum_of(&entry), &checksum(&code))
        });
        if let Err(error) = written {
            tracing::warn!(entry = %entry.display(), %error, "a compiled plugin is not kept");
        }
    }

    fn entry(&self, engine: &Engine, wasm: &[u8]) -> PathBuf {
        let mut compatibility = Xxh3::new();
        engine.precompile_compatibility_hash().hash(&mut compatibility);
        self.dir.join(format!("{:032x}-{:016x}.cwasm", xxh3_128(wasm), compatibility.finish()))
    }
}

fn sum_of(entry: &Path) -> PathBuf {
    entry.with_extension("sum")
}

fn checksum(code: &[u8]) -> Vec<u8> {
    format!("{} {:016x}\n", code.len(), xxh3_64(code)).into_bytes()
}

fn prepare(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let found = fs::metadata(dir)?;
    if found.permissions().mode() & 0o022 != 0 {
        return Err(io::Error::other(format!(
            "others may write to it (mode {:o}, expected 700)",
            found.mode() & 0o777
        )));
    }
    Ok(())
}

/// Under a name of its own first, then renamed: readers see the whole file or none.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let unique = format!("tmp-{}-{}", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
    let temporary = path.with_extension(unique);
    let result = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}
