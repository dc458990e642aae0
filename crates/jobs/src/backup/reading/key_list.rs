//! The names of a shard's keys, each once, in bounded memory.
//!
//! `SCAN` gives some names twice, when the server's tables grow or shrink meanwhile. So all names are listed before any value is asked for:
//! they are strewn over buckets, by slot first, whose files lie in the spool folder without a name (whatever becomes of this process, they are
//! gone with it). A bucket that fits is sorted, and what is twice in it is dropped; one that does not fit is strewn anew, by a hash.
//!
//! Invariants: equal names are in one bucket, so a name that is in two parts does not exist; at most a part and the buckets' buffers are held, unless
//! one name alone is longer.

use std::io;
use std::path::{Path, PathBuf};

use slotkeep_model::key_slot;
use slotkeep_rdb::key_fingerprint;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufReader};

use crate::{Error, ErrorKind, Result};

/// So many bits tell buckets of one level apart: few, because each may hold a file open.
const BUCKET_BITS: u32 = 5;
const BUCKETS: usize = 1 << BUCKET_BITS;
/// By slot, then by all bits of a fingerprint.
const LAST_LEVEL: u32 = u16::BITS.div_ceil(BUCKET_BITS);
/// What a name takes in a part besides its bytes.
const ENTRY_BYTES: u64 = 32;

/// How much is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Of each bucket before it goes to its file.
    pub(super) buffer_bytes: usize,
    /// Of the names that are sorted at a time.
    pub(super) part_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { buffer_bytes: 64 << 10, part_bytes: 8 << 20 }
    }
}

/// The list.
pub(super) struct KeyList {
    folder: PathBuf,
    limits: Limits,
    /// Those to take next at the end, each with its level.
    buckets: Vec<(u32, Bucket)>,
}

#[derive(Default)]
struct Bucket {
    file: Option<File>,
    /// Names that are not in the file yet, each behind its length.
    buffer: Vec<u8>,
    keys: u64,
    bytes: u64,
}

/// Some of the names, in the order of their slots, each once.
pub(super) struct Part {
    bytes: Vec<u8>,
    /// Slot, start and end of each.
    names: Vec<(u16, usize, usize)>,
}

impl KeyList {
    /// An empty list, whose files are in that folder.
    pub(super) fn new(folder: &Path, limits: Limits) -> Self {
        Self { folder: folder.to_owned(), limits, buckets: fresh(0) }
    }

    /// Adds a name.
    pub(super) async fn add(&mut self, key: &[u8]) -> Result<()> {
        let place = bucket_of(0, key);
        // The first bucket stands at the end.
        let bucket = self.buckets.iter_mut().rev().nth(place);
        let Some((_, bucket)) = bucket else { return Ok(()) };
        let added = bucket.add(key, &self.folder, self.limits).await;
        added.map_err(|error| failed("write", &self.folder, &error))
    }

    /// The next names; none when there are no more.
    pub(super) async fn next_part(&mut self) -> Result<Option<Part>> {
        while let Some((level, bucket)) = self.buckets.pop() {
            if bucket.keys == 0 {
                continue;
            }
            let fits = bucket.bytes.saturating_add(bucket.keys.saturating_mul(ENTRY_BYTES))
                <= self.limits.part_bytes;
            let read = if fits || level == LAST_LEVEL {
                bucket.read().await.map(|bytes| Some(Part::of(bytes)))
            } else {
                self.strew(level.saturating_add(1), bucket).await.map(|()| None)
            };
            if let Some(part) = read.map_err(|error| failed("read", &self.folder, &error))? {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    /// Takes a bucket apart into those of the next level.
    async fn strew(&mut self, level: u32, mut bucket: Bucket) -> io::Result<()> {
        bucket.write_out(&self.folder).await?;
        let mut buckets = fresh(level);
        if let Some(mut file) = bucket.file {
            file.rewind().await?;
            let mut names = BufReader::with_capacity(256 << 10, file);
            let mut key = Vec::new();
            for _ in 0..bucket.keys {
                let len = names.read_u32_le().await?;
                key.clear();
                (&mut names).take(u64::from(len)).read_to_end(&mut key).await?;
                let place = bucket_of(level, &key);
                if let Some((_, bucket)) = buckets.iter_mut().rev().nth(place) {
                    bucket.add(&key, &self.folder, self.limits).await?;
                }
            }
        }
        self.buckets.append(&mut buckets);
        Ok(())
    }
}

fn fresh(level: u32) -> Vec<(u32, Bucket)> {
    (0..BUCKETS).map(|_| (level, Bucket::default())).collect()
}

/// Which bucket of a level a name belongs to.
fn bucket_of(level: u32, key: &[u8]) -> usize {
    let Some(hashed) = level.checked_sub(1) else {
        return usize::from(key_slot(key).number() >> 9);
    };
    let bits = u32::from(key_fingerprint(0, key)) >> (hashed.saturating_mul(BUCKET_BITS)).min(31);
    usize::try_from(bits).unwrap_or(0) % BUCKETS
}

impl Bucket {
    async fn add(&mut self, key: &[u8], folder: &Path, limits: Limits) -> io::Result<()> {
        let too_long = |_| io::Error::new(io::ErrorKind::InvalidData, "a key of 4 GiB");
        let len = u32::try_from(key.len()).map_err(too_long)?;
        self.buffer.extend_from_slice(&len.to_le_bytes());
        self.buffer.extend_from_slice(key);
        self.keys = self.keys.saturating_add(1);
        self.bytes = self.bytes.saturating_add(u64::from(len)).saturating_add(4);
        if self.buffer.len() >= limits.buffer_bytes {
            self.write_out(folder).await?;
        }
        Ok(())
    }

    /// Empties the buffer into the file.
    async fn write_out(&mut self, folder: &Path) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                tokio::fs::create_dir_all(folder).await?;
                self.file.insert(File::from_std(tempfile::tempfile_in(folder)?))
            }
        };
        file.write_all(&self.buffer).await?;
        file.flush().await?;
        self.buffer.clear();
        Ok(())
    }

