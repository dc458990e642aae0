//! What a verification needs of a repository: what lies where, small files as they are, and a place for what was proved.

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use slotkeep_format::{Proofs, VerifyRecord};
use slotkeep_model::ReplId;

use crate::crypt::{bears_signature, open_armored, seal_armored};
use crate::error::{Problem, RepoError};
use crate::layout;
use crate::location::object_path;
use crate::repository::Repository;
use crate::segments::SegmentEntry;

/// A part of what a repository holds of a cluster.
#[derive(Clone, Copy, Debug)]
pub enum Area<'a> {
    /// The manifests.
    Backups,
    /// The files that say how the cluster looked.
    Topologies,
    /// Everything of one history: its file, its bases, its log.
    History(&'a ReplId),
    /// Records of verifications and their proofs.
    Verifications,
    /// What agents say of themselves and of their lines.
    Leases,
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// Its path in the repository.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// When the store says that it was written, in ms since 1970.
    pub modified_ms: i64,
}

impl StoredObject {
    /// The last part of its path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

impl SegmentEntry {
    /// The segment that an object of that history is; `None` if it is something else.
    pub fn of(history: &ReplId, object: &StoredObject) -> Option<Self> {
        let range = layout::segment_range(object.name())?;
        let path = object_path(&object.path).ok()?;
        let in_log = object.path.rsplit('/').nth(1) == Some("log");
        in_log.then(|| Self::new(history.clone(), range, (object.bytes, object.modified_ms), path))
    }
}

impl Repository {
    /// Every object of that part, in the order of their paths.
    pub async fn stored_objects(
        &self,
        cluster: &str,
        area: Area<'_>,
    ) -> Result<Vec<StoredObject>, RepoError> {
        let folder = match area {
            Area::Backups => layout::backups(cluster),
            Area::Topologies => layout::topologies(cluster),
            Area::History(history) => layout::histories(cluster).join(history.as_str()),
            Area::Verifications => layout::verifications(cluster),
            Area::Leases => layout::leases(cluster),
        };
        let listed = self.store.list(Some(&folder)).map_ok(|object| StoredObject {
            path: object.location.to_string(),
            bytes: object.size,
            modified_ms: object.last_modified.timestamp_millis(),
        });
        let mut objects: Vec<StoredObject> =
            listed.try_collect().await.map_err(|error| RepoError::new("list", &folder, error))?;
        objects.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(objects)
    }

    /// A small file as it is, at most `most_bytes` long.
    pub async fn read_file(&self, path: &str, most_bytes: u64) -> Result<Vec<u8>, RepoError> {
        let failed = |problem: Problem| RepoError::new("read", path, problem);
        let found = self.store.get(&object_path(path)?).await.map_err(|error| failed(error.into()))?;
        if found.meta.size > most_bytes {
            let what = format!("it has {} bytes, more than such a file can have", found.meta.size);
            return Err(failed(Problem::Damaged(what)));
        }
        let bytes = found.bytes().await.map_err(|error| failed(error.into()))?;
        Ok(bytes.to_vec())
    }

    /// The ids of a cluster's verifications, oldest first.
    pub async fn verification_ids(&self, cluster: &str) -> Result<Vec<String>, RepoError> {
        let folder = layout::verifications(cluster);
        let listed = self.store.list_with_delimiter(Some(&folder)).await;
        let listed = listed.map_err(|error| RepoError::new("list", &folder, error))?;
        let names = listed.objects.iter().filter_map(|object| object.location.filename());
        let mut ids: Vec<String> =
            names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect();
        ids.sort();
        Ok(ids)
    }

    /// What a verification came to; in an encrypted repository the words of its findings only if it can be read. One that bears no signature
    /// where this repository's files are signed is [`Problem::Untrusted`].
    pub async fn verification(&self, cluster: &str, id: &str) -> Result<VerifyRecord, RepoError> {
        let path = layout::verification(cluster, id);
        let failed = |problem: Problem| RepoError::new("read", &path, problem);
        let bytes = self.get_json(&path).await?;
        let mut record = VerifyRecord::parse(&bytes).map_err(|error| failed(error.into()))?;
        if record.id != id {
            return Err(failed(Problem::Damaged(format!("it says it is {}", record.id))));
        }
        if let Some(identity) = &self.keyring.identity
            && let Some(sealed) =
                VerifyRecord::sealed_findings(&bytes).map_err(|error| failed(error.into()))?
        {
            let json = open_armored(identity, &sealed).map_err(failed)?;
            record.findings = VerifyRecord::parse_findings(&json).map_err(|error| failed(error.into()))?;
        }
        Ok(record)
    }

    /// Writes down what a verification came to. Its findings may name keys and repeat values: where objects are encrypted, so are their words.
    pub async fn put_verification(&self, record: &VerifyRecord) -> Result<(), RepoError> {
        let path = layout::verification(&record.cluster, &record.id);
        let failed = |problem: Problem| RepoError::new("write", &path, problem);
        let json = match &self.keyring.recipient {
            Some(recipient) if !record.findings.is_empty() => {
                let findings = record.render_findings().map_err(|error| failed(error.into()))?;
                record.render_sealed(&seal_armored(recipient, &findings).map_err(failed)?)
            }
            _ => record.render(),
        };
        let json = json.map_err(|error| failed(error.into()))?;
        self.put_json(&path, json).await
    }

    /// Writes down some of what the verification `id` has proved: its part of that number.
    pub async fn put_proofs(
        &self,
        cluster: &str,
        id: &str,
        part: u32,
        proofs: &Proofs,
    ) -> Result<(), RepoError> {
        let path = layout::proofs(cluster, id, part);
        let json = proofs.render().map_err(|error| RepoError::new("write", &path, error))?;
        self.put_json(&path, json).await
    }

    /// What one file says was proved; `None` if the object is no such file, or bears no signature where this repository's files are signed:
    /// earlier versions did not sign, and whoever can write to the store could say that anything was proved.
    pub async fn proofs(&self, object: &StoredObject) -> Result<Option<Proofs>, RepoError> {
        if !is_proofs(&object.path) {
            return Ok(None);
        }
        let failed = |problem: Problem| RepoError::new("read", &object.path, problem);
        let path = Path::from(object.path.as_str());
        let found = self.store.get(&path).await;
        let bytes = found.map_err(|error| failed(error.into()))?.bytes().await;
        let bytes = bytes.map_err(|error| failed(error.into()))?;
        if self.file().signing_key.is_some() && !bears_signature(&bytes) {
            return Ok(None);
        }
        self.check_signature(&path, &bytes).map_err(failed)?;
        Proofs::parse(&bytes).map(Some).map_err(|error| failed(error.into()))
    }
}

/// Whether the path is `<cluster>/verify/<id>/<part>.json`.
fn is_proofs(path: &str) -> bool {
    path.split('/').count() == 4 && path.strip_suffix(".json").is_some()
}
