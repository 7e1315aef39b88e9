//! Moves the position of a source that does not run (`trunkline offsets set` and `reset`).

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};
use trunkline_connector::{Error, Placement, PositionChange, PositionMoves, Result};

use super::offsets::{ChangeArgs, confirm};
use super::output::{Exit, columns, print_data, print_error};
use super::record::record;
use crate::checkpoint::{MovedSource, Positions, RunState, or_empty, source_in_use, source_stays};
use crate::config::Settings;
use crate::kafka::{Cluster, GroupOffsets};
use crate::plan::{Pipeline, SourcePlan};
use crate::stage::Names;
use crate::worker::control;

/// See the module's header.
pub(super) struct SourceMove<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) settings: &'a Settings,
    pub(super) pipeline: &'a Pipeline,
    pub(super) source: &'a SourcePlan,
    pub(super) args: &'a ChangeArgs,
}

/// The change of one part of the position.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    place: String,
    before: Option<String>,
    after: Option<String>,
}

impl SourceMove<'_> {
    /// Moves to a position; without one, removes the whole position.
    pub(super) fn run(&self, to: Option<&str>) -> Result<Exit> {
        let name = &self.args.name;
        let Some(moves) = self.source.spec.position_moves() else { return Err(source_stays(name)) };
        if self.args.partitions.is_some() {
            let message = format!(
                "`{name}` is a source, and reads no topic: leave --partitions out. Its positions: {}",
                moves.forms()
            );
            return Err(Error::config("offsets.bad_position", message));
        }
        self.require_stopped()?;
        let (task, names) = (self.task(), self.names());
        let before = or_empty(Positions::load(self.cluster, &task, &task).map(|positions| positions.parts))?;
        if before.is_empty() {
            self.check_node()?;
        }
        let changes = match to {
            Some(to) => moves.move_to(to, &before, runtime()?.handle())?,
            None => before.iter().map(|(key, _)| PositionChange { key: key.clone(), value: None }).collect(),
        };
        let shown = shown(moves, &before, &changes);
        if !self.args.json {
            print_error(format_args!("{}", table(&shown).trim_end()));
        }
        let effect = match to {
            Some(_) => {
                "Records between the new and the old position are written to the topics a second time, or are skipped."
            }
            None => moves.after_reset(),
        };
        confirm(name, effect, self.args.yes)?;
        let node = self.is_on_node().then_some(&self.settings.node);
        let list: Vec<Value> = shown
            .iter()
            .map(|Shown { place, before, after }| json!({ "node": node, "place": place, "before": before, "after": after }))
            .collect();
        let command = if to.is_some() { "offsets set" } else { "offsets reset" };
        record(self.cluster, self.settings, command, json!({ "name": name, "to": to, "changes": &list }))?;
        let owner = names.owner(&self.pipeline.name, &self.source.name, self.is_on_node());
        MovedSource { name, task: &task, owner: &owner }.to(self.cluster, &before, &changes)?;
        if self.args.json {
            return Ok(print_data(&format!("{}\n", Value::Array(list))));
        }
        print_error(format_args!("the position of `{name}` was changed: it continues there when it starts"));
        Ok(Exit::Ok)
    }

    fn is_on_node(&self) -> bool {
        self.source.spec.placement() == Placement::EveryNode
    }

    fn names(&self) -> Names {
        Names { cluster: self.settings.cluster_name(), node: self.settings.node.clone(), worker: String::new() }
    }

    fn task(&self) -> String {
        match self.is_on_node() {
            true => self.names().node_task(&self.pipeline.name, &self.source.name),
            false => self.names().component(&self.pipeline.name, &self.source.name),
        }
    }

    /// An error if a worker shows that it runs the source. A worker that does not show it yet
    /// fences the change, or is fenced by it.
    fn require_stopped(&self) -> Result<()> {
        let names = self.names();
        let leases = if self.is_on_node() { names.node_leases() } else { names.leases() };
        // Workers that were killed leave their rows behind.
        if GroupOffsets::new(self.cluster, &leases)?.members()? == 0 {
            return Ok(());
        }
        let (view, _) = control::read(self.cluster, &names.cluster)?;
        let is_wanted = view.state(&self.pipeline.name, &self.source.name) == RunState::Running;
        for (_, worker) in view.workers(Instant::now()) {
            if self.is_on_node() && worker.node != names.node {
                continue;
            }
            let of_source = worker
                .tasks
                .iter()
                .filter(|task| task.pipeline == self.pipeline.name && task.component == self.source.name);
            if let Some(task) = of_source.into_iter().find(|task| is_running(&task.state, is_wanted)) {
                let reason = format!("its task on the node `{}` is {}", worker.node, task.state);
                return Err(source_in_use(&self.args.name, &reason));
            }
        }
        Ok(())
    }

    /// Reports the nodes that have positions, if this one has none.
    fn check_node(&self) -> Result<()> {
        if !self.is_on_node() {
            return Ok(());
        }
        let component = self.names().component(&self.pipeline.name, &self.source.name);
        let nodes: BTreeMap<_, _> = or_empty(Positions::by_node(self.cluster, &component))?;
        if nodes.is_empty() {
            return Ok(());
        }
        let known: Vec<&str> = nodes.keys().map(String::as_str).collect();
        let message = format!(
            "`{}` has no position on the node `{}`, only on {}: run the command on that machine, or set `node`",
            self.args.name,
            self.settings.node,
            known.join(", ")
        );
        Err(Error::config("offsets.bad_position", message))
    }
}

