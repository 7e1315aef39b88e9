//! Finds the rows of a file that the destination refuses, by halves of it.
//!
//! A refused row costs about two probes for each halving: 40 of a million rows. Errors that are not
//! about values (a missing grant, a missing column) never come here: see
//! [`is_refusal`](crate::refused::is_refusal). Where a table refuses all rows all the same, the
//! search ends early: see [`ALL_REFUSED`] and [`MAX_REFUSED`].

use std::ops::Range;

use trunkline_connector::{Error, Result};

/// This number of refused rows, and none accepted in between, says that the table does not fit.
pub(crate) const ALL_REFUSED: u64 = 8;

/// More refused rows of one file than this need a person.
pub(crate) const MAX_REFUSED: usize = 100;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// These rows, each with its reason.
    Rows(Vec<(u64, String)>),
    /// More rows were refused than may become dead letters: the first of them.
    TooMany(u64, String),
}

/// What the destination does with the rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It accepts some of them.
    Some,
    /// It refused all of this number.
    All(u64),
}

/// The search in a file of `rows` rows that was refused as a whole. `probe` returns why a range of
/// rows is refused, or `None`. `series` is the number of rows that were refused before, and none
/// accepted since.
pub(crate) fn find_refused(
    rows: u64,
    series: u64,
    probe: &mut dyn FnMut(Range<u64>) -> Result<Option<String>>,
) -> Result<(Found, Refusal)> {
    let mut refused: Vec<(u64, String)> = Vec::new();
    let mut accepted = false;
    // Ranges to search, the first one last. True: known to have a refused row.
    let mut open = vec![(0..rows, true)];
    while let Some((range, is_known)) = open.pop() {
        let length = range.end - range.start;
        // A row is refused only if it is refused alone.
        if !is_known || length == 1 {
            match probe(range.clone())? {
                None if is_known => return Err(inconsistent(&range)),
                None => {
                    accepted = true;
                    continue;
                }
                Some(reason) if length == 1 => {
                    refused.push((range.start, reason));
                    let all = refused.len() as u64;
                    let is_all = !accepted && all >= ALL_REFUSED.min(rows) && series + all >= ALL_REFUSED;
                    if is_all || refused.len() > MAX_REFUSED {
                        let (row, reason) = refused.swap_remove(0);
                        return Ok((Found::TooMany(row, reason), refusal(accepted, all)));
                    }
                    continue;
                }
                Some(_) => {}
            }
        }
        let middle = range.start + length / 2;
        let (left, right) = (range.start..middle, middle..range.end);
        let is_left_refused = match left.end - left.start {
            // It is probed when it is searched.
            1 => None,
            _ => Some(probe(left.clone())?.is_some()),
        };
        match is_left_refused {
            Some(false) => {
                accepted = true;
                open.push((right, true));
            }
            Some(true) => open.extend([(right, false), (left, true)]),
            None => open.extend([(right, false), (left, false)]),
        }
    }
    if refused.is_empty() {
        return Err(inconsistent(&(0..rows)));
    }
    let all = refused.len() as u64;
    Ok((Found::Rows(refused), refusal(accepted, all)))
}

fn refusal(accepted: bool, refused: u64) -> Refusal {
    if accepted { Refusal::Some } else { Refusal::All(refused) }
}

fn inconsistent(range: &Range<u64>) -> Error {
    let message = format!(
        "the warehouse refused a file, but accepts its rows {} to {} in parts; the load is tried again",
        range.start, range.end
    );
    Error::external("warehouse.file_refused", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The search among rows of which these are refused, and the number of probes.
    fn search(rows: u64, bad: &[u64], series: u64) -> (Found, Refusal, usize) {
        let mut probes = 0;
        let (found, refusal) = find_refused(rows, series, &mut |range| {
            probes += 1;
            Ok(bad.iter().find(|row| range.contains(row)).map(|row| format!("row {row}")))
        })
        .unwrap();
        (found, refusal, probes)
    }

    fn rows(bad: &[u64]) -> Found {
        Found::Rows(bad.iter().map(|row| (*row, format!("row {row}"))).collect())
    }

    #[test]
    fn single_rows_are_found_in_logarithmic_time() {
        for row in [0, 1, 499_999, 500_000, 999_999, 123_456] {
            let (found, refusal, probes) = search(1_000_000, &[row], 0);
            assert_eq!((found, refusal), (rows(&[row]), Refusal::Some));
            assert!(probes <= 42, "{probes} probes for row {row}");
        }
        assert_eq!(search(1, &[0], 0), (rows(&[0]), Refusal::All(1), 1));
        let scattered = [0, 7, 8, 500, 998, 999];
        let (found, _, probes) = search(1000, &scattered, 0);
        assert_eq!(found, rows(&scattered));
        assert!(probes <= 21 * scattered.len(), "{probes} probes");
    }

    #[test]
    fn a_table_that_refuses_all_rows_is_noticed_early() {
        let all: Vec<u64> = (0..100_000).collect();
        let (found, refusal, probes) = search(100_000, &all, 0);
        assert_eq!((found, refusal), (Found::TooMany(0, "row 0".to_owned()), Refusal::All(ALL_REFUSED)));
        assert!(probes < 50, "{probes} probes");
        // Small files add up.
        assert_eq!(search(3, &[0, 1, 2], 0).1, Refusal::All(3));
        assert_eq!(search(3, &[0, 1, 2], 4).0, rows(&[0, 1, 2]));
        assert_eq!(search(3, &[0, 1, 2], 5).0, Found::TooMany(0, "row 0".to_owned()));
        assert_eq!(search(3, &[0, 1], 100).0, rows(&[0, 1]), "the third one is accepted");
    }

    #[test]
    fn many_refused_rows_among_others_end_the_search() {
        let every_third: Vec<u64> = (0..1000).map(|row| row * 3).collect();
        let (found, refusal, _) = search(3000, &every_third, 0);
        assert_eq!((found, refusal), (Found::TooMany(0, "row 0".to_owned()), Refusal::Some));
    }

    #[test]
    fn rows_that_are_refused_only_together_are_not_blamed() {
        let refused = find_refused(8, 0, &mut |range| Ok((range.end - range.start > 2).then(|| "all".to_owned())));
        assert_eq!(refused.unwrap_err().code, "warehouse.file_refused");
        let refused = find_refused(8, 0, &mut |_| Ok(None));
        assert_eq!(refused.unwrap_err().code, "warehouse.file_refused");
    }
}
