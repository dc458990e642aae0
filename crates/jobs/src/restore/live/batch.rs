//! Commands on their way: encoded together, answered one by one.
//!
//! Invariants: the pieces of a batch are `RESTORE` commands of keys of one database, next to each other in `bytes`; a batch holds its
//! share of a target's window until its last piece is done, however often pieces are sent again, so memory stays bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use slotkeep_model::Slot;
use slotkeep_wire::resp::write_command;
use tokio::sync::OwnedSemaphorePermit;

use super::tracker::Tracker;

/// What a command counts for in a window at the least: the bookkeeping of a small one outweighs its bytes.
const LEAST_COST_BYTES: usize = 512;

/// The command that restores one key.
struct Piece {
    slot: Slot,
    start: usize,
    end: usize,
    key_start: usize,
    key_end: usize,
    /// A key that exists may be this very restore's own: see the module `live`.
    tolerant: bool,
}

/// Commands encoded together.
pub(super) struct Batch {
    /// The database they are for.
    pub(super) database: u32,
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    left: AtomicUsize,
    start_offset: u64,
    tracker: Arc<Tracker>,
    _share: OwnedSemaphorePermit,
}

impl Batch {
    /// All its commands, encoded.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A ticket for each command, in order.
    pub(super) fn tickets(self: &Arc<Self>) -> impl Iterator<Item = Ticket> + '_ {
        (0..self.pieces.len()).map(|index| Ticket {
            batch: Arc::clone(self),
            index,
            redirects: 0,
            failing_since: None,
            unsure: false,
        })
    }
}

/// One command of a batch, wherever it is on its way.
pub(super) struct Ticket {
    batch: Arc<Batch>,
    index: usize,
    /// How often it was redirected since it was last sent by the map.
    pub(super) redirects: u32,
    /// Since when it has been failing.
    pub(super) failing_since: Option<Duration>,
    /// Whether it was sent and no answer came: it may have been done.
    pub(super) unsure: bool,
}

impl Ticket {
    fn piece(&self) -> Option<&Piece> {
        self.batch.pieces.get(self.index)
    }

    /// The database it is for.
    pub(super) fn database(&self) -> u32 {
        self.batch.database
    }

    /// The slot of its key.
    pub(super) fn slot(&self) -> Slot {
        self.piece().map_or_else(|| slotkeep_model::key_slot(&[]), |piece| piece.slot)
    }

    /// Its command, encoded.
    pub(super) fn bytes(&self) -> &[u8] {
        self.piece().and_then(|piece| self.batch.bytes.get(piece.start..piece.end)).unwrap_or_default()
    }

    /// Its key, for messages.
    pub(super) fn key_text(&self) -> String {
        let key = self.piece().and_then(|piece| self.batch.bytes.get(piece.key_start..piece.key_end));
        show_key(key.unwrap_or_default())
    }

    /// Whether its key may exist because this very restore wrote it before.
    pub(super) fn may_be_ours(&self) -> bool {
        self.unsure || self.piece().is_some_and(|piece| piece.tolerant)
    }

    /// Notes that nothing is left to do for it.
    pub(super) fn done(self) {
        if self.batch.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.batch.tracker.close(self.batch.start_offset);
        }
    }
}

/// A key as messages show it: escaped, and cut if it is long.
pub(super) fn show_key(key: &[u8]) -> String {
    const SHOWN: usize = 200;
    match key.get(..SHOWN) {
        Some(start) => format!("{}… ({} bytes)", start.escape_ascii(), key.len()),
        None => key.escape_ascii().to_string(),
    }
}

/// A batch being filled.
pub(super) struct BatchBuilder {
    database: u32,
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    start_offset: u64,
}

