//! Reloads: unchanged plans, plans that are kept because a file is invalid, and deleted files.

use std::path::PathBuf;

use trunkline::config::Settings;
use trunkline::plan::{Files, Loaded, Registry};

use crate::support::{Folder, host};

fn read(files: &mut Files, folder: &Folder) -> Loaded {
    let settings = Settings::load(None, &Vec::new()).unwrap();
    files.read(&[folder.path().to_owned()], host(), &settings, &Registry::new())
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect()
}

fn codes(loaded: &Loaded) -> Vec<(String, &'static str)> {
    let file = |path: &Option<PathBuf>| path.as_ref().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let problems = loaded.problems.iter();
    problems.flat_map(|wrong| wrong.problems.iter().map(move |problem| (file(&wrong.file), problem.code))).collect()
}

fn web(name: &str, more: &str) -> String {
    format!("name = \"{name}\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"{name}.log\"]\n{more}\n")
}

const REST: &str = r#"
apply = ["mask"]
[transforms.mask]
plugin = "mask.wasm"
config = { fields = ["ip"] }
[transforms.clean]
inputs = ["web"]
plugin = "testing.wasm"
topic = "clean"
[sinks.lake]
connector = "s3"
inputs = ["clean"]
url = "file:///lake"
tasks = 2
"#;

#[test]
fn plans_are_equal_unless_their_options_change() {
    let (mut files, folder) = (Files::default(), Folder::new());
    folder.write("a.toml", &web("a", REST));
    let loaded = read(&mut files, &folder);
    assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
    let before = &loaded.pipelines[0];
    let change = |from: &str, to: &str, files: &mut Files| {
        let text = web("a", REST);
        assert!(text.contains(from), "{from}");
        folder.write("a.toml", &text.replace(from, to));
        let loaded = read(files, &folder);
        assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
        let after = &loaded.pipelines[0];
        (after.sources == before.sources, after.transforms == before.transforms, after.sinks == before.sinks)
    };
    let mut same = |from: &str, to: &str| change(from, to, &mut files);
    assert_eq!(same("name = \"a\"", "# a comment\nname = 'a'\ndescription = \"x\""), (true, true, true));
    assert_eq!(same("tasks = 2", "tasks = 3"), (true, true, true));
    assert_eq!(same("[\"a.log\"]", "[\"b.log\"]"), (false, true, true));
    assert_eq!(same("\"a.log\"]", "\"a.log\"]\ncommit_interval = \"1s\""), (false, true, true));
    assert_eq!(same("testing.wasm\"", "testing.wasm\"\ntimeout = \"9s\""), (true, false, true));
    assert_eq!(same("\"ip\"", "\"ip\", \"port\""), (false, true, true));
    assert_eq!(same("file:///lake\"", "file:///lake\"\npath = \"x\""), (true, true, false));
    // The writer and the reader of a topic both depend on its name.
    assert_eq!(same("topic = \"clean\"", "topic = \"cleaned\""), (true, false, false));

    // Another plugin with the same name.
    let bytes = std::fs::read(folder.path().join("testing.wasm")).unwrap();
    // A custom section without content: [id, size, length of its name, name].
    std::fs::write(folder.path().join("testing.wasm"), [bytes.as_slice(), &[0, 2, 1, b'x']].concat()).unwrap();
    assert_eq!(same("name", "name"), (true, false, true));
    assert!(files.plugins().contains(&folder.path().join("testing.wasm")), "{:?}", files.plugins());
}

