//! One key of a dataset, by ranged reads where there is an index.
//!
//! Of a backup, the index of the shard that has the key's slot says where its record lies; only the frames that hold the record are read.
//! A file has no index and is read from its beginning. The value goes out as it comes in, so its size does not matter.

use std::io::Write;
use std::sync::Arc;

use jiff::Timestamp;
use slotkeep_model::{SlotSet, key_slot};
use slotkeep_rdb::{DumpBuilder, Element, Event, Level, LogicalType};
use tokio_util::sync::CancellationToken;

use crate::base::Base;
use crate::dataset::{Dataset, EventSink, Feed, Input, Place, RdbFacts, read};
use crate::inspect::{blocking, cannot_write};
use crate::keys::{Filter, KeyFacts, KeyWatch};
use crate::value::{JsonKey, TextKey, quoted};
use crate::{Error, ErrorKind, Result};

/// How many other databases with a key of that name are remembered.
const MOST_OTHERS: usize = 16;

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Lines for people.
    Text,
    /// One JSON object.
    Json,
    /// The bytes of a string.
    Raw,
    /// The payload of `RESTORE`.
    Dump,
}

/// Which key, and how to write its value.
#[derive(Clone, Debug)]
pub struct GetOptions {
    /// The key.
    pub key: Vec<u8>,
    /// The database it is in.
    pub database: u32,
    /// How to write it.
    pub form: Form,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Got {
    /// Bytes of the key's record in the RDB.
    pub bytes: u64,
    /// Its elements, unless it was not taken apart.
    pub elements: u64,
    /// Stored bytes that were read to find it.
    pub read_bytes: u64,
    /// Stored bytes of the dataset.
    pub stored_bytes: u64,
}

/// Writes the value of a key to `out`. `now` stands in for the moment of a file that does not say when it was made.
pub async fn get(
    dataset: &Dataset,
    options: &GetOptions,
    now: Timestamp,
    stop: &CancellationToken,
    out: impl Write + Send + 'static,
) -> Result<Got> {
    let slot = SlotSet::from_iter([key_slot(&options.key)]);
    let mut writing = Writing::new(options, out);
    for (input, progress) in dataset.inputs(Some(&slot)) {
        let read_bytes = match &input.place {
            Place::Base(..) => {
                let moment_ms = input.moment.unwrap_or(now).as_millisecond();
                let found = by_index(input, options, moment_ms, &mut writing);
                tokio::select! {
                    read_bytes = found => read_bytes?,
                    () = stop.cancelled() => return Err(Error::interrupted()),
                }
            }
            _ => {
                let feed = Feed::open(input, stop).await?;
                let (input, progress) = (input.clone(), Arc::clone(progress));
                let level = options.form.level();
                let (back, read_bytes) = blocking(move || {
                    read(feed, &input, level, now, &progress, &mut writing)?;
                    Ok((writing, progress.raw_bytes.load(std::sync::atomic::Ordering::Relaxed)))
                })
                .await?;
                writing = back;
                read_bytes
            }
        };
        if let Some(facts) = writing.found.take() {
            let stored_bytes = dataset.stored_bytes().max(read_bytes);
            let got = Got { bytes: facts.bytes, elements: facts.elements, read_bytes, stored_bytes };
            writing.finish(&facts, &got).map_err(|error| cannot_write(&error))?;
            return Ok(got);
        }
    }
    Err(not_found(dataset, options, writing.others))
}

/// Reads the record of the key, if the index knows one; how many stored bytes were read.
async fn by_index(
    input: &Input,
    options: &GetOptions,
    moment_ms: i64,
    writing: &mut Writing<impl Write>,
) -> Result<u64> {
    let Place::Base(repository, record) = &input.place else { return Ok(0) };
    let before = repository.bytes_read();
    if let Some(reason) = &record.not_interpreted {
        let what = format!(
            "{} was stored without being understood ({reason}), and without an index a key can't be looked up",
            record.rdb.path
        );
        return Err(Error::new(ErrorKind::Unsupported, what).hint(
            "read it whole: `slotkeep inspect --keys` or `slotkeep export --key …`, if need be with a newer Slotkeep",
        ));
    }
    let base = Base::open(repository, record)?;
    let extents = base.extents_of(&options.key).await?;
    let facts = RdbFacts { version: record.rdb_version, server: input.server, moment_ms };
    if !extents.is_empty() {
        let mut records = base.records(options.form.level()).await?;
        for extent in &extents {
            records.read(extent, &mut |event| writing.event(&facts, event)).await?;
        }
    }
    Ok(repository.bytes_read().saturating_sub(before))
}

fn not_found(dataset: &Dataset, options: &GetOptions, mut others: Vec<u32>) -> Error {
    let (key, slot) = (quoted(&options.key), key_slot(&options.key));
    let what = format!("{} has no key {key} in database {} (slot {slot})", dataset.origin, options.database);
    others.sort_unstable();
    others.dedup();
    let hint = match others.as_slice() {
        [] => "`slotkeep inspect --keys --pattern …` lists keys; a key that is not ASCII can be given with --escaped"
            .to_owned(),
        databases => {
            let databases: Vec<String> = databases.iter().map(u32::to_string).collect();
            format!("database {} has one of that name: --db {}", databases.join(", "), databases.first().map_or("N", String::as_str))
        }
    };
    Error::new(ErrorKind::NotFound, what).hint(hint)
}

impl Form {
    const fn level(self) -> Level {
        match self {
            Self::Dump => Level::Raw,
            _ => Level::Element,
        }
    }
}

/// Writes the key that is wanted out of the events of an RDB.
struct Writing<W> {
    watch: KeyWatch,
    database: u32,
    form: Form,
    out: W,
    text: TextKey,
    json: JsonKey,
    dump: Option<DumpBuilder>,
    /// Whether the value that passes is that of the key.
    passing: bool,
    found: Option<KeyFacts>,
    /// Other databases that have a key of that name.
    others: Vec<u32>,
}

impl<W: Write> Writing<W> {
    fn new(options: &GetOptions, out: W) -> Self {
        let filter = Filter { key: Some(options.key.clone()), ..Filter::default() };
        Self {
            watch: KeyWatch::new(&filter),
            database: options.database,
            form: options.form,
            out,
            text: TextKey::new(),
            json: JsonKey::new(),
            dump: None,
            passing: false,
            found: None,
            others: Vec::new(),
        }
    }

