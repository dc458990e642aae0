//! One RDB: as it was stored, or made of the wanted keys of all shards.
//!
//! What belongs to one shard alone is left out of what is made of several: where its history stood, how many keys each slot has, data of
//! modules outside keys. Values are copied as they are, or translated if the target lacks their encoding.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use slotkeep_model::RdbVersion;
use slotkeep_rdb::{
    Decoder, Element, ErrorKind as Fault, Event, KeyHead, Level, Plan, RdbWriter, Translation, Translator,
    ValueType, function_hash,
};
use tempfile::SpooledTempFile;
use tokio_util::sync::CancellationToken;

use super::held::Held;
use super::{ExportOptions, ExportReport, Exporter, cannot_express};
use crate::dataset::{EventSink, Feed, Input, Place, RdbFacts, check_envelope};
use crate::inspect::{blocking, cannot_write};
use crate::keys::KeyWatch;
use crate::progress::{Phase, ShardProgress};
use crate::{Error, ErrorKind, Result};

/// How many bytes of a value that may not be wanted are held in memory.
const MEMORY_BYTES: usize = 8 << 20;
const PIECE_BYTES: usize = 256 << 10;

/// Passes an RDB on as it is, its CRC64 checked.
pub(super) async fn copy(
    input: &Input,
    progress: &Arc<ShardProgress>,
    stop: &CancellationToken,
    mut out: Held,
) -> Result<Held> {
    let mut feed = Feed::open(input, stop).await?;
    let (input, progress) = (input.clone(), Arc::clone(progress));
    blocking(move || {
        progress.enter(Phase::Running);
        check_envelope(&mut feed, &input, |bytes| {
            progress.raw_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            out.write_all(bytes).map_err(|error| cannot_write(&error))
        })?;
        progress.enter(Phase::Done);
        Ok(out)
    })
    .await
}

/// Makes one RDB of several, or of some of the keys.
pub(super) struct Merging {
    watch: KeyWatch,
    options: ExportOptions,
    /// The version to write; of a file it is known once its magic was read.
    version: Option<RdbVersion>,
    writer: Option<RdbWriter>,
    translation: Option<Translation>,
    out: Held,
    buffer: Vec<u8>,
    value: Value,
    /// Holds the value of a key that may not be wanted.
    held: Option<SpooledTempFile>,
    counter: Option<Decoder>,
    functions: BTreeSet<u128>,
    inputs: u64,
    report: ExportReport,
}

enum Value {
    Unwanted,
    Copied(ValueType),
    Translated(ValueType, Box<Translator>),
}

impl Merging {
    pub(super) fn new(
        options: &ExportOptions,
        inputs: &[(&Input, &Arc<ShardProgress>)],
        out: Held,
    ) -> Result<Self> {
        let of_target = options.target.map(slotkeep_model::ServerVersion::newest_rdb);
        let mut version = of_target;
        for (input, _) in inputs {
            let Place::Base(_, record) = &input.place else { continue };
            match version {
                _ if of_target.is_some() => {}
                Some(one) if one.product != record.rdb_version.product => {
                    let what = format!("the shards have RDBs of {one} and {}", record.rdb_version);
                    return Err(Error::new(ErrorKind::Unsupported, what)
                        .hint("say which server is to load it: --target-version, for example valkey-9.1"));
                }
                one => version = one.max(Some(record.rdb_version)),
            }
        }
        Ok(Self {
            watch: KeyWatch::new(&options.filter),
            options: options.clone(),
            version,
            writer: None,
            translation: None,
            out,
            buffer: Vec::new(),
            value: Value::Unwanted,
            held: options.filter.needs_size().then(|| SpooledTempFile::new(MEMORY_BYTES)),
            counter: None,
            functions: BTreeSet::new(),
            inputs: 0,
            report: ExportReport::default(),
        })
    }

    fn start(&mut self, version: RdbVersion) -> Result<()> {
        self.inputs += 1;
        if self.writer.is_none() {
            let target = self.version.unwrap_or(version);
            let writer = RdbWriter::new(target, &mut self.buffer)
                .map_err(|fault| Error::new(ErrorKind::Unsupported, fault.to_string()))?;
            self.writer = Some(writer);
            self.translation = Some(Translation::new(target));
        }
        Ok(())
    }

    fn aux(&mut self, key: &[u8], value: &[u8]) {
        let of_one_shard =
            [&b"repl-id"[..], b"repl-offset", b"repl-stream-db", b"cluster-asm-task", b"slot-info"];
        if self.inputs == 1
            && !of_one_shard.contains(&key)
            && let Some(writer) = &mut self.writer
        {
            writer.aux(key, value, &mut self.buffer);
        }
    }

