//! `trunkline validate --check`: the prerequisites that the server does not meet, each with the
//! statement that fixes it.

use std::collections::BTreeSet;

use trunkline_connector::{Error, PreflightIssue, Result};

use crate::binlog::ReplicaIdentity;
use crate::config::{MysqlOptions, SnapshotMode, SnapshotPolicy};
use crate::connection::binlog_state::binlog_end;
use crate::connection::dialect::{Dialect, ServerFlavor};
use crate::connection::logging::{UnloggedChanges, unlogged_changes};
use crate::connection::query::{QueryConnection, TextRows};
use crate::connection::server_info::ServerInfo;
use crate::schema::table_name::TableName;
use crate::snapshot::access::{grants, partly_readable, partly_readable_message};
use crate::snapshot::describe;
use crate::snapshot::names::{AMBIGUOUS_FIX, UnmatchedGlob, ambiguous_names, unmatched_globs};

/// A shorter retention loses changes of a source that stands still over a weekend.
const MIN_RETENTION_SECONDS: u64 = 3 * 86_400;

/// Required settings: code, name, value, and purpose.
const SETTINGS: [(&str, &str, &str, &str); 3] = [
    ("mysql.check.binlog_format", "binlog_format", "ROW", "the binlog must contain changes as rows, not as statements"),
    ("mysql.check.row_image", "binlog_row_image", "FULL", "a change must contain the whole row"),
    (
        "mysql.check.row_metadata",
        "binlog_row_metadata",
        "FULL",
        "the binlog must contain the names of columns, their character sets and the primary key",
    ),
];

/// Checks every prerequisite. Changes nothing on the server.
pub(crate) async fn check(options: &MysqlOptions, task: &str) -> Vec<PreflightIssue> {
    match Preflight::connect(options).await {
        Ok(mut preflight) => {
            if let Err(error) = preflight.check_all(task).await {
                preflight.issues.push(issue_of(&error));
            }
            preflight.issues
        }
        Err(error) => vec![issue_of(&error)],
    }
}

fn issue_of(error: &Error) -> PreflightIssue {
    PreflightIssue { code: error.code, message: error.message().to_owned(), fix: None }
}

/// A running check.
struct Preflight<'a> {
    options: &'a MysqlOptions,
    connection: QueryConnection,
    dialect: Dialect,
    server: String,
    /// The output of SHOW GRANTS, in upper case.
    grants: Vec<String>,
    issues: Vec<PreflightIssue>,
}

impl<'a> Preflight<'a> {
    async fn connect(options: &'a MysqlOptions) -> Result<Self> {
        let mut connection = QueryConnection::open(&options.connection).await?;
        let grants = connection.query("SHOW GRANTS").await?;
        Ok(Self {
            options,
            dialect: connection.dialect(),
            server: connection.server_label(),
            connection,
            grants: grants.into_iter().flatten().flatten().map(|grant| grant.to_uppercase()).collect(),
            issues: Vec::new(),
        })
    }

    async fn check_all(&mut self, task: &str) -> Result<()> {
        if self.setting("log_bin").await?.as_deref() != Some("1") {
            let fix = "start mysqld with `--log-bin`; a running server cannot turn the binlog on".to_owned();
            self.report("mysql.check.log_bin", "the binlog is off", fix);
            return Ok(());
        }
        self.check_settings().await?;
        self.check_transaction_ids().await?;
        self.check_retention().await?;
        self.check_binlog_access().await?;
        self.check_replica(&ReplicaIdentity::new(task, self.options.server_id)).await?;
        if self.options.snapshot != SnapshotPolicy::Never {
            self.check_tables().await?;
        }
        Ok(())
    }

    /// Reports an unmet prerequisite. The message follows the name of the server.
    fn report(&mut self, code: &'static str, message: &str, fix: String) {
        self.issues.push(PreflightIssue { code, message: format!("{}: {message}", self.server), fix: Some(fix) });
    }

