//! What the files in the folder of verifications say of objects: what was proved, and what was found.

use slotkeep_format::{Proofs, VerifyRecord};
use slotkeep_repo::{RepoError, Repository, StoredObject};

/// What such a file says.
pub(crate) enum Word {
    Proofs(Proofs),
    Record(Box<VerifyRecord>),
    Nothing,
}

/// The id of a verification, if the path is that of its record.
pub(crate) fn record_id(path: &str) -> Option<&str> {
    let mut parts = path.rsplit('/');
    let id = parts.next()?.strip_suffix(".json")?;
    (parts.next() == Some("verify") && parts.count() == 1).then_some(id)
}

/// Reads a file. A record that can't be gone by says nothing; of proofs that is an error.
pub(crate) async fn word(
    repository: &Repository,
    cluster: &str,
    file: &StoredObject,
) -> Result<Word, RepoError> {
    let Some(id) = record_id(&file.path) else {
        return Ok(repository.proofs(file).await?.map_or(Word::Nothing, Word::Proofs));
    };
    match repository.verification(cluster, id).await {
        Err(error) if error.problem.is_unusable() => Ok(Word::Nothing),
        record => Ok(Word::Record(Box::new(record?))),
    }
}
