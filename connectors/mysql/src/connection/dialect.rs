//! The differences between MySQL and MariaDB that reach the user: statements in remedies.

/// The vendor of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    MySql,
    MariaDb,
}

impl Dialect {
    /// From the version that the server reports: `10.11.6-MariaDB-log`.
    pub(crate) fn of_version(version: &str) -> Self {
        if version.contains("MariaDB") { Self::MariaDb } else { Self::MySql }
    }

    /// The statement that sets a global variable. MariaDB has no SET PERSIST, so a restart resets
    /// the variable.
    pub(crate) fn set_global(self, assignment: &str) -> String {
        match self {
            Self::MySql => format!("SET PERSIST {assignment}"),
            Self::MariaDb => format!("SET GLOBAL {assignment} (and in the server's configuration file)"),
        }
    }

    /// As [`set_global`](Dialect::set_global), as SQL that a client can run unchanged.
    pub(crate) fn set_global_sql(self, assignment: &str) -> String {
        match self {
            Self::MySql => format!("SET PERSIST {assignment};"),
            Self::MariaDb => format!("SET GLOBAL {assignment}; -- and in the server's configuration file"),
        }
    }
}

/// A server by the way in which it identifies transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerFlavor {
    /// MySQL with `gtid_mode = ON`.
    MySql,
    /// MySQL with another `gtid_mode`: transactions are identified by their binlog position.
    MySqlWithoutGtids,
    /// MariaDB, whose transactions always have GTIDs, in a format of MariaDB's.
    MariaDb,
}

impl ServerFlavor {
    pub(crate) fn dialect(self) -> Dialect {
        match self {
            Self::MySql | Self::MySqlWithoutGtids => Dialect::MySql,
            Self::MariaDb => Dialect::MariaDb,
        }
    }
}
