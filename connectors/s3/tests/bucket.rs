//! Faults of the store and the network: an object is committed once, or there is an error.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::time::{Duration, Instant};

use common::proxy::{Fault, Kind, Proxy};
use common::s3::{self, Server};
use common::{Setup, commit, spec, topic_partition, write};
use serde_json::Value as Json;
use trunkline_connector::{Domain, ErasedTwoPhaseSink, OutputFile, Rejections};

/// A sink that reaches a real server through a proxy, with a new bucket.
struct World {
    setup: Setup,
    server: Server,
    proxy: Proxy,
    bucket: String,
}

impl World {
    fn new() -> Option<Self> {
        let setup = Setup::new();
        let server = Server::find()?;
        let proxy = Proxy::start(setup.runtime.handle(), &server.endpoint);
        let bucket = server.bucket();
        Some(Self { setup, server, proxy, bucket })
    }

    fn open(&self) -> Box<dyn ErasedTwoPhaseSink> {
        self.open_with("")
    }

    fn open_with(&self, options: &str) -> Box<dyn ErasedTwoPhaseSink> {
        let sink =
            self.setup.try_open(&format!("{}{options}", s3::options(&self.proxy.endpoint, &self.bucket))).unwrap();
        self.forget_seen();
        sink
    }

    fn forget_seen(&self) {
        for kind in [Kind::Create, Kind::Part, Kind::Complete, Kind::Abort, Kind::ListUploads, Kind::Head, Kind::Other]
        {
            self.proxy.count(kind);
        }
    }

    /// A sink with a prepared object of one row.
    fn prepared(&self) -> (Box<dyn ErasedTwoPhaseSink>, Vec<Json>) {
        let mut sink = self.open();
        write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
        let plan = sink.seal(&topic_partition()).unwrap().unwrap();
        let committables = sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap();
        (sink, committables)
    }

    fn rows(&self) -> usize {
        self.server.read(&self.bucket).iter().map(|file| file.rows()).sum()
    }

    /// The bucket has the row once, and nothing else.
    fn expect_committed(&self) {
        assert_eq!(self.rows(), 1);
        assert_eq!(self.server.uploads(&self.bucket), Vec::<String>::new());
    }
}

#[test]
fn prepared_objects_are_checked_and_discarded_and_visible_ones_removed() {
    let Some(world) = World::new() else { return };
    let options = s3::options(&world.proxy.endpoint, &world.bucket);
    let (mut sink, committables) = world.prepared();
    sink.check_prepared(&committables).unwrap();
    sink.discard_prepared(&committables).unwrap();
    // A repeated call changes nothing.
    sink.discard_prepared(&committables).unwrap();
    assert_eq!((world.server.uploads(&world.bucket), world.rows()), (Vec::<String>::new(), 0));
    // The upload is gone, as after a rule of the bucket that removes old uploads.
    let error = sink.check_prepared(&committables).unwrap_err();
    assert_eq!((error.code, error.domain), ("s3.prepared_object_missing", Domain::Data), "{error}");

    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    commit(sink.as_mut());
    world.expect_committed();
    let (spec, runtime) = (spec(&options), world.setup.runtime.handle());
    let files = spec.list_output(runtime).unwrap().unwrap().files;
    assert_eq!(files.len(), 1);
    spec.check_removal(&files, runtime).unwrap();
    assert_eq!(world.rows(), 1, "the check removes nothing");
    let elsewhere = OutputFile { name: "s3://other/x.parquet".to_owned(), ..files[0].clone() };
    assert_eq!(spec.remove_output(&[elsewhere], runtime).unwrap_err().code, "s3.other_destination");
    spec.remove_output(&files, runtime).unwrap();
    spec.remove_output(&files, runtime).unwrap();
    assert_eq!(world.server.keys(&world.bucket), Vec::<String>::new());
    // Without the permission to remove objects, nothing may begin.
    world.proxy.rule(|kind| (kind == Kind::Other).then_some(Fault::Refuse(403, "AccessDenied")));
    assert!(spec.check_removal(&files, runtime).is_err());
}