/// One key to restore.
pub(super) struct RestoreKey<'a> {
    /// The key.
    pub(super) key: &'a [u8],
    /// Its slot.
    pub(super) slot: Slot,
    /// When it expires, in ms since the epoch.
    pub(super) expiry_ms: Option<i64>,
    /// The payload: type, value, footer.
    pub(super) payload: &'a [u8],
    /// Whether to replace a key that exists.
    pub(super) replace: bool,
    /// Whether a key that exists may be this restore's own.
    pub(super) tolerant: bool,
}

impl BatchBuilder {
    /// A batch for that database whose first key's record begins at that offset of the RDB.
    pub(super) fn new(database: u32, start_offset: u64) -> Self {
        Self { database, bytes: Vec::new(), pieces: Vec::new(), start_offset }
    }

    /// The database it is for.
    pub(super) const fn database(&self) -> u32 {
        self.database
    }

    /// How many bytes it has.
    pub(super) fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// How many commands it has.
    pub(super) fn commands(&self) -> usize {
        self.pieces.len()
    }

    /// What it counts for in a window.
    pub(super) fn cost(&self) -> usize {
        self.bytes.len().max(self.pieces.len().saturating_mul(LEAST_COST_BYTES))
    }

    /// Adds a key.
    pub(super) fn push(&mut self, restore: &RestoreKey<'_>) {
        // An expiry of 0 means none, and a negative one is refused; both lie in the past, where no key gets here.
        let ttl = restore.expiry_ms.unwrap_or(0).max(0).to_string();
        let parts: [&[u8]; 6] =
            [b"RESTORE", restore.key, ttl.as_bytes(), restore.payload, b"ABSTTL", b"REPLACE"];
        let start = self.bytes.len();
        let count = if restore.replace { parts.len() } else { parts.len() - 1 };
        write_command(&mut self.bytes, parts.get(..count).unwrap_or(&parts));
        // `*N\r\n$7\r\nRESTORE\r\n$`, the digits of the key's length, `\r\n`.
        let key_start = start + 18 + restore.key.len().to_string().len() + 2;
        self.pieces.push(Piece {
            slot: restore.slot,
            start,
            end: self.bytes.len(),
            key_start,
            key_end: key_start + restore.key.len(),
            tolerant: restore.tolerant,
        });
    }

    /// The batch, ready to be sent.
    pub(super) fn finish(self, tracker: &Arc<Tracker>, share: OwnedSemaphorePermit) -> Arc<Batch> {
        Arc::new(Batch {
            database: self.database,
            left: AtomicUsize::new(self.pieces.len()),
            bytes: self.bytes,
            pieces: self.pieces,
            start_offset: self.start_offset,
            tracker: Arc::clone(tracker),
            _share: share,
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::restore::live::tracker::Position;

    fn key(key: &[u8], replace: bool) -> RestoreKey<'_> {
        let slot = slotkeep_model::key_slot(key);
        RestoreKey { key, slot, expiry_ms: Some(5), payload: b"xyz", replace, tolerant: false }
    }

    #[tokio::test]
    async fn pieces_know_their_bytes_and_the_last_one_closes_the_batch() {
        let tracker = Tracker::new(Position { offset: 7, database: 2 });
        tracker.open(Position { offset: 7, database: 2 });
        tracker.advance(Position { offset: 90, database: 2 });
        let share = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let mut builder = BatchBuilder::new(2, 7);
        builder.push(&key(b"long-enough-key", false));
        builder.push(&key(b"k", true));
        let batch = builder.finish(&tracker, share);
        let tickets: Vec<Ticket> = batch.tickets().collect();
        let texts: Vec<String> = tickets.iter().map(Ticket::key_text).collect();
        assert_eq!(texts, ["long-enough-key", "k"]);
        assert!(tickets[0].bytes().starts_with(b"*5\r\n") && tickets[1].bytes().starts_with(b"*6\r\n"));
        assert_eq!([tickets[0].bytes(), tickets[1].bytes()].concat(), batch.bytes());
        for (ticket, mark) in tickets.into_iter().zip([7, 90]) {
            ticket.done();
            assert_eq!(tracker.mark().offset, mark);
        }
    }
}
