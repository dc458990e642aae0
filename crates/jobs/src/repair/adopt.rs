//! Data that is whole and that nothing names.
//!
//! Invariants: a base is adopted only if its RDB is whole by its own checksum and by its contents, and it is known which slots it served; what is
//! not known of it is said in the backup. A manifest that could not be read is kept beside before another takes its place.

use std::collections::BTreeMap;

use jiff::Timestamp;
use slotkeep_format::lineage::HISTORY_VERSION;
use slotkeep_format::manifest::{
    BackupKind, BaseRecord, CrcRecord, FORMAT_VERSION, ProductRecord, RoleRecord, ServerRecord,
    SettingsRecord, ShardRecord,
};
use slotkeep_format::{HistoryRecord, Manifest, Parent, ShardState, TopologyRecord};
use slotkeep_model::{ReplId, SlotSet};
use slotkeep_rdb::{Crc, Event, Level, Parser};
use slotkeep_repo::{Repository, StoredObject, layout};

use super::remake::{derive, move_pins, next_id, plain, total};
use super::{Nameless, Orphan};
use crate::{Context, Error, ErrorKind, Result};

/// A manifest that can't be read is kept, if it is no longer than this.
const MANIFEST_MOST_BYTES: u64 = 256 << 20;

fn unknown(what: String) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

/// Lists a backup that names these bases.
pub(super) async fn backup(
    context: &Context,
    repository: &Repository,
    manifests: &[Manifest],
    (cluster, orphan): (&str, &Orphan),
    repair: &str,
) -> Result<Vec<String>> {
    let gives: Vec<String> = if orphan.bases.is_empty() {
        let twins = manifests.iter().filter(|manifest| plain(&manifest.id) == plain(&orphan.id));
        twins.map(|manifest| manifest.id.clone()).collect()
    } else {
        let taken =
            manifests.iter().map(|manifest| manifest.id.as_str()).chain([orphan.id.as_str()]).collect();
        let id = next_id(&orphan.id, &taken);
        let manifest = manifest(repository, (cluster, orphan), id, repair).await?;
        repository.commit(&manifest).await?;
        vec![manifest.id]
    };
    let is_listed = manifests.iter().any(|manifest| manifest.id == orphan.id);
    if let Some(to) = gives.last().filter(|_| !is_listed) {
        move_pins(context, repository, cluster, (&orphan.id, to)).await?;
    }
    if orphan.has_manifest {
        let lost = layout::manifest_file(cluster, &orphan.id);
        let bytes = repository.read_file(&lost, MANIFEST_MOST_BYTES).await?;
        repository.put_new(&layout::lost_manifest(cluster, &orphan.id), bytes).await?;
        repository.delete(&lost).await?;
    }
    Ok(gives)
}

async fn manifest(
    repository: &Repository,
    (cluster, orphan): (&str, &Orphan),
    id: String,
    repair: &str,
) -> Result<Manifest> {
    let topologies = repository.topologies(cluster).await?;
    let mut shards: BTreeMap<String, ShardRecord> = BTreeMap::new();
    let mut seen: Option<&TopologyRecord> = None;
    let (mut first_ms, mut last_ms) = (i64::MAX, i64::MIN);
    for (history, offset, object) in &orphan.bases {
        let (topology, state) = state_of(&topologies, history, moment(object.modified_ms))
            .ok_or_else(|| unknown(format!("nothing says which slots {} served", object.path)))?;
        let (base, server) = base(repository, object, repair).await?;
        (first_ms, last_ms) = (first_ms.min(object.modified_ms), last_ms.max(object.modified_ms));
        seen = seen.filter(|seen| seen.seen_at >= topology.seen_at).or(Some(topology));
        let record = shard(state, history, *offset, base, server);
        let slots = state.slots.to_string();
        // Of two bases of the same slots the later one.
        if shards.get(&slots).is_none_or(|other| other.offset < record.offset) {
            shards.insert(slots, record);
        }
    }
    let seen = seen.ok_or_else(|| unknown(format!("nothing is left of backup {}", orphan.id)))?;
    let mut shards: Vec<ShardRecord> = shards.into_values().collect();
    shards.sort_by_key(|shard| shard.slots.ranges().first().map(|range| range.first()));
    let covered: SlotSet = shards.iter().flat_map(|shard| shard.slots.ranges().iter().copied()).collect();
    let missing_slots = covered.complement();
    let lacks = SettingsRecord {
        nodes: vec![],
        config: BTreeMap::new(),
        acl: vec![],
        secrets: false,
        modules: BTreeMap::new(),
        unreadable: vec![
            "everything: the manifest was lost, and `slotkeep repair` adopted the bases".to_owned(),
        ],
    };
    let mut manifest = Manifest {
        format_version: FORMAT_VERSION,
        id,
        cluster: cluster.to_owned(),
        kind: BackupKind::Full,
        partial: !missing_slots.is_empty(),
        missing_slots,
        started_at: moment(first_ms),
        finished_at: moment(last_ms),
        slotkeep_version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_mode: seen.cluster_mode,
        current_epoch: seen.current_epoch,
        shards,
        settings: vec![lacks],
        cut: None,
        digest: None,
    };
    manifest.digest = total(repository, &manifest).await?;
    Ok(manifest)
}

