//! WASI for guests whose language runtime needs it (Python, JavaScript, Go, Rust for
//! wasm32-wasip2). Guests get clocks, random numbers, and output streams that are written to the
//! log. They get no files, network, environment, arguments, input or timers.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::WasiCtx;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{self, DynPollable, OutputStream, Pollable, StreamResult};

use crate::guest::GuestState;

const MAX_CAPTURED_BYTES: usize = 64 << 10;

/// Captures the first [`MAX_CAPTURED_BYTES`] that a guest writes to an output stream during a call.
#[derive(Debug, Clone, Default)]
pub(crate) struct OutputCapture {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl OutputCapture {
    pub(crate) fn take(&self) -> String {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&std::mem::take(&mut *bytes)).into_owned()
    }
}

impl OutputStream for OutputCapture {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut captured = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_CAPTURED_BYTES.saturating_sub(captured.len());
        captured.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_CAPTURED_BYTES)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for OutputCapture {
    async fn ready(&mut self) {}
}

impl IsTerminal for OutputCapture {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for OutputCapture {
    /// Only WASI versions that are not linked use this stream.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

/// A context without files, network, environment and input.
pub(crate) fn isolated_context(stdout: &OutputCapture, stderr: &OutputCapture) -> WasiCtx {
    let mut wasi = WasiCtx::builder();
    wasi.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
    wasi.stdout(stdout.clone()).stderr(stderr.clone());
    wasi.build()
}

/// Defines WASI p2 without timers.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    p2::add_to_linker_sync(linker)?;
    // Epochs do not interrupt a guest that waits inside the host, so a timer would evade the
    // timeout of the call. Guests can wait for nothing else: streams are always ready, sockets are
    // refused.
    linker.allow_shadowing(true);
    let mut clock = linker.instance("wasi:clocks/monotonic-clock@0.2.12")?;
    for function in ["subscribe-instant", "subscribe-duration"] {
        clock.func_wrap(function, |_: StoreContextMut<'_, GuestState>, (_,): (u64,)| {
            Err::<(Resource<DynPollable>,), _>(wasmtime::format_err!("a plugin must not wait (sleep, timers)"))
        })?;
    }
    linker.allow_shadowing(false);
    Ok(())
}
