//! Commands that rebuild a value, for values too big for one `RESTORE` payload, or of an encoding the target does not know.
//!
//! A [`CommandBuilder`] takes the elements of one value and gives commands of at most a budget of bytes each; an item, member,
//! field with its value, or stream entry that is longer goes whole, in a command of its own. The key must not exist before. Its expiry is
//! the caller's to set, after the last command.
//!
//! What commands cannot express:
//!
//! - pending stream entries that were deleted from the stream: servers from 7.0 on do not claim them;
//! - a consumer's seen and active times;
//! - producers and their remembered ids (they run out by themselves);
//! - and, each with an error: expiry of fields where the target has none, pending entries without consumer, settings of idempotent
//!   production, values of modules, arrays.
//!
//! Memory: one command, the element being gathered, and while a stream's group is rebuilt 40 bytes or so for each entry that is pending in it,
//! for their times and counts come before their owners.

use std::collections::BTreeMap;

use slotkeep_model::{Product, ServerVersion};

use crate::encode::score_text;
use crate::types::{LogicalType, ValueType};
use crate::value::{Element, Part, StreamId, StreamInfo};

/// A command: its name and arguments.
pub type Command = Vec<Vec<u8>>;

/// A value that commands of the target cannot express.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be rebuilt with commands on {target}")]
pub struct CommandError {
    /// What cannot be expressed.
    pub what: &'static str,
    /// The server it was meant for.
    pub target: ServerVersion,
}

/// Makes commands of the elements of one value.
pub struct CommandBuilder {
    key: Vec<u8>,
    logical: LogicalType,
    target: ServerVersion,
    budget_bytes: usize,
    /// The command being filled, empty between two.
    command: Command,
    command_bytes: usize,
    /// The element being gathered.
    gathered: Vec<u8>,
    /// A member or field whose score or value is still to come.
    held: Vec<u8>,
    /// Expiries of the fields in the command being filled.
    expiries: Vec<(i64, Vec<u8>)>,
    string_begun: bool,
    group: Vec<u8>,
    consumer: Vec<u8>,
    pending: BTreeMap<StreamId, (i64, u64)>,
    fields_left: u64,
}

impl CommandBuilder {
    /// A builder for the value of that key, on a server of that version, with commands of about `budget_bytes`.
    pub fn new(key: &[u8], value_type: ValueType, target: ServerVersion, budget_bytes: usize) -> Self {
        Self {
            key: key.to_vec(),
            logical: value_type.logical(),
            target,
            budget_bytes: budget_bytes.max(1),
            command: Command::new(),
            command_bytes: 0,
            gathered: Vec::new(),
            held: Vec::new(),
            expiries: Vec::new(),
            string_begun: false,
            group: Vec::new(),
            consumer: Vec::new(),
            pending: BTreeMap::new(),
            fields_left: 0,
        }
    }

    /// Takes in an element and appends the commands that are complete to `commands`. [`Element::End`] completes the last one.
    pub fn element(
        &mut self,
        element: &Element<'_>,
        commands: &mut Vec<Command>,
    ) -> Result<(), CommandError> {
        match *element {
            Element::Bytes { part: Part::String, bytes, last } => self.string(bytes, last, commands),
            Element::Bytes { part, bytes, last } => {
                self.gathered.extend_from_slice(bytes);
                if last {
                    let whole = core::mem::take(&mut self.gathered);
                    self.part(part, whole, commands)?;
                }
            }
            Element::Score(score) => {
                let member = core::mem::take(&mut self.held);
                self.add(b"ZADD", [score_text(score).into_bytes(), member], commands);
            }
            Element::FieldExpiry(expiry_ms) => self.field_expiry(expiry_ms)?,
            Element::End => self.flush(commands),
            Element::ModuleId(_) => return Err(self.impossible("a module's value")),
            Element::ArrayInfo { .. } => return Err(self.impossible("an array")),
            _ => self.stream_element(element, commands)?,
        }
        Ok(())
    }

    fn impossible(&self, what: &'static str) -> CommandError {
        CommandError { what, target: self.target }
    }

    fn at_least(&self, redis: (u16, u16), valkey: (u16, u16)) -> bool {
        let needed = match self.target.product {
            Product::Redis => redis,
            Product::Valkey => valkey,
        };
        (self.target.major, self.target.minor) >= needed
    }

    fn string(&mut self, bytes: &[u8], last: bool, commands: &mut Vec<Command>) {
        for chunk in bytes.chunks(self.budget_bytes) {
            let name: &[u8] = if self.string_begun { b"APPEND" } else { b"SET" };
            commands.push(vec![name.to_vec(), self.key.clone(), chunk.to_vec()]);
            self.string_begun = true;
        }
        if last && !self.string_begun {
            commands.push(vec![b"SET".to_vec(), self.key.clone(), Vec::new()]);
        }
    }

    fn part(&mut self, part: Part, whole: Vec<u8>, commands: &mut Vec<Command>) -> Result<(), CommandError> {
        match part {
            Part::Item => self.add(b"RPUSH", [whole], commands),
            Part::Member if self.logical == LogicalType::Set => self.add(b"SADD", [whole], commands),
            Part::Member | Part::Field => self.held = whole,
            Part::Value => {
                let field = core::mem::take(&mut self.held);
                // The field is kept, for its expiry may follow.
                self.held.clone_from(&field);
                self.add(b"HSET", [field, whole], commands);
            }
            Part::StreamField => self.push(whole),
            Part::StreamValue => {
                self.push(whole);
                self.fields_left = self.fields_left.saturating_sub(1);
                if self.fields_left == 0 {
                    self.flush(commands);
                }
            }
            Part::GroupName => self.group = whole,
            Part::ConsumerName => self.consumer = whole,
            Part::ProducerId | Part::ProducedId => {}
            _ => return Err(self.impossible("a module's value or an array")),
        }
        Ok(())
    }