/// Whether a task in this state may write. A task that waits for its lease starts at any time,
/// unless people want it not to run.
fn is_running(state: &str, is_wanted: bool) -> bool {
    match state {
        "paused" | "stopped" | "done" => false,
        "waiting" => is_wanted,
        _ => true,
    }
}

/// The changes for people. Parts that say nothing about a position are left out.
fn shown(moves: &dyn PositionMoves, before: &[(String, Vec<u8>)], changes: &[PositionChange]) -> Vec<Shown> {
    let mut shown = Vec::new();
    for PositionChange { key, value } in changes {
        let old = before.iter().find(|(known, _)| known == key).and_then(|(key, value)| moves.describe(key, value));
        let new = value.as_ref().and_then(|value| moves.describe(key, value));
        let Some((place, _)) = new.as_ref().or(old.as_ref()) else { continue };
        let place = place.clone();
        shown.push(Shown { place, before: old.map(|(_, text)| text), after: new.map(|(_, text)| text) });
    }
    shown
}

fn table(shown: &[Shown]) -> String {
    let mut rows = vec![["POSITION IN", "BEFORE", "AFTER"].map(str::to_owned)];
    let text = |position: &Option<String>| position.clone().unwrap_or_else(|| "none".to_owned());
    rows.extend(shown.iter().map(|change| [change.place.clone(), text(&change.before), text(&change.after)]));
    columns(&rows, &[])
}

/// Multi-threaded: a handle of a single-threaded runtime does not drive connections.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Moves;

    impl PositionMoves for Moves {
        fn forms(&self) -> &'static str {
            "N"
        }

        fn move_to(&self, _: &str, _: &[(String, Vec<u8>)], _: &tokio::runtime::Handle) -> Result<Vec<PositionChange>> {
            Ok(Vec::new())
        }

        fn describe(&self, key: &str, value: &[u8]) -> Option<(String, String)> {
            (key != "started").then(|| (format!("file {key}"), String::from_utf8_lossy(value).into_owned()))
        }

        fn after_reset(&self) -> &'static str {
            ""
        }
    }

    #[test]
    fn parts_are_shown_before_and_after() {
        let before = [("a".to_owned(), b"1".to_vec()), ("started".to_owned(), b"{}".to_vec())];
        let change =
            |key: &str, value: Option<&[u8]>| PositionChange { key: key.to_owned(), value: value.map(<[u8]>::to_vec) };
        let changes = [change("a", Some(b"7")), change("b", Some(b"2")), change("started", None)];
        let expected = |place: &str, before: Option<&str>, after: Option<&str>| Shown {
            place: place.to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        };
        let set = [expected("file a", Some("1"), Some("7")), expected("file b", None, Some("2"))];
        assert_eq!(shown(&Moves, &before, &changes), set);
        assert_eq!(shown(&Moves, &before, &[change("a", None)]), [expected("file a", Some("1"), None)]);
    }

    #[test]
    fn a_task_that_waits_runs_unless_it_is_paused() {
        assert!(is_running("running", false) && is_running("failed", true) && is_running("waiting", true));
        assert!(!is_running("waiting", false) && !is_running("paused", true) && !is_running("done", true));
    }
}
