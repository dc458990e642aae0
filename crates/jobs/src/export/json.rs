//! A line of JSON a key, with its value; `docs/inspect.md` describes the form.

use std::io::Write;

use slotkeep_rdb::{Event, Level};

use super::held::Held;
use super::{ExportOptions, ExportReport, Exporter};
use crate::Result;
use crate::dataset::{EventSink, RdbFacts};
use crate::inspect::cannot_write;
use crate::keys::KeyWatch;
use crate::value::JsonKey;

pub(super) struct JsonLines {
    watch: KeyWatch,
    json: JsonKey,
    out: Held,
    keys: u64,
}

impl JsonLines {
    pub(super) fn new(options: &ExportOptions, out: Held) -> Self {
        Self { watch: KeyWatch::new(&options.filter), json: JsonKey::new(), out, keys: 0 }
    }

    fn write(&mut self, event: &Event<'_>, wanted: bool) -> std::io::Result<()> {
        match event {
            Event::Key(_) => self.json.begin(&mut self.out, &self.watch.facts),
            Event::Element(element) => self.json.element(&mut self.out, element),
            Event::KeyEnd { .. } => {
                self.json.end(&mut self.out, &self.watch.facts, &[])?;
                self.out.write_all(b"\n")?;
                self.keys += u64::from(wanted);
                if wanted { self.out.keep() } else { self.out.discard() }
            }
            _ => Ok(()),
        }
    }
}

impl EventSink for JsonLines {
    fn event(&mut self, facts: &RdbFacts, event: &Event<'_>) -> Result<()> {
        let wanted = self.watch.event(facts.moment_ms, event);
        if !self.watch.wanted {
            return Ok(());
        }
        self.write(event, wanted).map_err(|error| cannot_write(&error))
    }
}

impl Exporter for JsonLines {
    fn level(&self) -> Level {
        Level::Element
    }

    fn finish(self, report: &mut ExportReport) -> Result<Held> {
        report.keys = self.keys;
        Ok(self.out)
    }
}