fn moment(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// What a manifest says of a base, told from its RDB.
async fn base(
    repository: &Repository,
    object: &StoredObject,
    repair: &str,
) -> Result<(BaseRecord, ServerRecord)> {
    let rdb = repository.describe(&object.path, object.bytes).await?;
    let mut head = Head::default();
    let (remade, digest) = derive(repository, &rdb, repair, |frame| head.feed(frame)).await?;
    let base = BaseRecord {
        rdb,
        rdb_version: remade.envelope.version,
        crc64: match remade.envelope.crc {
            Crc::Matches(_) => CrcRecord::Verified,
            Crc::NotComputed | Crc::None => CrcRecord::NotComputed,
        },
        index: Some(remade.index),
        digest: Some(digest),
        keys: Some(remade.digest.keys()),
        functions: Some(remade.digest.functions.keys),
        not_interpreted: None,
    };
    Ok((base, head.server()))
}

/// How the shard of that history looked: at that moment, or when it was seen next.
fn state_of<'a>(
    topologies: &'a [TopologyRecord],
    history: &ReplId,
    moment: Timestamp,
) -> Option<(&'a TopologyRecord, &'a ShardState)> {
    let shows = |topology: &'a TopologyRecord| {
        let mut own = topology.shards.iter().filter(|shard| shard.history.as_ref() == Some(history));
        own.find(|shard| !shard.slots.is_empty()).map(|shard| (topology, shard))
    };
    let before = topologies.iter().rev().filter(|topology| topology.seen_at <= moment).find_map(shows);
    before.or_else(|| topologies.iter().find_map(shows))
}

fn shard(
    state: &ShardState,
    history: &ReplId,
    offset: u64,
    base: BaseRecord,
    server: ServerRecord,
) -> ShardRecord {
    ShardRecord {
        slots: state.slots.clone(),
        config_epoch: state.config_epoch,
        primary: state.primary.clone(),
        replicas: state.replicas.clone(),
        source: state.primary.addr.clone(),
        source_role: RoleRecord::Primary,
        server,
        history: history.clone(),
        offset,
        server_time: None,
        base,
        // A base that was read otherwise and can't be gone on behind has a history that no topology shows.
        read: None,
        cut: None,
    }
}

/// The beginning of an RDB, where it says which server wrote it.
struct Head {
    parser: Option<Parser>,
    server: Option<ServerRecord>,
}

impl Default for Head {
    fn default() -> Self {
        Self { parser: Some(Parser::new(Level::Raw)), server: None }
    }
}

impl Head {
    fn feed(&mut self, mut frame: &[u8]) {
        // Once something else came, there is no more of it.
        let Some(mut parser) = self.parser.take() else { return };
        loop {
            match parser.next(&mut frame) {
                Ok(Some(Event::Aux { key, value })) => {
                    let product = match key {
                        b"redis-ver" => ProductRecord::Redis,
                        b"valkey-ver" => ProductRecord::Valkey,
                        _ => continue,
                    };
                    let version = String::from_utf8_lossy(value).into_owned();
                    self.server = Some(ServerRecord { product, version });
                }
                Ok(Some(Event::Key(_))) | Err(_) => return,
                Ok(Some(_)) => {}
                Ok(None) => break,
            }
        }
        self.parser = Some(parser);
    }

