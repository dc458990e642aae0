//! What a command says of slots that a shard does not serve, as far as its first arguments tell.
//!
//! Source: the `key_specs` of the commands (`src/commands/*.json`) of Redis 7.2 to 8.2 and Valkey 7.2 to 9.1, `src/server.c` of Redis 6.2.

use slotkeep_model::{Slot, SlotSet, hashed_part, key_slot};

use super::{KEPT_BYTES, StreamCommand};

/// Commands that put something into their first key, or go on with what is in it, as they are passed on to replicas. Those that only take
/// away are not among them: a server also deletes what is left over of slots that it gave away before.
const WRITES: &[&str] = &[
    "SET",
    "SETEX",
    "PSETEX",
    "SETNX",
    "GETSET",
    "MSET",
    "MSETNX",
    "APPEND",
    "SETRANGE",
    "SETBIT",
    "BITFIELD",
    "INCR",
    "INCRBY",
    "INCRBYFLOAT",
    "DECR",
    "DECRBY",
    "HSET",
    "HMSET",
    "HSETNX",
    "HSETEX",
    "HINCRBY",
    "HINCRBYFLOAT",
    "HPEXPIREAT",
    "LPUSH",
    "LPUSHX",
    "RPUSH",
    "RPUSHX",
    "LSET",
    "LINSERT",
    "SADD",
    "SINTERSTORE",
    "SUNIONSTORE",
    "SDIFFSTORE",
    "ZADD",
    "ZINCRBY",
    "ZINTERSTORE",
    "ZUNIONSTORE",
    "ZDIFFSTORE",
    "ZRANGESTORE",
    "GEOADD",
    "GEOSEARCHSTORE",
    "PFADD",
    "PFMERGE",
    "XADD",
    "XSETID",
    "RESTORE",
    "RESTORE-ASKING",
    "EXPIRE",
    "PEXPIRE",
    "EXPIREAT",
    "PEXPIREAT",
    "PERSIST",
];

/// What a command says of slots that a shard does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// It writes to a key of that slot.
    Write(Slot),
    /// Keys of slots that the shard does not serve yet come in by an atomic migration (`CLUSTER SYNCSLOTS ESTABLISH`, Valkey 9.0+,
    /// `src/cluster_migrateslots.c`).
    MigrationBegins,
    /// The shard may take the slots of an atomic migration over now (`… FAILOVER-GRANTED`).
    MigrationGranted,
    /// An atomic migration is over, for better or worse (`… FINISH`).
    MigrationEnds,
}

impl Outside {
    /// What a command of a shard that serves the slots `own` says of others.
    pub fn of(command: &StreamCommand<'_>, own: &SlotSet) -> Option<Self> {
        let is = |number, word: &str| {
            command.arg(number).is_some_and(|arg| arg.eq_ignore_ascii_case(word.as_bytes()))
        };
        if !is(0, "CLUSTER") {
            return writes_outside(command, own).map(Self::Write);
        }
        let says = [
            ("ESTABLISH", Self::MigrationBegins),
            ("FAILOVER-GRANTED", Self::MigrationGranted),
            ("FINISH", Self::MigrationEnds),
        ];
        let (_, said) = says.into_iter().find(|(word, _)| is(1, "SYNCSLOTS") && is(2, word))?;
        Some(said)
    }
}

/// The slot of the key that a command writes to, if it lies outside of `own`. A key that was kept in part tells it by its hash tag alone.
fn writes_outside(command: &StreamCommand<'_>, own: &SlotSet) -> Option<Slot> {
    let key = command.arg(1)?;
    // The end of a longer key is not kept.
    if key.len() >= KEPT_BYTES && hashed_part(key).len() == key.len() {
        return None;
    }
    let slot = key_slot(key);
    let is_write = || WRITES.iter().any(|name| command.is(name));
    (!own.contains(slot) && is_write()).then_some(slot)
}

#[cfg(test)]
mod tests {
    use slotkeep_model::ReplOffset;

    use super::*;
    use crate::stream::{Splitter, StreamStart};

    fn outside(words: &[&str], own: &SlotSet) -> Option<Outside> {
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        let mut splitter =
            Splitter::new(StreamStart { offset: ReplOffset(0), db: None, in_transaction: false });
        let mut input = bytes.as_bytes();
        let command = splitter.next(&mut input).unwrap().unwrap();
        Outside::of(&command, own)
    }

    fn slot_of(words: &[&str], own: &SlotSet) -> Option<u16> {
        match outside(words, own) {
            Some(Outside::Write(slot)) => Some(slot.number()),
            None => None,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn the_steps_of_an_atomic_migration_are_told() {
        let none = SlotSet::default();
        for (word, said) in [
            ("ESTABLISH", Some(Outside::MigrationBegins)),
            ("ack", None),
            ("SNAPSHOT-EOF", None),
            ("PAUSED", None),
            ("failover-granted", Some(Outside::MigrationGranted)),
            ("FINISH", Some(Outside::MigrationEnds)),
        ] {
            assert_eq!(outside(&["CLUSTER", "SYNCSLOTS", word], &none), said, "{word}");
        }
        assert_eq!(outside(&["CLUSTER", "FLUSHSLOT", "ESTABLISH"], &none), None);
    }

    #[test]
    fn writes_to_keys_of_other_slots_are_told() {
        let none = SlotSet::default();
        let slot = key_slot(b"k").number();
        for words in
            [&["SET", "k", "v"][..], &["set", "k", "v"], &["RESTORE", "k", "0", "x"], &["MSET", "k", "v"]]
        {
            assert_eq!(slot_of(words, &none), Some(slot), "{words:?}");
        }
        assert_eq!(slot_of(&["SET", "k", "v"], &SlotSet::full()), None);
        // What takes away alone, and what has no key or has it elsewhere.
        let others = [
            &["DEL", "k"][..],
            &["UNLINK", "k"],
            &["PING"],
            &["SELECT", "0"],
            &["PUBLISH", "k", "v"],
            &["BITOP", "AND", "k", "k"],
            &["SET"],
        ];
        for words in others {
            assert_eq!(slot_of(words, &none), None, "{words:?}");
        }
    }

    #[test]
    fn a_long_key_tells_its_slot_by_its_hash_tag_alone() {
        let none = SlotSet::default();
        let long = "x".repeat(KEPT_BYTES);
        assert_eq!(slot_of(&["SET", &long, "v"], &none), None);
        let tagged = format!("{{k}}{long}");
        assert_eq!(slot_of(&["SET", &tagged, "v"], &none), Some(key_slot(b"k").number()));
        let late = format!("{long}{{k}}");
        assert_eq!(slot_of(&["SET", &late, "v"], &none), None);
    }
}