    /// The value of a global variable; `None` if the server does not have it.
    async fn setting(&mut self, name: &str) -> Result<Option<String>> {
        match self.connection.query_one(&format!("SELECT @@GLOBAL.{name}")).await {
            Err(error) if error.code == "mysql.query" => Ok(None),
            value => value,
        }
    }

    fn user(&self) -> &str {
        &self.options.connection.address.user
    }

    fn grant(&self, privilege: &str) -> String {
        format!("GRANT {privilege} ON *.* TO '{}'@'%';", self.user())
    }

    fn has_privilege(&self, privilege: &str) -> bool {
        self.grants.iter().any(|grant| grant.contains(privilege) || grant.contains("ALL PRIVILEGES"))
    }

    async fn check_settings(&mut self) -> Result<()> {
        for (code, name, required, purpose) in SETTINGS {
            // A server without the variable behaves as required, or fails later with its own error.
            let Some(value) = self.setting(name).await? else { continue };
            if !value.eq_ignore_ascii_case(required) {
                let fix = self.dialect.set_global_sql(&format!("{name} = '{required}'"));
                self.report(code, &format!("{name} is '{value}': {purpose}"), fix);
            }
        }
        if self.options.format.query && self.setting("binlog_rows_query_log_events").await?.as_deref() != Some("1") {
            let fix = match self.dialect {
                Dialect::MariaDb => "remove `query`: the connector does not read MariaDB's statements".to_owned(),
                Dialect::MySql => self.dialect.set_global_sql("binlog_rows_query_log_events = ON"),
            };
            self.report("mysql.check.query", "`query` is set, but the server does not log statements", fix);
        }
        Ok(())
    }

    async fn check_transaction_ids(&mut self) -> Result<()> {
        match self.dialect {
            Dialect::MariaDb => {
                if self.setting("gtid_strict_mode").await?.as_deref() != Some("1") {
                    let message =
                        "gtid_strict_mode is off, so the order of GTIDs does not identify processed transactions";
                    let fix = self.dialect.set_global_sql("gtid_strict_mode = ON");
                    self.report("mysql.check.gtid_strict_mode", message, fix);
                }
            }
            Dialect::MySql => {
                if self.setting("gtid_mode").await?.as_deref() != Some("ON") {
                    let message =
                        "gtid_mode is not ON: the source cannot resume on another server, nor follow XA transactions";
                    let fix = "SET PERSIST enforce_gtid_consistency = ON; SET PERSIST gtid_mode = OFF_PERMISSIVE; SET PERSIST gtid_mode = \
                               ON_PERMISSIVE; SET PERSIST gtid_mode = ON;";
                    self.report("mysql.check.gtid_mode", message, fix.to_owned());
                }
            }
        }
        Ok(())
    }

    async fn check_retention(&mut self) -> Result<()> {
        if let Some(seconds) = self.setting("binlog_expire_logs_seconds").await?
            && let Ok(seconds) = seconds.parse::<u64>()
            && (1..MIN_RETENTION_SECONDS).contains(&seconds)
        {
            let message = format!(
                "the server keeps its binlog for {seconds} s: a source that stands still for longer loses changes"
            );
            let fix = self.dialect.set_global_sql("binlog_expire_logs_seconds = 604800");
            self.report("mysql.check.retention", &message, fix);
        }
        Ok(())
    }

    async fn check_binlog_access(&mut self) -> Result<()> {
        if let Some(why) = privilege_error(binlog_end(&mut self.connection).await)? {
            let fix = self.grant(match self.dialect {
                Dialect::MariaDb => "BINLOG MONITOR",
                Dialect::MySql => "REPLICATION CLIENT",
            });
            self.issues.push(PreflightIssue { code: "mysql.check.replication_client", message: why, fix: Some(fix) });
        }
        Ok(())
    }

