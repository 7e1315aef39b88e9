//! From records to rows in files: route by table and schema, decode, fit to the table, stage.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::compute::filter;
use arrow::datatypes::{Field, FieldRef, Schema as ArrowSchema};
use trunkline_connector::{Batch, Error, Escape, Reason, Rejections, Result, SchemaId, TopicPartition, headers};
use trunkline_objects::columns::chunk_len;

use crate::apply::{control, filled, lineage};
use crate::buffer::{FileTarget, Truncation};
use crate::change::{Change, Operation, member_names};
use crate::convert::convert;
use crate::deletes::{KEY_LENGTH, key_hashes};
use crate::dialect::{Column, ColumnType};
use crate::intent::{FileColumn, LoadMode};
use crate::layouts::{Layout, LayoutKey};
use crate::order::{self, OrderBy, SourceFacts, SourceOrder};
use crate::sink::WarehouseSink;
use crate::tables::{Fitted, Incoming, catalog_name, refused_rows};

/// A row of a batch.
pub(crate) struct Row<'a> {
    /// Index of the record.
    pub(crate) index: u32,
    pub(crate) change: Change<'a>,
    /// When the source made the change, in milliseconds since the Unix epoch.
    pub(crate) changed_at: Option<i64>,
    pub(crate) order: Option<SourceOrder>,
}

/// Rows that are decoded together.
struct Rows<'a> {
    key: LayoutKey,
    rows: Vec<Row<'a>>,
}

/// A column that the sink adds to the rows.
pub(crate) struct SystemColumn {
    name: &'static str,
    column_type: ColumnType,
    is_loaded: bool,
    array: ArrayRef,
}

impl WarehouseSink {
    /// Adds records to the files of a topic partition.
    pub(crate) fn write_records(
        &mut self,
        partition: &TopicPartition,
        records: &Batch,
        rejected: &mut Rejections,
    ) -> Result<()> {
        self.claim(partition)?;
        // Changes of one table must keep their order, so rows of another schema start a new group.
        let mut open: HashMap<String, Rows<'_>> = HashMap::new();
        let first = self.buffer(partition).0.numbers(records.len()).start;
        // Key and order of the record before, if it is a delete: its tombstone follows.
        let mut delete: Option<(&[u8], Option<SourceOrder>)> = None;
        for (index, record) in records.iter().enumerate() {
            let routed = Change::of(record).and_then(|change| Ok((change, self.layout_key(record)?)));
            let (change, key) = match routed {
                Ok(routed) => routed,
                Err(reason) => {
                    rejected.push(record, reason);
                    continue;
                }
            };
            let facts = match change.source {
                Some(source) if self.options.mode != LoadMode::Append => SourceFacts::read(source),
                _ => SourceFacts::default(),
            };
            let order = facts.order(record, self.options.order);
            if self.options.order == OrderBy::Position {
                let detector = self.move_detectors.entry(partition.clone()).or_default();
                detector.check(partition, order, facts.changed_at)?;
            }
            let deleted = delete.take().filter(|(key, _)| record.value().is_none() && record.key() == Some(*key));
            let order = order.or(deleted.and_then(|(_, order)| order));
            if change.operation == Operation::Delete {
                delete = record.key().map(|key| (key, order));
            }
            let truncates = change.operation == Operation::Truncate;
            if (truncates || open.get(&key.table).is_some_and(|rows| rows.key != key))
                && let Some(rows) = open.remove(&key.table)
            {
                self.write_rows(partition, first, records, rows, rejected)?;
            }
            if truncates {
                self.truncate(partition, &key.table, order, record.entry().offset)?;
            } else if !(self.options.mode == LoadMode::Append && record.value().is_none()) {
                // For appends, a tombstone only marks its key for compaction: the change before it
                // is the row.
                let table = key.table.clone();
                let rows = open.entry(table).or_insert_with(|| Rows { key, rows: Vec::new() });
                let changed_at = facts.changed_at.or(record.timestamp());
                rows.rows.push(Row { index: index as u32, change, changed_at, order });
            }
        }
        let mut rest: Vec<Rows<'_>> = open.into_values().collect();
        rest.sort_by(|left, right| left.key.table.cmp(&right.key.table));
        rest.into_iter().try_for_each(|rows| self.write_rows(partition, first, records, rows, rejected))
    }