    fn function(&mut self, source: &[u8]) -> Result<()> {
        let wanted = self.options.takes_functions() && self.functions.insert(function_hash(source));
        match &mut self.writer {
            Some(writer) if wanted => writer.function(source, &mut self.buffer).map_err(|fault| {
                Error::new(ErrorKind::Unsupported, fault.to_string()).hint(
                    "leave function libraries out with --no-functions, or name a newer --target-version",
                )
            }),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, facts: &RdbFacts, has_meta: bool) -> Result<()> {
        let Some(translation) = &self.translation else { return Ok(()) };
        let key = &self.watch.facts;
        let plan = translation.plan(key.value_type).map_err(|fault| cannot_express(&key.key, fault))?;
        self.value = match plan {
            Plan::Copy => Value::Copied(key.value_type),
            Plan::Translate(to) => {
                let translator = Translator::new(translation, key.value_type, facts.version, to);
                Value::Translated(to, Box::new(translator))
            }
        };
        self.report.without_metadata += u64::from(has_meta);
        let counts = self.options.filter.min_elements.is_some();
        self.counter = counts.then(|| Decoder::new(key.value_type, facts.version));
        if self.held.is_none() { self.head() } else { Ok(()) }
    }

    /// Writes what stands before the value.
    fn head(&mut self) -> Result<()> {
        let (Value::Copied(value_type) | Value::Translated(value_type, _)) = self.value else {
            return Ok(());
        };
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let key = &self.watch.facts;
        let head = KeyHead {
            key: &key.key,
            value_type,
            expiry_ms: key.expiry_ms,
            idle_s: key.idle_s,
            freq: key.freq,
        };
        writer.select_db(key.database, &mut self.buffer);
        writer.key(&head, &mut self.buffer).map_err(|fault| cannot_express(&key.key, fault))
    }

    fn value_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(counter) = &mut self.counter {
            let mut rest = bytes;
            while let Ok(Some(element)) = counter.next(&mut rest) {
                if element == Element::End {
                    break;
                }
                self.watch.element(&element);
            }
        }
        let mut translated = Vec::new();
        let bytes = match &mut self.value {
            Value::Unwanted => return Ok(()),
            Value::Copied(_) => bytes,
            Value::Translated(_, translator) => {
                let fed = translator.feed(&mut &*bytes, &mut translated);
                fed.map_err(|error| cannot_translate(&self.watch.facts.key, &error))?;
                &translated
            }
        };
        if let Some(held) = &mut self.held {
            return held.write_all(bytes).map_err(|error| cannot_write(&error));
        }
        if let Some(writer) = &mut self.writer {
            writer.value_bytes(bytes, &mut self.buffer);
        }
        self.pass_on(false)
    }

    fn end(&mut self, wanted: bool) -> Result<()> {
        if let Some(mut held) = self.held.take() {
            if wanted {
                self.head()?;
                self.write_held(&mut held)?;
            }
            self.held = Some(SpooledTempFile::new(MEMORY_BYTES));
        }
        if wanted {
            self.report.keys += 1;
            self.report.translated += u64::from(matches!(self.value, Value::Translated(..)));
        }
        self.value = Value::Unwanted;
        self.pass_on(false)
    }

    fn write_held(&mut self, held: &mut SpooledTempFile) -> Result<()> {
        held.seek(SeekFrom::Start(0)).map_err(|error| cannot_write(&error))?;
        loop {
            let mut piece = Vec::new();
            let read = Read::take(&mut *held, PIECE_BYTES as u64).read_to_end(&mut piece);
            if read.map_err(|error| cannot_write(&error))? == 0 {
                return Ok(());
            }
            if let Some(writer) = &mut self.writer {
                writer.value_bytes(&piece, &mut self.buffer);
            }
            self.pass_on(false)?;
        }
    }

    fn pass_on(&mut self, all: bool) -> Result<()> {
        if !all && self.buffer.len() < PIECE_BYTES {
            return Ok(());
        }
        self.out.write_all(&self.buffer).map_err(|error| cannot_write(&error))?;
        self.buffer.clear();
        Ok(())
    }
}

fn cannot_translate(key: &[u8], error: &slotkeep_rdb::Error) -> Error {
    match error.kind {
        Fault::NoEquivalent { .. } | Fault::ValueTooLarge { .. } => cannot_express(key, error),
        _ => Error::new(ErrorKind::Corrupt, format!("key {}: {error}", crate::quoted(key))),
    }
}

impl EventSink for Merging {
    fn event(&mut self, facts: &RdbFacts, event: &Event<'_>) -> Result<()> {
        let wanted = self.watch.event(facts.moment_ms, event);
        match event {
            Event::Start(version) => self.start(*version),
            Event::Aux { key, value } => {
                self.aux(key, value);
                Ok(())
            }
            Event::Function { source } => self.function(source),
            Event::ModuleAux { .. } => {
                self.report.module_records_left_out += 1;
                Ok(())
            }
            Event::Key(header) if self.watch.wanted => self.begin(facts, header.has_meta),
            Event::ValueBytes(bytes) => self.value_bytes(bytes),
            Event::KeyEnd { .. } if self.watch.wanted => self.end(wanted),
            _ => Ok(()),
        }
    }
}

impl Exporter for Merging {
    fn level(&self) -> Level {
        Level::Raw
    }

    fn finish(mut self, report: &mut ExportReport) -> Result<Held> {
        if let Some(writer) = self.writer.take() {
            writer.finish(&mut self.buffer);
        }
        self.pass_on(true)?;
        let format = report.format;
        *report = ExportReport { format, functions: self.functions.len() as u64, ..self.report };
        Ok(self.out)
    }
}
