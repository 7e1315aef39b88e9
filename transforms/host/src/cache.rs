//! The on-disk cache of compiled plugins. A Rust plugin compiles in tens of milliseconds, a Python
//! or JavaScript plugin in many seconds.
//!
//! An entry is a file of native code. Its name contains a hash of the plugin's bytes and a hash of
//! the engine properties that the code depends on (version and configuration of wasmtime, the
//! processor). A second file, the seal, holds the length and checksum of the code, because wasmtime
//! checks only an entry's header and would execute a damaged body, and the SHA-256 of the plugin,
//! because several programs share the cache, and nobody may make a plugin whose entry is used for
//! another one. A plugin whose entry does not match is compiled again. A cache that cannot be
//! written is skipped with a warning.
//!
//! # What is executed
//! Only files that this user has written. The folder and its files must belong to the user, and no
//! other user may write to them. Otherwise the folder is not used, or the plugin is compiled.
//!
//! # Several processes
//! Files appear by rename. Two processes that compile the same plugin write the same bytes. A file
//! that is removed stays usable for processes that have mapped it.
//!
//! # Size
//! Entries are used or removed: before the files exceed [`MAX_BYTES`], those that were not used for
//! the longest time are removed.

use std::fs::{self, File, Metadata};
use std::hash::{Hash, Hasher};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Limit on the files of a cache. An entry of a Python plugin has 32 MB.
const MAX_BYTES: u64 = 1 << 30;
/// A temporary file of this age belongs to a process that was killed.
const MAX_TEMPORARY_AGE: Duration = Duration::from_secs(3600);
/// The use of an entry is noted in the time of its seal, at most this often.
const USE_INTERVAL: Duration = Duration::from_secs(600);

const CODE: &str = "cwasm";
const SEAL: &str = "sum";
const TEMPORARY: &str = "tmp";

/// A cache in a private directory.
#[derive(Debug)]
pub(crate) struct CompileCache {
    dir: PathBuf,
    max_bytes: u64,
}

impl CompileCache {
    /// Opens the first of these directories that can be used, and creates it if needed. Returns
    /// `None`, with a warning, if there are directories and none can be used.
    pub(crate) fn open(dirs: &[PathBuf]) -> Option<Self> {
        let mut problems = Vec::new();
        for dir in dirs {
            match ensure_private_dir(dir) {
                Ok(()) => return Some(Self { dir: dir.clone(), max_bytes: MAX_BYTES }),
                Err(error) => problems.push(format!("{}: {error}", dir.display())),
            }
        }
        if !problems.is_empty() {
            let problems = problems.join("; ");
            tracing::warn!(problems, "compile cache is disabled: no directory for it can be used");
        }
        None
    }

    /// The hash of the plugin's bytes, and the compiled plugin if there is an entry for it.
    pub(crate) fn get(&self, engine: &Engine, wasm: &[u8]) -> (u128, Option<Component>) {
        // The SHA-256 of a Python plugin takes 10 ms, as long as all the rest.
        let (hash, code, checked) = std::thread::scope(|scope| {
            let sha256 = scope.spawn(|| Sha256::digest(wasm));
            let hash = xxh3_128(wasm);
            let code = self.entry_path(engine, hash);
            let checked = match (read_entry(&code), sha256.join()) {
                (Ok(None), _) => Ok(false),
                (Ok(Some(entry)), Ok(sha256)) if entry.belongs_to(&sha256) => Ok(true),
                (Ok(Some(_)), Ok(_)) => Err("it is damaged".to_owned()),
                (Ok(Some(_)), Err(_)) => Err("the plugin cannot be hashed".to_owned()),
                (Err(problem), _) => Err(problem),
            };
            (hash, code, checked)
        });
        let component = match checked {
            Ok(is_found) => is_found.then(|| Self::load(engine, &code)).flatten(),
            Err(problem) => {
                let entry = code.display();
                tracing::warn!(%entry, problem, "compile cache entry is not used; compiling the plugin again");
                None
            }
        };
        (hash, component)
    }

    /// Loads the code of an entry that was checked.
    fn load(engine: &Engine, code: &Path) -> Option<Component> {
        // SAFETY: the bytes must be the unchanged output of `Component::serialize`. The directory
        // belongs to this user and no other one may write to it (checked when the cache was
        // opened), and neither may another one write to the file (checked above). Files appear only
        // by rename, and the checksum just read matches the bytes that were written. wasmtime
        // itself checks that this engine version wrote them.
        match unsafe { Component::deserialize_file(engine, code) } {
            Ok(component) => {
                note_use(&code.with_extension(SEAL));
                Some(component)
            }
            Err(error) => {
                tracing::warn!(
                    entry = %code.display(),
                    error = %format!("{error:#}"),
                    "compile cache entry cannot be loaded; compiling the plugin again"
                );
                None
            }
        }
    }

