//! The network side: a listener, a task for each connection, and the table that leads a request to its API.

pub(crate) mod connection;
pub(crate) mod dispatch;
pub(crate) mod frame;
pub(crate) mod response;
pub(crate) mod shape;
mod shapes;
pub(crate) mod versions;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::shared::Shared;

/// How long accepting waits after it failed, most likely because there are no file descriptors left.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Accepts connections until told to stop, and ends when all of them have.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, mut stopping: watch::Receiver<bool>) {
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
                if open.fetch_add(1, Ordering::Relaxed) >= shared.options.max_connections {
                    open.fetch_sub(1, Ordering::Relaxed);
                    tracing::warn!(%peer, "too many connections, a new one is closed");
                    continue;
                }
                let (shared, stopping, open) = (Arc::clone(&shared), stopping.clone(), Arc::clone(&open));
                connections.spawn(async move {
                    if let Err(reason) = connection::run(stream, peer, &shared, stopping).await {
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
