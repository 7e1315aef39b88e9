//! Exchanges tables that a replay has filled with those of the live sink.
//!
//! The tables of the shadow get a column that names the switch before they are exchanged: it says
//! which table is which when an interrupted switch is repeated.

use std::sync::Arc;

use trunkline_connector::{Error, Result, SinkSpec, SwitchPlan};

use crate::config::Options;
use crate::dialect::{Column, ColumnType, Dialect, Session};
use crate::replay::plain;

/// Tables that are exchanged: that of the live sink, and that of the shadow.
type Pair = (String, String);

impl Options {
    /// The places of the tables of topics; see
    /// [`SinkSpec::places`].
    /// `schema` is the destination without a table; `folded` gives a name in the catalog.
    pub fn places(&self, schema: &str, folded: impl Fn(&str) -> String, topics: &[Arc<str>]) -> Option<Vec<String>> {
        let place = |topic: &Arc<str>| Some(format!("{schema}/{}", folded(&plain(&self.table.for_topic(topic)?))));
        topics.iter().map(place).collect()
    }
}

/// Plans to exchange the tables; see
/// [`SinkSpec::plan_switch`].
pub fn plan_switch(
    dialect: &dyn Dialect,
    options: &Options,
    topics: &[Arc<str>],
    shadow: &dyn SinkSpec,
) -> Result<SwitchPlan> {
    let pairs = match pairs(dialect, options, topics, shadow) {
        Ok(pairs) => pairs,
        Err(reason) => return Ok(SwitchPlan::ByHand(reason)),
    };
    let mut session = dialect.connect()?;
    for table in pairs.iter().flat_map(|(live, shadow)| [live, shadow]) {
        if dialect.columns(session.as_mut(), table)?.is_none() {
            let message = format!("there is no table {table} in {}", dialect.destination());
            return Err(Error::config("warehouse.missing_table", message));
        }
    }
    let names: Vec<String> = pairs.iter().map(|(live, shadow)| format!("{live} and {shadow}")).collect();
    Ok(SwitchPlan::Steps {
        effect: format!(
            "The tables {} exchange their names: readers find the rows of the shadow under the name of the live table, and the earlier \
             rows under that of the shadow.",
            names.join(", ")
        ),
        statements: dialect.swap_tables(&pairs),
    })
}

/// Exchanges the tables; see [`SinkSpec::switch`].
pub fn switch(
    dialect: &dyn Dialect,
    options: &Options,
    topics: &[Arc<str>],
    shadow: &dyn SinkSpec,
    run: &str,
) -> Result<()> {
    let pairs = pairs(dialect, options, topics, shadow).map_err(|reason| Error::config("warehouse.switch", reason))?;
    let mut session = dialect.connect()?;
    let mark = mark(dialect, run);
    let mut left = Vec::new();
    for (live, shadow) in pairs {
        if has_column(dialect, session.as_mut(), &live, &mark.name)? {
            continue;
        }
        if !has_column(dialect, session.as_mut(), &shadow, &mark.name)? {
            dialect.add_column(&shadow, &mark).iter().try_for_each(|sql| session.execute(sql).map(drop))?;
        }
        left.push((live, shadow));
    }
    if left.is_empty() {
        return Ok(());
    }
    dialect.swap_tables(&left).iter().try_for_each(|sql| session.execute(sql).map(drop))
}

/// Removes the columns of a switch; see
/// [`SinkSpec::finish_switch`].
pub fn finish_switch(
    dialect: &dyn Dialect,
    options: &Options,
    topics: &[Arc<str>],
    shadow: &dyn SinkSpec,
    run: &str,
) -> Result<()> {
    let pairs = pairs(dialect, options, topics, shadow).map_err(|reason| Error::config("warehouse.switch", reason))?;
    let mut session = dialect.connect()?;
    let mark = mark(dialect, run).name;
    for (live, _) in pairs {
        if has_column(dialect, session.as_mut(), &live, &mark)? {
            session.execute(&format!("ALTER TABLE {} DROP COLUMN {}", dialect.quoted(&live), dialect.quoted(&mark)))?;
        }
    }
    Ok(())
}

fn mark(dialect: &dyn Dialect, run: &str) -> Column {
    let name = dialect.folded(&format!("trunkline_switch_{}", run.replace('-', "_")));
    Column { name, column_type: ColumnType::Boolean, nullable: true, has_default: false }
}

fn has_column(dialect: &dyn Dialect, session: &mut dyn Session, table: &str, name: &str) -> Result<bool> {
    match dialect.columns(session, table)? {
        Some(columns) => Ok(columns.iter().any(|column| column.name == name)),
        None => {
            let message = format!("there is no table {table} in {}", dialect.destination());
            Err(Error::config("warehouse.missing_table", message))
        }
    }
}

/// The tables to exchange, or what to do by hand.
fn pairs(
    dialect: &dyn Dialect,
    options: &Options,
    topics: &[Arc<str>],
    shadow: &dyn SinkSpec,
) -> std::result::Result<Vec<Pair>, String> {
    let (Some(live), Some(filled)) =
        (options.places(&dialect.destination(), |name| dialect.folded(name), topics), shadow.places(topics))
    else {
        return Err("the option `table` depends on the records and not only on their topic, so the tables to exchange are not known: \
                    exchange each by hand, and let `trunkline offsets set` move the sink to the end of the run"
            .to_owned());
    };
    let schema = format!("{}/", dialect.destination());
    let mut pairs: Vec<Pair> = Vec::new();
    for (live, filled) in live.iter().zip(&filled) {
        let names = live.strip_prefix(&schema).zip(filled.strip_prefix(&schema));
        let Some((live, filled)) = names.filter(|(_, filled)| !filled.contains('/')) else {
            return Err(format!(
                "the shadow {filled} is in another schema than {live}: set `schema` of the sink to that of the shadow, and let \
                 `trunkline offsets set` move the sink to the end of the run"
            ));
        };
        if live != filled && !pairs.iter().any(|(known, _)| known == live) {
            pairs.push((live.to_owned(), filled.to_owned()));
        }
    }
    let is_twice = |table: &String| {
        pairs.iter().flat_map(|(live, filled)| [live, filled]).filter(|other| *other == table).count() > 1
    };
    if pairs.is_empty() || pairs.iter().any(|(live, filled)| is_twice(live) || is_twice(filled)) {
        return Err("several topics share a table of the live sink or of the shadow, so they cannot be exchanged one by one: exchange the \
                    tables by hand, and let `trunkline offsets set` move the sink to the end of the run"
            .to_owned());
    }
    Ok(pairs)
}