    /// Stores a compiled plugin. `hash`: the one that [`CompileCache::get`] returned.
    pub(crate) fn put(&self, engine: &Engine, hash: u128, wasm: &[u8], component: &Component) {
        let entry = self.entry_path(engine, hash);
        let written = component.serialize().map_err(|error| io::Error::other(format!("{error:#}"))).and_then(|code| {
            let seal = seal(code.len() as u64, xxh3_128(&code), &Sha256::digest(wasm));
            self.make_room((code.len() + seal.len()) as u64, &entry);
            write_atomically(&entry, &code)?;
            write_atomically(&entry.with_extension(SEAL), seal.as_bytes())
        });
        if let Err(error) = written {
            tracing::warn!(entry = %entry.display(), %error, "compile cache entry cannot be written");
        }
    }

    fn entry_path(&self, engine: &Engine, hash: u128) -> PathBuf {
        let mut compatibility = Xxh3::new();
        engine.precompile_compatibility_hash().hash(&mut compatibility);
        self.dir.join(format!("{hash:032x}-{:016x}.{CODE}", compatibility.finish()))
    }

    /// Removes the entries that were not used for the longest time until `bytes` fit, and what
    /// killed processes have left. Errors are ignored: another process may remove the same files.
    fn make_room(&self, bytes: u64, but_not: &Path) {
        let Ok(files) = fs::read_dir(&self.dir) else { return };
        let mut entries = Vec::new();
        let mut total = bytes;
        for path in files.filter_map(|file| Some(file.ok()?.path())) {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if extension.starts_with(TEMPORARY) && age(&metadata) > MAX_TEMPORARY_AGE {
                let _ = fs::remove_file(&path);
            } else if extension == CODE && path != but_not {
                let used = fs::metadata(path.with_extension(SEAL)).and_then(|seal| seal.modified());
                let used = used.or(metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                total += metadata.len();
                entries.push((used, metadata.len(), path));
            }
        }
        entries.sort();
        for (_, len, path) in entries {
            if total <= self.max_bytes {
                break;
            }
            // The code last: an entry without a seal is not used.
            let _ = fs::remove_file(path.with_extension(SEAL));
            let _ = fs::remove_file(&path);
            total -= len;
        }
    }
}

/// What the files of an entry contain. This user has written them.
struct Entry {
    code_len: u64,
    code_checksum: u128,
    seal: String,
}

impl Entry {
    /// Whether the seal was written for this code, and for the plugin with this SHA-256.
    fn belongs_to(&self, plugin: &[u8]) -> bool {
        seal(self.code_len, self.code_checksum, plugin) == self.seal
    }
}

/// Reads the entry with this code. `None` if there is no seal. The error states why the entry must
/// not be used.
fn read_entry(code: &Path) -> Result<Option<Entry>, String> {
    let seal_path = code.with_extension(SEAL);
    if !seal_path.exists() {
        return Ok(None);
    }
    let mut seal = String::new();
    let read = open_own(&seal_path).and_then(|mut file| file.read_to_string(&mut seal));
    read.map_err(|error| format!("its seal cannot be read: {error}"))?;
    let checksum = open_own(code).and_then(checksum_of);
    let (code_len, code_checksum) = checksum.map_err(|error| format!("its code cannot be read: {error}"))?;
    Ok(Some(Entry { code_len, code_checksum, seal }))
}

/// The content of a seal.
fn seal(code_len: u64, code_checksum: u128, plugin: &[u8]) -> String {
    let plugin: String = plugin.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{code_len} {code_checksum:032x} {plugin}\n")
}

fn checksum_of(mut file: File) -> io::Result<(u64, u128)> {
    let (mut hasher, mut len) = (Xxh3::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((len, hasher.digest128()));
        }
        hasher.update(&buffer[..read]);
        len += read as u64;
    }
}

/// Opens a file of the cache if only this user can have written it.
fn open_own(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    check_owner(&found)?;
    Ok(file)
}

/// Checks that a file or folder belongs to this user, and that no other one may write to it.
fn check_owner(found: &Metadata) -> io::Result<()> {
    // SAFETY: the call has no precondition.
    let user = unsafe { libc::geteuid() };
    if found.uid() != user {
        return Err(io::Error::other(format!("it belongs to the user {}, and this is the user {user}", found.uid())));
    }
    if found.mode() & 0o022 != 0 {
        let mode = found.mode() & 0o777;
        return Err(io::Error::other(format!("other users may write to it (mode {mode:o})")));
    }
    Ok(())
}

fn ensure_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    check_owner(&fs::metadata(dir)?)?;
    // A folder on a full or read-only file system would compile every time, without a word.
    let probe = temporary_path(&dir.join("probe"));
    File::options().write(true).create_new(true).mode(0o600).open(&probe)?;
    fs::remove_file(&probe)
}

fn age(metadata: &Metadata) -> Duration {
    metadata.modified().ok().and_then(|modified| modified.elapsed().ok()).unwrap_or_default()
}

