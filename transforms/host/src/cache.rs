//! The on-disk cache of compiled plugins. A Rust plugin compiles in tens of milliseconds, a Python
//! plugin in seconds.
//!
//! An entry is a file of native code. Its name contains the hash of the plugin's bytes and the hash
//! of the engine properties that the code depends on (version and configuration of wasmtime, the
//! processor). A second file holds the length and checksum of the entry, because wasmtime checks
//! only an entry's header and would execute a damaged body. A plugin whose entry does not match is
//! compiled again. A cache that cannot be written is skipped with a warning.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::Engine;
use wasmtime::component::Component;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

/// A cache in a private directory.
#[derive(Debug)]
pub(crate) struct CompileCache {
    dir: PathBuf,
}

impl CompileCache {
    /// Opens the cache and creates its directory if needed. Returns `None`, with a warning, if the
    /// directory cannot be used.
    pub(crate) fn open(dir: PathBuf) -> Option<Self> {
        match ensure_private_dir(&dir) {
            Ok(()) => Some(Self { dir }),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "compile cache is disabled: its directory cannot be used");
                None
            }
        }
    }

    pub(crate) fn get(&self, engine: &Engine, wasm: &[u8]) -> Option<Component> {
        let entry = self.entry_path(engine, wasm);
        let expected = fs::read(checksum_path(&entry)).ok()?;
        let code = fs::read(&entry).ok()?;
        if checksum(&code) != expected {
            tracing::warn!(entry = %entry.display(), "compile cache entry is damaged; compiling the plugin again");
            return None;
        }
        drop(code);
        // SAFETY: the bytes must be the unchanged output of `Component::serialize`. The directory
        // is private to the worker (mode 0700, checked when the cache was opened), entries appear
        // in it only by rename, and the checksum just read matches the bytes that were written.
        // wasmtime itself checks that this engine version wrote them.
        match unsafe { Component::deserialize_file(engine, &entry) } {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(
                    entry = %entry.display(),
                    error = %format!("{error:#}"),
                    "compile cache entry cannot be loaded; compiling the plugin again"
                );
                None
            }
        }
    }

    pub(crate) fn put(&self, engine: &Engine, wasm: &[u8], component: &Component) {
        let entry = self.entry_path(engine, wasm);
        let written = component.serialize().map_err(|error| io::Error::other(format!("{error:#}"))).and_then(|code| {
            write_atomically(&entry, &code)?;
            write_atomically(&checksum_path(&entry), &checksum(&code))
        });
        if let Err(error) = written {
            tracing::warn!(entry = %entry.display(), %error, "compile cache entry cannot be written");
        }
    }

    fn entry_path(&self, engine: &Engine, wasm: &[u8]) -> PathBuf {
        let mut compatibility = Xxh3::new();
        engine.precompile_compatibility_hash().hash(&mut compatibility);
        self.dir.join(format!("{:032x}-{:016x}.cwasm", xxh3_128(wasm), compatibility.finish()))
    }
}

fn checksum_path(entry: &Path) -> PathBuf {
    entry.with_extension("sum")
}

fn checksum(code: &[u8]) -> Vec<u8> {
    format!("{} {:016x}\n", code.len(), xxh3_64(code)).into_bytes()
}

fn ensure_private_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let found = fs::metadata(dir)?;
    if found.permissions().mode() & 0o022 != 0 {
        return Err(io::Error::other(format!(
            "other users may write to it (mode {:o}, expected 700)",
            found.mode() & 0o777
        )));
    }
    Ok(())
}

/// Writes a temporary file and renames it, so that readers see the complete file or no file.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let unique = format!("tmp-{}-{}", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
    let temporary = path.with_extension(unique);
    let result = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}
