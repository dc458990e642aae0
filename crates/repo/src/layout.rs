//! The names of objects. `docs/repository-format.md` describes the same.
//!
//! ```text
//! slotkeep.json                                             what makes it a repository
//! <cluster>/backups/<id>.json                               a backup's manifest
//! <cluster>/history/<replid>/base/<offset>-<id>/rdb.zst     the RDB, framed
//! <cluster>/history/<replid>/base/<offset>-<id>/index.zst   its index, framed
//! <cluster>/history/<replid>/base/<offset>-<id>/digest      its digest
//! ```
//!
//! An offset is written with twenty digits, so that names sort by it. The id of the backup stands beside it because two backups of
//! an idle server have the same offset, and objects are never overwritten.

use object_store::path::Path;
use slotkeep_model::{ReplId, ReplOffset};

/// The file that makes a place a repository.
pub const REPOSITORY_FILE: &str = "slotkeep.json";

/// The longest name of a cluster.
pub const MAX_CLUSTER_NAME: usize = 64;

/// Whether that is a name under which a repository can keep a cluster's backups: 1 to 64 letters, digits, `-`, `_` and `.`, not
/// starting with a dot.
pub fn is_cluster_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= MAX_CLUSTER_NAME && !name.starts_with('.') && name.bytes().all(allowed)
}

/// Where the manifests of a cluster's backups lie.
pub(crate) fn backups(cluster: &str) -> Path {
    Path::from_iter([cluster, "backups"])
}

/// The manifest of a backup.
pub(crate) fn manifest(cluster: &str, id: &str) -> Path {
    Path::from_iter([cluster, "backups", &format!("{id}.json")])
}

/// The objects of a base.
#[derive(Clone, Debug)]
pub struct BaseLayout {
    folder: Path,
}

impl BaseLayout {
    /// The base that the backup `id` takes at that offset of that history.
    pub fn new(cluster: &str, history: &ReplId, offset: ReplOffset, id: &str) -> Self {
        let base = format!("{:020}-{id}", offset.0);
        Self { folder: Path::from_iter([cluster, "history", history.as_str(), "base", &base]) }
    }

    /// The RDB, framed.
    pub fn rdb(&self) -> String {
        self.object("rdb.zst")
    }

    /// The index, framed.
    pub fn index(&self) -> String {
        self.object("index.zst")
    }

    /// The digest.
    pub fn digest(&self) -> String {
        self.object("digest")
    }

    fn object(&self, name: &str) -> String {
        self.folder.clone().join(name).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_clusters_stay_one_path_segment() {
        for name in ["main", "eu-west.cache_1"] {
            assert!(is_cluster_name(name), "{name}");
        }
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "ü", &"x".repeat(65)] {
            assert!(!is_cluster_name(name), "{name}");
        }
    }

    #[test]
    fn bases_sort_by_offset() {
        let history: ReplId = "a".repeat(40).parse().unwrap();
        let base = |offset| BaseLayout::new("main", &history, ReplOffset(offset), "id").rdb();
        assert!(base(9) < base(10));
        assert!(base(10) < base(u64::MAX));
    }
}
