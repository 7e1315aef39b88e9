//! A client for Snowflake's service: log in, run statements in one session, log out.
//!
//! It speaks the protocol of Snowflake's own drivers. `docs/adr/016-own-snowflake-client.md` says
//! why it is not the crate `snowflake-api`.
//!
//! A [`Session`] never changes behind its owner. If the service ends it, all later statements fail
//! with [`ErrorKind::SessionLost`]: a new session would commit the rest of a transaction statement
//! by statement. No statement is sent twice. The owner opens another session, reads the offsets
//! row, and decides.
//!
//! | file | subject |
//! |---|---|
//! | `login` | credentials to the body of a login |
//! | `key` | private keys, signed logins |
//! | `http` | requests and their transport errors |
//! | `answer` | the service's answers: rows, errors, results that are not ready |
//! | `error` | the class of an error and the next step |
//! | `session` | statements, polling, renewal of tokens |

mod answer;
mod error;
mod http;
mod key;
mod login;
mod session;

pub(crate) use answer::{Answer, StageInfo};
pub(crate) use error::{ErrorKind, SqlError};
pub(crate) use key::KeyPair;
pub(crate) use login::{ClientOptions, Credentials};
pub(crate) use session::Session;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests;