    /// Checks that the user may follow the binlog, and that no other replica has the source's
    /// number.
    async fn check_replica(&mut self, identity: &ReplicaIdentity) -> Result<()> {
        const CODE: &str = "mysql.check.replication_slave";
        let replicas: TextRows = match self.dialect {
            Dialect::MariaDb => {
                // MariaDB lists its replicas to administrators only.
                if !self.has_privilege("REPLICATION SLAVE") {
                    let message = format!("the user `{}` may not follow the binlog", self.user());
                    self.report(CODE, &message, self.grant("REPLICATION SLAVE"));
                }
                Vec::new()
            }
            Dialect::MySql => match self.connection.query("SHOW REPLICAS").await {
                Ok(replicas) => replicas,
                Err(error) => {
                    if let Some(why) = privilege_error(Err::<(), _>(error))? {
                        let fix = Some(self.grant("REPLICATION SLAVE"));
                        self.issues.push(PreflightIssue { code: CODE, message: why, fix });
                    }
                    return Ok(());
                }
            },
        };
        let id = identity.server_id.to_string();
        let text = |row: &Vec<Option<String>>, index: usize| row.get(index).cloned().flatten().unwrap_or_default();
        let is_other = |row: &Vec<Option<String>>| text(row, 0) == id && text(row, 4) != identity.uuid;
        if self.setting("server_id").await?.as_deref() == Some(&id) || replicas.iter().any(is_other) {
            let fix = format!("set `server_id` to a number other than {id}");
            self.report("mysql.check.server_id", &format!("another server or replica has the server id {id}"), fix);
        }
        Ok(())
    }

    async fn check_tables(&mut self) -> Result<()> {
        let server = ServerInfo::read(&mut self.connection).await?;
        let tables = describe::tables(self.options, &mut self.connection, &server.charsets, None).await?;
        let names: Vec<TableName> = tables.iter().map(|description| description.table.name.clone()).collect();
        for UnmatchedGlob { message, fix } in unmatched_globs(self.options, &mut self.connection, &names).await? {
            let fix = fix.unwrap_or_else(|| self.grant("SELECT"));
            self.report("mysql.check.tables", &message, fix);
        }
        for message in ambiguous_names(&names) {
            self.report("mysql.check.ambiguous_name", &message, AMBIGUOUS_FIX.to_owned());
        }
        let databases: BTreeSet<String> = names.into_iter().map(|name| name.database).collect();
        if self.options.snapshot != SnapshotPolicy::Only {
            match unlogged_changes(&mut self.connection, &databases).await {
                Ok(unlogged) => {
                    unlogged
                        .into_iter()
                        .for_each(|UnloggedChanges { code, message, fix }| self.report(code, &message, fix));
                }
                // `check_binlog_access` has reported the missing privilege.
                Err(error) if error.code == "mysql.privilege" => {}
                Err(error) => return Err(error),
            }
        }
        let denied = partly_readable(&mut self.connection, &tables).await?;
        if !denied.is_empty() {
            let message = partly_readable_message(self.user(), &denied);
            self.report("mysql.check.column_privilege", &message, grants(self.user(), &denied));
        }
        let is_exact = self.options.snapshot_mode == SnapshotMode::Exact;
        let needs_lock = |is_keyless: bool| is_keyless || is_exact || server.flavor == ServerFlavor::MySqlWithoutGtids;
        if let Some(description) = tables.iter().find(|description| needs_lock(!description.has_chunks()))
            && !self.has_privilege("LOCK TABLES")
        {
            let why = match is_exact {
                true => "`snapshot_mode = \"exact\"` reads",
                false => "it has no primary key (or the server has no GTIDs), so the source reads",
            };
            let message = format!("{}: {why} it after a short lock", description.table.name);
            self.report("mysql.check.lock_tables", &message, self.grant("LOCK TABLES"));
        }
        Ok(())
    }
}

/// The message of an error about a missing privilege. Other errors fail the check.
fn privilege_error<T>(result: Result<T>) -> Result<Option<String>> {
    match result {
        Ok(_) => Ok(None),
        Err(error) if error.code == "mysql.privilege" => Ok(Some(error.message().to_owned())),
        Err(error) => Err(error),
    }
}
