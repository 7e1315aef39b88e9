//! The steps on a directory, with a crash before and after each call.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use trunkline_connector::{Batch, MemoryBudget, Rejections, Schema, SchemaId, SchemaLookup, SinkSpec, TopicPartition};
use trunkline_transform_host::{Host, HostOptions};

use super::*;
use crate::checkpoint::Counters;
use crate::config::Settings;
use crate::plan::{Registry, load_each};
use crate::replay::run::{PartitionRange, Request};

/// The run replays these offsets; the live sink has written ten more.
const RANGE: (i64, i64) = (0, 20);

/// The code of the error that stands for a crash.
const CRASH: &str = "crash";

struct NoSchemas;

impl SchemaLookup for NoSchemas {
    fn schema(&self, _: SchemaId) -> Result<Option<Arc<Schema>>> {
        Ok(None)
    }
}

/// A crash at one of the moments before and after each call.
struct Crash(Cell<Option<u32>>);

impl Crash {
    fn pass(&self) -> Result<()> {
        let left = self.0.get();
        self.0.set(left.map(|left| left.saturating_sub(1)));
        if left == Some(0) { Err(Error::internal(CRASH, "the process dies here")) } else { Ok(()) }
    }

    fn around<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        self.pass()?;
        let done = call()?;
        self.pass()?;
        Ok(done)
    }
}

/// What survives a crash.
#[derive(Default)]
struct Stored {
    step: Step,
    replaced: Vec<OutputFile>,
}

struct TestRecord<'a> {
    stored: &'a RefCell<Stored>,
    crash: &'a Crash,
}

impl Record for TestRecord<'_> {
    fn step(&self) -> Step {
        self.stored.borrow().step
    }

    fn publish(&mut self, replaced: Vec<OutputFile>) -> Result<()> {
        self.crash.around(|| {
            *self.stored.borrow_mut() = Stored { step: Step::Publishing, replaced };
            Ok(())
        })
    }

    fn remove(&mut self) -> Result<()> {
        self.crash.around(|| {
            self.stored.borrow_mut().step = Step::Removing;
            Ok(())
        })
    }

    fn finish(&mut self) -> Result<()> {
        self.crash.around(|| {
            self.stored.borrow_mut().step = Step::Done;
            Ok(())
        })
    }

    fn replaced(&self) -> Result<Vec<OutputFile>> {
        Ok(self.stored.borrow().replaced.clone())
    }
}

struct TestOutput<'a> {
    lake: &'a Lake,
    /// Opened when it is first used.
    sink: Option<Box<dyn ErasedTwoPhaseSink>>,
    crash: &'a Crash,
}

impl TestOutput<'_> {
    fn sink(&mut self) -> &mut Box<dyn ErasedTwoPhaseSink> {
        self.sink.get_or_insert_with(|| self.lake.open(Some("r")))
    }
}

impl Output for TestOutput<'_> {
    fn check(&mut self, staged: &[Value]) -> Result<()> {
        let crash = self.crash;
        crash.around(|| self.sink().check_prepared(staged))
    }

    fn list(&mut self) -> Result<Vec<OutputFile>> {
        self.crash.around(|| {
            let row = IntentRecord {
                state: IntentState::Committed,
                payload: Value::Null,
                first: 0,
                next: 30,
                counters: Counters::default(),
                sink_state: None,
            };
            replaced_files("p.lake", &run(), &BTreeMap::from([(partition(), row)]), self.lake.files())
        })
    }

    fn commit(&mut self, staged: &[Value]) -> Result<()> {
        let crash = self.crash;
        crash.around(|| self.sink().commit(staged))
    }

    fn remove(&mut self, files: &[OutputFile]) -> Result<()> {
        self.crash.around(|| self.lake.spec.remove_output(files, self.lake.runtime.handle()))
    }
}

/// A directory with the files of a live sink, and the spec of that sink.
struct Lake {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    spec: Arc<dyn SinkSpec>,
}

impl Lake {
    fn new(host: &Host) -> Self {
        // In memory where that is possible, because each step syncs files.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let file = folder.path().join("p.toml");
        let text = format!(
            "name = \"p\"\n[sinks.lake]\nconnector = \"s3\"\ninputs = [\"topic:t\"]\nurl = \"file://{}/lake\"\npath = \"day={{day}}\"\n",
            folder.path().display()
        );
        std::fs::write(&file, text).unwrap();
        let settings = Settings::load(None, &Vec::new()).unwrap();
        let mut loaded = load_each(&[file], host, &settings, &Registry::new());
        assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
        let spec = Arc::clone(&loaded.pipelines.remove(0).sinks[0].spec);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { folder, runtime, spec }
    }