#[test]
fn a_busy_store_delays_the_commit() {
    let Some(world) = World::new() else { return };
    let mut sink = world.open();
    let mut refused = 0;
    world.proxy.rule(move |kind| {
        refused += 1;
        (kind != Kind::Create && refused % 2 == 0).then_some(Fault::Refuse(503, "SlowDown"))
    });
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    commit(sink.as_mut());
    world.expect_committed();
}

#[test]
fn an_unavailable_store_is_an_external_error_within_a_minute_and_every_step_is_repeatable() {
    let Some(world) = World::new() else { return };
    let mut sink = world.open();
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    let plan = sink.seal(&topic_partition()).unwrap().unwrap();
    let down = |world: &World| world.proxy.rule(|_| Some(Fault::Refuse(503, "SlowDown")));
    let up = |world: &World| world.proxy.rule(|_| None);
    let expect_throttled = |error: trunkline_connector::Error| {
        assert_eq!((error.domain, error.code), (Domain::External, "s3.throttled"), "{error}");
        assert!(error.message().contains("503 SlowDown"), "{error}");
    };
    let started = Instant::now();
    down(&world);
    expect_throttled(sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap_err());
    up(&world);
    let committables = sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap();
    down(&world);
    expect_throttled(sink.commit(&committables).unwrap_err());
    assert!(started.elapsed() < Duration::from_secs(60));
    up(&world);
    sink.commit(&committables).unwrap();
    world.expect_committed();
}

#[test]
fn a_lost_reply_to_complete_is_found_out() {
    let Some(world) = World::new() else { return };
    for fault in [
        Fault::LoseReply,
        Fault::Lie(404, "NoSuchUpload"),
        Fault::Lie(412, "PreconditionFailed"),
        Fault::Lie(403, "AccessDenied"),
        Fault::Lie(409, "ConditionalRequestConflict"),
        Fault::Lie(500, "InternalError"),
    ] {
        let world = World { bucket: world.server.bucket(), setup: Setup::new(), ..rebuild(&world) };
        let (mut sink, committables) = world.prepared();
        world.proxy.fault(Kind::Complete, 1, fault.clone());
        sink.commit(&committables).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        world.expect_committed();
    }
}

/// The same server through another proxy.
fn rebuild(world: &World) -> World {
    let setup = Setup::new();
    let server = world.server.again();
    let proxy = Proxy::start(world.setup.runtime.handle(), &server.endpoint);
    World { setup, server, proxy, bucket: String::new() }
}

#[test]
fn a_lost_reply_to_create_leaves_no_upload_behind() {
    let Some(world) = World::new() else { return };
    let mut sink = world.open();
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    let plan = sink.seal(&topic_partition()).unwrap().unwrap();
    world.proxy.fault(Kind::Create, 1, Fault::LoseReply);
    assert_eq!(
        sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap_err().code,
        "s3.unavailable"
    );
    let committables = sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap();
    sink.commit(&committables).unwrap();
    world.expect_committed();
}

