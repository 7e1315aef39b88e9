//! A local directory. Objects grow in a hidden folder of the same file system; `prepare` makes them
//! durable, and `commit` gives them their final name, which is atomic and never overwrites.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use parquet::file::metadata::ParquetMetaDataReader;
use trunkline_connector::{Error, OutputFile, Result, SinkReplay, TopicPartition, failpoint, io_error};

use super::{Store, key_taken, prepared_object_missing, sink_named_in, writer_prefix};
use crate::intent::{Committable, Plan, PreparedObject, Upload};
use crate::names::{STAGING, temp_prefix};
use crate::object::{footer, remove_temp};

const SCHEME: &str = "file://";

/// See the module's header.
pub(crate) struct DirectoryStore {
    root: PathBuf,
    spool: PathBuf,
    /// The spool belongs to a replay, and goes with its last file.
    is_temporary: bool,
}

impl DirectoryStore {
    /// Creates the directory if it is missing, and checks that files can be written to it. A replay
    /// that supersedes has another spool: the live sink removes files from its own that it does not
    /// know.
    pub(crate) fn open(root: &Path, sink: &str, replay: Option<&SinkReplay>) -> Result<Self> {
        let superseding = replay.filter(|replay| replay.supersedes);
        let spool = match superseding {
            // The name of a sink has no `+`.
            Some(replay) => staging_folder(root, &format!("{sink}+{}", replay.run)),
            None => staging_folder(root, sink),
        };
        let create =
            |path: &Path| fs::create_dir_all(path).map_err(|error| io_error("create the directory", path, &error));
        create(root)?;
        // Absolute: a task that starts in another folder must find the files that plans name.
        let root = root.canonicalize().map_err(|error| io_error("find", root, &error))?;
        create(&spool)?;
        let spool = spool.canonicalize().map_err(|error| io_error("find", &spool, &error))?;
        write_probe(&spool)?;
        Ok(Self { root, spool, is_temporary: superseding.is_some() })
    }

    /// Checks that files can be written to the directory, or that it can be created.
    pub(crate) fn check(root: &Path) -> Result<()> {
        let folder = root.ancestors().find(|path| path.exists() && !path.as_os_str().is_empty());
        write_probe(folder.unwrap_or(Path::new(".")))
    }
}

/// Checks that these files of a directory exist and that they may be removed.
pub(crate) fn check_removal(root: &Path, files: &[OutputFile]) -> Result<()> {
    let mut folders = BTreeSet::new();
    for path in paths_below(root, files)? {
        fs::symlink_metadata(path).map_err(|error| io_error("look at", path, &error))?;
        folders.extend(path.parent());
    }
    folders.into_iter().try_for_each(write_probe)
}

/// Removes files of a directory.
pub(crate) fn remove_files(root: &Path, files: &[OutputFile]) -> Result<()> {
    let mut touched = BTreeSet::new();
    for path in paths_below(root, files)? {
        match fs::remove_file(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed.map_err(|error| io_error("remove", path, &error))?,
        }
        touched.extend(path.parent().filter(|folder| folder.exists()));
    }
    touched.into_iter().try_for_each(sync_folder)
}

/// Names are read from Kafka, so they must be below the root.
fn paths_below<'f>(root: &Path, files: &'f [OutputFile]) -> Result<Vec<&'f Path>> {
    let below = |file: &'f OutputFile| {
        let path = Path::new(file.name.as_str());
        let is_plain = path.strip_prefix(root).is_ok_and(|rest| {
            rest.components().next().is_some()
                && rest.components().all(|component| matches!(component, std::path::Component::Normal(_)))
        });
        let message = || format!("{} is not below {}: has the sink's url changed?", file.name, root.display());
        is_plain.then_some(path).ok_or_else(|| Error::config("s3.other_destination", message()))
    };
    files.iter().map(below).collect()
}

impl DirectoryStore {
    /// Removes the spool of a replay once it is empty.
    fn remove_temporary_spool(&self) {
        if self.is_temporary
            && let Err(error) = fs::remove_dir(&self.spool)
            && !matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound)
        {
            tracing::debug!(folder = %self.spool.display(), %error, "the folder of the replay cannot be removed");
        }
    }

    /// Root and local folder of a recorded destination, which differs from this one if the
    /// pipeline's url has changed.
    fn folders(&self, destination: &str) -> Result<(PathBuf, PathBuf)> {
        let root = root_of(destination)?;
        let spool = match self.spool.strip_prefix(&self.root) {
            Ok(folder) => root.join(folder),
            Err(_) => self.spool.clone(),
        };
        Ok((root, spool))
    }
}

