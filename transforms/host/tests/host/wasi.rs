//! Guests that import WASI: the host captures their output, and they cannot wait.

use std::time::{Duration, Instant};

use serde_json::json;
use trunkline_connector::Rejections;
use trunkline_transform_host::Limits;

use crate::handwritten_guests::{READY, WIT, module, with_packages};
use crate::support::{batch_of, host};

const IO: &str = "package wasi:io@0.2.0;
    interface error { resource error; }
    interface poll { resource pollable { block: func(); } }
    interface streams {
        use error.{error};
        variant stream-error { last-operation-failed(error), closed }
        resource output-stream { blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>; }
    }";
const CLI: &str = "package wasi:cli@0.2.0; interface stderr { use wasi:io/streams@0.2.0.{output-stream}; get-stderr: func() -> output-stream; }";
const CLOCKS: &str = "package wasi:clocks@0.2.0;
    interface monotonic-clock { use wasi:io/poll@0.2.0.{pollable}; subscribe-duration: func(when: u64) -> pollable; }";

/// A guest whose `process` has this body. It imports stderr and timers; `text` is stored at 4096.
fn guest(body: &str, text: &str) -> Vec<u8> {
    let imports = r#"
        (import "wasi:cli/stderr@0.2.0" "get-stderr" (func $stderr (result i32)))
        (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush" (func $write (param i32 i32 i32 i32)))
        (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $timer (param i64) (result i32)))
        (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
        (memory"#;
    let wat = module(b"", 0, 0, &READY)
        .replacen("(memory", imports, 1)
        .replacen("(global.set $free (i32.const 65536)) (i32.const 128)", body, 1)
        .replacen(
            "(data (i32.const 128)",
            &format!("(data (i32.const 4096) \"{}\")\n(data (i32.const 128)", escaped(text)),
            1,
        );
    let wit = WIT.replace(
        "import host;",
        "import host; import wasi:cli/stderr@0.2.0; import wasi:io/streams@0.2.0; import wasi:io/poll@0.2.0; import wasi:clocks/monotonic-clock@0.2.0;",
    );
    with_packages(&wat, &[IO, CLI, CLOCKS, &wit], "transform")
}

/// The text as a WAT string.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("\\{byte:02x}")).collect()
}

fn reason(wasm: &[u8]) -> (String, String) {
    let mut instance = host().load_bytes("wasi.wasm", wasm).unwrap().start(&json!({}), &Limits::default()).unwrap();
    let mut rejected = Rejections::default();
    let counts = instance.process(&mut batch_of(&["a"]), &mut rejected).unwrap();
    assert_eq!(counts.rejected, 1);
    (rejected.reasons[0].code.clone(), rejected.reasons[0].message.clone())
}

/// A body of `process` that writes the text to stderr and traps.
fn write_and_trap(text: &str) -> String {
    format!("(call $write (call $stderr) (i32.const 4096) (i32.const {}) (i32.const 256)) unreachable", text.len())
}

#[test]
fn exception_on_stderr_is_the_reason_of_a_trap() {
    let text = "Traceback (most recent call last):\n  File \"app.py\", line 20, in process\n    raise ValueError(\"no\")\n\
                ValueError: no such thing\n\nthread '<unnamed>' (1) panicked at runtime/src/lib.rs:498:21:\nPython function threw\n\
                note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n";
    let (code, message) = reason(&guest(&write_and_trap(text), text));
    assert_eq!(code, "plugin.trap");
    let expected = "ValueError: no such thing (File \"app.py\", line 20, in process) (wasm trap: wasm `unreachable` instruction executed)";
    assert_eq!(message, expected);
}

#[test]
fn guest_cannot_evade_the_timeout_by_waiting() {
    let started = Instant::now();
    let (code, message) = reason(&guest("(call $block (call $timer (i64.const 60000000000))) unreachable", ""));
    assert_eq!(code, "plugin.trap");
    assert!(message.contains("must not wait"), "{message}");
    assert!(started.elapsed() < Duration::from_secs(30));
}
