//! A key with its value as lines for people: bytes quoted as `redis-cli` quotes them, elements numbered as it numbers them.

use std::io::{self, Write};

use slotkeep_rdb::{Element, LogicalType, Part, module_name};

use super::words::{quoted, write_escaped};
use crate::keys::{KeyFacts, time_text};

/// Writes one key.
pub(crate) struct TextKey {
    logical: LogicalType,
    number: u64,
    in_text: bool,
    /// Whether the line written last goes on.
    in_line: bool,
}

impl TextKey {
    pub(crate) const fn new() -> Self {
        Self { logical: LogicalType::String, number: 0, in_text: false, in_line: false }
    }

    /// Writes what is known of the key.
    pub(crate) fn begin(&mut self, out: &mut impl Write, facts: &KeyFacts, moment_ms: i64) -> io::Result<()> {
        self.logical = facts.value_type.logical();
        writeln!(out, "key       {}", quoted(&facts.key))?;
        let (logical, encoding) = (self.logical.name(), facts.encoding());
        if logical == encoding {
            writeln!(out, "type      {logical}")?;
        } else {
            writeln!(out, "type      {logical}, stored as {encoding}")?;
        }
        writeln!(out, "slot      {}, database {}", facts.slot, facts.database)?;
        if let Some(expiry_ms) = facts.expiry_ms {
            let time = time_text(expiry_ms).unwrap_or_else(|| format!("{expiry_ms} ms after 1970"));
            let expired = if expiry_ms <= moment_ms { ": it had expired" } else { "" };
            writeln!(out, "expires   {time}{expired}")?;
        }
        if let Some(idle_s) = facts.idle_s {
            writeln!(out, "idle      {idle_s} s")?;
        }
        if let Some(freq) = facts.freq {
            writeln!(out, "frequency {freq}")?;
        }
        writeln!(out)
    }

    /// Ends the last line.
    pub(crate) fn end(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.number == 0 && !self.in_line && self.logical != LogicalType::String {
            writeln!(out, "(no elements)")?;
        }
        self.end_line(out)
    }

    fn end_line(&mut self, out: &mut impl Write) -> io::Result<()> {
        if std::mem::take(&mut self.in_line) { writeln!(out) } else { Ok(()) }
    }

    /// Begins a line of its own, with the element's number.
    fn begin_numbered(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.number = self.number.saturating_add(1);
        let number = self.number;
        self.begin_line(out, format_args!("{number}) "))
    }

    fn begin_line(&mut self, out: &mut impl Write, text: impl std::fmt::Display) -> io::Result<()> {
        self.end_line(out)?;
        self.in_line = true;
        write!(out, "{text}")
    }

    /// Writes a piece of the value.
    pub(crate) fn element(&mut self, out: &mut impl Write, element: &Element<'_>) -> io::Result<()> {
        match *element {
            Element::Bytes { part, bytes, last } => {
                if !self.in_text {
                    self.before_text(out, part)?;
                    out.write_all(b"\"")?;
                }
                self.in_text = !last;
                write_escaped(out, bytes)?;
                if last { out.write_all(b"\"") } else { Ok(()) }
            }
            Element::Score(score) => write!(out, "  {score}"),
            Element::FieldExpiry(expiry_ms) => {
                write!(
                    out,
                    "  (expires {})",
                    time_text(expiry_ms).unwrap_or_else(|| format!("{expiry_ms} ms"))
                )
            }
            Element::ModuleId(id) => {
                let name = module_name(id);
                let (name, version) = (name.escape_ascii(), id & 1023);
                self.begin_line(out, format_args!("module type {name}, version {version}; what it saved:"))
            }
            Element::ModuleSigned(number) => self.numbered(out, number),
            Element::ModuleUnsigned(number) => self.numbered(out, number),
            Element::ModuleFloat(bits) => self.numbered(out, f32::from_bits(bits)),
            Element::ModuleDouble(bits) => self.numbered(out, f64::from_bits(bits)),
            Element::ArrayIndex(index) => {
                self.number = self.number.saturating_add(1);
                self.begin_line(out, format_args!("[{index}] "))
            }
            Element::ArrayDouble(number) => write!(out, "{number}"),
            Element::ArrayInfo { insert_index: Some(index), .. } => {
                self.begin_line(out, format_args!("next insertion at [{index}]"))
            }
            _ => self.stream(out, element),
        }
    }

