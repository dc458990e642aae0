//! A row a key, without its value, as a Parquet table.
//!
//! Rows are gathered until they fill a row group; that bounds the memory, whatever the number of keys.

use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use slotkeep_rdb::{Event, Level};

use super::held::Held;
use super::{ExportOptions, ExportReport, Exporter};
use crate::dataset::{EventSink, RdbFacts};
use crate::inspect::cannot_write;
use crate::keys::{KeyFacts, KeyWatch};
use crate::{Error, ErrorKind, Result};

/// A key that is not UTF-8 stands in the column `key_bytes`, and `key` is null then.
const SCHEMA: &str = "
message inventory {
  required int32 db (INTEGER(32, false));
  required int32 slot (INTEGER(16, false));
  optional binary key (STRING);
  optional binary key_bytes;
  required binary type (STRING);
  required binary encoding (STRING);
  required int64 bytes;
  required int64 elements;
  optional int64 expires_at (TIMESTAMP(MILLIS, true));
  optional int64 idle_s;
  optional int32 freq;
}";

/// How many rows a row group has at most.
const GROUP_ROWS: usize = 128 << 10;
/// How many bytes of keys.
const GROUP_KEY_BYTES: usize = 16 << 20;

pub(super) struct Table {
    watch: KeyWatch,
    writer: SerializedFileWriter<Held>,
    group: Group,
    keys: u64,
}

/// The columns of the rows that are not written yet.
#[derive(Default)]
struct Group {
    db: Vec<i32>,
    slot: Vec<i32>,
    key: Optional<ByteArray>,
    key_bytes: Optional<ByteArray>,
    logical: Vec<ByteArray>,
    encoding: Vec<ByteArray>,
    bytes: Vec<i64>,
    elements: Vec<i64>,
    expires_at: Optional<i64>,
    idle_s: Optional<i64>,
    freq: Optional<i32>,
    /// Bytes of keys.
    size: usize,
}

/// A column with nulls: its values, and for each row whether it has one.
#[derive(Default)]
struct Optional<T> {
    values: Vec<T>,
    present: Vec<i16>,
}

impl<T> Optional<T> {
    fn push(&mut self, value: Option<T>) {
        self.present.push(i16::from(value.is_some()));
        self.values.extend(value);
    }
}

impl Table {
    pub(super) fn new(options: &ExportOptions, out: Held) -> Result<Self> {
        let schema = parse_message_type(SCHEMA).map_err(failed)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(format!("slotkeep {}", env!("CARGO_PKG_VERSION")))
            .build();
        let writer =
            SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties)).map_err(failed)?;
        Ok(Self { watch: KeyWatch::new(&options.filter), writer, group: Group::default(), keys: 0 })
    }

    fn flush(&mut self) -> Result<()> {
        let group = std::mem::take(&mut self.group);
        let mut writer = self.writer.next_row_group().map_err(failed)?;
        group.write(&mut writer).and_then(|()| writer.close().map(drop)).map_err(failed)
    }
}

impl Group {
    fn push(&mut self, facts: &KeyFacts) {
        let key = ByteArray::from(facts.key.clone());
        let (key, key_bytes) =
            if std::str::from_utf8(&facts.key).is_ok() { (Some(key), None) } else { (None, Some(key)) };
        self.db.push(facts.database.cast_signed());
        self.slot.push(i32::from(facts.slot.number()));
        self.key.push(key);
        self.key_bytes.push(key_bytes);
        self.logical.push(ByteArray::from(facts.value_type.logical().name()));
        self.encoding.push(ByteArray::from(facts.encoding()));
        self.bytes.push(facts.bytes.cast_signed());
        self.elements.push(facts.elements.cast_signed());
        self.expires_at.push(facts.expiry_ms);
        self.idle_s.push(facts.idle_s.map(u64::cast_signed));
        self.freq.push(facts.freq.map(i32::from));
        self.size = self.size.saturating_add(facts.key.len());
    }

    fn is_full(&self) -> bool {
        self.db.len() >= GROUP_ROWS || self.size >= GROUP_KEY_BYTES
    }

    /// Writes the columns in the order of the schema.
    fn write(self, writer: &mut SerializedRowGroupWriter<'_, Held>) -> Result<(), ParquetError> {
        column::<Int32Type>(writer, &self.db, None)?;
        column::<Int32Type>(writer, &self.slot, None)?;
        column::<ByteArrayType>(writer, &self.key.values, Some(&self.key.present))?;
        column::<ByteArrayType>(writer, &self.key_bytes.values, Some(&self.key_bytes.present))?;
        column::<ByteArrayType>(writer, &self.logical, None)?;
        column::<ByteArrayType>(writer, &self.encoding, None)?;
        column::<Int64Type>(writer, &self.bytes, None)?;
        column::<Int64Type>(writer, &self.elements, None)?;
        column::<Int64Type>(writer, &self.expires_at.values, Some(&self.expires_at.present))?;
        column::<Int64Type>(writer, &self.idle_s.values, Some(&self.idle_s.present))?;
        column::<Int32Type>(writer, &self.freq.values, Some(&self.freq.present))
    }
}

fn column<T: DataType>(
    writer: &mut SerializedRowGroupWriter<'_, Held>,
    values: &[T::T],
    present: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let Some(mut column) = writer.next_column()? else {
        return Err(ParquetError::General("the schema has fewer columns".to_owned()));
    };
    column.typed::<T>().write_batch(values, present, None)?;
    column.close()
}

fn failed(error: ParquetError) -> Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<std::io::Error>() {
            Ok(error) => cannot_write(&error),
            Err(cause) => Error::new(ErrorKind::Failed, format!("can't write the table: {cause}")),
        },
        error => Error::new(ErrorKind::Failed, format!("can't write the table: {error}")),
    }
}

impl EventSink for Table {
    fn event(&mut self, facts: &RdbFacts, event: &Event<'_>) -> Result<()> {
        if self.watch.event(facts.moment_ms, event) {
            self.keys += 1;
            self.group.push(&self.watch.facts);
            if self.group.is_full() {
                self.flush()?;
            }
        }
        Ok(())
    }
}

impl Exporter for Table {
    fn level(&self) -> Level {
        Level::Element
    }

    fn finish(mut self, report: &mut ExportReport) -> Result<Held> {
        report.keys = self.keys;
        self.flush()?;
        self.writer.into_inner().map_err(failed)
    }
}
