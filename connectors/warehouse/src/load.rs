//! Loads staged files: one transaction of the destination for all loads that are committed
//! together, which also advances their rows of the offsets table.
//!
//! ```text
//! create staging tables       outside of the transaction: DDL may commit
//! COPY, count                 for each group, before the loads are prepared: see `staging`
//! ```
//! ```text
//! read the offsets rows       loads that were committed before are left out
//! register the session        unless the rows name it: the next owner can end it if it hangs
//! BEGIN
//!   UPDATE offsets ..         must change one row for each load, else ROLLBACK and decide again
//!   apply                     for each group of files
//! COMMIT
//! ```
//! No statement is repeated after an error. The session is dropped, and the next attempt reads the
//! offsets rows: they say whether the lost COMMIT was carried out. The staging tables ended with
//! the session, so this attempt copies the files again, in its transaction.

use std::collections::HashMap;
use std::time::Duration;

use trunkline_connector::{Error, Result, TopicPartition, failpoint};

use crate::apply::{self, Context};
use crate::deletes::Deletes;
use crate::dialect::{Dialect, Session, StagingColumn};
use crate::intent::{Committable, PlannedFile, manifest_key};
use crate::offsets::{Offsets, missing_row};
use crate::rebuild::{Rebuild, StagedGroup};
use crate::refused::is_refusal;
use crate::sessions::Sessions;
use crate::stage::StagedFile;

/// The code of errors after which the whole transaction is repeated at once.
pub(crate) const CONFLICT: &str = "warehouse.conflict";
/// Attempts before the stage's own backoff applies.
const ATTEMPTS: u32 = 5;

/// What a load needs besides the session.
#[derive(Clone)]
pub(crate) struct Loader {
    pub(crate) offsets: Offsets,
    /// `None`: deletes are not remembered.
    pub(crate) deletes: Option<Deletes>,
    /// Names staging tables: no other task's are equal.
    pub(crate) task: String,
}

/// A load with the urls of its files, in the order of the plan.
#[derive(Clone)]
pub(crate) struct PendingLoad {
    pub(crate) committable: Committable,
    pub(crate) urls: Vec<FileUrls>,
}

/// The urls of a file and its manifest.
#[derive(Clone)]
pub(crate) struct FileUrls {
    pub(crate) file: String,
    pub(crate) manifest: String,
}

impl PendingLoad {
    pub(crate) fn new(committable: &Committable, url: impl Fn(&str) -> String) -> Self {
        let urls = committable.plan.files.iter().map(|file| {
            let key = file.key.as_deref().unwrap_or_default();
            FileUrls { file: url(key), manifest: url(&manifest_key(key)) }
        });
        Self { urls: urls.collect(), committable: committable.clone() }
    }

    pub(crate) fn partition(&self) -> TopicPartition {
        TopicPartition::new(self.committable.plan.topic.as_str(), self.committable.plan.partition)
    }
}

/// Files with the same table and columns, loaded by the same statements.
struct Group<'a> {
    files: Vec<(&'a PlannedFile, &'a FileUrls)>,
}

/// Where the rows of a load are.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// In staging tables of the session.
    Staged,
    /// In files of the stage. A rebuild removes the rows that they replace, if these belong to
    /// keys.
    InFiles(Option<&'a Rebuild<'a>>),
}

impl<'a> Group<'a> {
    /// The files that COPY loads.
    fn copied_files(&self) -> impl Iterator<Item = &(&'a PlannedFile, &'a FileUrls)> {
        self.files.iter().filter(|(file, _)| file.key.is_some())
    }

    fn target(&self) -> Option<&PlannedFile> {
        self.files.first().map(|(file, _)| *file)
    }
}

impl Loader {
    /// Loads what was not loaded before.
    pub(crate) fn load(&self, sessions: &mut Sessions, loads: &[PendingLoad]) -> Result<()> {
        // Later attempts run in other sessions.
        let mut staged = sessions.take_staged();
        let loaded = self.repeat(sessions, &mut |dialect, session| {
            self.attempt(dialect, session, loads, &std::mem::take(&mut staged))
        });
        loaded.map_err(|error| match is_refusal(&error) {
            true => {
                let message = format!(
                    "{}. The sink has loaded such values into a staging table before, so the table was changed since: correct the table. \
                     The load is tried again",
                    error.message()
                );
                Error::external("warehouse.load_refused", message)
            }
            false => error,
        })
    }

