//! A value too long for one `RESTORE`: built element by element under a temporary name, then renamed.
//!
//! The temporary key is in the slot of the key it is for, so that one node has both and `RENAME` is allowed; a key is therefore
//! never there in part. Commands that build a value can't be repeated (`RPUSH`, `APPEND`), so after any trouble the temporary key is
//! deleted and the value sent again from its beginning. The temporary name is the same each time the same restore comes to that slot,
//! also after the process was killed: what was left behind is deleted then.

use slotkeep_model::{NodeAddr, RdbVersion, Slot, key_slot};
use slotkeep_rdb::{CommandBuilder, Decoder, Element, ValueType};
use slotkeep_wire::resp::{Command, Value, write_command};
use slotkeep_wire::server_error::ServerError;

use super::batch::show_key;
use super::options::OnConflict;
use super::run::{Counters, Run, is_passing, refusal};
use crate::net::{Connection, LinkError};
use crate::{Error, ErrorKind, Result};

/// How many bytes of arguments one command may have at most.
const COMMAND_BYTES: usize = 256 << 10;
/// And how many even if values are to be split that are shorter: a command of a few bytes helps nobody.
const LEAST_COMMAND_BYTES: usize = 1 << 10;
/// How many bytes are sent before answers are awaited.
const ROUND_BYTES: usize = 2 << 20;
/// How many commands are sent before answers are awaited.
const ROUND_COMMANDS: usize = 512;
/// How many redirections are followed to find the node for a value.
const MOST_REDIRECTS: usize = 5;

/// A key whose value is too long.
pub(super) struct LargeKey {
    pub(super) key: Vec<u8>,
    pub(super) slot: Slot,
    pub(super) database: u32,
    pub(super) expiry_ms: Option<i64>,
    pub(super) value_type: ValueType,
    pub(super) rdb_version: RdbVersion,
    /// A key that exists may be this very restore's own.
    pub(super) tolerant: bool,
}

/// What became of a large value.
pub(super) enum Fate {
    /// It is there, on that node.
    Written(NodeAddr),
    /// It was there, from an earlier attempt.
    AlreadyOurs,
    /// Its time was up before it was complete.
    Expired,
    /// A key of that name exists.
    Exists { key: String, slot: Slot },
}

/// How a step came out.
pub(super) enum Outcome {
    /// It goes on.
    Going(Box<LargeValue>),
    /// There is no more to do.
    Settled(Fate),
    /// The value must be sent again from its beginning, for that reason.
    Again(String),
}

/// A large value on its way.
pub(super) struct LargeValue {
    key: LargeKey,
    temporary: Vec<u8>,
    connection: Connection,
    /// Whether the slot is on its way to that node, so that every command needs `ASKING` before it.
    asking: bool,
    decoder: Decoder,
    builder: CommandBuilder,
    out: Vec<u8>,
    expected: usize,
    /// Pending entries of deleted stream entries, which commands can't bring back.
    unclaimed: u64,
}

/// What an answer calls for, if it is not plain success.
enum Trouble {
    Elsewhere { addr: NodeAddr, asking: bool },
    Passing(String),
    Fatal(Error),
}

impl From<LinkError> for Trouble {
    fn from(error: LinkError) -> Self {
        if error.problem.is_transient() {
            Self::Passing(error.to_string())
        } else {
            Self::Fatal(error.into())
        }
    }
}

impl LargeValue {
    /// Finds the node that takes the key and clears the temporary name there.
    pub(super) async fn begin(run: &Run, key: LargeKey, restore_id: &str) -> Result<Outcome> {
        let map = run.target.map();
        let Some(owner) = map.owner(key.slot) else {
            return Ok(Outcome::Again("no node serves it".to_owned()));
        };
        let temporary = temporary_name(restore_id, key.slot);
        let (mut addr, mut asking) = (owner.addr.clone(), false);
        for _ in 0..MOST_REDIRECTS {
            match open(run, &addr, asking, &key, &temporary).await {
                Ok((connection, exists)) => {
                    if exists && run.options.on_conflict != OnConflict::Replace {
                        return Ok(Outcome::Settled(key.exists()));
                    }
                    let decoder = Decoder::new(key.value_type, key.rdb_version);
                    let budget = run.options.max_restore_bytes.clamp(LEAST_COMMAND_BYTES, COMMAND_BYTES);
                    let builder = CommandBuilder::new(&temporary, key.value_type, owner.server, budget);
                    let (out, expected) = (Vec::new(), 0);
                    return Ok(Outcome::Going(Box::new(Self {
                        key,
                        temporary,
                        connection,
                        asking,
                        decoder,
                        builder,
                        out,
                        expected,
                        unclaimed: 0,
                    })));
                }
                Err(Trouble::Elsewhere { addr: to, asking: ask }) => (addr, asking) = (to, ask),
                Err(Trouble::Passing(reason)) => return Ok(Outcome::Again(reason)),
                Err(Trouble::Fatal(error)) => return Err(error),
            }
        }
        Ok(Outcome::Again(format!("nodes disagree on slot {}", key.slot)))
    }