    fn begin(&mut self, facts: &RdbFacts) -> Result<()> {
        let key = &self.watch.facts;
        let logical = key.value_type.logical();
        let written = match self.form {
            Form::Text => self.text.begin(&mut self.out, key, facts.moment_ms),
            Form::Json => self.json.begin(&mut self.out, key),
            Form::Raw if logical != LogicalType::String => {
                let what = format!(
                    "{} is a {}; --raw writes the bytes of a string",
                    quoted(&key.key),
                    logical.name()
                );
                return Err(Error::new(ErrorKind::Usage, what)
                    .hint("leave --raw away, or use --json, or --dump for the payload of RESTORE"));
            }
            Form::Raw => Ok(()),
            Form::Dump => {
                // The lowest version that knows the encoding: every server that does accepts it.
                let lowest = key.value_type.introduced_in(facts.version.product);
                let (builder, first) =
                    DumpBuilder::new(key.value_type, lowest.unwrap_or(facts.version.number));
                self.dump = Some(builder);
                self.out.write_all(&first)
            }
        };
        written.map_err(|error| cannot_write(&error))
    }

    fn element(&mut self, element: &Element<'_>) -> std::io::Result<()> {
        match (self.form, element) {
            (Form::Text, _) => self.text.element(&mut self.out, element),
            (Form::Json, _) => self.json.element(&mut self.out, element),
            (Form::Raw, Element::Bytes { bytes, .. }) => self.out.write_all(bytes),
            _ => Ok(()),
        }
    }

    fn finish(&mut self, facts: &KeyFacts, got: &Got) -> std::io::Result<()> {
        match self.form {
            Form::Text => self.text.end(&mut self.out)?,
            Form::Json => {
                let more = [("read_bytes", got.read_bytes), ("stored_bytes", got.stored_bytes)];
                self.json.end(&mut self.out, facts, &more)?;
                self.out.write_all(b"\n")?;
            }
            Form::Raw => {}
            Form::Dump => {
                if let Some(builder) = self.dump.take() {
                    self.out.write_all(&builder.footer())?;
                }
            }
        }
        self.out.flush()
    }
}

impl<W: Write> EventSink for Writing<W> {
    fn event(&mut self, facts: &RdbFacts, event: &Event<'_>) -> Result<()> {
        let ended = self.watch.event(facts.moment_ms, event);
        match event {
            Event::Key(header) => {
                self.passing = self.watch.wanted && header.db == self.database;
                if self.passing {
                    self.begin(facts)?;
                } else if self.watch.wanted && self.others.len() < MOST_OTHERS {
                    self.others.push(header.db);
                }
            }
            Event::Element(element) if self.passing => {
                self.element(element).map_err(|error| cannot_write(&error))?;
            }
            Event::ValueBytes(bytes) if self.passing => {
                if let Some(builder) = &mut self.dump {
                    builder.value_bytes(bytes);
                    self.out.write_all(bytes).map_err(|error| cannot_write(&error))?;
                }
            }
            Event::KeyEnd { .. } if self.passing && ended => {
                self.found = Some(self.watch.facts.clone());
                self.passing = false;
            }
            _ => {}
        }
        Ok(())
    }
}
