//! Handwritten guests that violate the interface in ways that the SDK cannot: malformed verdicts,
//! pointers outside of memory, different worlds.

use serde_json::json;
use trunkline_connector::{Domain, Rejections};
use trunkline_transform_host::{Limits, LoadError};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::support::{batch_of, host, values};

pub(crate) const WIT: &str = include_str!("../../../wit/transform.wit");
const VERDICTS_AT: usize = 2048;

/// A core module whose `process` and `flush` return `len` bytes at `at`. `verdicts` are stored at
/// [`VERDICTS_AT`].
pub(crate) fn module(verdicts: &[u8], at: usize, len: usize, init_reply: &[u8]) -> String {
    let bytes = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\{byte:02x}")).collect::<String>();
    let words = |words: [u32; 3]| bytes(&words.map(u32::to_le_bytes).concat());
    format!(
        r#"(module
            (memory (export "memory") 4)
            (global $free (mut i32) (i32.const 65536))
            (func (export "cabi_realloc") (param i32 i32 i32) (param $len i32) (result i32)
                (local $block i32)
                (local.set $block (global.get $free))
                (global.set $free (i32.and (i32.add (i32.add (global.get $free) (local.get $len)) (i32.const 7)) (i32.const -8)))
                (local.get $block))
            (func (export "trunkline:transform/plugin@1.1.0#init") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 16))
            (func (export "trunkline:transform/plugin@1.1.0#process") (param i32 i32) (result i32)
                (global.set $free (i32.const 65536)) (i32.const 128))
            (func (export "trunkline:transform/plugin@1.1.0#flush") (result i32) (i32.const 128))
            (data (i32.const 16) "{}")
            (data (i32.const 128) "{}")
            (data (i32.const {VERDICTS_AT}) "{}"))"#,
        bytes(init_reply),
        words([0, at as u32, len as u32]),
        bytes(verdicts),
    )
}

/// `ok(init-reply {{ format: 1, ports: [], keeps-schema: false }})`.
pub(crate) const READY: [u8; 20] = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn with_world(wat: &str, wit: &str, world: &str) -> Vec<u8> {
    with_packages(wat, &[wit], world)
}

