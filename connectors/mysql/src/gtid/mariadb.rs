//! MariaDB's GTIDs (`domain-server-sequence`), and the processed transactions.
//!
//! The state of a domain is its last processed transaction. The server resumes after it in the
//! binlog. With `gtid_strict_mode`, the server guarantees that a smaller sequence is an earlier
//! transaction.
//!
//! A prepared XA transaction is not processed before its outcome is known. Transactions after it
//! that are processed in the meantime are recorded separately, as *beyond* the last one: the server
//! sends them again after a restart, and the source skips them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The id of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DomainGtid {
    pub(crate) domain: u32,
    pub(crate) server: u32,
    pub(crate) sequence: u64,
}

/// The processed transactions, by domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Domains(BTreeMap<u32, Domain>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Domain {
    /// The last transaction up to which everything is processed; sequence 0 means none.
    server: u32,
    sequence: u64,
    /// Processed transactions after it, in order.
    beyond: Vec<Run>,
    /// Prepared XA transactions without an outcome, since the source opened.
    held: BTreeSet<u64>,
}

/// Consecutive transactions of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    server: u32,
    first: u64,
    last: u64,
}

impl Domains {
    /// Parses the server's notation (`0-1-5,7-2-9`) and the extended one of stored positions, with
    /// runs after each domain: `0-1-5+1:7-9`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut domains = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let mut words = part.split('+');
            let mut numbers = words.next()?.split('-');
            let id = numbers.next()?.parse().ok()?;
            let mut domain = Domain {
                server: numbers.next()?.parse().ok()?,
                sequence: numbers.next()?.parse().ok()?,
                ..Domain::default()
            };
            if numbers.next().is_some() {
                return None;
            }
            for word in words {
                let (server, run) = word.split_once(':')?;
                let (first, last) = run.split_once('-')?;
                let run = Run { server: server.parse().ok()?, first: first.parse().ok()?, last: last.parse().ok()? };
                domain.beyond.push(run);
            }
            domains.insert(id, domain);
        }
        Some(Self(domains))
    }

    /// Adds a processed transaction.
    pub(crate) fn add(&mut self, gtid: DomainGtid) {
        let domain = self.0.entry(gtid.domain).or_default();
        domain.held.remove(&gtid.sequence);
        if domain.held.is_empty() && domain.beyond.is_empty() {
            (domain.server, domain.sequence) = (gtid.server, gtid.sequence);
            return;
        }
        domain.note(gtid);
        while let Some(run) = domain.beyond.first().copied()
            && domain.held.first().is_none_or(|held| *held > run.first)
        {
            (domain.server, domain.sequence) = (run.server, run.last);
            domain.beyond.remove(0);
        }
    }

    /// Notes a prepared XA transaction: the last processed transaction stays before it.
    pub(crate) fn hold(&mut self, gtid: DomainGtid) {
        self.0.entry(gtid.domain).or_default().held.insert(gtid.sequence);
    }

    /// Whether a transaction was processed before the source opened, and is sent again because of a
    /// prepared one before it.
    pub(crate) fn is_beyond(&self, gtid: DomainGtid) -> bool {
        let holds = |run: &Run| run.first <= gtid.sequence && gtid.sequence <= run.last;
        self.0.get(&gtid.domain).is_some_and(|domain| domain.beyond.iter().any(holds))
    }

    /// Whether this state includes every transaction of `other`, those beyond its last one
    /// included.
    pub(crate) fn contains_all(&self, other: &Self) -> bool {
        other.0.iter().all(|(id, theirs)| {
            let newest = theirs.beyond.last().map_or(theirs.sequence, |run| run.last);
            self.0.get(id).map_or(0, |ours| ours.sequence) >= newest
        })
    }

    /// The value of `@slave_connect_state`, after which the server resumes.
    pub(crate) fn connect_state(&self) -> String {
        let begun = self.0.iter().filter(|(_, domain)| domain.sequence > 0);
        let texts: Vec<String> =
            begun.map(|(id, domain)| format!("{id}-{}-{}", domain.server, domain.sequence)).collect();
        texts.join(",")
    }
}

impl Domain {
    fn note(&mut self, gtid: DomainGtid) {
        let DomainGtid { server, sequence, .. } = gtid;
        if let Some(last) = self.beyond.last_mut()
            && last.server == server
            && last.last.checked_add(1) == Some(sequence)
        {
            last.last = sequence;
            return;
        }
        let at = self.beyond.partition_point(|run| run.first < sequence);
        self.beyond.insert(at, Run { server, first: sequence, last: sequence });
    }
}