    /// Sends on; a reason if the value must be sent again from its beginning.
    pub(super) async fn feed(&mut self, run: &Run, mut bytes: &[u8]) -> Result<Option<String>> {
        let mut commands = Vec::new();
        loop {
            match self.decoder.next(&mut bytes) {
                // Its end, and only that, completes the last command.
                Ok(Some(element)) => {
                    let at_end = element == Element::End;
                    let built = self.builder.element(&element, &mut commands);
                    built.map_err(|error| self.cannot(run, &error.to_string()))?;
                    if at_end {
                        return self.pass_on(run, &mut commands, true).await;
                    }
                }
                Ok(None) => return self.pass_on(run, &mut commands, false).await,
                Err(error) => {
                    let what = format!("key `{}`: {error}", show_key(&self.key.key));
                    return Err(Error::new(ErrorKind::Corrupt, what));
                }
            }
            if let Some(reason) = self.pass_on(run, &mut commands, false).await? {
                return Ok(Some(reason));
            }
        }
    }

    fn cannot(&self, run: &Run, why: &str) -> Error {
        let what = format!(
            "key `{}` has more than {} bytes, and {why}",
            show_key(&self.key.key),
            run.options.max_restore_bytes
        );
        Error::new(ErrorKind::Unsupported, what)
            .hint("run the same command again with a larger --max-restore-bytes: it goes on from here")
    }

    /// Encodes commands, and sends them if there are enough or `all` is wanted.
    async fn pass_on(
        &mut self,
        run: &Run,
        commands: &mut Vec<Vec<Vec<u8>>>,
        all: bool,
    ) -> Result<Option<String>> {
        for command in commands.drain(..) {
            let parts: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            self.queue(&parts);
        }
        if !(all || self.out.len() >= ROUND_BYTES || self.expected >= ROUND_COMMANDS) {
            return Ok(None);
        }
        match self.round(run).await {
            Ok(_) => Ok(None),
            Err(Trouble::Fatal(error)) => Err(error),
            Err(Trouble::Passing(reason)) => Ok(Some(reason)),
            Err(Trouble::Elsewhere { addr, .. }) => {
                Ok(Some(format!("slot {} is moving to {addr}", self.key.slot)))
            }
        }
    }

    fn queue(&mut self, parts: &[&[u8]]) {
        if self.asking {
            write_command(&mut self.out, &[b"ASKING"]);
        }
        write_command(&mut self.out, parts);
        self.expected += 1;
    }

    /// Sends what is queued and takes the answers; gives the last one.
    async fn round(&mut self, run: &Run) -> Result<Value, Trouble> {
        let out = std::mem::take(&mut self.out);
        let expected = std::mem::take(&mut self.expected);
        let work =
            exchange(&mut self.connection, &out, expected, self.asking, &self.key.key, &mut self.unclaimed);
        tokio::select! {
            last = work => last,
            () = run.halt.cancelled() => Err(Trouble::Fatal(Error::interrupted())),
        }
    }

    /// Sets the expiry and gives the value its name.
    pub(super) async fn finish(mut self: Box<Self>, run: &Run) -> Result<Outcome> {
        let (temporary, key) = (self.temporary.clone(), self.key.key.clone());
        if let Some(expiry_ms) = self.key.expiry_ms {
            self.queue(&[b"PEXPIREAT", &temporary, expiry_ms.to_string().as_bytes()]);
        }
        let rename: &[u8] =
            if run.options.on_conflict == OnConflict::Replace { b"RENAME" } else { b"RENAMENX" };
        self.queue(&[rename, &temporary, &key]);
        let node = self.connection.node().clone();
        let settled = match self.round(run).await {
            Ok(Value::Integer(0)) => self.key.exists(),
            Ok(_) => {
                Counters::add(&run.counters.pending_left_out, self.unclaimed);
                return Ok(Outcome::Settled(Fate::Written(node)));
            }
            // It expired under its temporary name.
            Err(Trouble::Fatal(error)) if error.to_string().contains("no such key") => Fate::Expired,
            Err(Trouble::Fatal(error)) => {
                self.abandon(run).await;
                return Err(error);
            }
            Err(Trouble::Passing(reason)) => return Ok(Outcome::Again(reason)),
            Err(Trouble::Elsewhere { addr, .. }) => {
                return Ok(Outcome::Again(format!("slot {} is moving to {addr}", self.key.slot)));
            }
        };
        self.abandon(run).await;
        Ok(Outcome::Settled(settled))
    }