    /// All of it.
    async fn read(self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.bytes).unwrap_or(0));
        if let Some(mut file) = self.file {
            file.rewind().await?;
            file.read_to_end(&mut bytes).await?;
        }
        bytes.extend_from_slice(&self.buffer);
        Ok(bytes)
    }
}

impl Part {
    fn of(bytes: Vec<u8>) -> Self {
        let mut names = Vec::new();
        let mut at = 0_usize;
        while let Some((len, _)) = bytes.get(at..).and_then(<[u8]>::split_first_chunk::<4>) {
            let start = at.saturating_add(4);
            let end = start.saturating_add(usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX));
            let Some(key) = bytes.get(start..end) else { break };
            names.push((key_slot(key).number(), start, end));
            at = end;
        }
        let key = |(slot, start, end): (u16, usize, usize)| (slot, bytes.get(start..end).unwrap_or_default());
        names.sort_unstable_by(|one, other| key(*one).cmp(&key(*other)));
        names.dedup_by(|one, other| key(*one) == key(*other));
        Self { bytes, names }
    }

    /// The names.
    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.iter().map(|(_, start, end)| self.bytes.get(*start..*end).unwrap_or_default())
    }
}

fn failed(doing: &str, folder: &Path, error: &io::Error) -> Error {
    let what = format!("can't {doing} the list of keys in {}: {error}", folder.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(ErrorKind::Full, what)
            .hint("name a folder with space for the names of all keys: --spool DIR"),
        _ => Error::new(ErrorKind::Failed, what).hint("name a folder that you may write to: --spool DIR"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    async fn parts(list: &mut KeyList) -> Vec<Vec<Vec<u8>>> {
        let mut parts = Vec::new();
        while let Some(part) = list.next_part().await.unwrap() {
            parts.push(part.names().map(<[u8]>::to_vec).collect());
        }
        parts
    }

    /// Lists those names twice, and checks that each comes once and no part is too large.
    async fn each_once(names: &[Vec<u8>], limits: Limits) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let mut list = KeyList::new(&folder.path().join("spool"), limits);
        for name in names.iter().chain(names) {
            list.add(name).await.unwrap();
        }
        let parts = parts(&mut list).await;
        let all: Vec<&Vec<u8>> = parts.iter().flatten().collect();
        let distinct: BTreeSet<&Vec<u8>> = all.iter().copied().collect();
        assert_eq!(all.len(), distinct.len(), "a name came twice");
        assert_eq!(distinct, names.iter().collect());
        for part in &parts {
            let bytes: usize = part.iter().map(|name| name.len() + 4).sum();
            assert!(bytes as u64 <= limits.part_bytes);
        }
        // Files without a name: the folder is empty at any time.
        let left = std::fs::read_dir(folder.path().join("spool")).map_or(0, Iterator::count);
        assert_eq!(left, 0);
        parts.len()
    }

    #[tokio::test]
    async fn every_name_comes_once_whatever_fits() {
        let names: Vec<Vec<u8>> =
            (0..5000).map(|number| format!("key:{number}\r\n\0").into_bytes()).collect();
        assert_eq!(each_once(&names, Limits::default()).await, BUCKETS);
        let small = Limits { buffer_bytes: 100, part_bytes: 8_000 };
        assert!(each_once(&names, small).await > BUCKETS);
        assert_eq!(each_once(&[vec![]], small).await, 1);
        assert_eq!(each_once(&[], small).await, 0);
    }

    #[tokio::test]
    async fn one_slot_may_hold_more_than_fits() {
        let names: Vec<Vec<u8>> = (0..20_000).map(|number| format!("{{tag}}{number}").into_bytes()).collect();
        assert!(each_once(&names, Limits { buffer_bytes: 1000, part_bytes: 10_000 }).await > BUCKETS);
    }

    #[tokio::test]
    async fn parts_of_the_first_level_are_in_the_order_of_slots() {
        let mut list = KeyList::new(Path::new("/nowhere"), Limits::default());
        for number in 0..1000 {
            list.add(format!("{number}").as_bytes()).await.unwrap();
        }
        let slots: Vec<u16> =
            parts(&mut list).await.iter().flatten().map(|key| key_slot(key).number()).collect();
        assert_eq!(slots.len(), 1000);
        assert!(slots.is_sorted());
    }
}
