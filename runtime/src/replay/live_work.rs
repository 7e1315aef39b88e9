//! [`LiveWatch`]: whether live work competes with a replay.

use std::time::{Duration, Instant};

use trunkline_connector::Result;

use crate::checkpoint::ControlRows;
use crate::kafka::{Cluster, TableFollower};
use crate::worker::control::{self, View};

/// Time between two looks at the signs of life of the workers.
const LOOK: Duration = Duration::from_millis(250);

/// Follows the signs of life of a cluster's workers and jobs.
pub(super) struct LiveWatch {
    rows: ControlRows,
    table: TableFollower,
    view: View,
    looked: Instant,
    pipeline: String,
    node: String,
}

impl LiveWatch {
    /// For a replay of this pipeline on this machine.
    pub(super) fn new(cluster: &Cluster, cluster_name: &str, pipeline: &str, node: &str) -> Result<Self> {
        let rows = ControlRows::new(cluster, cluster_name)?;
        let (table, view) = control::follow(&rows)?;
        let looked = Instant::now();
        Ok(Self { rows, table, view, looked, pipeline: pipeline.to_owned(), node: node.to_owned() })
    }

    /// The component that is busy, if one is: of the same pipeline, or on the same machine. `None`
    /// if it is not yet time to look again.
    pub(super) fn look(&mut self) -> Option<Option<&str>> {
        if self.looked.elapsed() < LOOK {
            return None;
        }
        self.looked = Instant::now();
        let Self { rows, table, view, .. } = self;
        table.poll(|_, key, value| {
            if let Some(row) = rows.parse(key, value) {
                view.apply(row, Instant::now());
            }
        });
        Some(self.view.busy(&self.pipeline, &self.node, Instant::now()))
    }
}
