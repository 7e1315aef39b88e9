//! WASI for guests whose language wants it (Python, JavaScript, Go, Rust for wasm32-wasip2): clocks, random numbers, and output streams
//! that end in the log. No files, no network, no environment, no arguments, no input, and nothing to wait for.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::WasiCtx;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{self, DynPollable, OutputStream, Pollable, StreamResult};

use crate::guest::State;

/// What of a stream is kept until the call ends.
const KEPT_BYTES: usize = 64 << 10;

/// What a guest wrote to one of its output streams and was not taken yet; its beginning if it is too much.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Written {
    pub(crate) fn take(&self) -> String {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&std::mem::take(&mut *bytes)).into_owned()
    }
}

impl OutputStream for Written {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let room = KEPT_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(KEPT_BYTES)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Written {
    async fn ready(&mut self) {}
}

impl IsTerminal for Written {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Written {
    /// For other versions of WASI than the one that is linked.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

/// A context without anything outside.
pub(crate) fn closed(stdout: &Written, stderr: &Written) -> WasiCtx {
    let mut wasi = WasiCtx::builder();
    wasi.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
    wasi.stdout(stdout.clone()).stderr(stderr.clone());
    wasi.build()
}

/// Defines WASI p2, without timers.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    p2::add_to_linker_sync(linker)?;
    // While a guest waits inside the host no epoch ends it: the time limit would not hold. Timers are all there is to wait for, because
    // streams are always ready and sockets refused; so there are no timers.
    linker.allow_shadowing(true);
    let mut clock = linker.instance("wasi:clocks/monotonic-clock@0.2.12")?;
    for function in ["subscribe-instant", "subscribe-duration"] {
        clock.func_wrap(function, |_: StoreContextMut<'_, State>, (_,): (u64,)| {
            Err::<(Resource<DynPollable>,), _>(wasmtime::format_err!("a plugin must not wait (sleep, timers)"))
        })?;
    }
    linker.allow_shadowing(false);
    Ok(())
}
