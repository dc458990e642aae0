//! What an RDB says of itself in its first fields.

use slotkeep_format::manifest::ObjectRecord;
use slotkeep_model::ReplId;
use slotkeep_rdb::{Event, Level, Parser};
use slotkeep_repo::Repository;

use crate::{Error, ErrorKind, Result};

/// The auxiliary fields stand within so many bytes.
pub(crate) const HEAD_BYTES: usize = 64 << 10;

/// What an RDB says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RdbHead {
    /// When it was made, in seconds since 1970.
    pub(crate) created_s: Option<i64>,
    /// The history that its server followed or led.
    pub(crate) history: Option<ReplId>,
    /// The last byte of the history that it holds.
    pub(crate) offset: Option<u64>,
    /// The database that is selected in the stream behind that byte (`repl-stream-db`, `rdbPopulateSaveInfo` in `src/rdb.c` of Redis 7.0).
    /// A replica passes its primary's stream on, which does not select it again.
    pub(crate) database: Option<u32>,
}

impl RdbHead {
    /// From the first bytes of an RDB.
    pub(crate) fn of(mut bytes: &[u8]) -> std::result::Result<Self, slotkeep_rdb::Error> {
        let mut head = Self::default();
        let mut parser = Parser::new(Level::Raw);
        while let Some(event) = parser.next(&mut bytes)? {
            match event {
                Event::Start(_) => {}
                Event::Aux { key, value } => head.note(key, value),
                _ => break,
            }
        }
        Ok(head)
    }

    /// From an RDB that is stored, of which only the beginning is read.
    pub(crate) async fn read(repository: &Repository, rdb: &ObjectRecord) -> Result<Self> {
        let first = repository.framed(rdb).await?.frame(0).await?;
        Self::of(first.get(..HEAD_BYTES).unwrap_or(&first)).map_err(|error| {
            Error::new(ErrorKind::Corrupt, format!("{} can't be read: {error}", rdb.path))
                .hint("`slotkeep verify` tells what else is damaged")
        })
    }

    fn note(&mut self, key: &[u8], value: &[u8]) {
        let Ok(text) = std::str::from_utf8(value) else { return };
        match key {
            b"ctime" => self.created_s = text.parse().ok(),
            b"repl-id" => self.history = text.parse().ok(),
            b"repl-offset" => self.offset = text.parse().ok(),
            b"repl-stream-db" => self.database = text.parse().ok(),
            _ => {}
        }
    }
}