#[test]
fn a_plan_whose_upload_nobody_knows_of_is_aborted_by_its_key() {
    let Some(world) = World::new() else { return };
    let mut dead = world.open();
    write(dead.as_mut(), 0, &[r#"{"a":1}"#]);
    let plan = dead.seal(&topic_partition()).unwrap().unwrap();
    world.proxy.fault(Kind::Create, 1, Fault::LoseReply);
    dead.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap_err();
    std::mem::forget(dead);
    let key = plan["objects"][0]["key"].as_str().unwrap();
    assert_eq!(world.server.uploads_to(&world.bucket, key), 1);
    world.open().abort(&plan).unwrap();
    assert_eq!(world.server.uploads_to(&world.bucket, key), 0);
    assert_eq!(world.rows(), 0);
}

#[test]
fn staging_again_sends_only_the_parts_that_did_not_arrive() {
    let Some(world) = World::new() else { return };
    let mut sink = world.open_with("part_size = \"5MiB\"\ncompression = \"none\"");
    let noise: Vec<String> = (0..22_000u64)
        .map(|number| {
            let noise = |salt: u64| {
                (number + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xd6e8_feb8_6659_fd93)
            };
            let text: String = (0..64).map(|salt| format!("{:016x}", noise(salt * 1_000_003))).collect();
            format!("{{\"number\":{number},\"text\":\"{text}\"}}")
        })
        .collect();
    write(sink.as_mut(), 0, &noise.iter().map(String::as_str).collect::<Vec<_>>());
    let plan = sink.seal(&topic_partition()).unwrap().unwrap();
    let parts = plan["objects"][0]["bytes"].as_u64().unwrap().div_ceil(5 << 20) as usize;
    assert!(parts >= 4, "{parts} parts");
    let mut seen = 0;
    // The last part fails with a status that is not retried.
    world.proxy.rule(move |kind| {
        seen += usize::from(kind == Kind::Part);
        (kind == Kind::Part && seen == parts).then_some(Fault::Refuse(403, "AccessDenied"))
    });
    assert_eq!(
        sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap_err().code,
        "s3.access_denied"
    );
    assert_eq!(world.proxy.count(Kind::Part), parts);
    world.proxy.rule(|_| None);
    let committables = sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap();
    assert_eq!(world.proxy.count(Kind::Part), 1);
    assert_eq!(world.proxy.count(Kind::Create), 1);
    assert_eq!(committables[0]["objects"][0]["upload"]["parts"].as_array().unwrap().len(), parts);
    sink.commit(&committables).unwrap();
    let [file] = &world.server.read(&world.bucket)[..] else { panic!("one object") };
    assert_eq!(file.rows(), 22_000);
}

#[test]
fn an_upload_that_something_cleaned_up_while_it_was_staged_is_begun_anew() {
    let Some(world) = World::new() else { return };
    let mut sink = world.open();
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    let plan = sink.seal(&topic_partition()).unwrap().unwrap();
    world.proxy.fault(Kind::Part, 1, Fault::Refuse(404, "NoSuchUpload"));
    sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap_err();
    let committables = sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap();
    sink.commit(&committables).unwrap();
    world.expect_committed();
}

#[test]
fn a_promise_whose_upload_is_gone_is_an_error_and_never_silence() {
    let Some(world) = World::new() else { return };
    let (mut sink, committables) = world.prepared();
    let key = committables[0]["objects"][0]["key"].as_str().unwrap();
    let upload = committables[0]["objects"][0]["upload"]["id"].as_str().unwrap();
    let aborted = world.server.client.abort_multipart_upload().bucket(&world.bucket).key(key).upload_id(upload);
    world.server.runtime.block_on(aborted.send()).unwrap();
    let error = sink.commit(&committables).unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::Data, "s3.prepared_object_missing"), "{error}");
    assert!(error.message().contains(key));
}

#[test]
fn an_object_of_the_same_key_is_not_overwritten() {
    let Some(world) = World::new() else { return };
    let (mut sink, committables) = world.prepared();
    let key = committables[0]["objects"][0]["key"].as_str().unwrap();
    let put = world.server.client.put_object().bucket(&world.bucket).key(key);
    world.server.runtime.block_on(put.body(b"another's".to_vec().into()).send()).unwrap();
    assert_eq!(sink.commit(&committables).unwrap_err().code, "s3.key_taken");
    let get = world.server.client.get_object().bucket(&world.bucket).key(key);
    let body = world.server.runtime.block_on(async { get.send().await.unwrap().body.collect().await.unwrap() });
    assert_eq!(body.to_vec(), b"another's");
}

