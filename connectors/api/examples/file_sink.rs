//! A two-phase sink: files of JSON lines in a directory, written under a hidden name and made
//! visible by a rename.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::{
    Batch, Buffered, Reason, Rejections, Result, Sink, SinkConnector, SinkContext, SinkSpec, SinkWriter,
    TopicPartition, TwoPhaseSink, io_error,
};

const OPTIONS: &[OptionSpec] = &[OptionSpec::required("directory", "path", "Where to write.", "\"/data/out\"")];

/// The connector: its name and its options.
pub struct FileConnector;
impl SinkConnector for FileConnector {
    fn name(&self) -> &'static str {
        "file"
    }
    fn summary(&self) -> &'static str {
        "Files of JSON lines in a directory"
    }
    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }
    fn configure(&self, section: &Section<'_>, _template_variables: &[&str]) -> Option<Box<dyn SinkSpec>> {
        Some(Box::new(FileSpec(section.base.join(section.required::<PathBuf>("directory")?))))
    }
}

struct FileSpec(PathBuf);

impl SinkSpec for FileSpec {
    fn open(&self, _context: SinkContext) -> Result<Sink> {
        fs::create_dir_all(&self.0).map_err(|error| io_error("create", &self.0, &error))?;
        Ok(Sink::TwoPhase(Box::new(FileSink { directory: self.0.clone(), lines: HashMap::new() })))
    }
}

struct FileSink {
    directory: PathBuf,
    lines: HashMap<TopicPartition, Vec<u8>>,
}

impl FileSink {
    fn hidden(&self, name: &str) -> PathBuf {
        self.directory.join(format!(".{name}"))
    }
}

impl SinkWriter for FileSink {
    fn write(&mut self, partition: &TopicPartition, records: &Batch, rejected: &mut Rejections) -> Result<()> {
        let lines = self.lines.entry(partition.clone()).or_default();
        for record in records.iter() {
            match record.value().filter(|value| serde_json::from_slice::<serde_json::Value>(value).is_ok()) {
                Some(value) => lines.extend(value.iter().chain(b"\n")),
                None => rejected.push(record, Reason::new("file.not_json", "the value is not JSON")),
            }
        }
        Ok(())
    }
    fn buffered(&self, partition: &TopicPartition) -> Buffered {
        let lines = self.lines.get(partition).map_or(&[][..], Vec::as_slice);
        let records = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        Buffered { bytes: lines.len() as u64, records, open_files: 0 }
    }
    fn discard(&mut self, partition: &TopicPartition) {
        self.lines.remove(partition);
    }
}

impl TwoPhaseSink for FileSink {
    type Plan = String; // The name of a file.
    type Committable = String;

    fn seal(&mut self, partition: &TopicPartition) -> Result<Option<String>> {
        let Some(lines) = self.lines.remove(partition).filter(|lines| !lines.is_empty()) else { return Ok(None) };
        let name = format!("{partition}-{}.jsonl", uuid::Uuid::new_v4());
        fs::write(self.hidden(&name), lines).map_err(|error| io_error("write", &self.hidden(&name), &error))?;
        Ok(Some(name))
    }

    fn prepare(&mut self, plans: &[String], _rejected: &mut Rejections) -> Result<Vec<String>> {
        for name in plans {
            let synced = fs::File::open(self.hidden(name)).and_then(|file| file.sync_all());
            synced.map_err(|error| io_error("sync", &self.hidden(name), &error))?;
        }
        Ok(plans.to_vec())
    }

    fn commit(&mut self, committables: &[String]) -> Result<()> {
        for name in committables {
            let visible = self.directory.join(name);
            match fs::rename(self.hidden(name), &visible) {
                // An earlier call, or another task, renamed it.
                Err(error) if error.kind() == ErrorKind::NotFound && visible.exists() => {}
                renamed => renamed.map_err(|error| io_error("rename to", &visible, &error))?,
            }
        }
        Ok(())
    }

    fn abort(&mut self, name: &String) -> Result<()> {
        match fs::remove_file(self.hidden(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("remove", &self.hidden(name), &error)),
            _ => Ok(()),
        }
    }

    fn recover(&mut self, partition: &TopicPartition, pending: &[String]) -> Result<()> {
        let entries = fs::read_dir(&self.directory).map_err(|error| io_error("list", &self.directory, &error))?;
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let names = names.filter_map(|name| name.strip_prefix('.').map(str::to_owned));
        let ours = names.filter(|name| name.starts_with(&format!("{partition}-")) && !pending.contains(name));
        ours.collect::<Vec<_>>().iter().try_for_each(|name| self.abort(name))
    }
}
