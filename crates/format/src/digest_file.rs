//! The digest of a base, as an object.
//!
//! Layout: the magic `SLOTKDIG`, the format version (u32 LE), the version of the hash that `slotkeep-rdb` documents (u32 LE),
//! function libraries (count u64 LE, sum u128 LE), the number of rows (u32 LE), then the slots that hold keys, ascending: slot (u16
//! LE), keys (u64 LE), sum (u128 LE). The object's BLAKE3 stands in the manifest.

use slotkeep_model::{DatasetDigest, Slot, SlotDigest};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"SLOTKDIG";
const VERSION: u32 = 1;

/// What is wrong with a digest object.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DigestFileError {
    /// The first bytes are not those of a digest.
    #[error("this is not a digest: it does not start with `SLOTKDIG`")]
    Magic,
    /// A newer format.
    #[error("the digest has format version {0}; this Slotkeep reads up to {VERSION}: use a newer one")]
    NewerVersion(u32),
    /// It ends early, or goes on after its end.
    #[error("the digest is {0}")]
    Length(&'static str),
    /// Rows must ascend, name a slot, and hold at least one key.
    #[error("row {0} of the digest is damaged")]
    Row(usize),
}

/// Writes a digest; `hash_version` tells how keys were hashed.
pub fn encode_digest(digest: &DatasetDigest, hash_version: u32) -> Vec<u8> {
    let rows: Vec<(Slot, SlotDigest)> = digest.occupied().collect();
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend(hash_version.to_le_bytes());
    out.extend(digest.functions.keys.to_le_bytes());
    out.extend(digest.functions.sum.to_le_bytes());
    // There are at most 16384 rows.
    out.extend(u32::try_from(rows.len()).unwrap_or(u32::MAX).to_le_bytes());
    for (slot, row) in rows {
        out.extend(slot.number().to_le_bytes());
        out.extend(row.keys.to_le_bytes());
        out.extend(row.sum.to_le_bytes());
    }
    out
}

/// Reads a digest and the version of its hash.
pub fn decode_digest(mut input: &[u8]) -> Result<(DatasetDigest, u32), DigestFileError> {
    if take::<8>(&mut input).as_ref() != Ok(MAGIC) {
        return Err(DigestFileError::Magic);
    }
    let version = u32::from_le_bytes(take(&mut input)?);
    if version != VERSION {
        return Err(DigestFileError::NewerVersion(version));
    }
    let hash_version = u32::from_le_bytes(take(&mut input)?);
    let mut digest = DatasetDigest::default();
    digest.functions.keys = u64::from_le_bytes(take(&mut input)?);
    digest.functions.sum = u128::from_le_bytes(take(&mut input)?);
    let rows = u32::from_le_bytes(take(&mut input)?);
    let mut before = None;
    for row in 0..rows as usize {
        let slot = u16::from_le_bytes(take(&mut input)?);
        let keys = u64::from_le_bytes(take(&mut input)?);
        let sum = u128::from_le_bytes(take(&mut input)?);
        let slot = Slot::new(slot)
            .filter(|slot| before < Some(*slot) && keys > 0)
            .ok_or(DigestFileError::Row(row))?;
        before = Some(slot);
        *digest.slot_mut(slot) = SlotDigest { keys, sum };
    }
    if input.is_empty() {
        Ok((digest, hash_version))
    } else {
        Err(DigestFileError::Length("longer than it says"))
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], DigestFileError> {
    let (array, rest) = input.split_first_chunk::<N>().ok_or(DigestFileError::Length("cut short"))?;
    *input = rest;
    Ok(*array)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> DatasetDigest {
        let mut digest = DatasetDigest::default();
        digest.functions.add_key(77);
        digest.slot_mut(Slot::new(0).unwrap()).add_key(u128::MAX);
        digest.slot_mut(Slot::new(16383).unwrap()).add_key(3);
        digest
    }

    #[test]
    fn a_digest_reads_as_it_was_written() {
        assert_eq!(decode_digest(&encode_digest(&sample(), 4)), Ok((sample(), 4)));
        assert_eq!(
            decode_digest(&encode_digest(&DatasetDigest::default(), 1)),
            Ok((DatasetDigest::default(), 1))
        );
    }

    #[test]
    fn every_truncation_and_any_more_is_an_error() {
        let bytes = encode_digest(&sample(), 1);
        for end in 0..bytes.len() {
            assert!(decode_digest(&bytes[..end]).is_err(), "{end}");
        }
        assert!(decode_digest(&[bytes, vec![0]].concat()).is_err());
    }
}