    /// Adds arguments that belong together, after completing the command if they would not fit.
    fn add<const N: usize>(&mut self, name: &[u8], args: [Vec<u8>; N], commands: &mut Vec<Command>) {
        let more: usize = args.iter().map(Vec::len).sum();
        let too_long = self.command_bytes.saturating_add(more) > self.budget_bytes;
        if too_long && !self.command.is_empty() {
            self.flush(commands);
        }
        if self.command.is_empty() {
            self.begin(name);
        }
        for arg in args {
            self.push(arg);
        }
    }

    fn begin(&mut self, name: &[u8]) {
        self.command.push(name.to_vec());
        let key = self.key.clone();
        self.push(key);
    }

    fn push(&mut self, arg: Vec<u8>) {
        self.command_bytes = self.command_bytes.saturating_add(arg.len());
        self.command.push(arg);
    }

    fn flush(&mut self, commands: &mut Vec<Command>) {
        if !self.command.is_empty() {
            commands.push(core::mem::take(&mut self.command));
        }
        self.command_bytes = 0;
        let expiries = core::mem::take(&mut self.expiries);
        for run in expiries.chunk_by(|one, next| one.0 == next.0) {
            commands.push(self.expiry_command(run));
        }
    }

    fn expiry_command(&self, run: &[(i64, Vec<u8>)]) -> Command {
        let expiry_ms = run.first().map(|(expiry_ms, _)| *expiry_ms).unwrap_or_default();
        let mut command = vec![
            b"HPEXPIREAT".to_vec(),
            self.key.clone(),
            expiry_ms.to_string().into_bytes(),
            b"FIELDS".to_vec(),
            run.len().to_string().into_bytes(),
        ];
        command.extend(run.iter().map(|(_, field)| field.clone()));
        command
    }

    fn field_expiry(&mut self, expiry_ms: i64) -> Result<(), CommandError> {
        if !self.at_least((7, 4), (9, 0)) {
            return Err(self.impossible("a hash with expiry of fields"));
        }
        let field = core::mem::take(&mut self.held);
        self.command_bytes = self.command_bytes.saturating_add(field.len());
        self.expiries.push((expiry_ms, field));
        Ok(())
    }

    fn stream_element(
        &mut self,
        element: &Element<'_>,
        commands: &mut Vec<Command>,
    ) -> Result<(), CommandError> {
        match *element {
            Element::StreamEntry { id, fields } => {
                self.flush(commands);
                self.begin(b"XADD");
                self.push(id.to_string().into_bytes());
                self.fields_left = fields;
            }
            Element::StreamInfo(info) => self.stream_info(info, commands),
            Element::Group { last_id, entries_read } => {
                self.pending.clear();
                let mut command = texts(&["XGROUP", "CREATE"]);
                command.extend([self.key.clone(), self.group.clone(), last_id.to_string().into_bytes()]);
                if let Some(read) = entries_read.filter(|_| self.at_least((7, 0), (7, 2))) {
                    command.extend(texts(&["ENTRIESREAD", &read.to_string()]));
                }
                commands.push(command);
            }
            Element::GroupPending { id, delivery_time_ms, deliveries } => {
                self.pending.insert(id, (delivery_time_ms, deliveries));
            }
            Element::Consumer { .. } if self.at_least((6, 2), (7, 2)) => {
                let mut command = texts(&["XGROUP", "CREATECONSUMER"]);
                command.extend([self.key.clone(), self.group.clone(), self.consumer.clone()]);
                commands.push(command);
            }
            Element::ConsumerPending(id) => commands.push(self.claim(id)),
            Element::GroupReleased(_) => return Err(self.impossible("a pending entry without consumer")),
            Element::Idempotence { duration_s, max_entries }
                if (duration_s, max_entries) != crate::digest::IDEMPOTENCE_DEFAULTS =>
            {
                return Err(self.impossible("a stream with settings of idempotent production"));
            }
            _ => {}
        }
        Ok(())
    }

    fn claim(&self, id: StreamId) -> Command {
        let (time_ms, deliveries) = self.pending.get(&id).copied().unwrap_or((0, 1));
        let mut command =
            vec![b"XCLAIM".to_vec(), self.key.clone(), self.group.clone(), self.consumer.clone()];
        command.extend(texts(&[
            "0",
            &id.to_string(),
            "TIME",
            &time_ms.to_string(),
            "RETRYCOUNT",
            &deliveries.to_string(),
            "FORCE",
            "JUSTID",
        ]));
        command
    }

    fn stream_info(&mut self, info: StreamInfo, commands: &mut Vec<Command>) {
        self.flush(commands);
        if info.length == 0 {
            // An entry that is trimmed at once leaves an empty stream.
            let id = info.last_id.max(StreamId { ms: 0, seq: 1 }).to_string();
            let mut command = vec![b"XADD".to_vec(), self.key.clone()];
            command.extend(texts(&["MAXLEN", "0", &id, "x", "y"]));
            commands.push(command);
        }
        let mut command = vec![b"XSETID".to_vec(), self.key.clone()];
        command.push(info.last_id.to_string().into_bytes());
        if self.at_least((7, 0), (7, 2)) {
            let added = info.entries_added.unwrap_or(info.length).to_string();
            let deleted = info.max_deleted_id.unwrap_or_default().to_string();
            command.extend(texts(&["ENTRIESADDED", &added, "MAXDELETEDID", &deleted]));
        }
        commands.push(command);
    }
}

fn texts(texts: &[&str]) -> Command {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests;
