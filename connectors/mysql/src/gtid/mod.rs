//! GTIDs and sets of processed transactions: MySQL's GTID sets, and MariaDB's last transaction per
//! domain.

mod mariadb;
mod mysql;

use std::fmt;

pub(crate) use mariadb::{DomainGtid, Domains};
pub(crate) use mysql::{Tsid, UuidSet};

/// The id of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gtid {
    MySql { tsid: Tsid, number: u64 },
    MariaDb(DomainGtid),
}

/// The processed transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GtidSet {
    MySql(UuidSet),
    MariaDb(Domains),
}

impl GtidSet {
    /// Whether both have the format of the same vendor.
    pub(crate) fn is_of_kind(&self, gtid: &Gtid) -> bool {
        matches!((self, gtid), (Self::MySql(_), Gtid::MySql { .. }) | (Self::MariaDb(_), Gtid::MariaDb(_)))
    }

    pub(crate) fn add(&mut self, gtid: &Gtid) {
        match (self, gtid) {
            (Self::MySql(set), Gtid::MySql { tsid, number }) => set.add(tsid, *number),
            (Self::MariaDb(domains), Gtid::MariaDb(gtid)) => domains.add(*gtid),
            // The follower rejects such a transaction when it begins.
            (set, gtid) => debug_assert!(false, "{gtid} in {set}"),
        }
    }

    /// Notes a prepared XA transaction, which is not processed before its outcome is known. A MySQL
    /// set simply lacks it until then.
    pub(crate) fn hold(&mut self, gtid: &Gtid) {
        if let (Self::MariaDb(domains), Gtid::MariaDb(gtid)) = (self, gtid) {
            domains.hold(*gtid);
        }
    }

    /// Whether a transaction was processed before the source opened, although the server sends it.
    /// MySQL sends only missing transactions.
    pub(crate) fn already_processed(&self, gtid: &Gtid) -> bool {
        match (self, gtid) {
            (Self::MariaDb(domains), Gtid::MariaDb(gtid)) => domains.is_beyond(*gtid),
            _ => false,
        }
    }

    /// Whether this set contains every transaction of `other`.
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
            Self::MySql { tsid, number } => write!(formatter, "{tsid}:{number}"),
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