/// Writes a hidden file, and removes it.
fn write_probe(folder: &Path) -> Result<()> {
    let probe = folder.join(format!(".probe-{}.tmp", uuid::Uuid::new_v4().simple()));
    fs::write(&probe, b"can this directory be written to?").map_err(|error| io_error("write to", folder, &error))?;
    remove_temp(&probe);
    Ok(())
}

/// `{root}/.trunkline-staging/{sink}`; the sink's name as one segment.
fn staging_folder(root: &Path, sink: &str) -> PathBuf {
    root.join(STAGING).join(sink.replace(['/', '\\'], "_"))
}

/// The sink that wrote a file; `None` if the file is not one of ours.
fn sink_of(path: &Path) -> Option<String> {
    sink_named_in(&ParquetMetaDataReader::new().parse_and_finish(&File::open(path).ok()?).ok()?)
}

fn root_of(destination: &str) -> Result<PathBuf> {
    destination.strip_prefix(SCHEME).map(PathBuf::from).ok_or_else(|| {
        Error::config(
            "s3.other_destination",
            format!("objects are prepared at {destination}, but the sink now writes to a directory. Run it once more with the earlier url"),
        )
    })
}

/// Joins a recorded name to the root. Names are read from Kafka, so they must not leave the root.
fn below(root: &Path, name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    let plain = path.components().all(|component| matches!(component, std::path::Component::Normal(_)));
    if plain && !name.is_empty() {
        Ok(root.join(path))
    } else {
        Err(Error::data("s3.unreadable_intent", format!("a recorded object has the name `{name}`, which is no path")))
    }
}

impl Store for DirectoryStore {
    fn spool(&self) -> &Path {
        &self.spool
    }

    fn existing_output(&self, sink: &str, partitions: &[TopicPartition]) -> Result<Option<String>> {
        let prefixes: BTreeSet<String> = partitions.iter().map(temp_prefix).collect();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).map_err(|error| io_error("list", &folder, &error))?;
            for entry in entries.filter_map(std::result::Result::ok) {
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                if name.starts_with('.') {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                    continue;
                }
                if writer_prefix(&name).is_some_and(|prefix| prefixes.contains(&prefix))
                    && sink_of(&path).as_deref() == Some(sink)
                {
                    return Ok(Some(path.display().to_string()));
                }
            }
        }
        Ok(None)
    }

    fn destination(&self) -> String {
        format!("{SCHEME}{}", self.root.display())
    }

    fn key(&self, name: &str) -> String {
        name.to_owned()
    }

    fn prepare(&mut self, plans: &[Plan]) -> Result<Vec<Vec<Option<Upload>>>> {
        failpoint!("directory.sync.before")?;
        for object in plans.iter().flat_map(|plan| &plan.objects) {
            let temp = below(&self.spool, &object.temp)?;
            let synced = File::open(&temp).and_then(|file| file.sync_all());
            synced.map_err(|error| io_error("make durable", &temp, &error))?;
        }
        sync_folder(&self.spool)?;
        failpoint!("directory.sync.after")?;
        Ok(plans.iter().map(|plan| vec![None; plan.objects.len()]).collect())
    }

    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        let mut touched = BTreeSet::new();
        let mut temps = Vec::new();
        for committable in committables {
            let (root, spool) = self.folders(&committable.destination)?;
            for object in &committable.objects {
                let temp = below(&spool, &object.planned.temp)?;
                let target = below(&root, &object.planned.key)?;
                failpoint!("directory.rename.before")?;
                commit_file(&temp, &target, object, &root, &mut touched)?;
                failpoint!("directory.rename.after")?;
                temps.push(temp);
            }
        }
        // The final names are synced before the hidden ones are removed. After a power cut between
        // the two, both exist, and the next call finds the object committed.
        for folder in &touched {
            sync_folder(folder)?;
        }
        failpoint!("directory.remove.before")?;
        temps.iter().for_each(|temp| remove_temp(temp));
        self.remove_temporary_spool();
        failpoint!("directory.remove.after")
    }

    fn check_prepared(&mut self, committables: &[Committable]) -> Result<()> {
        for committable in committables {
            let (root, spool) = self.folders(&committable.destination)?;
            for object in &committable.objects {
                let temp = below(&spool, &object.planned.temp)?;
                let found = match fs::metadata(&temp) {
                    Ok(metadata) => Some(metadata.len()),
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    Err(error) => return Err(io_error("read the size of", &temp, &error)),
                };
                if found != Some(object.planned.bytes) {
                    let target = below(&root, &object.planned.key)?.display().to_string();
                    let bytes = found.unwrap_or(0);
                    let why =
                        format!("its staged file {} has {bytes} bytes, not {}", temp.display(), object.planned.bytes);
                    return Err(prepared_object_missing(&target, &why));
                }
            }
        }
        Ok(())
    }

    fn discard_prepared(&mut self, committables: &[Committable]) -> Result<()> {
        for committable in committables {
            let (_, spool) = self.folders(&committable.destination)?;
            for object in &committable.objects {
                remove_temp(&below(&spool, &object.planned.temp)?);
            }
        }
        self.remove_temporary_spool();
        Ok(())
    }

    fn abort(&mut self, plan: &Plan) -> Result<()> {
        let (_, spool) = self.folders(&plan.destination)?;
        for object in &plan.objects {
            remove_temp(&below(&spool, &object.temp)?);
        }
        Ok(())
    }

    fn remove_leftovers(&mut self, partition: &TopicPartition, keep: &dyn Fn(&str) -> bool) -> Result<()> {
        let prefix = temp_prefix(partition);
        let entries = fs::read_dir(&self.spool).map_err(|error| io_error("list", &self.spool, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| io_error("list", &self.spool, &error))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&prefix) && !keep(&name) {
                remove_temp(&entry.path());
            }
        }
        Ok(())
    }
}

