//! Symbolic links: every line is emitted once, however a log is reached.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::os::unix::fs::symlink;

use common::{TestSource, logged, numbered, numbered_lines, sorted, warnings};

/// A source that has read the 100 lines of `logs/x.log`, a link to `real/0.log`.
fn linked(following: bool) -> TestSource {
    let mut source = TestSource::new("paths = [\"logs/*.log\"]");
    source.until_idle = !following;
    source.append("real/0.log", numbered("old", 0..100));
    std::fs::create_dir_all(source.path("logs")).unwrap();
    symlink("../real/0.log", source.path("logs/x.log")).unwrap();
    assert_eq!(source.read().take().len(), 100);
    source
}

#[test]
fn loops_of_symbolic_links_end_and_paths_avoid_links() {
    let mut source = TestSource::new("paths = [\"logs/**/*.log\"]");
    source.append("logs/x.log", "x\n");
    source.append("logs/sub/y.log", "y\n");
    source.append("outside/z.log", "z\n");
    for (target, link) in [
        (".", "logs/a0"),
        (".", "logs/a1"),
        ("..", "logs/sub/up"),
        ("sub", "logs/aside"),
        ("../outside", "logs/out"),
        ("../logs", "outside/back"),
        ("self.log", "logs/self.log"),
        ("nowhere", "logs/broken.log"),
    ] {
        symlink(target, source.path(link)).unwrap();
    }
    let ((), lines) = logged(|| {
        source.read();
    });
    let folder = source.path("logs").to_string_lossy().into_owned();
    let mut seen: Vec<(&str, &str)> =
        source.seen.iter().map(|seen| (seen.path.strip_prefix(&folder).unwrap(), seen.text.as_str())).collect();
    seen.sort_unstable();
    assert_eq!(seen, [("/out/z.log", "z"), ("/sub/y.log", "y"), ("/x.log", "x")]);
    assert!(warnings(&lines).is_empty(), "{lines:?}");
}

#[test]
fn rotation_of_a_links_target_loses_no_line() {
    for following in [false, true] {
        let mut source = linked(following);
        if !following {
            source.stop();
        }
        source.append("real/0.log", numbered("late", 0..50));
        source.rename("real/0.log", "real/0.log.1");
        source.append("real/0.log", numbered("new", 0..30));
        source.read_until(80);
        let expected = [numbered_lines("late", 0..50), numbered_lines("new", 0..30)].concat();
        assert_eq!(sorted(source.take()), sorted(expected));
        source.stop();
        assert!(source.read().take().is_empty());
    }
}

/// The notification names the target of the link.
/// The rotated file is followed until it is finished, and its path has another file then.
#[test]
fn lines_behind_links_are_read_without_a_scan() {
    const PODS: usize = 6;
    let mut source = TestSource::following("paths = [\"logs/*.log\"]\npoll_interval = \"1h\"");
    std::fs::create_dir_all(source.path("logs")).unwrap();
    let append = |source: &TestSource, line: &str| {
        for pod in 0..PODS {
            source.append(&format!("pods/{pod}/app/0.log"), format!("{line} {pod}\n"));
        }
    };
    append(&source, "one");
    for pod in 0..PODS {
        // A link to a link, as the kubelet's of Docker's logs.
        symlink(format!("../pods/{pod}/app/0.log"), source.path("pod.log")).unwrap();
        std::fs::rename(source.path("pod.log"), source.path(&format!("logs/pod{pod}.log"))).unwrap();
        symlink(format!("pod{pod}.log"), source.path(&format!("logs/x{pod}.log"))).unwrap();
    }
    assert_eq!(source.read().take().len(), PODS);
    append(&source, "two");
    source.read_until(PODS);
    for pod in 0..PODS {
        source.rename(&format!("pods/{pod}/app/0.log"), &format!("pods/{pod}/app/0.log.1"));
    }
    append(&source, "three");
    source.read_until(2 * PODS);
    append(&source, "four");
    source.read_until(3 * PODS);
    let lines = |line: &str| (0..PODS).map(|pod| format!("{line} {pod}")).collect::<Vec<_>>();
    assert_eq!(sorted(source.take()), sorted([lines("two"), lines("three"), lines("four")].concat()));
}

#[test]
fn copytruncate_of_a_links_target_loses_no_line() {
    for following in [false, true] {
        let mut source = linked(following);
        source.stop();
        source.append("real/0.log", numbered("late", 0..50));
        source.copy_truncate("real/0.log", "real/0.log.1");
        source.append("real/0.log", numbered("new", 0..30));
        source.read_until(80);
        let expected = [numbered_lines("late", 0..50), numbered_lines("new", 0..30)].concat();
        assert_eq!(sorted(source.take()), sorted(expected));
    }
}

#[test]
fn a_switched_link_loses_no_line() {
    for following in [false, true] {
        let mut source = TestSource::new("paths = [\"current\"]");
        source.until_idle = !following;
        source.append("app-1.log", "one\n");
        symlink("app-1.log", source.path("current")).unwrap();
        assert_eq!(source.read().take(), ["one"]);
        if !following {
            source.stop();
        }
        source.append("app-1.log", "late\n");
        source.append("app-2.log", "two\n");
        source.remove("current");
        symlink("app-2.log", source.path("current")).unwrap();
        source.read_until(2);
        assert_eq!(sorted(source.take()), ["late", "two"]);
    }
    // The folder of the log is the link.
    let mut source = TestSource::new("paths = [\"current/*.log\"]");
    source.append("releases/1/a.log", "one\n");
    source.append("releases/2/a.log", "two\n");
    symlink("releases/1", source.path("current")).unwrap();
    assert_eq!(source.read().take(), ["one"]);
    source.stop();
    source.append("releases/1/a.log", "late\n");
    source.remove("current");
    symlink("releases/2", source.path("current")).unwrap();
    assert_eq!(sorted(source.read().take()), ["late", "two"]);
}

/// Such positions have no `real_path`.
#[test]
fn positions_of_earlier_versions_are_resumed() {
    let mut source = linked(false);
    source.stop();
    for value in source.position.values_mut() {
        let mut stored: serde_json::Value = serde_json::from_slice(value).unwrap();
        assert!(stored["real_path"].as_str().unwrap().ends_with("real/0.log"), "{stored}");
        stored.as_object_mut().unwrap().remove("real_path");
        for key in ["path", "offset", "head", "tail", "size", "mtime", "lane"] {
            assert!(stored.get(key).is_some(), "{stored} has no {key}");
        }
        *value = serde_json::to_vec(&stored).unwrap();
    }
    source.append("real/0.log", "late\n");
    source.rename("real/0.log", "real/0.log.1");
    source.append("real/0.log", "new\n");
    assert_eq!(sorted(source.read().take()), ["late", "new"]);
}
