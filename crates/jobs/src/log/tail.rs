//! What the log of one history holds behind the place at which a server took over from it.

use std::sync::Arc;

use serde::Serialize;
use slotkeep_model::{ReplId, ReplOffset};
use slotkeep_wire::stream::{Splitter, StreamCommand, StreamStart};

use super::chain::{Piece, Place, as_text};
use super::{LogReader, Past};
use crate::{Context, Error, ErrorKind, Result};

/// By how many of its first commands a tail is known again.
const MARKS: usize = 64;
/// A tail up to so many bytes is read to count its commands.
const COUNTED_BYTES: u64 = 64 << 20;

/// Bytes of the log that a server which took over does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tail {
    /// Their history.
    #[serde(serialize_with = "as_text")]
    pub history: ReplId,
    /// The last byte that the server has of it.
    pub after: u64,
    /// The last byte that the repository has.
    pub until: u64,
    /// How many commands among them change a dataset; absent if they are too many to count beforehand.
    pub commands: Option<u64>,
    /// The first of these.
    #[serde(skip)]
    pub(crate) marks: Vec<Mark>,
}

/// A command as it can be known again in another stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    arg_count: u64,
    bytes: u64,
    args: Vec<Vec<u8>>,
}

impl Mark {
    pub(crate) fn of(command: &StreamCommand<'_>) -> Self {
        Self {
            arg_count: command.arg_count,
            bytes: command.end.0.saturating_sub(command.start.0),
            args: (0..).map_while(|number| command.arg(number)).map(<[u8]>::to_vec).collect(),
        }
    }
}

/// Whether a command changes a dataset, and is not there for the link or around others.
pub(crate) fn changes(command: &StreamCommand<'_>) -> bool {
    let silent = ["PING", "REPLCONF", "SELECT", "MULTI", "EXEC", "PUBLISH", "SPUBLISH"];
    !silent.iter().any(|name| command.is(name))
}

impl Tail {
    /// The bytes.
    pub fn piece(&self) -> Piece {
        Piece {
            history: self.history.clone(),
            range: self.after.saturating_add(1)..self.until.saturating_add(1),
        }
    }

    /// How many bytes that is.
    pub const fn bytes(&self) -> u64 {
        self.until.saturating_sub(self.after)
    }

    /// Whether there is anything in it that changes a dataset.
    pub fn is_idle(&self) -> bool {
        self.commands == Some(0)
    }

    /// Its size in words.
    pub fn in_words(&self) -> String {
        match self.commands {
            Some(commands) => format!("{commands} commands in {} bytes", self.bytes()),
            None => format!("the commands in {} bytes", self.bytes()),
        }
    }
}

/// What the repository holds of a history behind a place, without a gap; nothing if it holds nothing there.
pub async fn tail(context: &Context, past: &Arc<Past>, place: &Place) -> Result<Option<Tail>> {
    let first = place.offset.saturating_add(1);
    let runs = past.chain.runs(&place.history);
    let Some(run) = runs.iter().find(|run| run.start <= first && first < run.end) else { return Ok(None) };
    let mut tail = Tail {
        history: place.history.clone(),
        after: place.offset,
        until: run.end.saturating_sub(1),
        commands: None,
        marks: Vec::new(),
    };
    let counted = tail.bytes() <= COUNTED_BYTES;
    let mut reader = LogReader::new(Arc::clone(past), &[tail.piece()])?;
    let mut splitter = Splitter::new(start_behind(place.offset));
    let mut commands = 0_u64;
    while let Some(chunk) = context.unless_stopped(reader.next()).await? {
        let mut input = chunk.bytes.as_slice();
        while let Some(command) = splitter.next(&mut input).map_err(|error| no_stream(&tail, &error))? {
            if changes(&command) {
                commands = commands.saturating_add(1);
                if tail.marks.len() < MARKS {
                    tail.marks.push(Mark::of(&command));
                }
            }
        }
        if !counted && tail.marks.len() == MARKS {
            return Ok(Some(tail));
        }
    }
    // A transaction whose end is not there is left out.
    tail.until = splitter.safe_cut().0;
    tail.commands = Some(commands);
    Ok((tail.until > tail.after).then_some(tail))
}

/// A stream that begins behind that byte.
pub(crate) const fn start_behind(offset: u64) -> StreamStart {
    StreamStart { offset: ReplOffset(offset), db: None, in_transaction: false }
}

fn no_stream(tail: &Tail, error: &slotkeep_wire::stream::StreamError) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the log of history {} behind offset {}: {error}", tail.history, tail.after),
    )
}
