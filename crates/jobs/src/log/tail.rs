//! What the log holds of what followed the place at which a server took over, or would: along the main line, through failovers, and not what a
//! failover lost.

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
    /// The history that the server took over from.
    #[serde(serialize_with = "as_text")]
    pub history: ReplId,
    /// The last byte that the server has of it.
    pub after: u64,
    /// The bytes, by history.
    pub pieces: Vec<Piece>,
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
    /// The place behind which it begins.
    pub(crate) fn place(&self) -> Place {
        Place { history: self.history.clone(), offset: self.after }
    }

    /// The last place that it leads to.
    pub(crate) fn end(&self) -> Place {
        let last = self.pieces.last().map_or(&self.history, |piece| &piece.history);
        Place { history: last.clone(), offset: self.until }
    }

    /// Leaves out what is behind that byte.
    fn end_at(&mut self, until: u64) {
        self.until = until;
        let end = until.saturating_add(1);
        self.pieces.retain_mut(|piece| {
            piece.range.end = piece.range.end.min(end);
            !piece.range.is_empty()
        });
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

/// What the repository holds of what followed a place, without a gap; nothing if it holds nothing there. `own` is the history that a server
/// has begun there, if it has taken over already.
pub async fn tail(
    context: &Context,
    past: &Arc<Past>,
    place: &Place,
    own: Option<&ReplId>,
) -> Result<Option<Tail>> {
    let pieces = past.chain.behind(place, own);
    let Some(last) = pieces.last() else { return Ok(None) };
    let mut tail = Tail {
        history: place.history.clone(),
        after: place.offset,
        until: last.range.end.saturating_sub(1),
        pieces,
        commands: None,
        marks: Vec::new(),
    };
    let counted = tail.bytes() <= COUNTED_BYTES;
    let mut reader = LogReader::new(Arc::clone(past), &tail.pieces)?;
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
    tail.end_at(splitter.safe_cut().0);
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
        format!("the log behind offset {} of history {}: {error}", tail.after, tail.history),
    )
}
