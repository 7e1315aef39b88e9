//! Errors of the service: what failed, who has to act, and the next step.

use std::fmt;

use trunkline_connector::{Error, Retry};

use crate::config::TLS_CODES;

/// The code of an error about the bucket of a stage.
const STAGE_FAILED: &str = "003167";
/// Its next step.
const STAGE_STEP: &str = "the key or the storage integration of `stage` needs s3:GetObject and s3:ListBucket on the bucket, and the role \
                          needs USAGE on the integration";

/// An error of a login or a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SqlError {
    pub(crate) kind: ErrorKind,
    /// The service's code, for example `002003`; empty for an error of the connection.
    pub(crate) code: String,
    /// Identifies the statement in the service's query history.
    pub(crate) query_id: Option<String>,
    message: String,
}

/// The result of a statement.
pub(crate) type SqlResult<T> = std::result::Result<T, SqlError>;

/// The class of an error. It decides about domain, retry and next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// The user, password or key is wrong, or the user is locked.
    LoginRefused,
    /// The role does not exist, or the user does not have it.
    RoleRefused,
    /// An OAuth token or a programmatic access token is invalid or has expired.
    TokenRefused,
    /// There is no such account at the address.
    AccountUnknown,
    /// An object is missing, or the role lacks a privilege on it. The service does not distinguish
    /// the two.
    AccessDenied,
    /// The session has no warehouse, or the role may not use it.
    NoWarehouse,
    /// A value does not fit its column.
    DataRefused,
    /// Another transaction holds a lock.
    Conflict,
    /// The warehouse or the service has no capacity.
    Busy,
    /// The statement ran longer than allowed, or an administrator cancelled it.
    Cancelled,
    /// The session has ended, or the reply to a statement was lost: it is unknown whether the
    /// statement took effect.
    SessionLost,
    /// The service could not be reached. Nothing was sent.
    Unreachable,
    /// The certificate of the service or of the client is refused.
    Tls,
    /// `tls_ca` cannot be used.
    TlsAuthorities,
    /// `tls_cert` or `tls_key` cannot be used.
    TlsIdentity,
    /// Another error of a statement.
    StatementFailed,
}

impl SqlError {
    /// An error that the service answered.
    pub(crate) fn answered(code: &str, sql_state: &str, message: &str, query_id: Option<String>) -> Self {
        let message = message.trim().replace('\n', " ");
        Self { kind: kind_of(code, sql_state, &message), code: code.to_owned(), query_id, message }
    }

    /// An error of the connection, or of the client.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, code: String::new(), query_id: None, message: message.into() }
    }

    /// The same error with a remark after its message.
    pub(super) fn remark(mut self, remark: &str) -> Self {
        self.message.push_str(remark);
        self
    }

    /// The same error without the secrets that its statement had (I8).
    pub(crate) fn redact(mut self, secrets: &[String]) -> Self {
        for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
            self.message = self.message.replace(secret, "***");
        }
        self
    }

    /// The session is of no further use.
    pub(crate) fn ends_session(&self) -> bool {
        !matches!(
            self.kind,
            ErrorKind::DataRefused | ErrorKind::AccessDenied | ErrorKind::NoWarehouse | ErrorKind::StatementFailed
        )
    }

    /// The error of the connector. `doing` names the action that failed.
    pub(crate) fn into_error(self, doing: &str) -> Error {
        let next = if self.code == STAGE_FAILED { STAGE_STEP } else { self.kind.next_step() };
        let message = if next.is_empty() { format!("{doing}: {self}") } else { format!("{doing}: {self}; {next}") };
        let code = self.kind.code();
        match self.kind {
            ErrorKind::LoginRefused
            | ErrorKind::RoleRefused
            | ErrorKind::TokenRefused
            | ErrorKind::AccountUnknown
            | ErrorKind::TlsAuthorities
            | ErrorKind::TlsIdentity => Error::config(code, message),
            // A job does not repeat it: only other files, options or certificates help.
            ErrorKind::Tls => Error::external(code, message).retry(Retry::Never),
            ErrorKind::DataRefused => Error::data(code, message),
            // A grant may follow: the sink continues without a restart.
            ErrorKind::AccessDenied
            | ErrorKind::NoWarehouse
            | ErrorKind::Conflict
            | ErrorKind::Busy
            | ErrorKind::Cancelled
            | ErrorKind::SessionLost
            | ErrorKind::Unreachable
            | ErrorKind::StatementFailed => Error::external(code, message),
        }
    }
}

