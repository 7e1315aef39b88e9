//! The situations of `docs/guides/replay.md`: its pipeline files and commands are executed as they
//! are there, with the embedded broker and a real S3 server.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use trunkline_tests::{Case, Exit, KafkaClient, Process, Reader, S3, need, repository, wait, worker_binary};

use crate::{LONG, stop};

/// The place of the log in the guide.
const LOG: &str = "/var/log/shop/orders.json";

/// A block of code of the guide.
struct Block {
    /// The heading before it.
    heading: String,
    language: String,
    text: String,
}

/// The blocks of the section with this heading.
fn blocks(section: &str) -> Vec<Block> {
    let guide = fs::read_to_string(repository().join("docs/guides/replay.md")).unwrap();
    let (_, section) = guide.split_once(&format!("\n## {section}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let (mut found, mut heading) = (Vec::new(), String::new());
    let mut block: Option<(String, String)> = None;
    for line in section.lines() {
        match (&mut block, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => block = Some((language.to_owned(), String::new())),
            (Some((_, text)), None) => text.push_str(&format!("{}\n", line.trim_start())),
            (Some(_), Some(_)) => {
                let (language, text) = block.take().unwrap();
                found.push(Block { heading: heading.clone(), language, text });
            }
            (None, None) => {
                if let Some(text) = line.strip_prefix("### ") {
                    heading = text.to_owned();
                }
            }
        }
    }
    found
}

/// A machine on which the guide is followed: its folder, and the programs that the guide calls.
struct Machine<'a> {
    case: Case,
    s3: &'a S3,
    /// The folder of the bucket `lake`.
    lake: PathBuf,
    orders: u64,
    worker: Option<Process>,
    reloads: usize,
    /// The last run that a command has named.
    run: String,
    /// The range that the last audit has named.
    gap: Option<(String, String)>,
}

impl<'a> Machine<'a> {
    fn new(s3: &'a S3) -> Self {
        let case = Case::new("guide", &KafkaClient::new(String::new()));
        let lake = s3.bucket("lake");
        let programs = case.path("bin");
        fs::create_dir(&programs).unwrap();
        symlink(worker_binary(), programs.join("trunkline")).unwrap();
        let write = |name: &str, script: String| {
            let path = programs.join(name);
            fs::write(&path, format!("#!/bin/sh\nset -eu\n{script}")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        write("sudo", "exec \"$@\"\n".to_owned());
        write("systemctl", format!("[ \"$*\" = 'reload trunkline' ]\nkill -HUP \"$(cat {})\"\n", pid_file(&case)));
        let root = lake.parent().unwrap().display();
        // The objects of the server are files.
        let aws = format!(
            "[ \"$1 $3\" = 's3 --recursive' ]\nfrom={root}/${{4#s3://}}\ncase $2 in\n\
             rm) rm -r \"$from\" ;;\nmv) cp -r \"$from/.\" \"{root}/${{5#s3://}}/\"; rm -r \"$from\" ;;\n*) exit 1 ;;\nesac\n"
        );
        write("aws", aws);
        Self { case, s3, lake, orders: 0, worker: None, reloads: 0, run: String::new(), gap: None }
    }

    /// Appends orders to the log. Every fourth one is free.
    fn append(&mut self, count: u64) {
        use std::io::Write as _;
        let mut log = fs::OpenOptions::new().create(true).append(true).open(self.case.path("orders.json")).unwrap();
        for id in self.orders..self.orders + count {
            writeln!(log, "{{\"order_id\":{id},\"amount\":{},\"country\":\"DE\"}}", id % 4).unwrap();
        }
        self.orders += count;
    }

    /// What the guide leaves to the reader: the place of the log, and the S3 server. Small files
    /// are closed soon.
    fn local(&self, pipeline: &str) -> String {
        let server = format!(
            "endpoint = \"http://{}\"\nregion = \"{}\"\npath_style = true\nrotate = {{ records = 40, idle = \"200ms\" }}\n",
            self.s3.address(),
            S3::REGION
        );
        let log = self.case.path("orders.json").display().to_string();
        let lines = pipeline.lines().map(|line| match line.starts_with("url = ") {
            true => format!("{line}\n{server}"),
            false => format!("{line}\n"),
        });
        lines.collect::<String>().replace(LOG, &log)
    }

    /// Writes the tables of a block into the pipeline file, in the place of those of their names.
    fn edit(&self, block: &str) {
        let file = self.case.path("pipelines/orders.toml");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let header = block.lines().find(|line| line.starts_with('[')).unwrap();
        let changed = match text.split_once(&format!("{header}\n")) {
            _ if block.starts_with('#') => self.local(block),
            Some((before, rest)) => {
                let after = rest.find("\n[").map_or("", |end| &rest[end..]);
                format!("{before}{}{after}", self.local(block))
            }
            None => format!("{text}\n{}", self.local(block)),
        };
        fs::write(file, changed).unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE_")) {
            command.env_remove(name);
        }
        let path = format!("{}:{}", self.case.path("bin").display(), std::env::var("PATH").unwrap());
        command.env("PATH", path).envs(S3::CREDENTIALS).current_dir(self.case.path(""));
        command.env("TRUNKLINE_HTTP", "127.0.0.1:0").env("TRUNKLINE_LOG_FORMAT", "text");
        command
    }

    fn start_worker(&mut self) {
        let mut command = self.command("trunkline");
        command.args(["run", "pipelines/"]);
        let worker = Process::spawn(command, &self.case.path("worker"));
        fs::write(pid_file(&self.case), worker.pid().to_string()).unwrap();
        self.worker = Some(worker);
    }

    /// Executes the commands of a block, one in each line.
    fn execute(&mut self, block: &str) {
        for line in block.lines() {
            let expected = line.split_once("# exit code ").map_or(0, |(_, code)| code[..1].parse().unwrap());
            let mut line = line.replace(" ID ", &format!(" {} ", self.run));
            if let (Some((from, to)), true) = (&self.gap, line.contains(" 0:1200 ")) {
                line = line.replace(" 0:1200 ", &format!(" {from} ")).replace(" 0:4500 ", &format!(" {to} "));
            }
            let exit = self.run_line(&line);
            assert_eq!(exit.code, Some(expected), "{line}\n{}", exit.describe());
            if let Some((_, rest)) = exit.stderr.split_once("run 2") {
                self.run = format!("2{}", rest.split(':').next().unwrap());
            }
            if let Some((_, gap)) = exit.stdout.split_once("(--from ") {
                let (from, to) = gap.split(')').next().unwrap().split_once(" --to ").unwrap();
                self.gap = Some((from.to_owned(), to.to_owned()));
            }
            if line.contains("systemctl reload") {
                self.reloads += 1;
                let worker = self.worker.as_ref().unwrap();
                wait::until("the worker has reloaded its files", LONG, || {
                    (worker.stderr().matches("pipelines reloaded").count() > self.reloads).then_some(())
                });
            }
            self.check_output(&line, &exit);
        }
    }

    fn run_line(&self, line: &str) -> Exit {
        let mut command = self.command("sh");
        command.args(["-c", line]);
        Process::spawn(command, &self.case.path("command")).wait(LONG)
    }

    /// What the guide says about the output of a command.
    fn check_output(&self, line: &str, exit: &Exit) {
        let free = self.orders.div_ceil(4);
        let has = |text: &str| assert!(exit.stdout.contains(text), "{line}: no {text}\n{}", exit.describe());
        if line.contains("--to-stdout") {
            assert_eq!(exit.stdout.lines().count(), 20, "{}", exit.describe());
            assert!(exit.stdout.lines().all(|line| line.contains("\"amount\":0")), "{}", exit.describe());
        } else if line.contains("replay diff") {
            has(&format!("0 changed, 0 only in the live destination, {free} only in the shadow"));
        } else if line.contains("--supersede --dry-run") {
            has("Replaces ");
        } else if line.contains("runs show") {
            has("live run orders.archive (sink): ");
        }
    }

    /// The rows of a folder of the bucket, and their different orders.
    fn rows(&self, reader: &Reader, folder: &str) -> (u64, u64) {
        if !self.lake.join(folder).exists() {
            return (0, 0);
        }
        let found = reader.read(&self.lake.join(folder), &["order_id"]);
        (found.rows, found.distinct.unwrap_or_default())
    }

    fn wait_for_rows(&self, reader: &Reader, folder: &str, rows: u64) {
        wait::until(&format!("{rows} rows in {folder}"), LONG, || (self.rows(reader, folder).0 >= rows).then_some(()));
        assert_eq!(self.rows(reader, folder), (rows, rows), "{folder}");
    }
}

fn pid_file(case: &Case) -> String {
    case.path("worker.pid").display().to_string()
}

#[test]
fn the_guide_to_replays_is_followed_step_by_step() {
    let reader = need!(Reader::find());
    // Its bucket has the name that the guide uses.
    let s3 = need!(S3::start());
    let mut machine = Machine::new(&s3);
    let blocks = blocks("Three situations, step by step");
    let of = |heading: &str| blocks.iter().filter(|block| block.heading == heading).collect::<Vec<_>>();
    assert!(blocks[0].heading.is_empty() && blocks[0].text.contains(LOG), "the pipeline file comes first");
    machine.edit(&blocks[0].text);
    machine.append(200);
    machine.start_worker();
    machine.wait_for_rows(&reader, "orders", 150);

    let [fix, look, reload, compare, replace] = of("A bug in a transform last week")[..] else {
        panic!("other blocks")
    };
    machine.edit(&fix.text);
    machine.execute(&look.text);
    machine.execute(&reload.text);
    machine.execute(&compare.text);
    // Live records arrive meanwhile, and pass the corrected transform.
    machine.append(40);
    machine.execute(&replace.text);
    machine.wait_for_rows(&reader, "orders", 240);
    assert!(!machine.lake.join("orders-fixed").exists());

    let [sink, begin, run] = of("A new sink that needs the past")[..] else { panic!("other blocks") };
    machine.edit(&sink.text);
    machine.execute(&begin.text);
    machine.execute(&run.text);
    machine.wait_for_rows(&reader, "archive", 240);

    let [audit, restore, check] = of("A destination that lost data")[..] else { panic!("other blocks") };
    for rows in [280, 320] {
        machine.append(40);
        machine.wait_for_rows(&reader, "orders", rows);
    }
    remove_one_file(&machine.lake.join("orders"));
    assert!(machine.rows(&reader, "orders").0 < 320);
    machine.execute(&audit.text);
    machine.execute(&restore.text);
    machine.execute(&check.text);
    assert_eq!(machine.rows(&reader, "orders"), (320, 320));
    assert!(blocks.iter().all(|block| ["sh", "toml"].contains(&block.language.as_str())));
    stop(machine.worker.take().unwrap());
}

/// Removes one of the published files.
fn remove_one_file(folder: &Path) {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|kind| kind == "parquet")).collect();
    files.sort();
    assert!(files.len() > 2, "{files:?}");
    fs::remove_file(&files[files.len() / 2]).unwrap();
}
