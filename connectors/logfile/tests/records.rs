//! What the options add to records, which lines they drop, and which files they remove.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use common::{TestSource, logged, warnings};
use trunkline_connector::conformance::configure_source;
use trunkline_connector::{Batch, SourceBatch, headers};
use trunkline_logfile::LogfileConnector;

#[test]
fn dropped_lines_are_counted() {
    let mut source = TestSource::new("include_lines = ['ERROR', 'WARN']\nexclude_lines = ['health$']");
    source.append("a.log", "ERROR a\nINFO b\nWARN c\nERROR health\n");
    assert_eq!(source.read().texts(), ["ERROR a", "WARN c"]);
    assert_eq!(source.dropped, 2);
    // A pattern is compared with the whole event, and never with a header.
    let mut source = TestSource::new("multiline = \"indented\"\nexclude_lines = ['timeout']");
    source.append("a.log", "A\n timeout\nB\n b\n");
    assert_eq!(source.read().texts(), ["B\n b"]);
    let mut source = TestSource::new("parser = \"csv\"\ninclude_lines = ['^1']");
    source.append("a.log", "id,name\n1,a\n2,b\n");
    source.append("b.log", "x\n1\n");
    let mut texts = source.read().take();
    texts.sort();
    assert_eq!((texts, source.dropped), (vec![r#"{"id":"1","name":"a"}"#.to_owned(), r#"{"x":"1"}"#.to_owned()], 3));
}

#[test]
fn a_csv_header_is_known_after_a_restart() {
    let mut source = TestSource::new("parser = \"csv\"");
    source.append("a.log", "id,name\n1,a\n");
    assert_eq!(source.read().take(), [r#"{"id":"1","name":"a"}"#]);
    source.stop();
    source.append("a.log", "2,b\n3\n");
    assert_eq!(source.read().take(), [r#"{"id":"2","name":"b"}"#]);
    let rejected: Vec<_> = source.rejected.iter().map(|line| (line.bytes.as_slice(), line.code.as_str())).collect();
    assert_eq!(rejected, [(&b"3"[..], "parse.csv")]);
}

#[test]
fn records_carry_labels_and_the_host() {
    let options = "parser = \"json\"\nlabels = { env = \"test\" }\nhost = true";
    let mut source = TestSource::new(options);
    source.append("a.log", "{\"a\":1}\n{\"labels\":2}\n{}\n");
    let texts = source.read().take();
    let value = |text: &String| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let host = value(&texts[0])["labels"]["host"].as_str().unwrap().to_owned();
    assert!(!host.is_empty());
    let labels = format!("\"labels\":{{\"env\":\"test\",\"host\":\"{host}\"}}");
    assert_eq!(texts, [format!("{{\"a\":1,{labels}}}"), "{\"labels\":2}".to_owned(), format!("{{{labels}}}")]);
    assert_eq!(source.spec().template_variables(), ["path", "host"]);
    let (spec, _) = configure_source(
        &LogfileConnector,
        &format!("paths = [\"*.log\"]\n{}", options.replace("json", "klog")),
        source.folder.path(),
    );
    let spec = spec.unwrap();
    assert!(spec.fields().unwrap().contains(&"labels.env".to_owned()));
    assert!(spec.schemas()[0].arrow().field_with_name("labels").is_ok());
}

/// The layout of a node of Kubernetes: links to the logs of pods, which the kubelet rotates.
#[test]
fn logs_of_pods_are_read_through_links_and_rotation() {
    let id = "0123456789abcdef".repeat(4);
    let mut source = TestSource::following("paths = [\"containers/*.log\"]\nparser = \"cri\"\nkubernetes = true");
    let line = |text: &str| format!("2016-10-06T00:17:09Z stdout F {text}\n");
    let log = "pods/shop_web-1_5f3c/app/0.log";
    source.append(log, line("one"));
    std::fs::create_dir(source.path("containers")).unwrap();
    let link = source.path(&format!("containers/web-1_shop_app-{id}.log"));
    std::os::unix::fs::symlink(format!("../{log}"), &link).unwrap();
    assert_eq!(source.read().take(), ["one"]);
    // The kubelet renames, compresses the older file, and lets the runtime open a new one.
    source.append(log, line("two"));
    source.rename(log, &format!("{log}.20260301-000000"));
    source.append(log, "2016-10-06T00:17:09Z stdout P th\n");
    source.read_until(1);
    source.append(log, line("ree"));
    source.read_until(2);
    assert_eq!(source.take(), ["two", "three"]);
    source.gzip(&format!("{log}.20260301-000000"), &format!("{log}.20260301-000000.gz"));
    source.append(log, line("four"));
    // The pod dies, and the worker restarts.
    source.read_until(1);
    std::fs::remove_file(&link).unwrap();
    std::fs::remove_dir_all(source.path("pods")).unwrap();
    source.read();
    source.stop();
    assert_eq!(source.read().take(), ["four"]);
    assert!(source.rejected.is_empty());
}

#[test]
fn headers_name_the_pod() {
    let source = TestSource::new("paths = [\"pods/**/*.log\"]\nkubernetes = true");
    source.append("pods/shop_web-1_5f3c/app/0.log", "a\n");
    source.append("pods/other.log", "b\n");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let context = trunkline_connector::SourceContext {
        task: "suite.tested.source".to_owned(),
        position: Vec::new(),
        until_idle: true,
        budget: source.budget.clone(),
        runtime: runtime.handle().clone(),
        scratch: source.path("scratch"),
    };
    let mut opened = source.spec().open(context).unwrap();
    let mut batch = SourceBatch::with_limits(1 << 20, 100);
    let deadline = std::time::Instant::now() + common::TEST_TIMEOUT;
    while batch.records.len() < 2 {
        opened.fill(&mut batch, deadline).unwrap();
    }
    for record in batch.records.iter() {
        let value: serde_json::Value = serde_json::from_slice(record.value().unwrap()).unwrap();
        let is_pod = value["message"] == "a";
        for (name, expected) in [("namespace", "shop"), ("pod", "web-1"), ("container", "app")] {
            let header =
                record.header(&format!("trunkline.{name}")).map(|text| String::from_utf8_lossy(text).into_owned());
            assert_eq!(header.as_deref(), is_pod.then_some(expected));
            assert_eq!(value["labels"][name].as_str(), is_pod.then_some(expected));
        }
    }
}

#[test]
fn a_file_is_removed_after_its_lines_are_committed() {
    let mut source = TestSource::following("remove_after = \"50ms\"");
    source.acknowledges = false;
    source.append("a.log", "one\ntwo\n");
    source.append("open.log", "three\nunfinished");
    source.append("empty.log", "");
    source.read_until(3);
    source.age("a.log", 3600);
    source.read();
    source.read();
    assert!(source.path("a.log").exists(), "removed before its lines were committed");
    // What is committed is known after a restart, too.
    source.stop();
    let ((), lines) = logged(|| {
        source.read_while(|source| source.path("a.log").exists());
        source.read();
    });
    assert!(warnings(&lines).is_empty(), "{lines:?}");
    source.acknowledges = true;
    assert!(source.path("open.log").exists() && source.path("empty.log").exists());
    // A new file of the same name is another one.
    source.append("a.log", "four\n");
    source.read_until(4);
    source.read_while(|source| source.path("a.log").exists());
    source.append("open.log", "\n");
    source.read_while(|source| source.path("open.log").exists());
    source.read();
    let mut texts = source.take();
    texts.sort();
    assert_eq!(texts, ["four", "one", "three", "two", "unfinished"]);
    assert_eq!(source.position.len(), 0, "{:?}", source.position.keys());
}

/// What becomes of a rejected line after the options were changed.
fn reparse(options: &str, line: &str, code: &str) -> SourceBatch {
    let mut rejected = Batch::default();
    let mut record = rejected.record();
    record.timestamp(1_767_225_600_000).value(line.as_bytes());
    record.header(headers::PATH, Some(b"/var/log/app.log")).header(headers::OFFSET, Some(b"17"));
    record.finish();
    let mut out = SourceBatch::with_limits(1 << 20, 100);
    let options = format!("paths = [\"*.log\"]\n{options}");
    let (spec, _) = configure_source(&LogfileConnector, &options, std::path::Path::new("/"));
    spec.unwrap().reparser().unwrap().reparse(rejected.get(0), code, &mut out).unwrap();
    out
}

#[test]
fn a_rejected_line_is_parsed_with_the_present_options() {
    let out = reparse("parser = 'json'\nlabels = { a = 'b' }", r#"{"n":1}"#, "parse.logfmt");
    assert_eq!((out.records.len(), out.rejected.len()), (1, 0));
    let record = out.records.get(0);
    assert_eq!(record.value(), Some(&br#"{"n":1,"labels":{"a":"b"}}"#[..]));
    assert_eq!(record.header(headers::PATH), Some(&b"/var/log/app.log"[..]));
    assert_eq!((record.header(headers::OFFSET), record.timestamp()), (Some(&b"17"[..]), Some(1_767_225_600_000)));
    assert_eq!(reparse("exclude_lines = ['^DEBUG']", "DEBUG x", "parse.json").dropped, 1);
}

#[test]
fn a_rejected_line_that_still_fails_or_is_not_whole_stays_rejected() {
    for (options, line, code, expected) in [
        ("parser = 'json'", "n=1", "parse.logfmt", "expected"),
        ("parser = 'none'", "the beginning", "line.oversize", "only the beginning"),
        ("parser = 'csv'", "1,2", "parse.csv", "set `columns`"),
    ] {
        let out = reparse(options, line, code);
        let (_, reason) = out.rejected.iter().next().unwrap();
        assert!(out.records.is_empty() && reason.message.contains(expected), "{options}: {}", reason.message);
    }
}

#[test]
fn lines_beyond_the_rate_of_a_file_are_dropped_and_counted() {
    let text = |from: usize, to: usize| (from..to).map(|number| format!("{number}\n")).collect::<String>();
    let mut source = TestSource::following("max_lines_per_second = 100");
    // What exists is no flood.
    source.append("a.log", text(0, 1_000));
    source.read();
    assert_eq!((source.seen.len(), source.dropped), (1_000, 0));
    let (_, lines) = logged(|| {
        source.append("a.log", text(1_000, 3_000));
        source.append("b.log", text(0, 50));
        source.read_while(|source| source.seen.len() as u64 + source.dropped < 3_050);
    });
    // The burst of a second, and what the time of the test allows.
    let kept = source.seen.iter().filter(|seen| seen.path.ends_with("a.log")).count() - 1_000;
    assert!((100..1_500).contains(&kept), "{kept}");
    assert_eq!(source.dropped, 2_000 - kept as u64);
    assert!(warnings(&lines).iter().any(|line| line.contains("max_lines_per_second")), "{lines:?}");
    source.stop();
    assert_eq!(source.read().seen.len(), 1_050 + kept, "dropped lines are behind the position");
    // A job reads everything.
    let mut source = TestSource::new("max_lines_per_second = 1");
    source.append("a.log", text(0, 500));
    assert_eq!((source.read().seen.len(), source.dropped), (500, 0));
}