/// Gives the local file its final name. A hard link is atomic and does not overwrite. On a file
/// system without hard links the file is renamed after a check; the id in the name makes a
/// collision very unlikely.
fn commit_file(
    temp: &Path,
    target: &Path,
    object: &PreparedObject,
    root: &Path,
    touched: &mut BTreeSet<PathBuf>,
) -> Result<()> {
    let folder = target.parent().unwrap_or(root);
    create_folders(folder, root, touched)?;
    let linked = match fs::hard_link(temp, target) {
        Err(error) if !matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) && !target.exists() => {
            fs::rename(temp, target)
        }
        linked => linked,
    };
    match linked {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if !is_ours(target, object)? {
                return Err(key_taken(&target.display().to_string()));
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => match target.try_exists() {
            // Another task, or an earlier run of this one, committed it.
            Ok(true) if is_ours(target, object)? => {}
            Ok(true) => return Err(key_taken(&target.display().to_string())),
            Ok(false) => {
                let why = format!("neither it nor its staged file {} exists", temp.display());
                return Err(prepared_object_missing(&target.display().to_string(), &why));
            }
            Err(error) => return Err(io_error("look at", target, &error)),
        },
        Err(error) => return Err(io_error("publish", target, &error)),
    }
    touched.insert(folder.to_owned());
    Ok(())
}

/// Creates the folder and collects every folder with a new entry, which must be synced.
fn create_folders(folder: &Path, root: &Path, touched: &mut BTreeSet<PathBuf>) -> Result<()> {
    for missing in folder.ancestors().take_while(|ancestor| *ancestor != root && !ancestor.exists()) {
        touched.extend(missing.parent().map(Path::to_owned));
    }
    fs::create_dir_all(folder).map_err(|error| io_error("create the directory", folder, &error))
}

/// The file at `target` is the prepared object.
fn is_ours(target: &Path, object: &PreparedObject) -> Result<bool> {
    let file = File::open(target).map_err(|error| io_error("read", target, &error))?;
    let size = file.metadata().map_err(|error| io_error("read the size of", target, &error))?.len();
    if size != object.planned.bytes {
        return Ok(false);
    }
    let Ok(metadata) = ParquetMetaDataReader::new().parse_and_finish(&file) else { return Ok(false) };
    let pairs = metadata.file_metadata().key_value_metadata();
    Ok(pairs.is_some_and(|pairs| {
        pairs.iter().any(|pair| pair.key == footer::ID && pair.value.as_deref() == Some(&object.planned.id))
    }))
}

fn sync_folder(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| io_error("make durable", folder, &error))
}