#[test]
fn access_denied_to_publish_is_an_error_that_goes_away_with_the_cause() {
    let Some(world) = World::new() else { return };
    let (mut sink, committables) = world.prepared();
    world.proxy.fault(Kind::Complete, 1, Fault::Refuse(403, "AccessDenied"));
    let error = sink.commit(&committables).unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "s3.access_denied"));
    assert!(error.message().contains("s3:PutObject"), "{error}");
    sink.commit(&committables).unwrap();
    world.expect_committed();
}

#[test]
fn opening_says_what_is_wrong_and_no_secret() {
    let Some(world) = World::new() else { return };
    let good = s3::options(&world.server.endpoint, &world.bucket);
    let nowhere = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    for (options, code, message) in [
        (good.replace(&world.bucket, "no-such-bucket-here"), "s3.no_such_bucket", "no-such-bucket-here"),
        (good.replace("\"SKTESTSK\"", "\"topsecretvalue\""), "s3.bad_credentials", "access key"),
        (good.replace("\"AKTEST\"", "\"AKNOBODY\""), "s3.bad_credentials", "access key"),
        (good.replace(&world.server.endpoint, &nowhere), "s3.unavailable", "endpoint"),
    ] {
        let started = Instant::now();
        let error = world.setup.try_open(&options).err().unwrap_or_else(|| panic!("{code} is not noticed"));
        assert_eq!((error.domain, error.code), (Domain::External, code), "{error}");
        assert!(error.message().contains(message), "{error}");
        assert!(!format!("{error} {error:?}").contains("topsecretvalue"), "a secret is printed");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
    // A check that fails half-way is reported too, and leaves nothing.
    world.proxy.fault(Kind::ListUploads, 1, Fault::Refuse(403, "AccessDenied"));
    let options = s3::options(&world.proxy.endpoint, &world.bucket);
    assert_eq!(world.setup.try_open(&options).err().unwrap().code, "s3.access_denied");
    assert!(world.server.uploads(&world.bucket).is_empty() && world.rows() == 0);
}

#[test]
fn every_checksum_is_taken() {
    let Some(world) = World::new() else { return };
    for (count, checksum) in (1..).zip(["crc32c", "crc32", "sha256", "none"]) {
        let mut sink = world.open_with(&format!("checksum = \"{checksum}\""));
        write(sink.as_mut(), count, &[r#"{"a":1}"#]);
        let committables = commit(sink.as_mut());
        assert_eq!(world.rows(), count as usize, "{checksum}");
        let sums = committables[0]["objects"][0]["upload"]["parts"][0]["checksum"].is_string();
        assert_eq!(sums, checksum != "none", "{checksum}: {}", committables[0]);
    }
}

#[test]
fn a_check_reports_what_the_store_refuses_and_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let check = |bucket: &str| world.setup.preflight(&s3::options(&world.server.endpoint, bucket));
    assert_eq!(check(&world.bucket), []);
    assert_eq!(world.server.uploads(&world.bucket), Vec::<String>::new());
    assert_eq!(world.rows(), 0);
    let issues = check("no-such-bucket");
    let [issue] = issues.as_slice() else { panic!("{issues:?}") };
    assert_eq!((issue.code, issue.fix.as_deref()), ("s3.no_such_bucket", Some("create the bucket, or correct `url`")));
}

/// A sink without state asks for the output of earlier runs: an object of this topic partition that
/// this sink wrote.
#[test]
fn earlier_output_in_a_bucket_is_found() {
    let Some(world) = World::new() else { return };
    let mut sink = world.open();
    assert_eq!(sink.existing_output(&[topic_partition()]).unwrap(), None);
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    commit(sink.as_mut());
    let found = world.open().existing_output(&[topic_partition()]).unwrap().unwrap();
    assert!(found.starts_with(&format!("s3://{}/", world.bucket)) && found.ends_with(".parquet"), "{found}");
    let mut other = topic_partition();
    other.partition += 1;
    assert_eq!(sink.existing_output(&[other]).unwrap(), None);
}
