//! `trunkline validate --check`: what the server lacks, each with the statement that mends it.

use sqlx::mysql::MySqlConnection;
use trunkline_connector::{Error, PreflightIssue, Result};

use crate::binlog::Identity;
use crate::config::{MysqlOptions, Snapshot, SnapshotMode};
use crate::connection::connect::{query, query_connection, query_one, server};
use crate::connection::server_info::{Gtids, Server, binlog_end, is_mariadb};
use crate::snapshot::describe;

/// A binlog that is kept shorter than a weekend loses changes of a source that stands still over one.
const SHORTEST_RETENTION_SECONDS: u64 = 3 * 86_400;

/// Settings that must have a value: code, name, the value, and what it is for.
const SETTINGS: [(&str, &str, &str, &str); 3] = [
    ("mysql.check.binlog_format", "binlog_format", "ROW", "changes must be in the binlog as rows, not as statements"),
    ("mysql.check.row_image", "binlog_row_image", "FULL", "a change must hold the whole row"),
    (
        "mysql.check.row_metadata",
        "binlog_row_metadata",
        "FULL",
        "the binlog must name columns, their character sets and the primary key",
    ),
];

/// Everything that is missing; nothing is changed on the server.
pub(crate) async fn check(options: &MysqlOptions, task: &str) -> Vec<PreflightIssue> {
    let mut lacks = Vec::new();
    if let Err(error) = ask(options, task, &mut lacks).await {
        lacks.push(PreflightIssue { code: error.code, message: error.message().to_owned(), fix: None });
    }
    lacks
}

