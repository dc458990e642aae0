//! Commands that build the keys on a primary, as `redis-cli --pipe` sends them and an append-only file holds them.
//!
//! A value goes as `RESTORE`, in an encoding that the target has; one that is too long for that, or all if the user wants it so, as
//! commands of its elements. Either way a key has its expiry before the next one begins.

use std::collections::BTreeSet;
use std::io::Write;

use slotkeep_model::{Product, RdbVersion, ServerVersion};
use slotkeep_rdb::{
    Command, CommandBuilder, Decoder, Delivery, DeliveryOptions, Element, Event, Level, deliver,
    function_hash,
};
use slotkeep_wire::resp::write_command;

use super::held::Held;
use super::{ExportOptions, ExportReport, Exporter, cannot_express};
use crate::dataset::{EventSink, RdbFacts};
use crate::inspect::cannot_write;
use crate::keys::KeyWatch;
use crate::{Error, ErrorKind, Result};

/// How many bytes of arguments one command of elements has, about.
const COMMAND_BYTES: usize = 256 << 10;

pub(super) struct Resp {
    watch: KeyWatch,
    options: ExportOptions,
    out: Held,
    value: Value,
    /// Counts the elements of a value that is not taken apart otherwise, if a filter asks for their number.
    counter: Option<Decoder>,
    counts_elements: bool,
    /// The database that commands go to, and that of the key being written.
    selected: u32,
    functions: BTreeSet<u128>,
    keys: u64,
    element_wise: u64,
    without_metadata: u64,
    module_records: u64,
    encoded: Vec<u8>,
}

/// What is being done with the value that is being read.
enum Value {
    Unwanted,
    /// It is gathered, to go as one `RESTORE`.
    Gathered(Vec<u8>),
    /// It goes element by element.
    Elements(Box<(Decoder, CommandBuilder)>),
}

impl Resp {
    pub(super) fn new(options: &ExportOptions, out: Held) -> Self {
        Self {
            watch: KeyWatch::new(&options.filter),
            options: options.clone(),
            out,
            value: Value::Unwanted,
            counter: None,
            counts_elements: options.filter.min_elements.is_some(),
            selected: 0,
            functions: BTreeSet::new(),
            keys: 0,
            element_wise: 0,
            without_metadata: 0,
            module_records: 0,
            encoded: Vec::new(),
        }
    }

    fn target(&self, facts: &RdbFacts) -> ServerVersion {
        self.options.target.or(facts.server).unwrap_or_else(|| oldest_of(facts.version))
    }

    fn write(&mut self, parts: &[&[u8]]) -> Result<()> {
        self.encoded.clear();
        write_command(&mut self.encoded, parts);
        self.out.write_all(&self.encoded).map_err(|error| cannot_write(&error))
    }

    fn write_all(&mut self, commands: &[Command]) -> Result<()> {
        for command in commands {
            let parts: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            self.write(&parts)?;
        }
        Ok(())
    }

    fn function(&mut self, facts: &RdbFacts, source: &[u8]) -> Result<()> {
        if !self.options.takes_functions() || !self.functions.insert(function_hash(source)) {
            return Ok(());
        }
        let target = self.target(facts);
        if target.product == Product::Redis && target.major < 7 {
            let what = format!("{target} has no functions, and the dataset holds a library");
            return Err(Error::new(ErrorKind::Unsupported, what).hint("leave them out with --no-functions"));
        }
        if self.options.replace {
            self.write(&[b"FUNCTION", b"LOAD", b"REPLACE", source])?;
        } else {
            self.write(&[b"FUNCTION", b"LOAD", source])?;
        }
        // Nothing decides on it later.
        self.out.keep().map_err(|error| cannot_write(&error))
    }

    fn begin(&mut self, facts: &RdbFacts, has_meta: bool) -> Result<()> {
        self.without_metadata += u64::from(has_meta);
        let (database, value_type) = (self.watch.facts.database, self.watch.facts.value_type);
        if database != self.selected {
            self.write(&[b"SELECT", database.to_string().as_bytes()])?;
        }
        self.counter = self.counts_elements.then(|| Decoder::new(value_type, facts.version));
        self.value = Value::Gathered(Vec::new());
        if self.options.commands { self.begin_elements(facts) } else { Ok(()) }
    }

    /// Sends the value element by element from here on, what was gathered of it first.
    fn begin_elements(&mut self, facts: &RdbFacts) -> Result<()> {
        let Value::Gathered(gathered) = std::mem::replace(&mut self.value, Value::Unwanted) else {
            return Ok(());
        };
        let (key, value_type) = (self.watch.facts.key.clone(), self.watch.facts.value_type);
        if self.options.replace {
            self.write(&[b"DEL", &key])?;
        }
        let decoder = Decoder::new(value_type, facts.version);
        let builder = CommandBuilder::new(&key, value_type, self.target(facts), COMMAND_BYTES);
        self.value = Value::Elements(Box::new((decoder, builder)));
        self.elements(&gathered)
    }

    fn elements(&mut self, mut bytes: &[u8]) -> Result<()> {
        let Value::Elements(mut pair) = std::mem::replace(&mut self.value, Value::Unwanted) else {
            return Ok(());
        };
        let (decoder, builder) = &mut *pair;
        let mut commands = Vec::new();
        // The end of the value, which the parser found too, completes the last command.
        while let Some(element) = decoder.next(&mut bytes).map_err(|error| self.damaged(&error))? {
            let ended = element == Element::End;
            builder
                .element(&element, &mut commands)
                .map_err(|error| cannot_express(&self.watch.facts.key, error))?;
            self.write_all(&commands)?;
            commands.clear();
            if ended {
                break;
            }
        }
        self.value = Value::Elements(pair);
        Ok(())
    }

