//! Which of two backups holds the newer data.

use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{BackupKind, CLOCKS_APART, Manifest, ShardRecord};

impl Manifest {
    /// The moment that its data is from, by which backups are dated: of a merged backup the moment up to which the log was folded, however much
    /// later that was done; of all others, when they were finished.
    pub fn data_at(&self) -> Timestamp {
        if self.kind != BackupKind::Merged {
            return self.finished_at;
        }
        let newest_base = || self.shards.iter().filter_map(|shard| shard.server_time).max();
        self.cut.as_ref().map(|cut| cut.at).or_else(newest_base).unwrap_or(self.finished_at)
    }

    /// By what backups are put in order: when they were begun. A merged one whose data is clearly older than that, by another clock and
    /// perhaps in whole seconds, has its place where that is.
    fn order_at(&self) -> Timestamp {
        if self.kind != BackupKind::Merged {
            return self.started_at;
        }
        let latest = self.data_at().checked_add(CLOCKS_APART).unwrap_or(Timestamp::MAX);
        self.started_at.min(latest)
    }

    /// Whether the other goes on farther in the stream of each shard of which both hold the same history, and there is one: no clock tells that
    /// better. Of shards that have changed their history nothing is said.
    fn is_followed_by(&self, other: &Self) -> bool {
        let anchored = |shard: &&ShardRecord| shard.is_anchored();
        let mut follows = false;
        for shard in self.shards.iter().filter(anchored) {
            let cut = shard.cut();
            let same = |other: &ShardRecord| {
                let other = other.cut();
                (other.history == cut.history).then_some(other.offset)
            };
            let Some(offset) = other.shards.iter().filter(anchored).find_map(same) else { continue };
            if offset < cut.offset {
                return false;
            }
            follows |= offset > cut.offset;
        }
        follows
    }
}

/// Puts backups in order, the one with the newest data first: by when they were begun, a merged one where its data is, and in any case behind those
/// that hold what followed it in the log.
pub fn sort_newest_first<T: Borrow<Manifest>>(manifests: &mut [T]) {
    fn of<T: Borrow<Manifest>>(one: &T) -> &Manifest {
        one.borrow()
    }
    let mut lowered: BTreeMap<String, Timestamp> = BTreeMap::new();
    let times: Vec<_> = manifests.iter().map(of).map(|one| (one.order_at(), one.data_at(), one)).collect();
    for (at, data_at, merged) in times.iter().filter(|(_, _, one)| one.kind == BackupKind::Merged) {
        // What is clearly older can't have followed: of many backups few are compared.
        let since = data_at.checked_sub(CLOCKS_APART).unwrap_or(Timestamp::MIN);
        let near =
            times.iter().filter(|(other_at, other_data_at, _)| other_at <= at && *other_data_at >= since);
        let newer =
            near.filter(|(_, _, other)| merged.is_followed_by(other)).map(|(other_at, _, _)| *other_at);
        lowered.extend(newer.min().map(|first| (merged.id.clone(), first)));
    }
    manifests.sort_by_cached_key(|manifest| {
        let manifest = of(manifest);
        let id = manifest.id.clone();
        Reverse(match lowered.get(&id) {
            Some(at) => (*at, false, manifest.data_at(), id),
            None => (manifest.order_at(), true, Timestamp::MIN, id),
        })
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backup that was begun at that second, with shards of these histories up to these offsets.
    fn backup(second: i64, kind: BackupKind, shards: &[(char, u64)]) -> Manifest {
        let mut manifest = super::super::tests::sample();
        let at = Timestamp::from_second(second).unwrap();
        let of = manifest.shards.remove(0);
        manifest.id = format!("{second:05}");
        manifest.kind = kind;
        (manifest.started_at, manifest.finished_at) = (at, at);
        manifest.shards = shards
            .iter()
            .map(|(letter, offset)| ShardRecord {
                history: letter.to_string().repeat(40).parse().unwrap(),
                offset: *offset,
                server_time: Some(at),
                ..of.clone()
            })
            .collect();
        manifest
    }

    fn merged(second: i64, data_at: i64, shards: &[(char, u64)]) -> Manifest {
        let mut manifest = backup(second, BackupKind::Merged, shards);
        let data_at = Timestamp::from_second(data_at).unwrap();
        manifest.shards.iter_mut().for_each(|shard| shard.server_time = Some(data_at));
        manifest
    }

    fn order(manifests: &[&Manifest]) -> Vec<String> {
        let mut manifests = manifests.to_vec();
        sort_newest_first(&mut manifests);
        manifests.into_iter().map(|manifest| manifest.id.clone()).collect()
    }

    #[test]
    fn what_followed_a_merged_backup_in_the_log_is_newer_whatever_clocks_say() {
        let full = backup(100, BackupKind::Full, &[('a', 70), ('b', 50)]);
        let before = merged(110, 90, &[('a', 60), ('b', 50)]);
        assert_eq!(order(&[&full, &before]), ["00100", "00110"]);
        let earlier = merged(120, 80, &[('a', 40), ('b', 40)]);
        assert_eq!(order(&[&full, &before, &earlier]), ["00100", "00110", "00120"]);
        // What was merged up to a later place is newer.
        let behind = merged(130, 101, &[('a', 71), ('b', 50)]);
        assert_eq!(order(&[&full, &behind, &before]), ["00130", "00100", "00110"]);
        // Another incremental one ends behind its bases.
        let mut incremental = backup(105, BackupKind::Incremental, &[('a', 30), ('b', 30)]);
        let cut = |history, offset| Some(super::super::ShardCut { history, offset });
        for (shard, offset) in incremental.shards.iter_mut().zip([72, 55]) {
            shard.cut = cut(shard.history.clone(), offset);
        }
        assert_eq!(order(&[&full, &incremental, &behind]), ["00105", "00130", "00100"]);
    }

    #[test]
    fn where_places_do_not_tell_times_do() {
        let full = backup(100, BackupKind::Full, &[('a', 70), ('b', 50)]);
        for shards in [
            // One shard is farther, the other is not.
            [('a', 60), ('b', 51)],
            // Both are there.
            [('a', 70), ('b', 50)],
            // Both have failed over.
            [('c', 60), ('d', 40)],
        ] {
            let merged = merged(110, 99, &shards);
            assert_eq!(order(&[&full, &merged]), ["00110", "00100"], "{shards:?}");
        }
        // One of them has.
        let before = merged(110, 99, &[('a', 60), ('d', 99)]);
        assert_eq!(order(&[&full, &before]), ["00100", "00110"]);
        // Made-up places are none.
        let mut scanned = full.clone();
        let now = full.started_at;
        let read = super::super::ReadRecord {
            source: super::super::ReadSource::Scan,
            from: now,
            until: now,
            anchored: false,
            database: None,
            without_functions: false,
            aof: None,
        };
        scanned.shards.iter_mut().for_each(|shard| shard.read = Some(read.clone()));
        let before = merged(110, 99, &[('a', 60), ('b', 50)]);
        assert_eq!(order(&[&scanned, &before]), ["00110", "00100"]);
        let long_ago = merged(2000, 90, &[('c', 60), ('d', 40)]);
        let next = backup(1500, BackupKind::Full, &[('e', 1), ('f', 1)]);
        assert_eq!(order(&[&full, &next, &long_ago]), ["01500", "02000", "00100"]);
    }
}