    pub(crate) fn layout_key(&self, record: trunkline_connector::RecordRef<'_>) -> Result<LayoutKey, Reason> {
        let mut table = String::new();
        let rendered = self.options.table.render(record, Escape::None, &mut table);
        rendered.map_err(|error| Reason::new("warehouse.no_table", error.to_string()))?;
        let dialect = self.sessions.dialect();
        let table = catalog_name(dialect.as_ref(), &table);
        if let Some(problem) = dialect.check_name(&table) {
            return Err(Reason::new("warehouse.bad_name", format!("the table's name `{table}` {problem}")));
        }
        let Some(raw) = record.header(headers::SCHEMA) else { return Ok(LayoutKey { table, schema: None }) };
        let schema: Option<SchemaId> = std::str::from_utf8(raw).ok().and_then(|text| text.parse().ok());
        match schema {
            Some(schema) => Ok(LayoutKey { table, schema: Some(schema) }),
            None => {
                let found = String::from_utf8_lossy(raw);
                let message = format!("its header `{}` is `{found}`, which is not a schema id", headers::SCHEMA);
                Err(Reason::new("warehouse.unknown_schema", message))
            }
        }
    }

    fn truncate(
        &mut self,
        partition: &TopicPartition,
        table: &str,
        order: Option<SourceOrder>,
        offset: i64,
    ) -> Result<()> {
        let target = FileTarget {
            table: table.to_owned(),
            mode: self.options.mode,
            key_columns: Vec::new(),
            columns: Vec::new(),
            fills_loaded_at: false,
        };
        // An append table keeps what it was given; a table that does not exist is empty.
        let exists = match (self.options.mode, order) {
            (LoadMode::Append, _) => false,
            (_, Some(_)) => {
                let column = self.order_column();
                self.tables.add_missing(&mut self.sessions, table, &column)?
            }
            (_, None) => self.sessions.run(|dialect, session| dialect.columns(session, table))?.is_some(),
        };
        if !exists {
            return Ok(());
        }
        let truncation = Truncation { until: order.map(SourceOrder::to_text) };
        let (buffer, context) = self.buffer(partition);
        buffer.truncate(&context, target, truncation, offset)
    }

