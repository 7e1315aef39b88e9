//! The order that changes have in their source. A change that arrives late or again must not
//! replace a newer one, so tables with `mode = "upsert"` or `"history"` keep the order of each row
//! in a column. See `docs/adr/024-source-order.md`.

use trunkline_connector::json;
use trunkline_connector::{Error, RecordRef, Result, TopicPartition, headers};

/// What decides between two changes of a row (option `order`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrderBy {
    /// The source's position, where the epoch of its history is known.
    Source,
    /// The position, also where no epoch is known: the source always reads one server.
    Position,
    /// The order of arrival.
    Arrival,
}

/// Digits of the numbers in the column.
const DIGITS: [usize; 4] = [10, 10, 16, 10];
/// Length of an order in the column.
pub(crate) const LENGTH: u32 = 49;

/// Epoch, number of the binlog file, position, and row: the later change has the greater numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SourceOrder([u64; 4]);

impl SourceOrder {
    /// `None` if a number has more digits than the column has room for.
    fn new(numbers: [u64; 4]) -> Option<Self> {
        let fits = |(number, digits): (&u64, usize)| *number < 10_u64.pow(digits as u32);
        numbers.iter().zip(DIGITS).all(fits).then_some(Self(numbers))
    }

    /// Reads a header `trunkline.order`.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(text).ok()?.split('.').map(|part| part.parse().ok());
        let mut next = || parts.next().flatten();
        let numbers = [next()?, next()?, next()?, next()?];
        Self::new(numbers).filter(|_| parts.next().is_none())
    }

    /// Writes the text of the column. Texts compare as the orders do, under any collation.
    pub(crate) fn write(self, out: &mut String) {
        out.clear();
        for (index, (number, digits)) in self.0.iter().zip(DIGITS).enumerate() {
            if index > 0 {
                out.push('.');
            }
            let digit = |place: usize| char::from(b'0' + (number / 10_u64.pow(place as u32) % 10) as u8);
            out.extend((0..digits).rev().map(digit));
        }
    }

    /// The text of the column.
    pub(crate) fn to_text(self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }
}

/// The members of an envelope's `source` that a load needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SourceFacts {
    /// When the source made the change, in milliseconds since the Unix epoch.
    pub(crate) changed_at: Option<i64>,
    /// Number of the binlog file, position and row.
    position: Option<[u64; 3]>,
}

impl SourceFacts {
    /// Reads a `source` object.
    pub(crate) fn read(source: &[u8]) -> Self {
        let number = |raw: &[u8]| std::str::from_utf8(raw).ok()?.parse::<u64>().ok();
        let (mut changed_at, mut file, mut pos, mut row) = (None, None, None, None);
        for member in json::members(source).map_while(Result::ok) {
            match member.key {
                b"ts_ms" => changed_at = json::text(member.value).and_then(|text| text.parse().ok()),
                b"file" => {
                    let name = json::text(member.value);
                    file = name.and_then(|name| number(name.rsplit('.').next()?.as_bytes()));
                }
                b"pos" => pos = number(member.value),
                b"row" => row = number(member.value),
                _ => {}
            }
        }
        // A file without a number is one without a position.
        let position = file.zip(pos).map(|(file, pos)| [file, pos, row.unwrap_or(0)]);
        Self { changed_at, position }
    }

    /// The order of a record's change; `None` if it is unknown.
    pub(crate) fn order(&self, record: RecordRef<'_>, by: OrderBy) -> Option<SourceOrder> {
        if by == OrderBy::Arrival {
            return None;
        }
        if let Some(order) = record.header(headers::ORDER) {
            return SourceOrder::parse(order);
        }
        let [file, pos, row] = self.position?;
        let epoch = match record.header(headers::EPOCH) {
            Some(text) => std::str::from_utf8(text).ok()?.parse().ok()?,
            None if by == OrderBy::Position => 0,
            None => return None,
        };
        SourceOrder::new([epoch, file, pos, row])
    }
}

/// Notices that a source without epochs moved to another server, or that its binlog was reset: its
/// new changes would be taken for old ones.
#[derive(Debug, Default)]
pub(crate) struct MoveDetector {
    highest: Option<SourceOrder>,
    latest: i64,
}

