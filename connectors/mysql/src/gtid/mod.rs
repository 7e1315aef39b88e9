//! Which transactions have been seen, in either server's way: MySQL's sets, or MariaDB's last transaction of each domain.

mod mariadb;
mod mysql;

use std::fmt;

pub(crate) use mariadb::{DomainGtid, Domains};
pub(crate) use mysql::{Origin, UuidSet};

/// A transaction's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gtid {
    MySql { origin: Origin, number: u64 },
    MariaDb(DomainGtid),
}

/// Transactions that are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GtidSet {
    MySql(UuidSet),
    MariaDb(Domains),
}

impl GtidSet {
    /// Do both come from the same kind of server?
    pub(crate) fn is_of_kind(&self, gtid: &Gtid) -> bool {
        matches!((self, gtid), (Self::MySql(_), Gtid::MySql { .. }) | (Self::MariaDb(_), Gtid::MariaDb(_)))
    }

    pub(crate) fn add(&mut self, gtid: &Gtid) {
        match (self, gtid) {
            (Self::MySql(set), Gtid::MySql { origin, number }) => set.add(origin, *number),
            (Self::MariaDb(domains), Gtid::MariaDb(gtid)) => domains.add(*gtid),
            // The follower refuses it when the transaction begins.
            (set, gtid) => debug_assert!(false, "{gtid} in {set}"),
        }
    }

    /// A transaction is prepared, and not done before it is decided. In a set it is missing until then, which is all that is needed.
    pub(crate) fn hold(&mut self, gtid: &Gtid) {
        if let (Self::MariaDb(domains), Gtid::MariaDb(gtid)) = (self, gtid) {
            domains.hold(*gtid);
        }
    }

    /// Was it done before the source opened, although the server sends it? MySQL's servers send only what is missing.
    pub(crate) fn comes_again(&self, gtid: &Gtid) -> bool {
        match (self, gtid) {
            (Self::MariaDb(domains), Gtid::MariaDb(gtid)) => domains.is_beyond(*gtid),
            _ => false,
        }
    }

    /// Is every transaction of `other` in this set?
    pub(crate) fn contains_all(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::MySql(ours), Self::MySql(theirs)) => ours.contains_all(theirs),
            (Self::MariaDb(ours), Self::MariaDb(theirs)) => ours.contains_all(theirs),
            _ => false,
        }
    }
}

impl fmt::Display for Gtid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MySql { origin, number } => write!(formatter, "{origin}:{number}"),
            Self::MariaDb(gtid) => gtid.fmt(formatter),
        }
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MySql(set) => set.fmt(formatter),
            Self::MariaDb(domains) => domains.fmt(formatter),
        }
    }
}