    /// Deletes the temporary key, as well as can be: over a new connection, for this one may be out of step.
    pub(super) async fn abandon(self, run: &Run) {
        let Self { key, temporary, connection, asking, .. } = self;
        let addr = connection.node().clone();
        drop(connection);
        if let Err(Trouble::Passing(reason)) = open(run, &addr, asking, &key, &temporary).await {
            tracing::warn!(node = %addr, %reason, "a temporary key is left behind until the restore is run again");
        }
    }
}

impl LargeKey {
    fn exists(&self) -> Fate {
        if self.tolerant {
            Fate::AlreadyOurs
        } else {
            Fate::Exists { key: show_key(&self.key), slot: self.slot }
        }
    }
}

/// Connects, selects the database, clears the temporary name, and looks whether the key exists.
async fn open(
    run: &Run,
    addr: &NodeAddr,
    asking: bool,
    key: &LargeKey,
    temporary: &[u8],
) -> Result<(Connection, bool), Trouble> {
    let mut connection = run.context.connector.connect(addr).await?;
    if key.database > 0 {
        connection.call(&Command::new("SELECT").arg_number(key.database)).await?;
    }
    let mut last = Value::Null;
    for (name, argument) in [("UNLINK", temporary), ("EXISTS", key.key.as_slice())] {
        let mut out = Vec::new();
        if asking {
            write_command(&mut out, &[b"ASKING"]);
        }
        write_command(&mut out, &[name.as_bytes(), argument]);
        last = exchange(&mut connection, &out, 1, asking, &key.key, &mut 0).await?;
    }
    Ok((connection, last.as_i64() == Some(1)))
}

/// Sends commands and takes their answers; gives the last one, and adds to `unclaimed` the answers that are empty arrays: those of
/// `XCLAIM` where the server takes no pending entry whose stream entry is deleted.
async fn exchange(
    connection: &mut Connection,
    out: &[u8],
    expected: usize,
    asking: bool,
    key: &[u8],
    unclaimed: &mut u64,
) -> Result<Value, Trouble> {
    connection.send(out).await?;
    let mut last = Value::Null;
    let mut trouble = None;
    for _ in 0..expected {
        if asking {
            connection.reply().await?;
        }
        last = connection.reply().await?;
        if let Some(text) = last.as_error() {
            trouble.get_or_insert(trouble_of(connection.node(), text, key));
        }
        *unclaimed += u64::from(last.as_array().is_some_and(<[Value]>::is_empty));
    }
    trouble.map_or(Ok(last), Err)
}

fn trouble_of(node: &NodeAddr, text: &str, key: &[u8]) -> Trouble {
    match ServerError::classify(text) {
        ServerError::Moved(redirect) => Trouble::Elsewhere { addr: redirect.addr(node), asking: false },
        ServerError::Ask(redirect) => Trouble::Elsewhere { addr: redirect.addr(node), asking: true },
        error if is_passing(&error) => Trouble::Passing(text.to_owned()),
        error => Trouble::Fatal(refusal(node, &error, text, &show_key(key))),
    }
}

/// A name in that slot that nobody else uses.
fn temporary_name(restore_id: &str, slot: Slot) -> Vec<u8> {
    // One in 16384 fits, on average: these are more than enough.
    (0_u64..10_000_000)
        .map(|number| format!("slotkeep:restore:{restore_id}:{number}").into_bytes())
        .find(|name| key_slot(name) == slot)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_temporary_name_of_its_own() {
        for slot in [0, 1, 8000, 16383].map(|number| Slot::new(number).unwrap()) {
            let name = temporary_name("0123abcd", slot);
            assert_eq!(key_slot(&name), slot);
            assert_eq!(name, temporary_name("0123abcd", slot));
        }
    }
}
