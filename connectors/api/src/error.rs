//! One error type for connectors and stages: a *domain* says whose fault it is, and so what the stage does with it; a *retry* hint
//! says when trying again makes sense. A data error of a single record is not an [`Error`]: it is a [`crate::Rejection`].

use std::fmt;
use std::time::Duration;

/// Whose fault an error is; it decides what a stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// The pipeline file or the worker's settings. The stage stops until the file changes.
    Config,
    /// Bytes that cannot be what they should be, and that cannot be set aside record by record. The stage stops with its position kept.
    Data,
    /// A system outside: broker, object store, disk. The stage tries again with backoff.
    External,
    /// Another task has taken over (I4). The stage gives up its claim and asks for a new one.
    Fenced,
    /// A defect of Trunkline. The stage is restarted; the message asks for a report.
    Internal,
}

/// When trying again makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Not before somebody changes something.
    Never,
    /// With the stage's own backoff.
    Backoff,
    /// The other side said when.
    After(Duration),
}

/// An error of a connector or stage.
#[derive(Debug)]
pub struct Error {
    /// Whose fault it is.
    pub domain: Domain,
    /// When trying again makes sense.
    pub retry: Retry,
    /// A stable code such as `s3.access_denied`, for logs, metrics and help pages.
    pub code: &'static str,
    message: String,
}

/// The result of most calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A fault of the pipeline file or the worker's settings.
    pub fn config(code: &'static str, message: impl Into<String>) -> Self {
        Self { domain: Domain::Config, retry: Retry::Never, code, message: message.into() }
    }

    /// Data that cannot be set aside record by record.
    pub fn data(code: &'static str, message: impl Into<String>) -> Self {
        Self { domain: Domain::Data, retry: Retry::Never, code, message: message.into() }
    }

    /// A system outside failed; tried again with backoff.
    pub fn external(code: &'static str, message: impl Into<String>) -> Self {
        Self { domain: Domain::External, retry: Retry::Backoff, code, message: message.into() }
    }

    /// Another task has taken over.
    pub fn fenced(code: &'static str, message: impl Into<String>) -> Self {
        Self { domain: Domain::Fenced, retry: Retry::Backoff, code, message: message.into() }
    }

    /// Something that cannot happen did.
    pub fn internal(code: &'static str, message: impl Into<String>) -> Self {
        Self { domain: Domain::Internal, retry: Retry::Backoff, code, message: message.into() }
    }

    /// The same error with another retry hint.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Puts what was being done before the message: `context: message`.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// What went wrong, in words.
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

/// Names the path in an I/O error; a full disk gets a code of its own, because its cure is another one.
pub fn io_error(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Error {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "io.disk_full",
        std::io::ErrorKind::PermissionDenied => "io.permission_denied",
        std::io::ErrorKind::NotFound => "io.not_found",
        _ => "io.failed",
    };
    Error::external(code, format!("cannot {doing} {}: {error}", path.display()))
}