    /// Copies the files of loads into staging tables of the session, outside of their transaction.
    /// [`Loader::load`] uses them.
    pub(crate) fn stage(&self, sessions: &mut Sessions, loads: &[PendingLoad]) -> Result<()> {
        drop(sessions.take_staged());
        let all: Vec<&PendingLoad> = loads.iter().collect();
        let groups = groups(&all, false);
        self.repeat(sessions, &mut |dialect, session| {
            session.describe_work(&description("stages", &all));
            let stagings = self.staging_names(dialect, &groups);
            create_stagings(dialect, session, &groups, &stagings)?;
            let files: usize = groups.iter().map(|group| group.copied_files().count()).sum();
            // Each statement outside of a transaction is one.
            if files > 1 {
                session.execute("BEGIN")?;
            }
            groups.iter().zip(&stagings).try_for_each(|(group, names)| copy_group(dialect, session, group, names))?;
            if files > 1 {
                session.execute("COMMIT")?;
            }
            session.describe_work("");
            Ok(())
        })?;
        sessions.set_staged(loads.iter().map(|load| load.committable.plan.load.clone()).collect());
        Ok(())
    }

    fn staging_names(&self, dialect: &dyn Dialect, groups: &[Group<'_>]) -> Vec<Vec<String>> {
        (0..groups.len()).map(|index| apply::staging_names(dialect, &self.task, index)).collect()
    }

    /// Repeats a transaction that meets a conflict.
    pub(crate) fn repeat(
        &self,
        sessions: &mut Sessions,
        work: &mut dyn FnMut(&dyn Dialect, &mut dyn Session) -> Result<()>,
    ) -> Result<()> {
        let mut attempt = 1;
        loop {
            let outcome = sessions.run(&mut *work);
            if let (Err(_), Some(deletes)) = (&outcome, &self.deletes) {
                deletes.forget();
            }
            match outcome {
                Err(error) if error.code == CONFLICT && attempt < ATTEMPTS => {
                    tracing::debug!(%error, attempt, "a load met a conflict and is repeated");
                    // Different tasks must not meet again.
                    let spread = u64::from(uuid::Uuid::new_v4().as_bytes()[0]);
                    std::thread::park_timeout(Duration::from_millis(u64::from(attempt) * 100 + spread));
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// `staged` are the loads whose rows are in staging tables of the session.
    fn attempt(
        &self,
        dialect: &dyn Dialect,
        session: &mut dyn Session,
        loads: &[PendingLoad],
        staged: &[String],
    ) -> Result<()> {
        let partitions: Vec<TopicPartition> = loads.iter().map(PendingLoad::partition).collect();
        let rows = self.offsets.read(dialect, session, &partitions)?;
        let mut waiting = Vec::new();
        let own_session = session.id().map(str::to_owned);
        let mut unregistered = Vec::new();
        for (load, partition) in loads.iter().zip(&partitions) {
            let Committable { plan, previous, epoch } = &load.committable;
            let row = rows.get(partition).ok_or_else(|| missing_row(&self.offsets.table, partition))?;
            // Only this load can follow its predecessor: any other value says that it was
            // committed.
            if row.load != *previous {
                tracing::debug!(%partition, load = plan.load, "the load was committed before");
            } else if row.epoch > *epoch {
                return Err(fenced(partition, *epoch, row.epoch));
            } else {
                waiting.push(load);
                if own_session.as_ref().is_some_and(|own| *own != row.session) {
                    unregistered.push((partition.clone(), *epoch));
                }
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        if let Some(own) = own_session.filter(|_| !unregistered.is_empty())
            && self.offsets.register(dialect, session, &own, &unregistered)? != unregistered.len() as u64
        {
            return Err(Error::external(
                CONFLICT,
                "another task claimed a topic partition of the load at the same time",
            ));
        }
        let mut begin = |session: &mut dyn Session, now: &str| {
            for load in &waiting {
                let Committable { plan, previous, epoch } = &load.committable;
                let ids = (previous.as_str(), plan.load.as_str());
                let advance = self.offsets.advance(dialect, &load.partition(), ids, *epoch, plan.next_offset, now);
                if session.execute(&advance)? != 1 {
                    session.execute("ROLLBACK")?;
                    let message = format!("another task loaded {} at the same time", load.partition());
                    return Err(Error::external(CONFLICT, message));
                }
            }
            failpoint!("warehouse.offsets.after")
        };
        let is_staged = waiting.iter().map(|load| &load.committable.plan.load).eq(staged);
        let rows = if is_staged { Rows::Staged } else { Rows::InFiles(None) };
        self.transact(dialect, session, &waiting, &mut begin, rows)
    }

    /// Loads rows in one transaction, which begins with what `begin` does.
    pub(crate) fn transact(
        &self,
        dialect: &dyn Dialect,
        session: &mut dyn Session,
        loads: &[&PendingLoad],
        begin: &mut dyn FnMut(&mut dyn Session, &str) -> Result<()>,
        rows: Rows<'_>,
    ) -> Result<()> {
        let rebuild = match rows {
            Rows::Staged => None,
            Rows::InFiles(rebuild) => rebuild,
        };
        let is_staged = matches!(rows, Rows::Staged);
        session.describe_work(&description("loads", loads));
        let groups = groups(loads, rebuild.is_some());
        let stagings = self.staging_names(dialect, &groups);
        if !is_staged {
            create_stagings(dialect, session, &groups, &stagings)?;
        }
        groups.iter().try_for_each(|group| self.prepare_memory(dialect, session, group))?;
        let staged = staged_groups(&groups, &stagings);
        if let Some(rebuild) = rebuild {
            rebuild.create(session, &staged)?;
        }
        failpoint!("warehouse.begin.before")?;
        session.execute("BEGIN")?;
        failpoint!("warehouse.begin.after")?;
        let now = apply::now(dialect);
        begin(session, &now)?;
        let loaded = || groups.iter().zip(&stagings).zip(&staged);
        if let Some(rebuild) = rebuild {
            for ((group, names), _) in loaded() {
                copy_group(dialect, session, group, names)?;
            }
            rebuild.remove_rows(session, &staged)?;
        }
        for ((group, names), staged) in loaded() {
            match rebuild {
                Some(rebuild) => rebuild.check_deletes(session, staged)?,
                None if is_staged => {}
                None => copy_group(dialect, session, group, names)?,
            }
            self.apply_group(dialect, session, group, names, &now)?;
        }
        failpoint!("warehouse.commit.before")?;
        session.execute("COMMIT")?;
        failpoint!("warehouse.commit.after")?;
        let temporary = rebuild.map(Rebuild::temporary_tables).unwrap_or_default();
        for name in stagings.iter().flatten().chain(&temporary) {
            // The rows are in. A staging table that stays is dropped by the next load of the task.
            if let Err(error) = drop_staging(dialect, session, name) {
                tracing::debug!(%error, name, "a staging table could not be dropped");
                break;
            }
        }
        session.describe_work("");
        Ok(())
    }

    /// Creates what the statements of a group need to remember TRUNCATEs and deletes.
    fn prepare_memory(&self, dialect: &dyn Dialect, session: &mut dyn Session, group: &Group<'_>) -> Result<()> {
        let Some(target) = group.target() else { return Ok(()) };
        if target.truncates_until.is_some() {
            self.offsets.create_truncates_row(dialect, session, &target.table)?;
        }
        match &self.deletes {
            Some(deletes) if apply::has_key_hashes(dialect, target) => deletes.create(dialect, session),
            _ => Ok(()),
        }
    }

    /// Brings the staged rows of a group into their table.
    fn apply_group(
        &self,
        dialect: &dyn Dialect,
        session: &mut dyn Session,
        group: &Group<'_>,
        names: &[String],
        now: &str,
    ) -> Result<()> {
        let Some(target) = group.target() else { return Ok(()) };
        if target.truncates {
            if let Some(order) = &target.truncates_until {
                session.execute(&self.offsets.remember_truncate(dialect, &target.table, order))?;
            }
            run(session, &apply::truncate(dialect, target, now))?;
        }
        if target.key.is_none() {
            return Ok(());
        }
        let context = Context {
            now,
            newest_truncate: &self.offsets.newest_truncate(dialect, &target.table),
            deletes: self.deletes.as_ref(),
            has_deletes: group.files.iter().any(|(file, _)| file.has_deletes),
        };
        run(session, &apply::apply(dialect, target, names, &context))?;
        failpoint!("warehouse.apply.after")
    }
}

pub(crate) fn fenced(partition: &TopicPartition, own: i64, newer: i64) -> Error {
    let message = format!("{partition} belongs to a newer task: its epoch is {newer}, that of the load is {own}");
    Error::fenced("warehouse.fenced", message)
}

/// The topic partitions of loads, each with the offset at which its load ends.
fn description(doing: &str, loads: &[&PendingLoad]) -> String {
    let end = |load: &&PendingLoad| format!("{} before {}", load.partition(), load.committable.plan.next_offset);
    format!("{doing} {}", loads.iter().map(end).collect::<Vec<_>>().join(", "))
}

pub(crate) fn run(session: &mut dyn Session, statements: &[String]) -> Result<()> {
    statements.iter().try_for_each(|sql| session.execute(sql).map(drop))
}

fn drop_staging(dialect: &dyn Dialect, session: &mut dyn Session, name: &str) -> Result<()> {
    session.execute(&format!("DROP TABLE IF EXISTS {}", dialect.quoted(name))).map(drop)
}

fn staging_columns(file: &PlannedFile) -> Vec<StagingColumn> {
    let column = |column: &crate::intent::FileColumn| StagingColumn {
        name: column.name.clone(),
        column_type: column.column_type.clone(),
    };
    file.columns.iter().map(column).collect()
}

/// Groups files of equal tables and columns, so that the statements are few. The files of one table
/// keep the order that they have within their load. A file that empties its table is alone. With
/// `ordered`, the loads of one topic partition keep their order, too.
fn groups<'a>(loads: &[&'a PendingLoad], ordered: bool) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    // The group of the last file of each table in each topic partition.
    let mut last: HashMap<(&str, i32, &str), usize> = HashMap::new();
    for load in loads {
        if !ordered {
            last.clear();
        }
        let plan = &load.committable.plan;
        for (file, urls) in plan.files.iter().zip(&load.urls) {
            let place = (plan.topic.as_str(), plan.partition, file.table.as_str());
            let from = last.get(&place).map_or(0, |index| index + 1);
            let takes = |group: &Group<'_>| {
                group.target().is_some_and(|target| {
                    !target.truncates
                        && (&target.table, target.mode, &target.columns, &target.key_columns)
                            == (&file.table, file.mode, &file.columns, &file.key_columns)
                })
            };
            let found = (from..groups.len()).find(|index| !file.truncates && takes(&groups[*index]));
            let index = found.unwrap_or_else(|| {
                groups.push(Group { files: Vec::new() });
                groups.len() - 1
            });
            groups[index].files.push((file, urls));
            last.insert(place, index);
        }
    }
    groups
}

/// What a rebuild must know of the groups.
fn staged_groups<'a>(groups: &[Group<'a>], stagings: &'a [Vec<String>]) -> Vec<StagedGroup<'a>> {
    let of = |(group, names): (&Group<'a>, &'a Vec<String>)| {
        let (target, _) = *group.files.first()?;
        let staging = target.key.as_ref().and_then(|_| names.first()).map(String::as_str);
        Some(StagedGroup { target, staging })
    };
    groups.iter().zip(stagings).filter_map(of).collect()
}

/// Creates the staging tables of groups. One of an earlier load of the task is dropped.
fn create_stagings(
    dialect: &dyn Dialect,
    session: &mut dyn Session,
    groups: &[Group<'_>],
    stagings: &[Vec<String>],
) -> Result<()> {
    for (group, names) in groups.iter().zip(stagings) {
        let Some(target) = group.target().filter(|target| target.key.is_some()) else { continue };
        for name in &names[..apply::stagings(target.mode)] {
            drop_staging(dialect, session, name)?;
            run(session, &dialect.create_staging(name, &staging_columns(target)))?;
        }
    }
    Ok(())
}

/// Brings the rows of a group into its staging table, and evaluates what the load makes of them.
fn copy_group(dialect: &dyn Dialect, session: &mut dyn Session, group: &Group<'_>, names: &[String]) -> Result<()> {
    let Some(target) = group.target().filter(|target| target.key.is_some()) else { return Ok(()) };
    let table = dialect.quoted(&target.table);
    let columns = staging_columns(target);
    let staging = &names[0];
    for (file, urls) in &group.files {
        let staged = StagedFile {
            key: file.key.clone().unwrap_or_default(),
            url: urls.file.clone(),
            bytes: file.bytes,
            rows: file.rows,
        };
        failpoint!("warehouse.copy.before")?;
        session.execute(&dialect.copy(staging, &columns, &[staged], &urls.manifest))?;
        failpoint!("warehouse.copy.after")?;
    }
    let expected: u64 = group.files.iter().map(|(file, _)| file.rows).sum();
    let mut counts = vec!["COUNT(*)".to_owned()];
    for column in target.columns.iter().filter(|column| column.is_loaded) {
        let name = dialect.quoted(&column.name);
        let value = dialect.load_expression(&column.column_type, &name);
        // The destination refuses here what it would refuse in the load.
        counts.extend((value != name).then(|| format!("COUNT({value})")));
    }
    let counted = session.query(&format!("SELECT {} FROM {}", counts.join(", "), dialect.quoted(staging)))?;
    let found = counted.first().and_then(|row| row.first()?.as_ref()?.parse::<u64>().ok());
    if found != Some(expected) {
        let message = format!("COPY loaded {} rows for the table {table}, expected {expected}", found.unwrap_or(0));
        return Err(Error::external("warehouse.row_count", message));
    }
    Ok(())
}