    fn server(self) -> ServerRecord {
        self.server.unwrap_or(ServerRecord { product: ProductRecord::Redis, version: "0.0.0".to_owned() })
    }
}

/// Where a history comes from.
enum Origin {
    /// From there.
    Parent(Parent),
    /// From no history that is needed for it.
    None,
    /// From a history that goes on behind the place at which this one could have left it: why that is not taken for the fork.
    Unknown(String),
}

/// Writes down where a history comes from, as far as that can be told. Gives the path of its file, and what can't be told.
pub(super) async fn history(
    repository: &Repository,
    cluster: &str,
    nameless: &Nameless,
) -> Result<(String, Option<String>)> {
    let history = &nameless.history;
    let segments = repository.segments(cluster, history).await?;
    let first = segments.first().ok_or_else(|| unknown(format!("there is no log of history {history}")))?;
    let record = repository.segment_record(first).await?;
    let topologies = repository.topologies(cluster).await?;
    let state = topologies.iter().enumerate().find_map(|(number, topology)| {
        let own = topology.shards.iter().find(|shard| shard.history.as_ref() == Some(history))?;
        Some((number, topology, own))
    });
    let (number, topology, state) = state.ok_or_else(|| {
        unknown(format!("nothing says which slots the log of history {history} belongs to"))
    })?;
    let before = topologies.get(..number).unwrap_or_default();
    let origin =
        origin_of(repository, cluster, history, (&topologies, before, &state.slots), first.start).await?;
    let (parent, lost) = match origin {
        Origin::Parent(parent) => (Some(parent), None),
        Origin::None => (None, None),
        Origin::Unknown(why) => (None, Some(why)),
    };
    let path = layout::history_file(cluster, history);
    if nameless.damaged {
        // Nothing of it could be read; what takes its place says no less.
        repository.delete(&path).await?;
    }
    let record = HistoryRecord {
        format_version: HISTORY_VERSION,
        history: history.clone(),
        parent,
        slots: state.slots.clone(),
        source: record.source,
        first_seen_at: topology.seen_at,
    };
    repository.put_history(cluster, &record).await?;
    Ok((path, lost))
}

/// The history that the same slots had before, if this one begins where that ends, and no base of its own leads there. The segments between
/// the fork and the first one that is left may be lost: that the other history holds the byte before proves nothing where it goes on behind it.
async fn origin_of(
    repository: &Repository,
    cluster: &str,
    history: &ReplId,
    (topologies, before, slots): (&[TopologyRecord], &[TopologyRecord], &SlotSet),
    start: u64,
) -> Result<Origin> {
    let fork = start.saturating_sub(1);
    let own = repository.stored_objects(cluster, slotkeep_repo::Area::History(history)).await?;
    let led_to =
        own.iter().any(|object| layout::base_of(&object.path).is_some_and(|(_, offset, _)| offset == fork));
    let previous =
        before.iter().rev().flat_map(|topology| &topology.shards).find(|shard| shard.slots == *slots);
    let Some(parent) = previous.and_then(|shard| shard.history.clone()).filter(|parent| parent != history)
    else {
        return Ok(Origin::None);
    };
    let held = repository.segments(cluster, &parent).await?;
    if led_to || !held.iter().any(|segment| segment.start <= fork && fork < segment.end) {
        return Ok(Origin::None);
    }
    let is_cut = held.iter().any(|segment| segment.end == start);
    let goes_on = held.iter().any(|segment| segment.start <= start && start < segment.end);
    let seen = |of: &ReplId, at: &dyn Fn(u64) -> bool| {
        let shards = topologies.iter().flat_map(|topology| &topology.shards);
        shards.filter(|shard| shard.history.as_ref() == Some(of)).any(|shard| shard.offset.is_some_and(at))
    };
    let contradicted =
        seen(history, &|offset| offset < fork) || (goes_on && seen(&parent, &|offset| offset > fork));
    if is_cut && !contradicted {
        return Ok(Origin::Parent(Parent { history: parent, fork }));
    }
    Ok(Origin::Unknown(format!(
        "where it left history {parent} is not known: its log begins at offset {start}, and nothing shows that the other one, which holds what \
         is before and after, was left there. Nothing leads into it but bases of its own"
    )))
}
