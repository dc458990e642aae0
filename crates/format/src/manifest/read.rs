//! Bases that did not come over a replication link: how they were read, and what that means for a log behind them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Manifest, ManifestError, ShardRecord};

/// How a base was read that did not come over a replication link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRecord {
    /// Where it was read from.
    pub source: ReadSource,
    /// When the reading began. Like [`ReadRecord::until`] by the server's clock, or by that of the machine that read if the user may not
    /// ask for the server's.
    pub from: Timestamp,
    /// When it ended. A scan is no state of a moment: every key in it is as it was at some moment between the two, and a key that nothing wrote
    /// to meanwhile is surely in it. A file is the state of one moment, which lies between them; where the file's commands are the log behind
    /// the base, that is the moment of the cut.
    pub until: Timestamp,
    /// Whether a log can go on behind the base: history and offset are the server's own, or those of its append-only file
    /// ([`ReadRecord::aof`]). If not, the history is a name that Slotkeep made up for this base alone, and the offset means nothing.
    pub anchored: bool,
    /// The database that is selected behind that offset in the server's stream, if it is the server's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<u32>,
    /// Whether function libraries were left out because the user may not read them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_functions: bool,
    /// Where the shard's part of the backup ends in the server's append-only file, if base and log are those of that file. The history is then
    /// a name that Slotkeep made up for the file as it is from one rewrite to the next; its offsets count the bytes of the commands behind the
    /// file's base, which stands at 0, annotations left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aof: Option<AofRecord>,
}

/// A place in a multi-part append-only file, and how to tell that it is the same file later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AofRecord {
    /// The base, whole.
    pub base: AofMark,
    /// The file of commands in which the log ends, up to the last byte that belongs to it.
    pub end: AofMark,
    /// The database that is selected there; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<u32>,
}

/// A file up to some byte. Nothing before it changes as long as the server does not make another file of that name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AofMark {
    /// Its name, without folders.
    pub file: String,
    /// How many bytes of it, annotations counted.
    pub bytes: u64,
    /// BLAKE3, in hex, of the first and the last 64 KiB of these bytes, one after the other; of all, if they are no more than that.
    pub blake3: String,
}

/// Where a base was read from, if not from a replication link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadSource {
    /// Key by key, with `SCAN` and `DUMP`.
    Scan,
    /// The file of a `BGSAVE`.
    Snapshot,
    /// The append-only file: base and commands as they stand in it, or applied by an engine.
    Aof,
    /// The files that the server's own `BACKUP` has sealed.
    Backup,
}

impl ShardRecord {
    /// Whether a log can go on behind the base: history and offset are the server's own, or those of its append-only file.
    pub fn is_anchored(&self) -> bool {
        self.read.as_ref().is_none_or(|read| read.anchored)
    }

    /// Where its part of the backup ends in an append-only file, if base and log are those of that file: no replication goes on behind it.
    pub fn aof(&self) -> Option<&AofRecord> {
        self.read.as_ref()?.aof.as_ref()
    }
}

impl Manifest {
    /// Whether a log can go on behind every base.
    pub fn is_anchored(&self) -> bool {
        self.shards.iter().all(ShardRecord::is_anchored)
    }

    /// Whether base and log of any shard are those of an append-only file.
    pub fn is_of_aof(&self) -> bool {
        self.shards.iter().any(|shard| shard.aof().is_some())
    }

    /// Where the bases were read from, if not from a replication link: what the first of them says that did not.
    pub fn read_source(&self) -> Option<ReadSource> {
        self.shards.iter().find_map(|shard| shard.read.as_ref()).map(|read| read.source)
    }

    /// From when to when the bases were read, if they did not come over replication links.
    pub fn read_interval(&self) -> Option<(Timestamp, Timestamp)> {
        let reads = || self.shards.iter().filter_map(|shard| shard.read.as_ref());
        let from = reads().map(|read| read.from).min();
        from.zip(reads().map(|read| read.until).max())
    }
}

/// Refuses what can't be.
pub(super) fn check(shard: &ShardRecord) -> Result<(), ManifestError> {
    let Some(read) = &shard.read else { return Ok(()) };
    let what = if shard.cut.is_some() && !read.anchored {
        format!("slots {} have a cut, and a base that no log can go on behind", shard.slots)
    } else if read.aof.is_some() && !read.anchored {
        format!("slots {} end in an append-only file, and no log can go on behind their base", shard.slots)
    } else if read.until < read.from {
        format!("the reading of slots {} ended before it began", shard.slots)
    } else {
        return Ok(());
    };
    Err(ManifestError::Contradiction(what))
}

#[cfg(test)]
mod tests {
    use super::super::ShardCut;
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn a_base_that_no_log_can_follow_has_no_cut() {
        let mut manifest = sample();
        assert!(manifest.is_anchored() && manifest.read_interval().is_none());
        let until = Timestamp::from_second(3).unwrap();
        let read = |from, anchored| ReadRecord {
            source: ReadSource::Scan,
            from,
            until,
            anchored,
            database: None,
            without_functions: false,
            aof: None,
        };
        manifest.shards[0].read = Some(read(Timestamp::UNIX_EPOCH, false));
        let parsed = Manifest::parse(&manifest.render().unwrap()).unwrap();
        assert_eq!(parsed, manifest);
        assert!(!parsed.is_anchored());
        assert_eq!(parsed.read_interval(), Some((Timestamp::UNIX_EPOCH, until)));
        let shard = &mut manifest.shards[0];
        shard.cut = Some(ShardCut { history: shard.history.clone(), offset: shard.offset });
        assert!(matches!(Manifest::parse(&manifest.render().unwrap()), Err(ManifestError::Contradiction(_))));
        manifest.shards[0].read = Some(read(until, true));
        assert!(Manifest::parse(&manifest.render().unwrap()).is_ok());
        manifest.shards[0].read = Some(read(Timestamp::from_second(4).unwrap(), true));
        assert!(matches!(Manifest::parse(&manifest.render().unwrap()), Err(ManifestError::Contradiction(_))));
    }
    #[test]
    fn a_base_of_an_append_only_file_has_a_log() {
        let mark = |file: &str, bytes| AofMark { file: file.to_owned(), bytes, blake3: "0".repeat(64) };
        let (base, end) = (mark("a.1.base.rdb", 89), mark("a.1.incr.aof", 7));
        let mut read = ReadRecord {
            source: ReadSource::Aof,
            from: Timestamp::UNIX_EPOCH,
            until: Timestamp::UNIX_EPOCH,
            anchored: true,
            database: None,
            without_functions: false,
            aof: Some(AofRecord { base, end, database: Some(0) }),
        };
        let mut manifest = sample();
        manifest.shards[0].read = Some(read.clone());
        let parsed = Manifest::parse(&manifest.render().unwrap()).unwrap();
        assert_eq!(parsed, manifest);
        assert!(parsed.is_anchored() && parsed.is_of_aof());
        read.anchored = false;
        manifest.shards[0].cut = None;
        manifest.shards[0].read = Some(read);
        assert!(matches!(Manifest::parse(&manifest.render().unwrap()), Err(ManifestError::Contradiction(_))));
    }
}