impl MoveDetector {
    /// Checks the next change of the topic partition. A late change is older by its time, too.
    pub(crate) fn check(
        &mut self,
        partition: &TopicPartition,
        order: Option<SourceOrder>,
        changed_at: Option<i64>,
    ) -> Result<()> {
        let Some((order, time)) = order.filter(|order| order.0[0] == 0).zip(changed_at) else { return Ok(()) };
        if self.highest.is_some_and(|highest| order < highest) && time > self.latest {
            return Err(Error::config(
                "warehouse.source_moved",
                format!(
                    "{partition}: a change that is newer than the ones before has a lower position in the binlog: the source follows \
                     another server, or its binlog was reset. With `order = \"position\"` its changes would be dropped as old ones: set \
                     `order = \"arrival\"`"
                ),
            ));
        }
        self.highest = self.highest.max(Some(order));
        self.latest = self.latest.max(time);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_connector::Batch;

    fn order(header: Option<(&str, &str)>, source: &str, by: OrderBy) -> Option<String> {
        let mut batch = Batch::default();
        let mut record = batch.record();
        if let Some((name, value)) = header {
            record.header(name, Some(value.as_bytes()));
        }
        record.finish();
        SourceFacts::read(source.as_bytes()).order(batch.get(0), by).map(SourceOrder::to_text)
    }

    #[test]
    fn the_order_is_read_from_headers_and_source() {
        use OrderBy::{Arrival, Position, Source};
        let source = r#"{"ts_ms":5,"file":"binlog.000012","pos":345,"row":6}"#;
        let epoch = Some((headers::EPOCH, "1764300000"));
        let known = Some("1764300000.0000000012.0000000000000345.0000000006".to_owned());
        let unknown = Some("0000000000.0000000012.0000000000000345.0000000006".to_owned());
        assert_eq!(order(epoch, source, Source), known);
        assert_eq!(order(epoch, source, Position), known);
        assert_eq!(order(epoch, source, Arrival), None);
        assert_eq!(order(None, source, Source), None);
        assert_eq!(order(None, source, Position), unknown);
        assert_eq!(order(Some((headers::ORDER, "1764300000.12.345.6")), "{}", Source), known);
        assert_eq!(known.map(|text| text.len()), Some(LENGTH as usize));
        // Another source, and texts that are no orders.
        for source in ["{}", r#"{"file":"x","pos":1}"#, r#"{"lsn":7}"#, r#"{"file":"b.1"}"#, "null"] {
            assert_eq!(order(epoch, source, Position), None, "{source}");
        }
        for text in ["", "1.2.3", "1.2.3.4.5", "1.2.3.-4", "a.b.c.d", "99999999999.1.1.1"] {
            assert_eq!(order(Some((headers::ORDER, text)), source, Source), None, "{text}");
        }
    }

    #[test]
    fn texts_compare_as_orders_do() {
        let ascending =
            [[0, 9, 9, 9], [1, 0, 0, 0], [1, 9, 1, 1], [1, 10, 0, 0], [1, 10, 9, 0], [1, 10, 10, 0], [1, 10, 10, 1]];
        let orders = ascending.map(|numbers| SourceOrder::new(numbers).unwrap());
        assert!(orders.is_sorted() && orders.map(SourceOrder::to_text).is_sorted());
    }

    #[test]
    fn a_source_that_moved_is_noticed_and_late_changes_are_not() {
        let partition = TopicPartition::new("t", 0);
        let mut detector = MoveDetector::default();
        let mut check = |epoch: u64, file: u64, pos: u64, time: i64| {
            let outcome = detector.check(&partition, SourceOrder::new([epoch, file, pos, 0]), Some(time));
            outcome.err().map(|error| error.code)
        };
        assert_eq!(check(0, 900, 10, 1_000), None);
        assert_eq!(check(0, 900, 20, 2_000), None);
        assert_eq!(check(0, 900, 10, 1_000), None, "a repeated change");
        assert_eq!(check(0, 3, 4, 2_001), Some("warehouse.source_moved"));
        assert_eq!(check(7, 3, 4, 2_001), None, "an epoch is known");
    }
}
