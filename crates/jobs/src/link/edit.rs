//! What becomes of a log on its way to a follower.

use slotkeep_model::ReplOffset;
use slotkeep_wire::stream::{AbsoluteExpiry, Account, ExpiryError, Filter, FilterError, Gap, Reader};

use crate::{Error, ErrorKind, Result};

/// Gives the server's time, in milliseconds since 1970, when the byte at an offset was written.
pub type TimeOf = Box<dyn FnMut(ReplOffset) -> u64 + Send>;

/// Leaves out of a log what the follower must not get, and makes relative times absolute if a way to know the time is given. What is
/// left out is filled up, so offsets change only where times do.
pub struct LogEditor {
    filter: Filter,
    expiry: Option<(AbsoluteExpiry, TimeOf)>,
    filtered: Vec<u8>,
    rewritten: Vec<u8>,
}

impl LogEditor {
    /// An editor for the log after `start`. `time_of` is needed for logs of Redis 6.2 and older, whose expiry times are relative.
    pub fn new(start: ReplOffset, reader: Reader, time_of: Option<TimeOf>) -> Self {
        Self {
            filter: Filter::new(start, reader, Gap::Fill),
            expiry: time_of.map(|time_of| (AbsoluteExpiry::new(start), time_of)),
            filtered: Vec::new(),
            rewritten: Vec::new(),
        }
    }

    /// What of the next bytes goes on.
    pub(super) fn edit(&mut self, bytes: &[u8]) -> Result<&[u8]> {
        // Times first: what the filter puts into gaps is not a stream of commands only.
        let bytes = match &mut self.expiry {
            None => bytes,
            Some((expiry, time_of)) => {
                self.rewritten.clear();
                expiry.feed(bytes, &mut self.rewritten, time_of).map_err(|error| not_rewritten(&error))?;
                &self.rewritten
            }
        };
        self.filtered.clear();
        self.filter.feed(bytes, &mut self.filtered).map_err(not_filtered)?;
        Ok(&self.filtered)
    }

    /// The offset in the log and the offset that the follower counts: exact between two commands, keep-alives not counted.
    pub fn account(&self) -> Account {
        let Account { original, sent } = self.filter.account();
        let original = self.expiry.as_ref().map_or(original, |(expiry, _)| expiry.account().original);
        Account { original, sent }
    }

    /// Whether what has gone on so far ends a command: only there may something be put between.
    pub(super) fn is_between_commands(&self) -> bool {
        self.filter.is_between_commands()
            && self.expiry.as_ref().is_none_or(|(expiry, _)| expiry.is_between_commands())
    }

    /// How many commands were left out.
    pub fn left_out(&self) -> u64 {
        self.filter.left_out()
    }

    /// An error unless the log has ended at `cut`, and may end there.
    pub(super) fn check_end(&self, cut: ReplOffset) -> Result<()> {
        let at = self.account().original;
        let words = if at != cut {
            format!("the log ends at offset {at}, expected {cut}")
        } else if !self.is_between_commands() {
            format!("the log ends inside a command at offset {at}")
        } else if self.filter.in_transaction() {
            format!("the log ends inside a transaction at offset {at}")
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Corrupt, words).hint("verify the repository; nothing was made of it"))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
fn not_filtered(error: FilterError) -> Error {
    match &error {
        FilterError::Stream(_) => Error::new(ErrorKind::Corrupt, format!("the log is damaged: {error}")),
        FilterError::MovesSlots { .. } => Error::new(
            ErrorKind::Unsupported,
            format!("a log across a move of slots can't be applied: {error}"),
        )
        .hint("use a full backup that was taken after the move, or a moment before it"),
    }
}

fn not_rewritten(error: &ExpiryError) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the log's expiry times can't be made absolute: {error}"))
}