/// A core module with a world of the last of these WIT packages. It may use the packages before it.
pub(crate) fn with_packages(wat: &str, packages: &[&str], world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(wat).unwrap();
    let mut resolve = Resolve::default();
    let pushed = packages.iter().map(|wit| resolve.push_str("transform.wit", wit).unwrap()).last();
    let world = resolve.select_world(&[pushed.unwrap()], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    module
}

/// A guest that returns these verdicts for every batch.
fn guest_returning(verdicts: &[u8]) -> Vec<u8> {
    with_world(&module(verdicts, VERDICTS_AT, verdicts.len(), &READY), WIT, "transform")
}

fn verdicts(count: u32, body: &[u8]) -> Vec<u8> {
    [b"TLV1\x01\0\0\0", count.to_le_bytes().as_slice(), &[0; 4], body].concat()
}

#[test]
fn handwritten_guest_works() {
    let plugin = host().load_bytes("hand.wasm", &guest_returning(&verdicts(2, &[0, 0, 0, 0, 1, 0, 0, 0]))).unwrap();
    let mut instance = plugin.start(&json!({}), &Limits::default()).unwrap();
    let mut batch = batch_of(&["a", "b"]);
    let counts = instance.process(&mut batch, &mut Rejections::default()).unwrap();
    assert_eq!((counts.out, counts.dropped, values(&batch)), (1, 1, vec!["a".to_owned()]));
}

#[test]
fn malformed_verdicts_fail_the_batch_and_change_nothing() {
    let pass = [0u8, 0, 0, 0];
    let length = |kind: u8, length: i32| [&[kind, 0, 0, 0], length.to_le_bytes().as_slice()].concat();
    let cases: &[(&str, Vec<u8>)] = &[
        ("empty", Vec::new()),
        ("wrong magic", [b"TLB1\x01\0\0\0\x01\0\0\0\0\0\0\0", pass.as_slice()].concat()),
        ("wrong format", [b"TLV1\x02\0\0\0\x01\0\0\0\0\0\0\0", pass.as_slice()].concat()),
        ("too few verdicts", verdicts(0, &[])),
        ("too many verdicts", verdicts(2, &[pass, pass].concat())),
        ("fewer verdicts than declared", verdicts(1, &[])),
        ("more verdicts than declared", verdicts(1, &[pass, pass].concat())),
        ("undeclared port", verdicts(1, &[0, 0, 1, 0])),
        ("unknown kind", verdicts(1, &[9, 0, 0, 0])),
        ("pass with parts", verdicts(1, &[0, 1, 0, 0])),
        ("unknown parts", verdicts(1, &[3, 0x10, 0, 0])),
        ("value beyond the end", verdicts(1, &length(2, 5))),
        ("huge value", verdicts(1, &length(2, i32::MAX))),
        ("negative length", verdicts(1, &length(2, -2))),
        ("huge number of records", verdicts(1, &length(4, i32::MAX))),
        ("verdict within emit", verdicts(1, &[length(4, 1), vec![2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]].concat())),
        ("invalid headers", verdicts(1, &[&[3, 4, 0, 0, 2, 0, 0, 0], [1u8, 2].as_slice()].concat())),
        (
            "header of negative length",
            verdicts(1, &[&[3, 4, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0], b"h".as_slice(), &(-2i32).to_le_bytes()].concat()),
        ),
        ("truncated rejection", verdicts(1, &[5, 0, 0, 0, 1, 0, 0, 0, b'c'])),
    ];
    for (case, bytes) in cases {
        let mut instance = host()
            .load_bytes("invalid.wasm", &guest_returning(bytes))
            .unwrap()
            .start(&json!({}), &Limits::default())
            .unwrap();
        let mut batch = batch_of(&["a"]);
        let mut rejected = Rejections::default();
        match instance.process(&mut batch, &mut rejected) {
            Err(error) => assert_eq!((error.domain, error.code), (Domain::Data, "plugin.protocol"), "{case}: {error}"),
            // the output limit is attributed to the record
            Ok(counts) => assert_eq!(
                (counts.rejected, rejected.reasons[0].code.as_str(), *case),
                (1, "plugin.output", "huge number of records")
            ),
        }
        assert_eq!(batch.len() + rejected.len(), 1, "{case}");
    }
}

#[test]
fn flush_may_only_emit_or_drop() {
    let flushed = |bytes: &[u8]| {
        let mut instance = host()
            .load_bytes("invalid.wasm", &guest_returning(bytes))
            .unwrap()
            .start(&json!({}), &Limits::default())
            .unwrap();
        instance.flush(&mut batch_of(&["a"])).map_err(|error| error.code)
    };
    assert_eq!(flushed(&verdicts(0, &[])).map(|counts| counts.out), Ok(0));
    assert_eq!(flushed(&verdicts(1, &[0, 0, 0, 0])), Err("plugin.protocol"));
    assert_eq!(flushed(&verdicts(2, &[1, 0, 0, 0, 1, 0, 0, 0])), Err("plugin.protocol"));
    assert_eq!(flushed(b"x"), Err("plugin.protocol"));
}

#[test]
fn pointers_outside_of_memory_are_traps() {
    for (at, len) in [(usize::MAX, 8), (0, 0xffff_ffff), (4 * 65536 - 1, 2)] {
        let wasm = with_world(&module(b"", at, len, &READY), WIT, "transform");
        let mut instance =
            host().load_bytes("invalid.wasm", &wasm).unwrap().start(&json!({}), &Limits::default()).unwrap();
        let mut rejected = Rejections::default();
        let counts = instance.process(&mut batch_of(&["a", "b"]), &mut rejected).unwrap();
        assert_eq!((counts.rejected, rejected.reasons[0].code.as_str()), (2, "plugin.trap"));
        assert_eq!(instance.flush(&mut batch_of(&["a"])).unwrap_err().code, "plugin.trap");
    }
}

#[test]
fn unsupported_formats_and_invalid_ports_are_rejected() {
    let start = |reply: &[u8]| {
        let wasm = with_world(&module(b"", 0, 0, reply), WIT, "transform");
        host().load_bytes("invalid.wasm", &wasm).unwrap().start(&json!({}), &Limits::default()).unwrap_err().message
    };
    let mut other_format = READY;
    other_format[4] = 2;
    assert!(start(&other_format).contains("format 2"), "{}", start(&other_format));
    // one port, whose name is the empty string at address 0
    let empty_port = [&READY[..8], &[0x40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert!(start(&empty_port).contains("output port"), "{}", start(&empty_port));
}

#[test]
fn errors_name_the_mismatch_of_the_world() {
    let ready = module(b"", 0, 0, &READY);
    let detail = |wasm: &[u8]| match host().load_bytes("other.wasm", wasm) {
        Err(LoadError::WrongWorld { detail, .. }) => detail,
        other => panic!("{other:?}"),
    };
    let next_major = with_world(&ready.replace("@1.1.0", "@2.0.0"), &WIT.replace("@1.1.0", "@2.0.0"), "transform");
    assert_eq!(detail(&next_major), "it was built for version 2.0.0 of `trunkline:transform`, this worker runs 1.1.0");

    let without_flush = WIT.replace("  flush: func() -> result<list<u8>, string>;\n", "");
    assert_ne!(without_flush, WIT);
    assert_eq!(
        detail(&with_world(&ready, &without_flush, "transform")),
        "it lacks the function `flush` of version 1.1.0"
    );

    let other_type = WIT.replace("process: func(batch: list<u8>)", "process: func(batch: string)");
    assert_eq!(
        detail(&with_world(&ready, &other_type, "transform")),
        "its function `process` does not have the type of version 1.1.0"
    );

    let foreign = "package other:thing; world thing { export run: func(); }";
    let wasm = with_world(r#"(module (memory (export "memory") 1) (func (export "run")))"#, foreign, "thing");
    assert_eq!(detail(&wasm), "it does not export `trunkline:transform/plugin@1.1.0`");
}

#[test]
fn later_minor_versions_run_unless_they_import_new_functions() {
    let wit = WIT.replace("package trunkline:transform@1.1.0", "package trunkline:transform@1.2.0");
    assert_ne!(wit, WIT);
    let ready = module(&verdicts(1, &[0; 4]), VERDICTS_AT, 20, &READY).replace("@1.1.0", "@1.2.0");
    let plugin = host().load_bytes("later.wasm", &with_world(&ready, &wit, "transform")).unwrap();
    let mut instance = plugin.start(&json!({}), &Limits::default()).unwrap();
    assert_eq!(instance.process(&mut batch_of(&["a"]), &mut Rejections::default()).unwrap().out, 1);

    let wit = wit.replace("now-ms: func() -> u64;", "now-ms: func() -> u64; state-get: func() -> u64;");
    let imports = ready.replacen(
        "(memory",
        r#"(import "trunkline:transform/host@1.2.0" "state-get" (func (result i64))) (memory"#,
        1,
    );
    match host().load_bytes("later.wasm", &with_world(&imports, &wit, "transform")) {
        Err(LoadError::Imports { detail, .. }) => assert!(detail.contains("state-get"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

/// The interface of version 1.0.
const WIT_1_0: &str = "package trunkline:transform@1.0.0;
interface host {
  enum level { trace, debug, info, warn, error }
  log: func(level: level, message: string);
  counter-add: func(name: string, by: u64);
  histogram-record: func(name: string, value: f64);
  now-ms: func() -> u64;
}
interface plugin {
  record offer { formats: list<u32>, host-version: string }
  record init-reply { format: u32, ports: list<string>, keeps-schema: bool }
  record init-error { message: string, key: option<string> }
  init: func(config: string, host: offer) -> result<init-reply, init-error>;
  process: func(batch: list<u8>) -> result<list<u8>, string>;
  flush: func() -> result<list<u8>, string>;
}
world transform { import host; export plugin; }";

#[test]
fn plugins_of_version_1_0_run() {
    let module = module(&verdicts(1, &[0; 4]), VERDICTS_AT, 20, &READY).replace("@1.1.0", "@1.0.0");
    let imports = module.replacen(
        "(memory",
        r#"(import "trunkline:transform/host@1.0.0" "now-ms" (func (result i64))) (memory"#,
        1,
    );
    let plugin = host().load_bytes("earlier.wasm", &with_world(&imports, WIT_1_0, "transform")).unwrap();
    let contents = plugin.contents();
    assert_eq!(contents.interface, "trunkline:transform/plugin@1.0.0");
    assert_eq!((contents.imports, plugin.uses_state()), (vec!["trunkline:transform/host@1.0.0".to_owned()], false));
    let mut instance = plugin.start(&json!({}), &Limits::default()).unwrap();
    assert_eq!(instance.process(&mut batch_of(&["a"]), &mut Rejections::default()).unwrap().out, 1);
}

#[test]
fn components_need_no_encoding() {
    let module = guest_returning(&verdicts(1, &[1, 0, 0, 0]));
    let component = ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap();
    for wasm in [&module, &component] {
        let mut instance = host().load_bytes("both.wasm", wasm).unwrap().start(&json!({}), &Limits::default()).unwrap();
        assert_eq!(instance.process(&mut batch_of(&["a"]), &mut Rejections::default()).unwrap().dropped, 1);
    }
}
