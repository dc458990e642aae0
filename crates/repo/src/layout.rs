//! The names of objects. `docs/repository-format.md` describes the same.
//!
//! ```text
//! slotkeep.json                                             what makes it a repository
//! slotkeep-key-<n>-<kind>.age                               its keys, encrypted to those who may read
//! <cluster>/backups/<id>.json                               a backup's manifest
//! <cluster>/history/<replid>/base/<offset>-<id>/rdb.zst     the RDB, framed
//! <cluster>/history/<replid>/base/<offset>-<id>/index.zst   its index, framed
//! <cluster>/history/<replid>/base/<offset>-<id>/digest      its digest
//! <cluster>/history/<replid>/history.json                   where the history comes from
//! <cluster>/history/<replid>/log/<start>-<end>.zst          a segment of its stream: the bytes from start on, before end
//! <cluster>/lease/<name>/<number>.json                      who may write to a line of the log
//! <cluster>/topology/<id>.json                              how the cluster looked from then on
//! <cluster>/verify/<id>.json                                what a verification came to
//! <cluster>/verify/<id>/<part>.json                         what it has proved
//! <cluster>/fence/<id>.json                                 which nodes were kept from taking writes
//! <cluster>/prune/mark/<id>.json                            what is to go
//! <cluster>/prune/gone/<id>.json                            what was given up
//! <cluster>/pin/<backup>/<id>.json                          that a backup is to stay
//! <cluster>/lost/<backup>.json                              a manifest that could not be read, as it was
//! ```
//!
//! An offset is written with twenty digits, so that names sort by it. The id of the backup stands beside it because two backups of
//! an idle server have the same offset, and objects are never overwritten.

use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use object_store::path::Path;
use slotkeep_model::{ReplId, ReplOffset};

/// The file that makes a place a repository.
pub const REPOSITORY_FILE: &str = "slotkeep.json";

const KEY_FILE_PREFIX: &str = "slotkeep-key-";

/// A key file. They lie beside [`REPOSITORY_FILE`], where no cluster's name can be in the way.
pub(crate) fn key_file(number: u32, kind: &str) -> Path {
    Path::from(format!("{KEY_FILE_PREFIX}{number:04}-{kind}.age"))
}

/// The number of a key file of that name; `None` if it is none.
pub(crate) fn key_file_number(name: &str) -> Option<u32> {
    let (number, _) = name.strip_prefix(KEY_FILE_PREFIX)?.strip_suffix(".age")?.split_once('-')?;
    number.parse().ok()
}

/// The file that says where a history comes from.
pub const HISTORY_FILE: &str = "history.json";

/// The RDB of a base.
pub const RDB_FILE: &str = "rdb.zst";

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

/// Where the histories of a cluster lie, a folder each.
pub(crate) fn histories(cluster: &str) -> Path {
    Path::from_iter([cluster, "history"])
}

/// Where a history comes from.
pub(crate) fn history(cluster: &str, history: &ReplId) -> Path {
    Path::from_iter([cluster, "history", history.as_str(), HISTORY_FILE])
}

/// The path of the file that says where a history comes from.
pub fn history_file(cluster: &str, id: &ReplId) -> String {
    history(cluster, id).to_string()
}

/// Where the segments of a history lie.
pub(crate) fn log(cluster: &str, history: &ReplId) -> Path {
    Path::from_iter([cluster, "history", history.as_str(), "log"])
}

/// The segment that holds those bytes of a history.
pub(crate) fn segment(cluster: &str, history: &ReplId, range: &Range<u64>) -> Path {
    log(cluster, history).join(format!("{:020}-{:020}.zst", range.start, range.end))
}

/// Which bytes a segment of that name holds; `None` if it is no segment's name.
pub(crate) fn segment_range(name: &str) -> Option<Range<u64>> {
    let (start, end) = name.strip_suffix(".zst")?.split_once('-')?;
    let number = |digits: &str| {
        let written_so = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
        written_so.then(|| digits.parse::<u64>().ok()).flatten()
    };
    let range = number(start)?..number(end)?;
    (!range.is_empty()).then_some(range)
}

/// The history of a segment, and which bytes of it the segment holds; `None` if the path is not one of a segment.
pub fn segment_of(path: &str) -> Option<(ReplId, Range<u64>)> {
    let mut parts = path.rsplit('/');
    let range = segment_range(parts.next()?)?;
    let in_log = parts.next() == Some("log");
    in_log.then(|| parts.next()?.parse().ok()).flatten().map(|history| (history, range))
}

/// Where the files that say how a cluster looked lie.
pub(crate) fn topologies(cluster: &str) -> Path {
    Path::from_iter([cluster, "topology"])
}

/// How a cluster looked from some moment on.
pub(crate) fn topology(cluster: &str, id: &str) -> Path {
    topologies(cluster).join(format!("{id}.json"))
}