    fn write_rows(
        &mut self,
        partition: &TopicPartition,
        first: i64,
        records: &Batch,
        rows: Rows<'_>,
        rejected: &mut Rejections,
    ) -> Result<()> {
        let Rows { key, rows } = rows;
        let reject = |rejected: &mut Rejections, row: &Row<'_>, reason: Reason| {
            rejected.push(records.get(row.index as usize), reason);
        };
        let Some(mut layout) = self.layouts.get(&key, self.schemas.as_ref())? else {
            let id = key.schema.map(|id| id.to_string()).unwrap_or_default();
            let message = format!("the record's header names the schema {id}, which was never published");
            rows.iter().for_each(|row| reject(rejected, row, Reason::new("warehouse.unknown_schema", message.clone())));
            return Ok(());
        };
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(chunk_len(&layout.columns, rest.iter().map(|row| row.change.row)));
            rest = after;
            let values: Vec<&[u8]> = chunk.iter().map(|row| row.change.row).collect();
            let decoded = self.decoder.decode(&layout.columns, &Arc::default(), &values);
            for (index, reason) in &decoded.rejected {
                reject(rejected, &chunk[*index as usize], own_reason(reason));
            }
            if let Some(wider) = decoded.layout {
                self.layouts.widen(&key, Arc::clone(&wider));
                layout.columns = wider;
            }
            let Some(batch) = decoded.batch else { continue };
            let mut bad = decoded.rejected.iter().map(|(index, _)| *index as usize).peekable();
            let kept: Vec<&Row<'_>> = chunk
                .iter()
                .enumerate()
                .filter(|(index, _)| bad.next_if_eq(index).is_none())
                .map(|(_, row)| row)
                .collect();
            for (row, reason) in self.stage_rows(partition, first, records, &key.table, &layout, &batch, &kept)? {
                reject(rejected, kept[row], reason);
            }
        }
        Ok(())
    }

    /// Fits decoded rows to their table and adds them to a file. Returns the refused ones.
    #[allow(clippy::too_many_arguments)] // one call, whose parts have no common life
    fn stage_rows(
        &mut self,
        partition: &TopicPartition,
        first: i64,
        records: &Batch,
        table: &str,
        layout: &Layout,
        batch: &RecordBatch,
        rows: &[&Row<'_>],
    ) -> Result<Vec<(usize, Reason)>> {
        let mode = self.options.mode;
        let key = if mode == LoadMode::Append { Vec::new() } else { self.key_fields(records, layout, rows) };
        if mode != LoadMode::Append && key.is_empty() {
            let message =
                "no key is known: the schema has no primary key, and the record's key is not a JSON object; set `key`";
            return Ok((0..rows.len()).map(|row| (row, Reason::new("warehouse.no_key", message))).collect());
        }
        let mut system = self.system_columns(partition, first, records, layout, rows);
        let (incoming, key_columns) = match self.incoming(batch, layout, &key, &system) {
            Ok(incoming) => incoming,
            Err(reason) => return Ok((0..rows.len()).map(|row| (row, reason.clone())).collect()),
        };
        let in_table = self.columns_of_the_sink(&system);
        let fitted = self.tables.fit(&mut self.sessions, table, &incoming, &in_table, &key_columns)?;
        // Without this column, rows whose order is unknown would replace rows that have one.
        let has_order = self.tables.has_column(table, &self.order_column().name);
        system.retain(|column| has_order || column.name != filled::SOURCE_ORDER);
        let mut refused: Vec<(usize, Reason)> = refused_rows(&fitted)
            .into_iter()
            .map(|(row, reason)| (row, Reason::new("warehouse.value_misfit", reason)))
            .collect();
        let of_key: Vec<&Fitted> =
            key_columns.iter().filter_map(|name| fitted.iter().find(|column| column.from == *name)).collect();
        let key_in_table: Vec<String> = of_key.iter().map(|column| column.column.name.clone()).collect();
        let key_arrays: Vec<&ArrayRef> = of_key.iter().map(|column| &column.converted.array).collect();
        if mode != LoadMode::Append {
            let is_null =
                |row: usize| key_arrays.len() < key.len() || key_arrays.iter().any(|array| array.is_null(row));
            let found: std::collections::HashSet<usize> = refused.iter().map(|(row, _)| *row).collect();
            let without = (0..rows.len()).filter(|row| !found.contains(row) && is_null(*row));
            let message = format!("a field of the key ({}) is null or missing", key.join(", "));
            let more: Vec<_> = without.map(|row| (row, Reason::new("warehouse.no_key", message.clone()))).collect();
            refused.extend(more);
        }
        refused.extend(self.known_refusals(partition, records, table, rows, &refused));
        let mut columns: Vec<(FileColumn, ArrayRef)> = fitted
            .into_iter()
            .map(|fitted| {
                let Column { name, column_type, .. } = fitted.column;
                (FileColumn { name, column_type, is_loaded: true }, fitted.converted.array)
            })
            .collect();
        let dialect = Arc::clone(self.sessions.dialect());
        for column in system {
            let converted = convert(&column.array, false, &column.column_type, dialect.as_ref());
            let array = converted.map_err(internal)?.array;
            let name = dialect.folded(column.name);
            columns.push((FileColumn { name, column_type: column.column_type, is_loaded: column.is_loaded }, array));
        }
        if has_order && self.loader.deletes.is_some() && matches!(mode, LoadMode::Upsert | LoadMode::History) {
            let field = |name: &String| incoming.iter().find(|column| column.name == *name).map(|column| column.array);
            let fields: Vec<&ArrayRef> = key_columns.iter().filter_map(field).collect();
            let hashes = key_hashes(&fields, rows.len()).map_err(internal)?;
            let column_type = ColumnType::Text(KEY_LENGTH);
            columns.push((FileColumn { name: dialect.folded(control::KEY), column_type, is_loaded: false }, hashes));
        }
        self.add_to_file(partition, records, table, key_in_table, columns, rows, &refused)?;
        Ok(refused)
    }

    /// The other rows that the destination refused in an earlier attempt.
    fn known_refusals(
        &mut self,
        partition: &TopicPartition,
        records: &Batch,
        table: &str,
        rows: &[&Row<'_>],
        refused: &[(usize, Reason)],
    ) -> Vec<(usize, Reason)> {
        let offsets = rows.iter().map(|row| records.entries()[row.index as usize].offset).enumerate();
        let others = offsets.filter(|(row, _)| refused.iter().all(|(found, _)| found != row));
        self.refused.reasons(partition, table, others, &mut self.row_counter)
    }

    #[allow(clippy::too_many_arguments)] // as above
    fn add_to_file(
        &mut self,
        partition: &TopicPartition,
        records: &Batch,
        table: &str,
        key_columns: Vec<String>,
        columns: Vec<(FileColumn, ArrayRef)>,
        rows: &[&Row<'_>],
        refused: &[(usize, Reason)],
    ) -> Result<()> {
        let mut keep = vec![true; rows.len()];
        refused.iter().for_each(|(row, _)| keep[*row] = false);
        let last_offset = rows.iter().map(|row| records.entries()[row.index as usize].offset).max().unwrap_or(-1);
        if !keep.contains(&true) {
            return Ok(());
        }
        let mask = BooleanArray::from(keep);
        let mut fields: Vec<FieldRef> = Vec::with_capacity(columns.len());
        let mut arrays = Vec::with_capacity(columns.len());
        let mut file_columns = Vec::with_capacity(columns.len());
        for (column, array) in columns {
            let array = if refused.is_empty() { array } else { filter(&array, &mask).map_err(internal)? };
            fields.push(Arc::new(Field::new(&column.name, array.data_type().clone(), true)));
            arrays.push(array);
            file_columns.push(column);
        }
        let batch = RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), arrays).map_err(internal)?;
        let target = FileTarget {
            table: table.to_owned(),
            mode: self.options.mode,
            key_columns,
            columns: file_columns,
            fills_loaded_at: self.options.lineage,
        };
        let (buffer, context) = self.buffer(partition);
        buffer.add(&context, target, batch, last_offset)
    }

    /// The fields that identify a row.
    pub(crate) fn key_fields(&self, records: &Batch, layout: &Layout, rows: &[&Row<'_>]) -> Vec<String> {
        if !self.options.key.is_empty() {
            return self.options.key.clone();
        }
        if !layout.key.is_empty() {
            return layout.key.to_vec();
        }
        let key = rows.iter().find_map(|row| records.get(row.index as usize).key().filter(|key| key.starts_with(b"{")));
        key.map(member_names).unwrap_or_default()
    }

    /// The columns of a batch by their names in the catalog, and those of the key.
    pub(crate) fn incoming<'b>(
        &self,
        batch: &'b RecordBatch,
        layout: &Layout,
        key: &[String],
        system: &[SystemColumn],
    ) -> Result<(Vec<Incoming<'b>>, Vec<String>), Reason> {
        let dialect = self.sessions.dialect();
        let more = [filled::LOADED_AT, filled::DELETED_AT, filled::VALID_FROM, filled::VALID_TO, filled::IS_CURRENT];
        let reserved = more[..if self.options.mode == LoadMode::Append { 1 } else { more.len() }].iter().copied();
        let mut taken: std::collections::HashSet<String> =
            system.iter().map(|column| column.name).chain(reserved).map(|name| dialect.folded(name)).collect();
        let mut incoming = Vec::with_capacity(batch.num_columns());
        let mut key_columns = vec![None; key.len()];
        for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            let mut name = dialect.folded(field.name());
            let mut number = 1;
            while !taken.insert(name.clone()) {
                number += 1;
                name = dialect.folded(&format!("{}_{number}", field.name()));
            }
            if let Some(problem) = dialect.check_name(&name) {
                return Err(Reason::new(
                    "warehouse.bad_name",
                    format!("the field `{name}` cannot be a column: it {problem}"),
                ));
            }
            if let Some(at) = key.iter().position(|key| key == field.name()) {
                key_columns[at] = Some(name.clone());
            }
            incoming.push(Incoming { name, array, is_json: layout.json.contains(field.name()) });
        }
        // A field that no record has is null in all of them, which is reported for each row.
        Ok((incoming, key_columns.into_iter().flatten().collect()))
    }

    /// The column of the order that rows have in the source.
    fn order_column(&self) -> Column {
        Column {
            name: self.sessions.dialect().folded(filled::SOURCE_ORDER),
            column_type: ColumnType::Text(order::LENGTH),
            nullable: true,
            has_default: false,
        }
    }

    /// The columns of the sink that the target has.
    pub(crate) fn columns_of_the_sink(&self, system: &[SystemColumn]) -> Vec<Column> {
        let dialect = self.sessions.dialect();
        let column = |name: &str, column_type| Column {
            name: dialect.folded(name),
            column_type,
            nullable: true,
            has_default: false,
        };
        let is_used = |column: &&SystemColumn| {
            column.is_loaded && (column.name != filled::SOURCE_ORDER || column.array.null_count() < column.array.len())
        };
        let loaded = system.iter().filter(is_used);
        let mut columns: Vec<Column> = loaded.map(|loaded| column(loaded.name, loaded.column_type.clone())).collect();
        let timestamp = |name| column(name, ColumnType::Timestamp);
        if self.options.lineage {
            columns.push(timestamp(filled::LOADED_AT));
        }
        match self.options.mode {
            LoadMode::UpsertSoft => columns.push(timestamp(filled::DELETED_AT)),
            LoadMode::History => {
                columns.extend([timestamp(filled::VALID_FROM), timestamp(filled::VALID_TO)]);
                columns.push(column(filled::IS_CURRENT, ColumnType::Boolean));
            }
            LoadMode::Append | LoadMode::Upsert => {}
        }
        columns
    }

    /// Lineage, operation, and what the load needs to order and to delete.
    pub(crate) fn system_columns(
        &self,
        partition: &TopicPartition,
        first: i64,
        records: &Batch,
        layout: &Layout,
        rows: &[&Row<'_>],
    ) -> Vec<SystemColumn> {
        let loaded = |name, column_type, array| SystemColumn { name, column_type, is_loaded: true, array };
        let control = |name, column_type, array| SystemColumn { name, column_type, is_loaded: false, array };
        let mut columns = Vec::new();
        let offsets = Int64Array::from_iter_values(rows.iter().map(|row| records.entries()[row.index as usize].offset));
        let offsets = Arc::new(offsets) as ArrayRef;
        if self.options.lineage {
            let topics = StringArray::from_iter_values(rows.iter().map(|_| partition.topic.as_ref()));
            let partitions = Int32Array::from_iter_values(rows.iter().map(|_| partition.partition));
            columns.push(loaded("_topic", ColumnType::Text(255), Arc::new(topics) as ArrayRef));
            columns.push(loaded("_partition", ColumnType::Integer(32), Arc::new(partitions)));
            columns.push(loaded(lineage::OFFSET, ColumnType::Integer(64), offsets));
        } else {
            // A refused row is found by it.
            columns.push(control(control::OFFSET, ColumnType::Integer(64), offsets));
        }
        let mode = self.options.mode;
        if mode == LoadMode::Append {
            if layout.is_enveloped || rows.iter().any(|row| row.change.is_enveloped) {
                let letters = StringArray::from_iter(rows.iter().map(|row| {
                    row.change.is_enveloped.then_some(if row.change.operation == Operation::Delete { "d" } else { "w" })
                }));
                columns.push(loaded("_operation", ColumnType::Text(1), Arc::new(letters)));
            }
            return columns;
        }
        let sequence = Int64Array::from_iter_values(rows.iter().map(|row| first + i64::from(row.index)));
        let deleted: BooleanArray = rows.iter().map(|row| Some(row.change.operation == Operation::Delete)).collect();
        columns.push(control(control::SEQUENCE, ColumnType::Integer(64), Arc::new(sequence)));
        columns.push(control(control::DELETED, ColumnType::Boolean, Arc::new(deleted)));
        if self.options.order != OrderBy::Arrival {
            columns.push(loaded(filled::SOURCE_ORDER, ColumnType::Text(order::LENGTH), order_array(rows)));
        }
        if mode == LoadMode::History {
            let times = rows.iter().map(|row| row.changed_at.unwrap_or(0).saturating_mul(1000));
            let times = TimestampMicrosecondArray::from_iter_values(times);
            columns.push(control(control::CHANGED_AT, ColumnType::Timestamp, Arc::new(times)));
        }
        columns
    }
}

/// The orders of rows.
fn order_array(rows: &[&Row<'_>]) -> ArrayRef {
    let mut orders = StringBuilder::with_capacity(rows.len(), rows.len() * order::LENGTH as usize);
    let mut text = String::new();
    for row in rows {
        match row.order {
            Some(order) => {
                order.write(&mut text);
                orders.append_value(&text);
            }
            None => orders.append_null(),
        }
    }
    Arc::new(orders.finish())
}

/// A reason of the shared decoder, under this library's code.
fn own_reason(reason: &Reason) -> Reason {
    let code = match reason.code.as_str() {
        "s3.not_json" => "warehouse.not_json",
        "s3.not_an_object" => "warehouse.not_an_object",
        "s3.no_columns" => "warehouse.no_columns",
        "s3.too_many_columns" => "warehouse.too_many_columns",
        _ => "warehouse.value_misfit",
    };
    Reason::new(code, reason.message.clone())
}

fn internal(error: arrow::error::ArrowError) -> Error {
    Error::internal("warehouse.batch", format!("rows do not fit the columns made for them: {error}"))
}
