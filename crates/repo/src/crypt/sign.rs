//! Signatures of JSON files, in the files themselves.
//!
//! The last field of a signed object is `"signature"`, 128 hex digits of an Ed25519 signature over everything before those digits,
//! behind a line that names the repository and one that names the path. What stands behind the digits is fixed, so nothing of the file
//! can be changed. A file that was signed for one repository or path is not accepted at another.

use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::error::Problem;

const FIELD: &[u8] = b"\"signature\": \"";
const END: &[u8] = b"\"}\n";
const SIGNATURE_DIGITS: usize = 128;
const CONTEXT: &str = "slotkeep signature 1";
const TEXT_MARK: &str = "SLOTKEEP-SIGNING-KEY-";

/// The key with which a host signs what it writes.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    text: String,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public()).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new key.
    pub(crate) fn generate() -> Result<Self, Problem> {
        let failed = |_| Problem::Store("the system gives no randomness for a key".to_owned());
        let pair = Ed25519KeyPair::generate().map_err(failed)?;
        let seed = pair.seed().map_err(failed)?;
        let seed: Curve25519SeedBin<'_> = seed.as_be_bytes().map_err(failed)?;
        let text = format!("{TEXT_MARK}{}", hex(seed.as_ref()));
        Ok(Self { pair, text })
    }

    /// Reads a key as [`Self::secret_text`] writes it; lines before and behind it that start with `#` are comments.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let wrong = || Problem::WrongKey("this is no signing key of Slotkeep's".to_owned());
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        let line = line.ok_or_else(wrong)?;
        let seed = line.strip_prefix(TEXT_MARK).and_then(unhex).ok_or_else(wrong)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| wrong())?;
        Ok(Self { pair, text: line.to_owned() })
    }

    /// The key as text: a secret.
    pub fn secret_text(&self) -> &str {
        &self.text
    }

    /// The public key in hex, as `slotkeep.json` names it.
    pub fn public(&self) -> String {
        hex(self.pair.public_key().as_ref())
    }
}

/// What names a repository and its keys in one word: to be kept outside of it, and compared.
pub fn fingerprint(file: &slotkeep_format::RepositoryFile) -> Option<String> {
    let key = file.signing_key.as_ref()?;
    let text = format!("{CONTEXT}\n{}\n{}\n{key}\n", file.repository_id, file.recipients.join(","));
    blake3::hash(text.as_bytes()).to_hex().get(..40).map(str::to_owned)
}

/// Signs a JSON object.
pub(crate) fn sign(
    key: &SigningKey,
    repository_id: &str,
    path: &str,
    json: &[u8],
) -> Result<Vec<u8>, Problem> {
    let body = json.trim_ascii_end().strip_suffix(b"}").map(<[u8]>::trim_ascii_end);
    let body = body.ok_or_else(|| Problem::Damaged("what was to be signed is no JSON object".to_owned()))?;
    let mut signed = body.to_vec();
    signed.extend_from_slice(b",\n");
    signed.extend_from_slice(FIELD);
    let signature = key.pair.sign(&message(repository_id, path, &signed));
    signed.extend_from_slice(hex(signature.as_ref()).as_bytes());
    signed.extend_from_slice(END);
    Ok(signed)
}

/// Checks a file's signature by the public key in hex. The file is JSON with its signature, and is read as such.
pub(crate) fn unsigned(public: &str, repository_id: &str, path: &str, file: &[u8]) -> Result<(), Problem> {
    let forged =
        |what: &str| Problem::Untrusted(format!("{what}: it was not written by this repository's key"));
    let Some((signed, digits)) = split(file) else {
        return Err(forged("it bears no signature"));
    };
    let signature = std::str::from_utf8(digits).ok().and_then(unhex);
    let public = unhex(public).ok_or_else(|| forged("the repository's key makes no sense"))?;
    let verified = signature.is_some_and(|signature| {
        let key = UnparsedPublicKey::new(&ED25519, &public);
        key.verify(&message(repository_id, path, signed), &signature).is_ok()
    });
    if verified { Ok(()) } else { Err(forged("its signature is wrong")) }
}

/// Whether a file bears a signature, right or wrong.
pub(crate) fn bears_signature(file: &[u8]) -> bool {
    split(file).is_some()
}

/// What a signature is over, and its digits.
fn split(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = file.strip_suffix(END)?;
    let split = rest.split_at_checked(rest.len().checked_sub(SIGNATURE_DIGITS)?);
    split.filter(|(signed, _)| signed.ends_with(FIELD))
}

fn message(repository_id: &str, path: &str, signed: &[u8]) -> Vec<u8> {
    let mut message = format!("{CONTEXT}\n{repository_id}\n{path}\n").into_bytes();
    message.extend_from_slice(signed);
    message
}

fn hex(bytes: &[u8]) -> String {
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles.filter_map(|nibble| char::from_digit(u32::from(nibble), 16)).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    pairs.remainder().is_empty().then(|| {
        pairs.map(|pair| pair.iter().fold(0_u8, |byte, digit| byte.wrapping_shl(4) | digit)).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_accepted_at_its_place_only_and_unchanged() {
        let key = SigningKey::generate().unwrap();
        let file = sign(&key, "id", "main/backups/x.json", b"{\n  \"a\": 1\n}\n").unwrap();
        let value: serde_json::Value = serde_json::from_slice(&file).unwrap();
        assert_eq!(value["a"], 1);
        let check = |id: &str, path: &str, file: &[u8]| unsigned(&key.public(), id, path, file);
        check("id", "main/backups/x.json", &file).unwrap();
        assert!(check("other", "main/backups/x.json", &file).is_err());
        assert!(check("id", "main/backups/y.json", &file).is_err());
        for bit in 0..file.len() * 8 {
            let mut forged = file.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            // Hex digits may be written large.
            if !forged.eq_ignore_ascii_case(&file) {
                assert!(check("id", "main/backups/x.json", &forged).is_err(), "bit {bit}");
            }
        }
        let other = SigningKey::generate().unwrap();
        assert!(unsigned(&other.public(), "id", "main/backups/x.json", &file).is_err());
        assert!(check("id", "main/backups/x.json", b"{}").is_err());
    }

    #[test]
    fn a_key_reads_as_it_was_written() {
        let key = SigningKey::generate().unwrap();
        let read = SigningKey::parse(&format!("# of some repository\n{}\n", key.secret_text())).unwrap();
        assert_eq!(read.public(), key.public());
        assert!(!format!("{read:?}").contains(key.secret_text()));
        for wrong in ["", "AGE-SECRET-KEY-1", "SLOTKEEP-SIGNING-KEY-00"] {
            assert!(SigningKey::parse(wrong).is_err(), "{wrong}");
        }
    }
}