/// Notes that an entry is used, for [`CompileCache::make_room`].
fn note_use(seal: &Path) {
    let Ok(file) = File::options().write(true).open(seal) else { return };
    if file.metadata().is_ok_and(|metadata| age(&metadata) > USE_INTERVAL) {
        let _ = file.set_modified(SystemTime::now());
    }
}

fn temporary_path(path: &Path) -> PathBuf {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    path.with_extension(format!("{TEMPORARY}-{}-{}", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)))
}

/// Writes a temporary file and renames it, so that readers see the complete file or no file.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_path(path);
    let _ = fs::remove_file(&temporary);
    let mut created = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let result = created.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A component of few bytes whose code differs by `number`.
    fn component(engine: &Engine, number: usize) -> (Vec<u8>, Component) {
        let wasm = wat::parse_str(format!("(component (core module (func (result i32) i32.const {number})))")).unwrap();
        let compiled = Component::new(engine, &wasm).unwrap();
        (wasm, compiled)
    }

    fn files(dir: &Path, extension: &str) -> usize {
        let all = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|found| found.to_string_lossy().starts_with(extension))).count()
    }

    #[test]
    fn entries_unused_for_longest_make_room_and_remains_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::default();
        let (first, compiled) = component(&engine, 0);
        let size = compiled.serialize().unwrap().len() as u64;
        let cache = CompileCache { dir: folder.path().to_owned(), max_bytes: 3 * size + size / 2 };
        let old = SystemTime::now() - Duration::from_secs(7200);
        let killed = folder.path().join("x.tmp-1-1");
        fs::write(&killed, "half").unwrap();
        File::options().write(true).open(&killed).unwrap().set_modified(old).unwrap();
        cache.put(&engine, xxh3_128(&first), &first, &compiled);
        assert_eq!(files(folder.path(), TEMPORARY), 0);
        let others: Vec<_> = (1..3).map(|number| component(&engine, number)).collect();
        for (wasm, compiled) in &others {
            cache.put(&engine, xxh3_128(wasm), wasm, compiled);
        }
        for seal in fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()) {
            File::options().write(true).open(seal).unwrap().set_modified(old).unwrap();
        }
        // Its use makes the first one the newest.
        assert!(cache.get(&engine, &first).1.is_some());
        let (last, compiled) = component(&engine, 3);
        cache.put(&engine, xxh3_128(&last), &last, &compiled);
        assert!(cache.get(&engine, &first).1.is_some() && cache.get(&engine, &last).1.is_some());
        assert_eq!((files(folder.path(), CODE), files(folder.path(), SEAL)), (3, 3));
    }

    #[test]
    fn entry_of_another_plugin_or_writable_by_others_is_not_used() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::default();
        let cache = CompileCache { dir: folder.path().to_owned(), max_bytes: MAX_BYTES };
        let ((one, compiled), (two, _)) = (component(&engine, 1), component(&engine, 2));
        cache.put(&engine, xxh3_128(&one), &one, &compiled);
        // As if the hashes in the names were equal.
        for extension in [CODE, SEAL] {
            let path = |wasm: &[u8]| cache.entry_path(&engine, xxh3_128(wasm)).with_extension(extension);
            fs::copy(path(&one), path(&two)).unwrap();
        }
        assert!(cache.get(&engine, &two).1.is_none() && cache.get(&engine, &one).1.is_some());
        for extension in [CODE, SEAL] {
            let path = cache.entry_path(&engine, xxh3_128(&one)).with_extension(extension);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
            assert!(cache.get(&engine, &one).1.is_none());
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            // A link leads out of the folder.
            let elsewhere = folder.path().join("elsewhere");
            fs::rename(&path, &elsewhere).unwrap();
            std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
            assert!(cache.get(&engine, &one).1.is_none());
            fs::rename(&elsewhere, &path).unwrap();
            assert!(cache.get(&engine, &one).1.is_some());
        }
    }

    #[test]
    fn the_first_usable_directory_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let (file, good) = (folder.path().join("file"), folder.path().join("good"));
        fs::write(&file, "").unwrap();
        let cache = CompileCache::open(&[file.join("below"), good.clone()]).unwrap();
        assert_eq!(cache.dir, good);
        assert!(CompileCache::open(&[file]).is_none() && CompileCache::open(&[]).is_none());
    }

    #[test]
    fn processes_that_write_and_read_the_same_entry_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::default();
        let (wasm, compiled) = component(&engine, 7);
        let cache = CompileCache { dir: folder.path().to_owned(), max_bytes: MAX_BYTES };
        cache.put(&engine, xxh3_128(&wasm), &wasm, &compiled);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..50).for_each(|_| cache.put(&engine, xxh3_128(&wasm), &wasm, &compiled)));
                scope.spawn(|| (0..50).for_each(|_| assert!(cache.get(&engine, &wasm).1.is_some())));
            }
        });
        assert_eq!((files(folder.path(), CODE), files(folder.path(), TEMPORARY)), (1, 0));
    }
}
