//! MySQL's GTIDs and GTID sets, including tagged GTIDs (`uuid:tag:1-3`).

use std::collections::BTreeMap;
use std::fmt;

/// A transaction source identifier: the UUID of the server that assigned the GTID, and the tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tsid {
    pub(crate) server: [u8; 16],
    pub(crate) tag: String,
}

/// A set of GTIDs: disjoint ranges per source identifier, in order, with their ends included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UuidSet {
    ranges: BTreeMap<Tsid, Vec<(u64, u64)>>,
}

impl UuidSet {
    /// Parses MySQL's notation. After a UUID, intervals belong to the last tag before them.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut set = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let mut words = part.split(':').map(str::trim);
            let server = parse_uuid(words.next()?)?;
            let mut tsid = Tsid { server, tag: String::new() };
            for word in words {
                if word.starts_with(|first: char| first.is_ascii_digit()) {
                    let (from, to) = word.split_once('-').unwrap_or((word, word));
                    let (from, to) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
                    if from == 0 || to < from {
                        return None;
                    }
                    set.add_range(&tsid, from, to);
                } else if word.is_empty() {
                    return None;
                } else {
                    tsid.tag = word.to_owned();
                }
            }
        }
        Some(set)
    }

    pub(crate) fn add(&mut self, tsid: &Tsid, number: u64) {
        self.add_range(tsid, number, number);
    }

    fn add_range(&mut self, tsid: &Tsid, from: u64, to: u64) {
        if !self.ranges.contains_key(tsid) {
            self.ranges.insert(tsid.clone(), Vec::new());
        }
        let Some(ranges) = self.ranges.get_mut(tsid) else { return };
        // The usual case: the successor of the last number.
        if let Some(last) = ranges.last_mut()
            && last.0 <= from
            && from <= last.1.saturating_add(1)
        {
            last.1 = last.1.max(to);
            return;
        }
        ranges.push((from, to));
        ranges.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for range in ranges.iter() {
            match joined.last_mut() {
                Some(last) if range.0 <= last.1.saturating_add(1) => last.1 = last.1.max(range.1),
                _ => joined.push(*range),
            }
        }
        *ranges = joined;
    }

    /// Whether this set contains every transaction of `other`.
    pub(crate) fn contains_all(&self, other: &Self) -> bool {
        other.ranges.iter().all(|(tsid, theirs)| {
            let ours = self.ranges.get(tsid).map_or(&[][..], Vec::as_slice);
            theirs.iter().all(|(from, to)| ours.iter().any(|(first, last)| first <= from && to <= last))
        })
    }

    /// Source identifiers with their ranges, ends included.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Tsid, &[(u64, u64)])> {
        self.ranges.iter().map(|(tsid, ranges)| (tsid, ranges.as_slice()))
    }
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    if digits.len() != 32 {
        return None;
    }
    let mut uuid = [0u8; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(uuid)
}

impl fmt::Display for Tsid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.server.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                formatter.write_str("-")?;
            }
            write!(formatter, "{byte:02x}")?;
        }
        if !self.tag.is_empty() {
            write!(formatter, ":{}", self.tag)?;
        }
        Ok(())
    }
}

impl fmt::Display for UuidSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (tsid, ranges)) in self.ranges.iter().enumerate() {
            write!(formatter, "{}{tsid}", if index == 0 { "" } else { "," })?;
            for (from, to) in ranges {
                if from == to {
                    write!(formatter, ":{from}")?;
                } else {
                    write!(formatter, ":{from}-{to}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const UUID: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    fn tsid(tag: &str) -> Tsid {
        Tsid { server: parse_uuid(UUID).unwrap(), tag: tag.to_owned() }
    }

    fn contains(set: &UuidSet, tag: &str, number: u64) -> bool {
        let mut one = UuidSet::default();
        one.add(&tsid(tag), number);
        set.contains_all(&one)
    }

    #[test]
    fn the_servers_notation_is_parsed() {
        let set = UuidSet::parse(&format!("{UUID}:1-52:mytag:1,\n aaaaaaaa-71ca-11e1-9e33-c80aa9429562:7")).unwrap();
        assert!(contains(&set, "", 52) && contains(&set, "mytag", 1) && !contains(&set, "mytag", 2));
        assert_eq!(UuidSet::parse(&set.to_string()), Some(set));
        assert_eq!(UuidSet::parse(""), Some(UuidSet::default()));
        for wrong in ["x", "3e11fa47:1", &format!("{UUID}:0"), &format!("{UUID}:5-2"), &format!("{UUID}:")] {
            assert_eq!(UuidSet::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_set_contains_exactly_its_members(numbers in proptest::collection::vec(1u64..30, 0..40), others in proptest::collection::vec(1u64..30, 0..5)) {
            let of = |numbers: &[u64]| numbers.iter().fold(UuidSet::default(), |mut set, number| {
                set.add(&tsid(""), *number);
                set
            });
            let set = of(&numbers);
            let plain: BTreeSet<u64> = numbers.iter().copied().collect();
            for number in 1..30 {
                prop_assert_eq!(contains(&set, "", number), plain.contains(&number));
            }
            prop_assert_eq!(set.contains_all(&of(&others)), others.iter().all(|number| plain.contains(number)));
            prop_assert_eq!(UuidSet::parse(&set.to_string()), Some(set));
        }
    }
}