    fn open(&self, replay: Option<&str>) -> Box<dyn ErasedTwoPhaseSink> {
        let sink = self.spec.open(SinkContext {
            name: "p.lake".to_owned(),
            replay: replay.map(|run| SinkReplay {
                run: run.to_owned(),
                supersedes: true,
                ranges: run_ranges(),
                earlier: BTreeSet::new(),
            }),
            budget: MemoryBudget::new(64 << 20),
            runtime: self.runtime.handle().clone(),
            scratch: self.folder.path().to_owned(),
            schemas: Arc::new(NoSchemas),
        });
        let Sink::TwoPhase(sink) = sink.unwrap() else { panic!("the sink is not a two-phase sink") };
        sink
    }

    /// Prepares the offsets of a commit as one file.
    fn prepare(&self, sink: &mut dyn ErasedTwoPhaseSink, offsets: std::ops::Range<i64>) -> Value {
        let mut batch = Batch::default();
        let topic = batch.topic_index("t");
        for offset in offsets {
            let mut record = batch.record();
            let value = format!("{{\"day\":0,\"offset\":{offset}}}");
            record.read_from(topic, 0, offset).timestamp(7).value(value.as_bytes());
            record.finish();
        }
        sink.write(&partition(), &batch, &mut Rejections::default()).unwrap();
        let plan = sink.seal(&partition()).unwrap().unwrap();
        sink.prepare(&[plan], &mut Rejections::default()).unwrap().remove(0)
    }

    fn files(&self) -> Vec<OutputFile> {
        self.spec.list_output(self.runtime.handle()).unwrap().unwrap().files
    }

    fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.files().into_iter().map(|file| file.id).collect();
        ids.sort();
        ids
    }

    /// Folders and files of unfinished output.
    fn staging(&self) -> Vec<String> {
        let folder = self.folder.path().join("lake/.trunkline-staging");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_name() != "p.lake" {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
            let files = std::fs::read_dir(entry.path()).unwrap();
            found.extend(files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned()));
        }
        found
    }
}

fn partition() -> TopicPartition {
    TopicPartition::new("t", 0)
}

fn run() -> Run {
    Run {
        id: "r".to_owned(),
        pipeline: "p".to_owned(),
        sink: "lake".to_owned(),
        transform: false,
        destination: String::new(),
        into: String::new(),
        request: Request {
            from: "earliest".to_owned(),
            to: "latest".to_owned(),
            by: None,
            partitions: None,
            dead_letters: false,
            pipeline_file: None,
            supersede: true,
            append: false,
        },
        ranges: vec![PartitionRange { topic: "t".to_owned(), partition: 0, from: RANGE.0, to: RANGE.1 }],
        supersede: Some(Superseding::default()),
        switch: None,
        state: RunState::Running,
        error: None,
        node: "n".to_owned(),
        user: String::new(),
        rate: None,
        executed: None,
        started: 0,
        ended: None,
    }
}

fn run_ranges() -> BTreeMap<TopicPartition, (i64, i64)> {
    BTreeMap::from([(partition(), RANGE)])
}

/// Rows of each offset in the range.
fn rows_in_range(files: &[OutputFile]) -> u64 {
    files.iter().filter(|file| is_in(file, RANGE)).map(|file| file.records).sum()
}