impl fmt::Display for DomainGtid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}-{}", self.domain, self.server, self.sequence)
    }
}

impl fmt::Display for Domains {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (id, domain)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(formatter, "{comma}{id}-{}-{}", domain.server, domain.sequence)?;
            for run in &domain.beyond {
                write!(formatter, "+{}:{}-{}", run.server, run.first, run.last)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gtid(server: u32, sequence: u64) -> DomainGtid {
        DomainGtid { domain: 0, server, sequence }
    }

    #[test]
    fn both_notations_are_parsed_and_printed() {
        for text in ["", "0-1-5", "0-1-5,7-2-9", "0-1-5+1:7-9+2:12-13,1-0-0+1:3-3"] {
            assert_eq!(Domains::parse(text).unwrap().to_string(), text);
        }
        for wrong in ["0-1", "0-1-5-6", "x", "0-1-5+7-9", "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5"] {
            assert_eq!(Domains::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Domains::parse("0-1-5+1:7-9,1-0-0+1:3-3").unwrap().connect_state(), "0-1-5");
    }

    #[test]
    fn a_prepared_transaction_holds_the_position_until_its_outcome() {
        let mut done = Domains::parse("0-1-4,1-1-8").unwrap();
        done.hold(gtid(1, 5));
        done.add(gtid(1, 6));
        done.add(gtid(1, 7));
        done.hold(gtid(1, 8));
        done.add(gtid(2, 9));
        assert_eq!(done.to_string(), "0-1-4+1:6-7+2:9-9,1-1-8");
        assert_eq!(done.connect_state(), "0-1-4,1-1-8");
        // After a restart the server sends all of them again.
        let mut again = Domains::parse(&done.to_string()).unwrap();
        assert!(!again.is_beyond(gtid(1, 5)) && again.is_beyond(gtid(1, 6)) && !again.is_beyond(gtid(1, 8)));
        again.hold(gtid(1, 5));
        again.hold(gtid(1, 8));
        for done in [&mut done, &mut again] {
            done.add(gtid(1, 5));
            assert_eq!(done.to_string(), "0-1-7+2:9-9,1-1-8");
            done.add(gtid(1, 10));
            done.add(gtid(1, 8));
            assert_eq!(done.to_string(), "0-1-10,1-1-8");
        }
    }

    #[test]
    fn contains_all_considers_transactions_beyond_the_last_one() {
        let parse = |text: &str| Domains::parse(text).unwrap();
        assert!(parse("0-2-9").contains_all(&parse("0-1-4+1:6-9")));
        assert!(!parse("0-2-8").contains_all(&parse("0-1-4+1:6-9")));
        assert!(!parse("0-2-8").contains_all(&parse("1-1-1")));
        assert!(parse("0-2-8").contains_all(&parse("")));
        // A transaction beyond the last one does not compensate for a purged transaction before it.
        assert!(!parse("0-1-4+1:6-9").contains_all(&parse("0-1-6")));
    }

    proptest! {
        #[test]
        fn exactly_the_processed_transactions_are_skipped_after_a_restart(
            sequences in proptest::collection::vec((1u64..4, any::<bool>()), 1..30),
            cut in 0usize..30,
        ) {
            let mut done = Domains::default();
            let (mut at, mut all, mut held) = (0, Vec::new(), Vec::new());
            for (index, (step, hold)) in sequences.iter().enumerate() {
                at += step;
                if index < cut {
                    if *hold { done.hold(gtid(1, at)); held.push(at) } else { done.add(gtid(1, at)) }
                }
                all.push((at, index < cut && !*hold));
            }
            // Every second prepared transaction gets an outcome.
            for sequence in held.iter().step_by(2) {
                done.add(gtid(1, *sequence));
                all.iter_mut().filter(|(at, _)| at == sequence).for_each(|(_, done)| *done = true);
            }
            let again = Domains::parse(&done.to_string()).unwrap();
            let from = again.0.get(&0).map_or(0, |domain| domain.sequence);
            for (sequence, is_done) in all {
                prop_assert_eq!(sequence <= from || again.is_beyond(gtid(1, sequence)), is_done, "{}", sequence);
            }
        }
    }
}