/// Where the leases of a cluster lie.
pub(crate) fn leases(cluster: &str) -> Path {
    Path::from_iter([cluster, "lease"])
}

/// The name of the lease that a record in `folder` belongs to, and the record's number; `None` if it is none.
pub(crate) fn lease_of(folder: &Path, record: &Path) -> Option<(String, u64)> {
    let mut parts = record.prefix_match(folder)?;
    let (name, file) = (parts.next()?, parts.next()?);
    let number = lease_number(file.as_ref())?;
    parts.next().is_none().then(|| (name.as_ref().to_owned(), number))
}

/// Where the records of a lease lie.
pub(crate) fn lease(cluster: &str, name: &str) -> Path {
    Path::from_iter([cluster, "lease", name])
}

/// A record of a lease.
pub(crate) fn lease_record(folder: &Path, number: u64) -> Path {
    folder.clone().join(format!("{number:020}.json"))
}

/// The number of a lease's record of that name; `None` if it is none.
pub(crate) fn lease_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json")?;
    let written_so = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    written_so.then(|| digits.parse().ok()).flatten()
}

/// Where the records of verifications lie.
pub(crate) fn verifications(cluster: &str) -> Path {
    Path::from_iter([cluster, "verify"])
}

/// The time in a name that begins with an id; nothing if it begins with none.
pub(crate) fn id_time(name: &str) -> Option<Timestamp> {
    let (time, _) = name.split_once("Z-")?;
    let time = DateTime::strptime("%Y%m%dT%H%M%S%.3f", time).ok()?;
    time.to_zoned(TimeZone::UTC).ok().map(|at| at.timestamp())
}

/// What a verification came to.
pub(crate) fn verification(cluster: &str, id: &str) -> Path {
    verifications(cluster).join(format!("{id}.json"))
}

/// Where the records of fences lie.
pub(crate) fn fences(cluster: &str) -> Path {
    Path::from_iter([cluster, "fence"])
}

/// Which nodes were kept from taking writes, from then on.
pub(crate) fn fence(cluster: &str, id: &str) -> Path {
    fences(cluster).join(format!("{id}.json"))
}

/// Where the records of what is to go lie.
pub(crate) fn marks(cluster: &str) -> Path {
    Path::from_iter([cluster, "prune", "mark"])
}

/// Where the records of what was given up lie.
pub(crate) fn gone(cluster: &str) -> Path {
    Path::from_iter([cluster, "prune", "gone"])
}

/// Where pins lie, a folder for each backup.
pub(crate) fn pins(cluster: &str) -> Path {
    Path::from_iter([cluster, "pin"])
}

/// The path of a backup's manifest.
pub fn manifest_file(cluster: &str, id: &str) -> String {
    manifest(cluster, id).to_string()
}

/// Where a manifest that could not be read is kept when another takes its place.
pub fn lost_manifest(cluster: &str, id: &str) -> String {
    Path::from_iter([cluster, "lost", &format!("{id}.json")]).to_string()
}

/// The index and the digest that a repair makes of the RDB of a base in that folder. They have names of their own: what they replace is never
/// overwritten.
pub fn remade(folder: &str, repair: &str) -> (String, String) {
    (format!("{folder}/index-{repair}.zst"), format!("{folder}/digest-{repair}"))
}

/// The folder of the base that an object belongs to, the last byte that the base holds, and the backup that took it; `None` if it belongs
/// to none.
pub fn base_of(path: &str) -> Option<(&str, u64, &str)> {
    let (folder, _) = path.rsplit_once('/')?;
    let mut parts = folder.rsplit('/');
    let (offset, id) = parts.next()?.split_once('-')?;
    (parts.next() == Some("base")).then_some((folder, offset.parse().ok()?, id))
}

/// Some of what a verification has proved.
pub(crate) fn proofs(cluster: &str, id: &str, part: u32) -> Path {
    verifications(cluster).join(id).join(format!("{part:06}.json"))
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
        self.object(RDB_FILE)
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
    fn a_segment_is_known_by_its_name() {
        let history: ReplId = "a".repeat(40).parse().unwrap();
        let path = segment("main", &history, &(1..u64::MAX));
        assert_eq!(segment_range(path.filename().unwrap()), Some(1..u64::MAX));
        for name in ["1-2.zst", "00000000000000000002-00000000000000000002.zst", "x.zst", "history.json"] {
            assert_eq!(segment_range(name), None, "{name}");
        }
    }

    #[test]
    fn ids_tell_their_time() {
        let time = |name| id_time(name).map(|at| at.to_string());
        assert_eq!(time("20261127T003622.919Z-4330.json").unwrap(), "2026-11-27T00:36:22.919Z");
        for name in ["20261127T003622.919Z", "20261327T003622.919Z-4330", "x.json", ""] {
            assert_eq!(time(name), None, "{name}");
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
