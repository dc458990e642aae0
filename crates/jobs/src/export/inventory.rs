//! A row of CSV a key, without its value.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use slotkeep_rdb::{Event, Level};

use super::held::Held;
use super::{ExportOptions, ExportReport, Exporter};
use crate::dataset::{EventSink, RdbFacts};
use crate::inspect::cannot_write;
use crate::keys::{KeyFacts, KeyWatch, time_text};
use crate::{Error, Result};

const COLUMNS: [&str; 12] = [
    "db",
    "slot",
    "key",
    "key_base64",
    "type",
    "encoding",
    "bytes",
    "elements",
    "expires_at_ms",
    "expires_at",
    "idle_s",
    "freq",
];

pub(super) struct Csv {
    watch: KeyWatch,
    out: csv::Writer<Held>,
    keys: u64,
}

impl Csv {
    pub(super) fn new(options: &ExportOptions, out: Held) -> Result<Self> {
        let mut out = csv::Writer::from_writer(out);
        out.write_record(COLUMNS).map_err(failed)?;
        Ok(Self { watch: KeyWatch::new(&options.filter), out, keys: 0 })
    }
}

fn failed(error: csv::Error) -> Error {
    cannot_write(&std::io::Error::from(error))
}

/// A key that is not UTF-8 stands in the column `key_base64`, and the column `key` is empty then.
fn row(facts: &KeyFacts) -> [String; 12] {
    fn text(number: Option<impl ToString>) -> String {
        number.map(|number| number.to_string()).unwrap_or_default()
    }
    let (key, base64) = match std::str::from_utf8(&facts.key) {
        Ok(key) => (key.to_owned(), String::new()),
        Err(_) => (String::new(), STANDARD.encode(&facts.key)),
    };
    [
        facts.database.to_string(),
        facts.slot.to_string(),
        key,
        base64,
        facts.value_type.logical().name().to_owned(),
        facts.encoding().to_owned(),
        facts.bytes.to_string(),
        facts.elements.to_string(),
        text(facts.expiry_ms),
        facts.expiry_ms.and_then(time_text).unwrap_or_default(),
        text(facts.idle_s),
        text(facts.freq),
    ]
}

impl EventSink for Csv {
    fn event(&mut self, facts: &RdbFacts, event: &Event<'_>) -> Result<()> {
        if self.watch.event(facts.moment_ms, event) {
            self.keys += 1;
            self.out.write_record(row(&self.watch.facts)).map_err(failed)?;
        }
        Ok(())
    }
}

impl Exporter for Csv {
    fn level(&self) -> Level {
        Level::Element
    }

    fn finish(self, report: &mut ExportReport) -> Result<Held> {
        report.keys = self.keys;
        self.out.into_inner().map_err(|error| cannot_write(error.error()))
    }
}
