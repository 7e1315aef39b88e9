//! Accepting connections for the proxies of this crate.

use std::net::TcpListener as StdListener;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Listens on a free port of 127.0.0.1.
pub(crate) fn listen() -> (StdListener, u16) {
    let listener = StdListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Serves each connection by a task, on a thread that ends when the returned sender is dropped.
pub(crate) fn serve<F>(
    listener: StdListener,
    connection: impl Fn(TcpStream) -> F + Send + 'static,
) -> oneshot::Sender<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (stop, stopped) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            let serve = async {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(connection(client));
                }
            };
            tokio::select! { _ = stopped => {}, () = serve => {} }
        });
    });
    stop
}
