//! The session variables of every connection.
//!
//! A session inherits its variables from the server's global ones and from `init_connect`. Any of
//! them may truncate, delay or change what the connector reads, so every connection sets all
//! variables that affect results, to fixed values.

use super::dialect::Dialect;

/// The maximum of unsigned 64-bit variables, which means no limit.
const UNLIMITED: u64 = u64::MAX;
/// Seconds after which the server closes a silent connection: longer than any pause of a snapshot
/// or of the stream.
const TIMEOUT_SECONDS: u32 = 86_400;
/// The server's default, which means no limit in practice. A [lock](crate::snapshot) sets a shorter
/// one for itself.
pub(crate) const LOCK_WAIT_TIMEOUT_SECONDS: u32 = 31_536_000;
/// Longer than any key, so that sorted strings are never compared by a prefix.
const MAX_SORT_LENGTH: u32 = 8192;

/// Statements that both vendors accept. They come first: without them, the query for the vendor
/// could fail.
pub(crate) fn common_statements() -> Vec<String> {
    vec![
        // `init_connect` may have started a transaction or locked tables.
        "ROLLBACK".to_owned(),
        "UNLOCK TABLES".to_owned(),
        // With autocommit off, the first SELECT opens a transaction whose snapshot all later ones
        // share. A larger max_join_size turns sql_big_selects off.
        format!(
            "SET SESSION autocommit = 1, completion_type = 0, sql_mode = '', time_zone = '+00:00', \
             sql_select_limit = {UNLIMITED}, max_join_size = {UNLIMITED}, sql_big_selects = 1, sql_safe_updates = 0, \
             sql_auto_is_null = 0, div_precision_increment = @@GLOBAL.div_precision_increment, \
             default_week_format = @@GLOBAL.default_week_format, lc_time_names = @@GLOBAL.lc_time_names, max_sort_length = {MAX_SORT_LENGTH}, lock_wait_timeout = {LOCK_WAIT_TIMEOUT_SECONDS}, \
             wait_timeout = {TIMEOUT_SECONDS}, net_read_timeout = {TIMEOUT_SECONDS}, net_write_timeout = {TIMEOUT_SECONDS}, \
             NAMES utf8mb4"
        ),
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE".to_owned(),
    ]
}

/// The session that computes virtual columns: as a session of an application does, which inherits
/// the server's global variables. `sql_mode` is the server's global one.
pub(crate) fn application_statement(sql_mode: &str) -> String {
    // Modes that change the result of expressions. Others change how SQL is parsed, or reject dates
    // that the tables contain.
    const MODES: [&str; 4] =
        ["PAD_CHAR_TO_FULL_LENGTH", "TIME_TRUNCATE_FRACTIONAL", "TIME_ROUND_FRACTIONAL", "ALLOW_INVALID_DATES"];
    let modes: Vec<&str> = sql_mode.split(',').filter(|mode| MODES.contains(mode)).collect();
    format!("SET SESSION time_zone = @@GLOBAL.time_zone, sql_mode = '{}'", modes.join(","))
}

/// The session that reads everything else.
pub(crate) const NEUTRAL_STATEMENT: &str = "SET SESSION time_zone = '+00:00', sql_mode = ''";

/// Statements for one vendor. Servers skip the comments of later versions.
pub(crate) fn vendor_statements(dialect: Dialect) -> Vec<String> {
    let variables = match dialect {
        // A hidden generated primary key would be missing from the descriptions of tables. A
        // secondary engine has a separate state.
        Dialect::MySql => {
            "max_execution_time = 0 \
             /*!80013 , use_secondary_engine = OFF */ \
             /*!80030 , show_gipk_in_create_table_and_information_schema = ON */"
        }
        // Rows of a system-versioned table are the current ones.
        Dialect::MariaDb => {
            "max_statement_time = 0, max_session_mem_used = 9223372036854775807 \
             /*M!100300 , idle_transaction_timeout = 0, idle_readonly_transaction_timeout = 0, \
             idle_write_transaction_timeout = 0, system_versioning_asof = DEFAULT */"
        }
    };
    vec![format!("SET SESSION {variables}")]
}
