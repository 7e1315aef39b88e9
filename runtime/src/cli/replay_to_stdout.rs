//! `trunkline replay --to-stdout`: prints what the transforms make of past records.

use std::io::{ErrorKind, Write as _, stdout};
use std::ops::ControlFlow;
use std::path::Path;

use trunkline_connector::{Result, io_error};

use super::output::{Exit, print_error};
use crate::dead_letters::Failed;
use crate::kafka::Cluster;
use crate::replay::inspection::Inspection;
use crate::replay::run::PartitionRange;

/// Prints a line for each record on stdout, and the other counts on stderr. A reader of stdout that
/// has gone ends it.
pub(super) fn print_records(
    inspection: &mut Inspection,
    cluster: &Cluster,
    ranges: &[PartitionRange],
    failed: Option<&Failed>,
) -> Result<Exit> {
    inspection.run(
        cluster,
        ranges,
        failed,
        &mut |line| match stdout().lock().write_all(format!("{line}\n").as_bytes()) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Err(error) => Err(io_error("write", Path::new("stdout"), &error)),
        },
    )?;
    let end = if inspection.is_limited() { "; --limit ended it" } else { "" };
    print_error(format_args!(
        "{} records read; {} results and {} rejected records printed{end}",
        inspection.read, inspection.passed, inspection.rejected
    ));
    inspection.notes().iter().for_each(|note| print_error(format_args!("{note}")));
    Ok(Exit::Ok)
}