#[test]
fn a_crash_at_any_step_ends_with_the_earlier_or_with_the_new_files() {
    let host = Host::new(HostOptions::default()).unwrap();
    let (mut discarded, mut completed) = (0, 0);
    for moment in 0.. {
        let lake = Lake::new(&host);
        let mut live = lake.open(None);
        for offsets in [0..10, 10..20, 20..30] {
            let committable = lake.prepare(live.as_mut(), offsets);
            live.commit(&[committable]).unwrap();
        }
        let before = lake.ids();
        assert_eq!((before.len(), rows_in_range(&lake.files())), (3, 20));
        let mut replay = lake.open(Some("r"));
        let staged: Vec<Value> = [0..7, 7..20].map(|offsets| lake.prepare(replay.as_mut(), offsets)).to_vec();
        assert_eq!(lake.ids(), before, "prepared files are not visible");
        // A live task that starts meanwhile knows nothing of the replay's files.
        lake.open(None).recover(&partition(), &[]).unwrap();

        let stored = RefCell::new(Stored::default());
        let crash = Crash(Cell::new(Some(moment)));
        let attempt = |crash: &Crash| {
            let mut record = TestRecord { stored: &stored, crash };
            let mut output = TestOutput { lake: &lake, sink: None, crash };
            advance(&mut record, &mut output, &staged, Some(1), &StopSignal::default())
        };
        let is_crashed = match attempt(&crash) {
            Ok(ending) => {
                assert_eq!(ending, Ending::Finished);
                false
            }
            Err(error) => {
                assert_eq!(error.code, CRASH, "{error}");
                true
            }
        };
        assert!(rows_in_range(&lake.files()) >= 20, "no row is missing at any time");
        if is_crashed && stored.borrow().step == Step::Staging {
            assert_eq!(lake.ids(), before, "moment {moment}: nothing was changed before the intent");
            if moment % 2 == 0 {
                lake.open(Some("r")).discard_prepared(&staged).unwrap();
                assert_eq!((lake.ids(), lake.staging()), (before, Vec::new()));
                discarded += 1;
                continue;
            }
        }
        assert_eq!(attempt(&Crash(Cell::new(None))).unwrap(), Ending::Finished, "moment {moment}");
        let after = lake.files();
        assert_eq!((after.len(), rows_in_range(&after)), (3, 20), "moment {moment}");
        let kept: Vec<&OutputFile> = after.iter().filter(|file| before.contains(&file.id)).collect();
        assert!(kept.len() == 1 && kept.iter().all(|file| file.first >= 20), "moment {moment}: {kept:?}");
        assert_eq!(lake.staging(), Vec::<String>::new(), "moment {moment}");
        completed += 1;
        if !is_crashed {
            break;
        }
    }
    assert!(discarded > 2 && completed > 10, "{discarded} discarded, {completed} completed");
}

#[test]
fn nothing_is_published_if_staged_files_or_the_range_have_changed() {
    let host = Host::new(HostOptions::default()).unwrap();
    let lake = Lake::new(&host);
    let mut live = lake.open(None);
    let committable = lake.prepare(live.as_mut(), 0..20);
    live.commit(&[committable]).unwrap();
    let before = lake.ids();
    let mut replay = lake.open(Some("r"));
    let staged = [lake.prepare(replay.as_mut(), 0..20)];
    let attempt = |staged: &[Value], stored: &RefCell<Stored>| {
        let crash = Crash(Cell::new(None));
        let mut record = TestRecord { stored, crash: &crash };
        let mut output = TestOutput { lake: &lake, sink: None, crash: &crash };
        advance(&mut record, &mut output, staged, Some(1), &StopSignal::default()).map_err(|error| error.code)
    };
    // A file across the end of the range: the position of the live sink was moved back.
    let across = lake.prepare(live.as_mut(), 15..25);
    live.commit(std::slice::from_ref(&across)).unwrap();
    let stored = RefCell::new(Stored::default());
    assert_eq!(attempt(&staged, &stored), Err("replay.output_changed"));
    let added: Vec<OutputFile> = lake.files().into_iter().filter(|file| !before.contains(&file.id)).collect();
    lake.spec.remove_output(&added, lake.runtime.handle()).unwrap();
    // A repeated removal changes nothing.
    lake.spec.remove_output(&added, lake.runtime.handle()).unwrap();
    // A staged file was lost.
    let staging = lake.folder.path().join("lake/.trunkline-staging/p.lake+r");
    let victim = std::fs::read_dir(&staging).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(victim).unwrap();
    assert_eq!(attempt(&staged, &stored), Err("s3.prepared_object_missing"));
    assert_eq!((lake.ids(), stored.borrow().step), (before, Step::Staging));
    // Files elsewhere are not removed.
    let mut foreign = lake.files().remove(0);
    foreign.name = lake.folder.path().join("p.toml").display().to_string();
    let refused = lake.spec.remove_output(std::slice::from_ref(&foreign), lake.runtime.handle());
    assert_eq!(refused.unwrap_err().code, "s3.other_destination");
    assert!(Path::new(&foreign.name).exists());
    let climbing = OutputFile { name: format!("{}/lake/../p.toml", lake.folder.path().display()), ..foreign };
    assert!(lake.spec.check_removal(&[climbing], lake.runtime.handle()).is_err());
}
