//! Connections to a server: where it is, how they are protected, and which facts a source asks of
//! it before it reads.
//!
//! [`query`] runs SQL over the client/server [`protocol`]. [`crate::replication`] speaks the
//! replication protocol over the same packets.

pub(crate) mod address;
pub(crate) mod binlog_state;
pub(crate) mod charsets;
pub(crate) mod dialect;
pub(crate) mod logging;
pub(crate) mod options;
pub(crate) mod protocol;
pub(crate) mod query;
pub(crate) mod quote;
pub(crate) mod server_info;
pub(crate) mod session;
pub(crate) mod tls;

use std::time::Duration;

use trunkline_connector::{Error, Result};

use self::options::ConnectionOptions;

/// A server that does not answer within this time counts as unreachable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a call to the server with a deadline.
pub(crate) async fn call_with_deadline<T, E>(
    options: &ConnectionOptions,
    call: impl Future<Output = Result<T, E>>,
) -> Result<Result<T, E>> {
    tokio::time::timeout(ANSWER_TIMEOUT, call).await.map_err(|_| {
        let message = format!("{} did not answer within {ANSWER_TIMEOUT:?}", options.server_label());
        Error::external("mysql.unreachable", message)
    })
}
