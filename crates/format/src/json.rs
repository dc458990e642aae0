//! What all JSON files of a repository have in common: a format version, a seal, and types of the model written as text.
//!
//! A sealed file ends with the line `  "seal": "<64 digits>"` and the closing brace: the BLAKE3 of the file with those digits being 0.
//! Whoever signs a file does so after it was sealed, and puts the signature between that line and the brace: the seal is that of the file before.
//! Invariant: what [`render`] gives is sealed, and a file whose seal is wrong is never read.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::manifest::ManifestError;

/// Reads a file of at most version `newest`; a newer one is refused whatever else it holds.
pub(crate) fn parse_versioned<T: DeserializeOwned>(json: &[u8], newest: u32) -> Result<T, ManifestError> {
    #[derive(Deserialize)]
    struct Versioned {
        format_version: u32,
    }
    // Most files say it where we write it; looking there spares half of the reading.
    let format_version = match version_at_start(json) {
        Some(version) => version,
        None => serde_json::from_slice::<Versioned>(json)?.format_version,
    };
    if format_version > newest {
        return Err(ManifestError::NewerVersion { found: format_version, newest });
    }
    if check_seal(json) == Seal::Broken {
        return Err(ManifestError::Altered);
    }
    Ok(serde_json::from_slice(json)?)
}

/// The version of a file that begins as [`render`] lets it begin.
fn version_at_start(json: &[u8]) -> Option<u32> {
    let behind = json.strip_prefix(b"{\n  \"format_version\": ")?;
    let digits = behind.split(|byte| *byte == b',').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The JSON of a file, for people to read, sealed.
pub(crate) fn render(value: &impl Serialize) -> Result<Vec<u8>, ManifestError> {
    let mut json = serde_json::to_vec_pretty(value)?;
    let open = json.strip_suffix(b"\n}").map(<[u8]>::len);
    json.truncate(open.unwrap_or(json.len()));
    json.extend_from_slice(b",\n");
    json.extend_from_slice(SEAL_BEFORE);
    let digits_from = json.len();
    json.extend_from_slice(&[b'0'; SEAL_DIGITS]);
    json.extend_from_slice(SEAL_AFTER);
    let seal = blake3::hash(&json).to_hex();
    let digits = json.get_mut(digits_from..digits_from.saturating_add(SEAL_DIGITS));
    if let Some(digits) = digits {
        digits.copy_from_slice(seal.as_bytes());
    }
    Ok(json)
}

const SEAL_BEFORE: &[u8] = b"  \"seal\": \"";
const SEAL_AFTER: &[u8] = b"\"\n}\n";
const SEAL_DIGITS: usize = 64;
/// What stands between the digits of the seal and those of a signature, and behind those.
const SIGNATURE_BEFORE: &[u8] = b"\",\n\"signature\": \"";
const SIGNATURE_AFTER: &[u8] = b"\"}\n";
const SIGNATURE_DIGITS: usize = 128;

/// What the seal of a JSON file says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal {
    /// Its bytes are those that were written.
    Intact,
    /// They are not.
    Broken,
    /// It has none: it was written before there were seals, or was changed by hand or in its last line.
    Absent,
}

/// Checks the seal of a JSON file, signed or not.
pub fn check_seal(json: &[u8]) -> Seal {
    let sealed = json.strip_suffix(SEAL_AFTER).or_else(|| before_signature(json));
    let parts = sealed.and_then(|before| before.split_last_chunk::<SEAL_DIGITS>());
    let Some((before, digits)) = parts.filter(|(before, _)| before.ends_with(SEAL_BEFORE)) else {
        return Seal::Absent;
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(&[b'0'; SEAL_DIGITS]).update(SEAL_AFTER);
    if hasher.finalize().to_hex().as_bytes() == digits { Seal::Intact } else { Seal::Broken }
}

/// A signed file up to what stands before its signature.
fn before_signature(json: &[u8]) -> Option<&[u8]> {
    let (before, digits) = json.strip_suffix(SIGNATURE_AFTER)?.split_last_chunk::<SIGNATURE_DIGITS>()?;
    digits.iter().all(u8::is_ascii_hexdigit).then(|| before.strip_suffix(SIGNATURE_BEFORE)).flatten()
}

/// Types of the model as the text that people know them by.
pub(crate) mod text {
    use super::{Deserialize, Deserializer, Display, FromStr, Serializer};
    use serde::de::Error as _;

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The same, where there may be none.
pub(crate) mod optional_text {
    use super::{Deserialize, Deserializer, Display, FromStr, Serializer};
    use serde::de::Error as _;

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub(crate) fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, Serialize)]
    struct File {
        format_version: u32,
        name: String,
    }

    #[test]
    fn a_changed_bit_is_never_read_as_something_else() {
        let whole = render(&File { format_version: 1, name: "some name".to_owned() }).unwrap();
        assert_eq!(check_seal(&whole), Seal::Intact);
        assert_eq!(parse_versioned::<File>(&whole, 1).unwrap().name, "some name");
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(check_seal(&damaged), Seal::Intact, "bit {bit}");
            if let Ok(read) = parse_versioned::<File>(&damaged, 1) {
                assert_eq!(read.name, "some name", "bit {bit}");
            }
        }
    }

    #[test]
    fn a_signature_behind_the_seal_does_not_hide_it() {
        let whole = render(&File { format_version: 1, name: "some name".to_owned() }).unwrap();
        let body = whole.strip_suffix(b"\n}\n").unwrap();
        let mut signed = [body, b",\n\"signature\": \""].concat();
        signed.extend_from_slice(&[b'7'; SIGNATURE_DIGITS]);
        signed.extend_from_slice(b"\"}\n");
        assert_eq!(check_seal(&signed), Seal::Intact);
        let digits_from = body.len() - SEAL_DIGITS - 1;
        for at in (0..digits_from + SEAL_DIGITS).filter(|at| signed[*at].is_ascii_alphanumeric()) {
            let mut damaged = signed.clone();
            damaged[at] ^= 1;
            assert_ne!(check_seal(&damaged), Seal::Intact, "byte {at}");
            assert!(!parse_versioned::<File>(&damaged, 1).is_ok_and(|read| read.name != "some name"));
        }
    }

    #[test]
    fn a_file_without_a_seal_is_read() {
        let json = b"{\"format_version\": 1, \"name\": \"old\"}";
        assert_eq!(check_seal(json), Seal::Absent);
        assert_eq!(parse_versioned::<File>(json, 1).unwrap().name, "old");
    }
}
