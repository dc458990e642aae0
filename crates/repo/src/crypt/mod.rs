//! Encryption and signatures: everything that knows keys. `docs/security.md` says what they protect and against whom.
//!
//! Invariants: every encrypted object is an age file to the repository's own key, so that rekeying never touches objects; secrets
//! never appear in `Debug` or in an error.

mod keyring;
mod ranges;
mod seal;
mod shown;
mod sign;
mod stream;

pub(crate) use keyring::{Keyring, NewKeys, open_key_file, wrap_keys};
pub use keyring::{Recipients, Unlock};
pub(crate) use ranges::{Layer, MOST_HEADER_BYTES, SealedObject};
pub(crate) use seal::{Sealer, open_armored, seal_armored};
pub use shown::{holds_secret, shown};
pub use sign::{SigningKey, fingerprint};
pub(crate) use sign::{bears_signature, sign, unsigned};
pub(crate) use stream::Opened;

use crate::error::Problem;

/// What an error of the age library means.
fn age_problem(error: age::DecryptError) -> Problem {
    match error {
        age::DecryptError::Io(error) => io_problem(error),
        age::DecryptError::NoMatchingKeys => {
            Problem::Damaged("it is encrypted to another key than the repository's".to_owned())
        }
        error => Problem::Damaged(format!("it does not decrypt: {error}")),
    }
}

/// An error that came through the decryption: the store's own, or one of what was decrypted.
fn io_problem(error: std::io::Error) -> Problem {
    match error.downcast::<object_store::Error>() {
        Ok(error) => error.into(),
        Err(error) => Problem::Damaged(format!("it does not decrypt: {error}")),
    }
}