    fn damaged(&self, error: &slotkeep_rdb::Error) -> Error {
        let what = format!("key {}: {error}", crate::quoted(&self.watch.facts.key));
        Error::new(ErrorKind::Corrupt, what)
    }

    fn value_bytes(&mut self, facts: &RdbFacts, bytes: &[u8]) -> Result<()> {
        if let Some(counter) = &mut self.counter {
            let mut rest = bytes;
            while let Ok(Some(element)) = counter.next(&mut rest) {
                if element == Element::End {
                    break;
                }
                self.watch.element(&element);
            }
        }
        match &mut self.value {
            Value::Unwanted => Ok(()),
            Value::Elements(_) => self.elements(bytes),
            Value::Gathered(gathered)
                if gathered.len().saturating_add(bytes.len()) <= self.options.max_restore_bytes =>
            {
                gathered.extend_from_slice(bytes);
                Ok(())
            }
            Value::Gathered(_) => {
                self.begin_elements(facts)?;
                self.elements(bytes)
            }
        }
    }

    fn end(&mut self, facts: &RdbFacts, wanted: bool) -> Result<()> {
        match std::mem::replace(&mut self.value, Value::Unwanted) {
            Value::Unwanted => return Ok(()),
            Value::Gathered(value) if wanted => self.restore(facts, &value)?,
            Value::Gathered(_) => {}
            Value::Elements(_) => {
                self.element_wise += u64::from(wanted);
                self.expire()?;
            }
        }
        if wanted {
            self.keys += 1;
            self.selected = self.watch.facts.database;
            self.out.keep().map_err(|error| cannot_write(&error))
        } else {
            self.out.discard().map_err(|error| cannot_write(&error))
        }
    }

    fn restore(&mut self, facts: &RdbFacts, value: &[u8]) -> Result<()> {
        let (key, value_type) = (self.watch.facts.key.clone(), self.watch.facts.value_type);
        let options = DeliveryOptions {
            payload_bytes: self.options.max_restore_bytes.saturating_add(64),
            command_bytes: COMMAND_BYTES,
            ..DeliveryOptions::default()
        };
        let delivery = deliver(&key, value_type, facts.version, value, self.target(facts), &options);
        match delivery.map_err(|error| self.damaged(&error))? {
            Delivery::Payload(payload) => {
                // A time to live of 0 means none, and a negative one is refused; both lie in the past.
                let ttl = self.watch.facts.expiry_ms.map_or(0, |expiry_ms| expiry_ms.max(1)).to_string();
                let parts: [&[u8]; 6] = [b"RESTORE", &key, ttl.as_bytes(), &payload, b"ABSTTL", b"REPLACE"];
                let count = if self.options.replace { parts.len() } else { parts.len() - 1 };
                self.write(parts.get(..count).unwrap_or(&parts))
            }
            Delivery::Commands(commands) => {
                self.element_wise += 1;
                if self.options.replace {
                    self.write(&[b"DEL", &key])?;
                }
                self.write_all(&commands)?;
                self.expire()
            }
            Delivery::Impossible(why) => Err(cannot_express(&key, why)),
        }
    }

    fn expire(&mut self) -> Result<()> {
        let Some(expiry_ms) = self.watch.facts.expiry_ms else { return Ok(()) };
        let key = self.watch.facts.key.clone();
        self.write(&[b"PEXPIREAT", &key, expiry_ms.to_string().as_bytes()])
    }
}

/// The oldest server that writes RDBs of that version.
const fn oldest_of(version: RdbVersion) -> ServerVersion {
    let (product, major, minor) = match (version.product, version.number) {
        (Product::Valkey, _) => (Product::Valkey, 9, 0),
        (Product::Redis, 0..=8) => (Product::Redis, 4, 0),
        (Product::Redis, 9) => (Product::Redis, 5, 0),
        (Product::Redis, 10) => (Product::Redis, 7, 0),
        (Product::Redis, 11) => (Product::Redis, 7, 2),
        (Product::Redis, 12) => (Product::Redis, 7, 4),
        (Product::Redis, 13) => (Product::Redis, 8, 6),
        (Product::Redis, _) => (Product::Redis, 8, 8),
    };
    ServerVersion { product, major, minor, patch: 0 }
}

impl EventSink for Resp {
    fn event(&mut self, facts: &RdbFacts, event: &Event<'_>) -> Result<()> {
        let wanted = self.watch.event(facts.moment_ms, event);
        match event {
            Event::Key(header) if self.watch.wanted => self.begin(facts, header.has_meta),
            Event::ValueBytes(bytes) => self.value_bytes(facts, bytes),
            Event::KeyEnd { .. } => self.end(facts, wanted),
            Event::Function { source } => self.function(facts, source),
            Event::ModuleAux { .. } => {
                self.module_records += 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Exporter for Resp {
    fn level(&self) -> Level {
        Level::Raw
    }

    fn finish(self, report: &mut ExportReport) -> Result<Held> {
        report.keys = self.keys;
        report.element_wise = self.element_wise;
        report.functions = self.functions.len() as u64;
        report.without_metadata = self.without_metadata;
        report.module_records_left_out = self.module_records;
        Ok(self.out)
    }
}
