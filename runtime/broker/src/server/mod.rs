//! The network side: a listener, and a task for each connection.

mod connection;
mod dispatch;
mod frame;
mod login;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::state::BrokerState;

/// Pause after a failed accept, most likely because there are no file descriptors left.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Accepts connections until the stop signal, and returns when all connections are closed.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    broker: Arc<BrokerState>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                if open.fetch_add(1, Ordering::Relaxed) >= broker.options.max_connections {
                    open.fetch_sub(1, Ordering::Relaxed);
                    tracing::warn!(%peer, "connection limit reached; closing a new connection");
                    continue;
                }
                let (broker, stopping, open) = (Arc::clone(&broker), stopping.clone(), Arc::clone(&open));
                let tls = tls.clone();
                connections.spawn(async move {
                    if let Err(reason) = connection::run(stream, peer, tls.as_ref(), &broker, stopping).await {
                        tracing::debug!(%peer, %reason, "connection closed");
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