    fn numbered(&mut self, out: &mut impl Write, value: impl std::fmt::Display) -> io::Result<()> {
        self.begin_numbered(out)?;
        write!(out, "{value}")
    }

    fn before_text(&mut self, out: &mut impl Write, part: Part) -> io::Result<()> {
        match part {
            Part::String => {
                self.in_line = true;
                Ok(())
            }
            Part::Item | Part::Member | Part::Field | Part::ModuleString => self.begin_numbered(out),
            Part::GroupName => self.begin_line(out, "group "),
            Part::ConsumerName => self.begin_line(out, "  consumer "),
            Part::ProducerId => self.begin_line(out, "producer "),
            Part::ProducedId => self.begin_line(out, "  id "),
            Part::ArrayString => Ok(()),
            _ => out.write_all(b"  "),
        }
    }

    fn stream(&mut self, out: &mut impl Write, element: &Element<'_>) -> io::Result<()> {
        match *element {
            Element::StreamEntry { id, .. } => self.numbered(out, id),
            Element::StreamInfo(info) => {
                self.begin_line(out, format_args!("last id {}", info.last_id))?;
                if let Some(added) = info.entries_added {
                    write!(out, ", {added} entries ever added")?;
                }
                match info.max_deleted_id {
                    Some(id) if id.ms > 0 || id.seq > 0 => write!(out, ", deleted up to {id}"),
                    _ => Ok(()),
                }
            }
            Element::Group { last_id, entries_read } => {
                write!(out, ": delivered up to {last_id}")?;
                entries_read.map_or(Ok(()), |read| write!(out, ", {read} entries read"))
            }
            Element::GroupPending { id, delivery_time_ms, deliveries } => {
                let at = time_text(delivery_time_ms).unwrap_or_else(|| format!("{delivery_time_ms} ms"));
                self.begin_line(out, format_args!("  pending {id}, delivered {deliveries} times, last {at}"))
            }
            Element::Consumer { seen_ms, .. } => {
                let at = time_text(seen_ms).unwrap_or_else(|| format!("{seen_ms} ms"));
                write!(out, ", seen {at}, has pending:")
            }
            Element::ConsumerPending(id) => write!(out, " {id}"),
            Element::GroupReleased(id) => {
                self.begin_line(out, format_args!("  pending without consumer {id}"))
            }
            Element::Idempotence { duration_s, max_entries } => self.begin_line(
                out,
                format_args!("producers' ids are remembered for {duration_s} s, {max_entries} of each"),
            ),
            Element::ProducedEntry(id) => write!(out, " is {id}"),
            Element::IdempotenceCounters { added, duplicates } => {
                self.begin_line(out, format_args!("{added} ids added, {duplicates} came twice"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use slotkeep_rdb::ValueType;

    use super::*;

    #[test]
    fn a_hash_is_one_line_a_field() {
        let bytes = |part, bytes: &'static [u8], last| Element::Bytes { part, bytes, last };
        let mut facts = KeyFacts::of(b"user:1", ValueType::HashListpackEx);
        facts.expiry_ms = Some(1_700_000_000_123);
        let (mut key, mut out) = (TextKey::new(), Vec::new());
        key.begin(&mut out, &facts, 1_700_000_000_123).unwrap();
        for element in [
            bytes(Part::Field, b"name", true),
            bytes(Part::Value, b"J\xc3", false),
            bytes(Part::Value, b"\xb8rn", true),
            Element::FieldExpiry(1_700_000_000_000),
            bytes(Part::Field, b"age", true),
            bytes(Part::Value, b"7", true),
        ] {
            key.element(&mut out, &element).unwrap();
        }
        key.end(&mut out).unwrap();
        let expected = "\
key       \"user:1\"
type      hash, stored as listpack-ttl
slot      10778, database 0
expires   2023-11-14T22:13:20.123Z: it had expired

1) \"name\"  \"J\\xc3\\xb8rn\"  (expires 2023-11-14T22:13:20Z)
2) \"age\"  \"7\"
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
