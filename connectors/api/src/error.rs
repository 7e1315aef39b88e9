//! The error type of connectors and stages. The *domain* says which side has to act, and so what
//! the stage does; the *retry* hint says when another attempt makes sense. A data error of a single
//! record is not an [`Error`] but a [rejection](crate::Rejections).

use std::fmt;
use std::time::Duration;

/// The side that has to act; decides what a stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// The pipeline file or the worker's settings are wrong. The stage stops until they change.
    Config,
    /// The data is invalid and cannot be rejected record by record. The stage stops and keeps its
    /// position.
    Data,
    /// An external system failed: broker, database, object store, disk. The stage retries with
    /// backoff.
    External,
    /// Another task took over (I4). The stage gives up its assignment and asks for a new one.
    Fenced,
    /// A defect of Trunkline. The stage restarts; the message asks for a report.
    Internal,
}

/// When another attempt makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Never, unless a person intervenes.
    Never,
    /// With the stage's own backoff.
    Backoff,
    /// After the time that the external system named.
    After(Duration),
}

/// An error of a connector or stage.
#[derive(Debug, Clone)]
pub struct Error {
    /// The side that has to act.
    pub domain: Domain,
    /// When another attempt makes sense.
    pub retry: Retry,
    /// A stable code such as `s3.access_denied`, for logs, metrics and help pages.
    pub code: &'static str,
    message: String,
}

/// The result of most calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The pipeline file or the worker's settings are wrong.
    pub fn config(code: &'static str, message: impl Into<String>) -> Self {
        Self { domain: Domain::Config, retry: Retry::Never, code, message: message.into() }
    }

    /// Data is invalid and cannot be rejected record by record.
    pub fn data(code: &'static str, message: impl Into<String>) -> Self {
        Self { domain: Domain::Data, retry: Retry::Never, code, message: message.into() }
    }

    /// An external system failed; retried with backoff.
    pub fn external(code: &'static str, message: impl Into<String>) -> Self {
        Self { domain: Domain::External, retry: Retry::Backoff, code, message: message.into() }
    }

    /// Another task took over.
    pub fn fenced(code: &'static str, message: impl Into<String>) -> Self {
        Self { domain: Domain::Fenced, retry: Retry::Backoff, code, message: message.into() }
    }

    /// A defect of Trunkline.
    pub fn internal(code: &'static str, message: impl Into<String>) -> Self {
        Self { domain: Domain::Internal, retry: Retry::Backoff, code, message: message.into() }
    }

    /// The same error with another retry hint.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Adds the action that failed in front of the message: `context: message`.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The message without its code.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} [{}]", self.message, self.code)
    }
}

impl std::error::Error for Error {}

/// The innermost cause of an error of a library, which says most precisely what happened.
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.last().map_or_else(|| error.to_string(), ToString::to_string)
}

/// An error of a library and its causes, outermost first. Never the debug output, which may hold
/// credentials (I8).
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// An I/O error with its path. The code distinguishes causes with different remedies, such as a
/// full disk.
pub fn io_error(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Error {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "io.disk_full",
        std::io::ErrorKind::PermissionDenied => "io.permission_denied",
        std::io::ErrorKind::NotFound => "io.not_found",
        _ => "io.failed",
    };
    Error::external(code, format!("cannot {doing} {}: {error}", path.display()))
}
