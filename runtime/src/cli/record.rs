//! Records what a command does in the audit log, before the command does it.

use std::io::IsTerminal as _;

use serde_json::Value;
use trunkline_connector::Result;

use super::output::print_error;
use crate::checkpoint::{AuditEntry, audit_topic};
use crate::config::Settings;
use crate::kafka::{Admin, Cluster};

/// Writes an entry to the topic of the audit log, which is created if it is missing, and as a line
/// of JSON to stderr unless that is a terminal. If this fails, the command must not go ahead.
pub(super) fn record(cluster: &Cluster, settings: &Settings, command: &str, arguments: Value) -> Result<()> {
    let entry = AuditEntry::of_command(&settings.cluster_name(), command, arguments);
    write(cluster, settings, &entry).map_err(|error| entry.refused(error))?;
    show(&entry)
}

/// The same for a command that only shows records. It goes ahead with a warning if its principal
/// may not write entries: such a principal needs no more rights than to read.
pub(super) fn record_reading(cluster: &Cluster, settings: &Settings, command: &str, arguments: Value) -> Result<()> {
    let entry = AuditEntry::of_command(&settings.cluster_name(), command, arguments);
    if let Some(warning) = entry.unless_forbidden(write(cluster, settings, &entry))? {
        print_error(format_args!("warning: {warning}"));
    }
    show(&entry)
}

fn write(cluster: &Cluster, settings: &Settings, entry: &AuditEntry) -> Result<()> {
    Admin::new(cluster)?.ensure(&[audit_topic(cluster, settings.topics.replication)])?;
    entry.write(cluster)
}

fn show(entry: &AuditEntry) -> Result<()> {
    if !std::io::stderr().is_terminal() {
        print_error(format_args!("{}", entry.line()?));
    }
    Ok(())
}
