//! `trunkline replay diff` of tables and of documents.
//!
//! Rows have no place of their own at a destination. The hash of a row stands for it, by which a
//! second reading finds the rows that are shown.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use tokio::runtime::Runtime;
use trunkline_connector::{Contents, OffsetRanges, Result};
use xxhash_rust::xxh3::Xxh3;

use super::diff::{DiffArgs, Found, check_key, in_folder, ranges};
use super::target::Refusal;
use crate::config::Settings;
use crate::plan::SinkPlan;
use crate::replay::diff::{Comparison, Place, Sample, Side};
use crate::replay::run::Run;
use crate::units::counted;

/// Compares what two sinks have written for the range of a run.
pub(super) fn compare(
    args: &DiffArgs,
    settings: &Settings,
    (live, shadow, contents): (&SinkPlan, &SinkPlan, &Contents),
    run: &Run,
    runtime: &Runtime,
) -> Result<Found, Refusal> {
    let ranges = ranges(run);
    let sides = [(Side::Live, live, shadow), (Side::Shadow, shadow, live)];
    let key = if args.key.is_empty() { &contents.key } else { &args.key };
    let ignored: Vec<String> = args.ignore.iter().chain(&contents.ignored).cloned().collect();
    let mut beyond = 0;
    let found = in_folder(settings, |folder| {
        let mut comparison = Comparison::new(key.clone(), ignored, args.samples, folder.to_owned());
        for (side, own, other) in sides {
            let of_side =
                own.spec.read_contents(&ranges, other.spec.as_ref(), runtime.handle(), &mut |place, row| {
                    // The two sides have different names for the same table.
                    let name = if side == Side::Live { place } else { "" };
                    comparison.add(side, name, place_of(row), row)
                })?;
            beyond += if side == Side::Live { of_side } else { 0 };
        }
        comparison.finish()
    });
    let mut differences = found?;
    check_key(args, &differences)?;
    merge_names(&mut differences.folders);
    let places =
        |at: fn(&Sample) -> Option<Place>| differences.samples.iter().filter_map(at).collect::<BTreeSet<Place>>();
    let live_rows = rows_at((live, shadow), &ranges, &places(|sample| sample.0), runtime)?;
    let shadow_rows = rows_at((shadow, live), &ranges, &places(|sample| sample.1), runtime)?;
    let row = |rows: &BTreeMap<Place, Value>, place: Option<Place>| {
        place.and_then(|place| rows.get(&place)).cloned().unwrap_or(Value::Null)
    };
    let samples =
        differences.samples.iter().map(|(one, other)| (row(&live_rows, *one), row(&shadow_rows, *other))).collect();
    let mut notes = Vec::new();
    if !contents.ignored.is_empty() {
        notes.push(format!("columns that are not compared: {}", contents.ignored.join(", ")));
    }
    if beyond > 0 {
        notes.push(format!(
            "{} of the live table hold records after the range of the run, which the shadow does not have",
            counted(usize::try_from(beyond).unwrap_or(usize::MAX), "row")
        ));
    }
    Ok(Found {
        heading: "TABLE",
        live: live.spec.destination().unwrap_or_default(),
        shadow: run.destination.clone(),
        differences,
        samples,
        beyond: 0,
        notes,
    })
}

/// The hash of a row.
fn place_of(row: &[(&str, &str)]) -> Place {
    let mut hash = Xxh3::new();
    for text in row.iter().flat_map(|(name, value)| [name, value]) {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    let hash = hash.digest();
    Place { file: (hash >> 32) as u32, row: hash as u32 }
}

/// Shows the rows of the shadow in the line of the live table, if there is only one.
fn merge_names(tables: &mut BTreeMap<String, [u64; 2]>) {
    let Some([_, shadow]) = tables.remove("") else { return };
    if tables.len() == 1 {
        tables.values_mut().for_each(|rows| rows[1] = shadow);
    } else {
        tables.insert(String::new(), [0, shadow]);
    }
}

/// Reads rows again, to show them.
fn rows_at(
    (own, other): (&SinkPlan, &SinkPlan),
    ranges: &OffsetRanges,
    places: &BTreeSet<Place>,
    runtime: &Runtime,
) -> Result<BTreeMap<Place, Value>> {
    let mut found = BTreeMap::new();
    if places.is_empty() {
        return Ok(found);
    }
    own.spec.read_contents(ranges, other.spec.as_ref(), runtime.handle(), &mut |_, row| {
        let place = place_of(row);
        if places.contains(&place) {
            let members: Map<String, Value> =
                row.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
            found.insert(place, Value::Object(members));
        }
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_not_confused_in_places() {
        assert_ne!(place_of(&[("ab", "c")]), place_of(&[("a", "bc")]));
        assert_eq!(place_of(&[("a", "b")]), place_of(&[("a", "b")]));
    }

    #[test]
    fn one_table_is_one_line() {
        let tables = |rows: &[(&str, [u64; 2])]| {
            rows.iter().map(|(name, rows)| ((*name).to_owned(), *rows)).collect::<BTreeMap<_, _>>()
        };
        let mut one = tables(&[("", [0, 7]), ("orders", [9, 0])]);
        merge_names(&mut one);
        assert_eq!(one, tables(&[("orders", [9, 7])]));
        let mut several = tables(&[("", [0, 7]), ("a", [9, 0]), ("b", [1, 0])]);
        merge_names(&mut several);
        assert_eq!(several[""], [0, 7]);
        let mut none = tables(&[("", [0, 7])]);
        merge_names(&mut none);
        assert_eq!(none, tables(&[("", [0, 7])]));
    }
}