impl ErrorKind {
    /// The code of `docs/reference/errors.md`.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::LoginRefused => "snowflake.login_refused",
            Self::RoleRefused => "snowflake.role_refused",
            Self::TokenRefused => "snowflake.token_refused",
            Self::AccountUnknown => "snowflake.account_unknown",
            Self::AccessDenied => "snowflake.access_denied",
            Self::NoWarehouse => "snowflake.no_warehouse",
            Self::DataRefused => "snowflake.data_refused",
            Self::Conflict => "warehouse.conflict",
            Self::Busy => "snowflake.busy",
            Self::Cancelled => "snowflake.cancelled",
            Self::SessionLost => "snowflake.session_lost",
            Self::Unreachable => "snowflake.unreachable",
            Self::Tls => "snowflake.tls",
            Self::TlsAuthorities => TLS_CODES.ca,
            Self::TlsIdentity => TLS_CODES.cert,
            Self::StatementFailed => "snowflake.statement_failed",
        }
    }

    fn next_step(self) -> &'static str {
        match self {
            Self::LoginRefused => {
                "check `account`, `user` and `password`, or the key: `DESCRIBE USER` must show its fingerprint, and the \
                 clock of this machine must be right"
            }
            Self::RoleRefused => "correct `role`, or run `GRANT ROLE .. TO USER ..`",
            Self::TokenRefused => "issue a new token, and restart the pipeline",
            Self::AccountUnknown => "check `account` (for example `xy12345.eu-central-1` or `org-account`) and `url`",
            Self::AccessDenied => "create the object, or grant the privilege to the role of `role`",
            Self::NoWarehouse => "set `warehouse`, and run `GRANT USAGE ON WAREHOUSE .. TO ROLE ..`",
            // Their messages say what to do.
            Self::DataRefused | Self::Tls | Self::TlsAuthorities | Self::TlsIdentity => "",
            Self::Conflict => {
                "the load is tried again; if that lasts, find the statement that holds the lock with `SHOW LOCKS`"
            }
            Self::Busy => "the load is tried again; if that lasts, use a larger warehouse or a separate one for loads",
            Self::Cancelled => {
                "the load is tried again; if that lasts, raise `statement_timeout` or use a larger warehouse"
            }
            Self::SessionLost => "the sink logs in again and reads its offsets from the table of offsets",
            Self::Unreachable => "check `account`, `url` and the network",
            Self::StatementFailed => "",
        }
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        match (self.code.as_str(), &self.query_id) {
            ("", _) => Ok(()),
            (code, None) => write!(formatter, " (Snowflake error {code})"),
            (code, Some(query)) => write!(formatter, " (Snowflake error {code}, query {query})"),
        }
    }
}

fn kind_of(code: &str, sql_state: &str, message: &str) -> ErrorKind {
    match code {
        "390189" => ErrorKind::RoleRefused,
        // 390100 wrong user or password, 390102 user locked, 390144 and 390142 wrong signed login,
        // 390190 and 390191 wrong authenticator, 390422 network policy, 394300 to 394399 key of the
        // user.
        "390100" | "390101" | "390102" | "390142" | "390144" | "390190" | "390191" | "390422" => {
            ErrorKind::LoginRefused
        }
        // OAuth and programmatic access tokens.
        "390186" | "390195" | "390303" | "390318" | "394400" | "394401" | "394402" => ErrorKind::TokenRefused,
        // The session has expired, does not exist, or its master token has expired.
        "390103" | "390104" | "390108" | "390111" | "390112" | "390113" | "390114" | "390115" => ErrorKind::SessionLost,
        "390201" | "390203" => ErrorKind::NoWarehouse,
        "390913" => ErrorKind::AccountUnknown,
        "000606" | "090073" => ErrorKind::NoWarehouse,
        // 002003 and 002043 missing objects, 003001 and 003041 privileges, 090105 and 090106 no
        // current database or schema.
        "002003" | "002043" | "003001" | "003011" | "003041" | STAGE_FAILED | "090105" | "090106" => {
            ErrorKind::AccessDenied
        }
        // Lock timeout, too many waiters, deadlock.
        "000625" | "000626" | "000628" => ErrorKind::Conflict,
        // The warehouse cannot resume, or its queue timed out; too many requests.
        "000608" | "000622" | "090064" => ErrorKind::Busy,
        "000604" | "000630" => ErrorKind::Cancelled,
        "000603" | "000605" | "000709" => ErrorKind::SessionLost,
        // CREATE TABLE IF NOT EXISTS of a table that the role may not see.
        _ if message.contains("current role has no privileges on it") => ErrorKind::AccessDenied,
        // The columns of a file are not those of the table.
        "100080" => ErrorKind::StatementFailed,
        _ if code.starts_with("3943") => ErrorKind::LoginRefused,
        _ if sql_state.starts_with("22") || (code.len() == 6 && code.starts_with("100")) => ErrorKind::DataRefused,
        _ if message.contains("lock timeout") || message.contains("waiters for this lock") => ErrorKind::Conflict,
        _ => ErrorKind::StatementFailed,
    }
}

#[cfg(test)]
mod tests {
    use trunkline_connector::{Domain, Retry};

    use super::*;

    #[test]
    fn errors_have_a_class_and_a_next_step() {
        for (code, sql_state, kind, domain) in [
            ("390100", "08001", ErrorKind::LoginRefused, Domain::Config),
            ("390144", "08001", ErrorKind::LoginRefused, Domain::Config),
            ("390189", "08001", ErrorKind::RoleRefused, Domain::Config),
            ("390318", "08001", ErrorKind::TokenRefused, Domain::Config),
            ("390112", "08001", ErrorKind::SessionLost, Domain::External),
            ("002003", "42S02", ErrorKind::AccessDenied, Domain::External),
            ("000606", "57P03", ErrorKind::NoWarehouse, Domain::External),
            ("100038", "22018", ErrorKind::DataRefused, Domain::Data),
            ("000625", "57014", ErrorKind::Conflict, Domain::External),
            ("000608", "57014", ErrorKind::Busy, Domain::External),
            ("000630", "57014", ErrorKind::Cancelled, Domain::External),
            ("001003", "42000", ErrorKind::StatementFailed, Domain::External),
            ("100080", "22000", ErrorKind::StatementFailed, Domain::External),
        ] {
            let error = SqlError::answered(code, sql_state, "it\nfailed", Some("01b2".to_owned()));
            assert_eq!(error.kind, kind, "{code}");
            let error = error.into_error("loading `ORDERS`");
            assert_eq!((error.domain, error.code), (domain, kind.code()), "{code}");
            assert_eq!(error.retry == Retry::Backoff, domain == Domain::External, "{code}");
            let shown = format!("loading `ORDERS`: it failed (Snowflake error {code}, query 01b2)");
            assert!(error.message().starts_with(&shown), "{error}");
        }
    }
}