async fn ask(options: &MysqlOptions, task: &str, lacks: &mut Vec<PreflightIssue>) -> Result<()> {
    let mut connection = query_connection(options).await?;
    let is_mariadb = is_mariadb(options, &mut connection).await?;
    // MariaDB forgets what is set while it runs.
    let set = |setting: &str| {
        if is_mariadb {
            format!("SET GLOBAL {setting}; -- and in the server's configuration file")
        } else {
            format!("SET PERSIST {setting};")
        }
    };
    let server = server(options);
    let mut lack = |code, message: String, fix: String| lacks.push(PreflightIssue { code, message, fix: Some(fix) });
    if setting(options, &mut connection, "log_bin").await?.as_deref() != Some("1") {
        let fix = "start mysqld with `--log-bin`: it cannot be turned on while the server runs".to_owned();
        lack("mysql.check.log_bin", format!("{server} keeps no binlog"), fix);
        return Ok(());
    }
    for (code, name, wanted, why) in SETTINGS {
        // A server that does not know the setting has what is wanted, or is too old for more than its name to be asked.
        let Some(value) = setting(options, &mut connection, name).await? else { continue };
        if !value.eq_ignore_ascii_case(wanted) {
            lack(code, format!("{server}: {name} is '{value}': {why}"), set(&format!("{name} = '{wanted}'")));
        }
    }
    if options.query && setting(options, &mut connection, "binlog_rows_query_log_events").await?.as_deref() != Some("1")
    {
        let message = format!("{server} does not note the statements that changed rows, and `query` is set");
        let fix = match is_mariadb {
            true => "leave `query` out: of MariaDB the statements are not read".to_owned(),
            false => set("binlog_rows_query_log_events = ON"),
        };
        lack("mysql.check.query", message, fix);
    }
    if is_mariadb {
        if setting(options, &mut connection, "gtid_strict_mode").await?.as_deref() != Some("1") {
            let message = format!(
                "{server}: gtid_strict_mode is off: that a smaller sequence is an earlier transaction, by which a source knows what it has seen, is then \
                 nobody's promise"
            );
            lack("mysql.check.gtid_strict_mode", message, set("gtid_strict_mode = ON"));
        }
    } else if setting(options, &mut connection, "gtid_mode").await?.as_deref() != Some("ON") {
        let message = format!(
            "{server} gives no GTIDs: a source cannot go on at another server, nor follow distributed transactions"
        );
        let fix = "SET PERSIST enforce_gtid_consistency = ON; SET PERSIST gtid_mode = OFF_PERMISSIVE; SET PERSIST gtid_mode = ON_PERMISSIVE; \
             SET PERSIST gtid_mode = ON;";
        lack("mysql.check.gtid_mode", message, fix.to_owned());
    }
    if let Some(seconds) = setting(options, &mut connection, "binlog_expire_logs_seconds").await?
        && let Ok(seconds) = seconds.parse::<u64>()
        && (1..SHORTEST_RETENTION_SECONDS).contains(&seconds)
    {
        let message = format!(
            "{server} keeps its binlog for {seconds} s only: a source that stands still for longer loses changes"
        );
        lack("mysql.check.retention", message, set("binlog_expire_logs_seconds = 604800"));
    }
    let user = options.url.user.clone();
    let grant = |what: &str| format!("GRANT {what} ON *.* TO '{user}'@'%';");
    if let Some(refused) = refused(binlog_end(options, &mut connection).await)? {
        let what = if is_mariadb { "BINLOG MONITOR" } else { "REPLICATION CLIENT" };
        lack("mysql.check.replication_client", refused, grant(what));
    }
    let identity = Identity::new(task, options.server_id);
    let grants = query(options, &mut connection, "SHOW GRANTS").await?;
    let granted = |what: &str| {
        grants.iter().flatten().flatten().any(|grant| {
            let grant = grant.to_uppercase();
            grant.contains(what) || grant.contains("ALL PRIVILEGES")
        })
    };
    if is_mariadb {
        // Who else is a replica, MariaDB tells only to those who may administer them.
        if !granted("REPLICATION SLAVE") {
            let message = format!("{server} does not let `{user}` follow its binlog");
            lack("mysql.check.replication_slave", message, grant("REPLICATION SLAVE"));
        }
        if setting(options, &mut connection, "server_id").await? == Some(identity.server_id.to_string()) {
            let id = identity.server_id;
            let message = format!("{server}: the server id {id} is in use by another");
            lack("mysql.check.server_id", message, format!("set `server_id` to another number than {id}"));
        }
    } else {
        match query(options, &mut connection, "SHOW REPLICAS").await {
            Ok(replicas) => {
                let own = setting(options, &mut connection, "server_id").await?;
                let id = identity.server_id.to_string();
                let text =
                    |row: &Vec<Option<String>>, index: usize| row.get(index).cloned().flatten().unwrap_or_default();
                let other = |row: &Vec<Option<String>>| text(row, 0) == id && text(row, 4) != identity.uuid;
                if own.as_deref() == Some(&id) || replicas.iter().any(other) {
                    let message = format!("{server}: the server id {id} is in use by another");
                    lack("mysql.check.server_id", message, format!("set `server_id` to another number than {id}"));
                }
            }
            Err(error) => {
                if let Some(refused) = refused(Err::<(), _>(error))? {
                    lack("mysql.check.replication_slave", refused, grant("REPLICATION SLAVE"));
                }
            }
        }
    }
    if options.snapshot == Snapshot::Never {
        return Ok(());
    }
    let known = Server::ask(options, &mut connection).await?;
    let tables = describe::tables(options, &mut connection, &known.charsets, None).await?;
    if tables.is_empty() {
        let message = format!("{server}: `tables` chooses none of the tables that `{user}` may see");
        lack("mysql.check.tables", message, grant("SELECT"));
    }
    let is_exact = options.snapshot_mode == SnapshotMode::Exact;
    let locked = tables.iter().find(|table| table.key.is_empty() || known.gtids == Gtids::None || is_exact);
    if let Some(table) = locked
        && !granted("LOCK TABLES")
    {
        let why = match is_exact {
            true => "with `snapshot_mode = \"exact\"` its rows are",
            false => "it has no primary key (or the server no GTIDs): its rows can only be",
        };
        let message = format!("{server}: {}: {why} read after a moment's lock", table.full_name());
        lack("mysql.check.lock_tables", message, grant("LOCK TABLES"));
    }
    Ok(())
}

/// The value of a global setting; `None` if the server does not know it.
async fn setting(options: &MysqlOptions, connection: &mut MySqlConnection, name: &str) -> Result<Option<String>> {
    match query_one(options, connection, &format!("SELECT @@GLOBAL.{name}")).await {
        Err(error) if error.code == "mysql.query" => Ok(None),
        value => value,
    }
}

/// What was refused for want of a privilege; other failures are failures of the check.
fn refused<T>(outcome: Result<T>) -> Result<Option<String>> {
    match outcome {
        Ok(_) => Ok(None),
        Err(error) if error.code == "mysql.privilege" => Ok(Some(Error::message(&error).to_owned())),
        Err(error) => Err(error),
    }
}