#[test]
fn an_invalid_file_keeps_its_previous_plan() {
    let (mut files, folder) = (Files::default(), Folder::new());
    folder.write("a.toml", &web("a", "")).write("b.toml", &web("b", "")).write("new.toml", "name =");
    let loaded = read(&mut files, &folder);
    assert_eq!((names(&loaded), loaded.problems.len()), (vec!["a", "b"], 1));
    assert!(loaded.kept.is_empty());

    folder.write("a.toml", &web("a", "pathes = 1")).write("b.toml", &web("b", "partitions = 7"));
    let loaded = read(&mut files, &folder);
    assert_eq!((names(&loaded), loaded.kept.as_slice()), (vec!["a", "b"], &["a".to_owned()][..]));
    assert_eq!(loaded.pipelines[1].sources[0].partitions, Some(7));
    // Also on a later reload, and with a syntax error.
    folder.write("a.toml", "name = [");
    let loaded = read(&mut files, &folder);
    assert_eq!((names(&loaded), loaded.kept.as_slice()), (vec!["a", "b"], &["a".to_owned()][..]));

    // The plan of a deleted file is dropped.
    std::fs::remove_file(folder.path().join("a.toml")).unwrap();
    let loaded = read(&mut files, &folder);
    assert_eq!((names(&loaded), loaded.kept.len()), (vec!["b"], 0));
    // If the folder is missing, too, its disk may be unmounted.
    std::fs::rename(folder.path(), folder.path().with_extension("away")).unwrap();
    let loaded = read(&mut files, &folder);
    std::fs::rename(folder.path().with_extension("away"), folder.path()).unwrap();
    assert_eq!((names(&loaded), loaded.kept.as_slice()), (vec!["b"], &["b".to_owned()][..]));
    assert_eq!(loaded.problems.len(), 1);
}

#[test]
fn kept_plans_keep_their_names_and_topics() {
    let (mut files, folder) = (Files::default(), Folder::new());
    folder.write("b.toml", &web("b", "topic = \"one\"")).write("c.toml", &web("c", "topic = \"two\""));
    assert_eq!(names(&read(&mut files, &folder)), ["b", "c"]);

    // A new file uses a topic of a running pipeline: the new file is invalid, although its path sorts first.
    folder.write("a.toml", &web("a", "topic = \"one\""));
    let loaded = read(&mut files, &folder);
    assert_eq!((names(&loaded), loaded.kept.len()), (vec!["b", "c"], 0));
    assert_eq!(codes(&loaded), [("a.toml".to_owned(), "plan.topic_taken")]);

    // It may use the topic once the other file gives it up, but not while that file is invalid and keeps it.
    folder.write("b.toml", &web("b", "topic = \"three\"\nx = 1"));
    let loaded = read(&mut files, &folder);
    assert_eq!((names(&loaded), loaded.kept.as_slice()), (vec!["b", "c"], &["b".to_owned()][..]));
    assert_eq!(loaded.pipelines[0].sources[0].topic.source(), "one");
    assert_eq!(
        codes(&loaded),
        [("a.toml".to_owned(), "plan.topic_taken"), ("b.toml".to_owned(), "config.unknown_key")]
    );
    folder.write("b.toml", &web("b", "topic = \"three\""));
    let loaded = read(&mut files, &folder);
    assert_eq!((names(&loaded), loaded.problems.len()), (vec!["a", "b", "c"], 0));

    // A kept plan may cause another one to be kept: c wants the topic that a keeps, and b the one that c keeps.
    folder
        .write("a.toml", &web("a", "topic = \"four\"\nx = 1"))
        .write("b.toml", &web("b", "topic = \"two\""))
        .write("c.toml", &web("c", "topic = \"one\""));
    let loaded = read(&mut files, &folder);
    let topics = loaded.pipelines.iter().map(|pipeline| pipeline.sources[0].topic.source());
    assert_eq!(topics.collect::<Vec<_>>(), ["one", "three", "two"]);
    assert_eq!(loaded.problems.len(), 3, "{:?}", codes(&loaded));

    // A pipeline keeps its name when its file is renamed.
    folder.write("a.toml", &web("a", "topic = \"one\"")).write("b.toml", &web("b", "topic = \"three\""));
    std::fs::remove_file(folder.path().join("c.toml")).unwrap();
    folder.write("d.toml", &web("c", "topic = \"two\""));
    let loaded = read(&mut files, &folder);
    assert_eq!((names(&loaded), loaded.problems.len()), (vec!["a", "b", "c"], 0));
}
