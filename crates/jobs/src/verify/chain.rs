//! Whether the log leads from each base to the next: base N, folded with the log up to base N + 1, must be the same dataset.
//!
//! One shard's base at a time is folded, into a folder for temporary files. Keys that have expired at the later moment count as absent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use slotkeep_format::manifest::{Manifest, ShardRecord};
use slotkeep_format::{Depth, Severity, VerifyFinding};
use slotkeep_model::SlotSet;
use slotkeep_repo::{Location, Repository};

use super::findings::{BASE_ADVICE, finding, problem, shortened};
use super::inventory::Inventory;
use super::proofs::Known;
use super::{Run, VerifyProgress};
use crate::diff::{Diff, DiffOptions, Snapshot, diff, expiry_slack_ms};
use crate::fold::FoldProgress;
use crate::log::Past;
use crate::log::chain::{BasePlace, Piece, Place};
use crate::log::point::{Point, ShardPoint};
use crate::merge::{MergeTarget, merge};
use crate::ports::random_hex;
use crate::{Error, ErrorKind, Result, WorkFolder};

const FOLD: (Depth, &str) = (Depth::Chain, "fold");
/// So many keys that differ are named.
const NAMED_KEYS: usize = 20;
/// How often a pair is folded at most, where compactions change meanwhile which segments hold its log.
const MOST_FOLDS: usize = 3;

/// Two bases and the log between them.
struct Link {
    before: BasePlace,
    after: BasePlace,
    log: Vec<Piece>,
}

/// What a look at a link came to.
enum Outcome {
    Proved,
    Found(Box<VerifyFinding>),
    /// It is not there any more as it was.
    GivenUp,
}

impl Run<'_> {
    /// Proves every pair of neighbouring bases that the log joins and that is not proved yet.
    pub(super) async fn chain(
        &mut self,
        repository: &Repository,
        inventory: &Inventory,
        known: &Known,
        progress: &VerifyProgress,
    ) -> Result<()> {
        let past = Arc::new(Past::load(repository, &self.options.cluster).await?);
        let links = links(&past);
        self.totals.links = links.len() as u64;
        progress.total_links.store(self.totals.links, Ordering::Relaxed);
        for link in links {
            let (Some((_, before)), Some((manifest, after))) =
                (past.base(link.before.number), past.base(link.after.number))
            else {
                continue;
            };
            let object = &after.base.rdb;
            let work = inventory.bases.iter().find(|base| base.record.rdb.path == object.path);
            let stored = work.and_then(|base| base.stored.first()).and_then(Option::as_ref);
            let proved = |stored| known.proved(stored, Some(&object.blake3), Depth::Chain).is_some();
            if stored.is_some_and(proved) {
                self.totals.links_proved_before = self.totals.links_proved_before.saturating_add(1);
            } else if self.is_sound(&past, &link, before, after) {
                match self.link(repository, &past, &link, (manifest, before, after)).await? {
                    Outcome::Proved => {
                        self.totals.links_proved = self.totals.links_proved.saturating_add(1);
                        if let Some(stored) = stored {
                            let now = self.context.clock.now();
                            self.ledger.prove(stored, &object.blake3, Depth::Chain, now).await?;
                            // Each takes long.
                            self.ledger.flush().await?;
                        }
                    }
                    Outcome::Found(found) => self.findings.push(*found),
                    Outcome::GivenUp => {}
                }
            }
            progress.links.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether nothing was found that keeps the link from being proved; what is damaged has its finding already.
    fn is_sound(&self, past: &Past, link: &Link, before: &ShardRecord, after: &ShardRecord) -> bool {
        let mut needed: BTreeSet<String> =
            before.base.objects().chain(after.base.objects()).map(|object| object.path.clone()).collect();
        needed.extend(segments_of(past, link));
        let spoilt = |finding: &VerifyFinding| {
            finding.severity == Severity::Problem && needed.contains(&finding.object)
        };
        !self.findings.iter().any(spoilt)
    }

    /// Proves one link. What differs is a finding whatever has been done to the repository meanwhile; that it could not be folded is none if a prune
    /// has given up its bases or its log since, and where other segments hold that log now, they are tried.
    async fn link(
        &self,
        repository: &Repository,
        past: &Arc<Past>,
        link: &Link,
        (manifest, before, after): (&Manifest, &ShardRecord, &ShardRecord),
    ) -> Result<Outcome> {
        let object = &after.base.rdb.path;
        let mut past = Arc::clone(past);
        let mut folds = 1;
        loop {
            let error = match self.fold(repository, &past, link, (manifest, before, after)).await {
                Ok(difference) => return Ok(of_difference(&difference, before, after, &link.log)),
                Err(error) => error,
            };
            let found = of_failure(error, before, object)?;
            let now = Arc::new(Past::load(repository, &self.options.cluster).await?);
            if is_given_up(&now, link, [before, after]) {
                return Ok(Outcome::GivenUp);
            }
            if folds == MOST_FOLDS || segments_of(&past, link) == segments_of(&now, link) {
                return Ok(Outcome::Found(Box::new(found)));
            }
            past = now;
            folds += 1;
        }
    }

    /// Folds the first base up to the second and compares.
    async fn fold(
        &self,
        repository: &Repository,
        past: &Arc<Past>,
        link: &Link,
        (manifest, before, after): (&Manifest, &ShardRecord, &ShardRecord),
    ) -> Result<Diff> {
        let spool = WorkFolder::make(&self.options.spool, "verify")?;
        let location = Location::Folder(spool.path().to_owned());
        let id = random_hex(&*self.context.rng, 32)?;
        let target = Repository::init(&location, id, self.context.clock.now()).await?;
        let target = MergeTarget { repository: &target, cluster: &self.options.cluster, shares_bases: false };
        let point = point(manifest, before, after, link);
        let server = point.shards.first().and_then(|shard| shard.server);
        let progress = [Arc::new(FoldProgress::new(format!("slots {}", after.slots)))];
        let source = (repository, Some(past));
        let engine = &self.options.engine;
        let merged = Box::pin(merge(self.context, source, &point, &target, engine, &progress)).await?;
        let folded = Snapshot::of_backup(target.repository.clone(), merged);
        let base = Snapshot::of_backup(repository.clone(), alone(manifest, after));
        let options = DiffOptions { limit: NAMED_KEYS, expiry_slack_ms: expiry_slack_ms(server) };
        Box::pin(diff(self.context, &folded, &base, options)).await
    }
}

/// Whether a base of the link is named no more, or bytes of its log are gone.
fn is_given_up(now: &Past, link: &Link, bases: [&ShardRecord; 2]) -> bool {
    let named = |wanted: &ShardRecord| {
        let mut bases = now.chain.bases().iter().filter_map(|base| now.base(base.number));
        bases.any(|(_, shard)| shard.base.rdb.path == wanted.base.rdb.path)
    };
    !bases.into_iter().all(named) || now.chain.first_gap(&link.log).is_some()
}

/// The segments from which the log of a link is read.
fn segments_of(past: &Past, link: &Link) -> Vec<String> {
    let segments = link.log.iter().flat_map(|piece| past.segments_for(piece));
    segments.map(|(entry, _)| entry.path().to_owned()).collect()
}

/// Every pair of neighbouring bases on a path that the log joins, the oldest first.
fn links(past: &Past) -> Vec<Link> {
    let chain = &past.chain;
    let (mut seen, mut links) = (BTreeSet::new(), Vec::new());
    for tip in chain.tips() {
        let path = chain.path(tip);
        let mut bases: Vec<&BasePlace> =
            chain.bases().iter().filter(|base| path.holds(&base.place)).collect();
        bases.sort_by_key(|base| (base.place.offset, base.number));
        for pair in bases.windows(2) {
            let [before, after] = pair else { continue };
            let log = path.pieces(before.place.offset, after.place.offset);
            let is_new = seen.insert((before.number, after.number));
            if is_new && !log.is_empty() && chain.first_gap(&log).is_none() {
                links.push(Link { before: (*before).clone(), after: (*after).clone(), log });
            }
        }
    }
    links
}

/// A manifest of one shard alone.
pub(super) fn alone(manifest: &Manifest, shard: &ShardRecord) -> Manifest {
    let missing: SlotSet = shard.slots.complement();
    Manifest {
        partial: !missing.is_empty(),
        missing_slots: missing,
        shards: vec![ShardRecord { cut: None, ..shard.clone() }],
        cut: None,
        digest: None,
        ..manifest.clone()
    }
}

/// The place of the second base, from the first.
fn point(manifest: &Manifest, before: &ShardRecord, after: &ShardRecord, link: &Link) -> Point {
    let shard = ShardPoint {
        slots: before.slots.clone(),
        importing: SlotSet::default(),
        migrating: SlotSet::default(),
        unfollowed: SlotSet::default(),
        backup: manifest.id.clone(),
        base: link.before.place.clone(),
        log: link.log.clone(),
        log_bytes: link.log.iter().fold(0, |sum: u64, piece| sum.saturating_add(piece.bytes())),
        cut: Place { history: after.history.clone(), offset: after.offset },
        written: None,
        may_lack_ms: None,
        server: before.server.version().max(after.server.version()),
    };
    Point { manifest: alone(manifest, before), at: None, shards: vec![shard], passed_over: vec![] }
}

fn words(difference: &Diff, before: &ShardRecord, log: &[Piece]) -> String {
    let keys: Vec<_> = difference.keys.iter().map(|key| shortened(&key.key)).collect();
    let bytes = log.iter().fold(0, |sum: u64, piece| sum.saturating_add(piece.bytes()));
    let mut words = format!(
        "the base at offset {} and {bytes} bytes of log do not give it: {} slots differ ({})",
        before.offset, difference.differing_slot_count, difference.differing_slots
    );
    if !keys.is_empty() {
        let more = if difference.limited { " and more" } else { "" };
        words += &format!("; keys: {}{more}", keys.join(", "));
    }
    if difference.functions_differ {
        words += "; the function libraries differ";
    }
    words
}

/// What a fold says of the link.
fn of_difference(difference: &Diff, before: &ShardRecord, after: &ShardRecord, log: &[Piece]) -> Outcome {
    if difference.is_empty() {
        return Outcome::Proved;
    }
    let mut found = problem(FOLD, &after.base.rdb.path, words(difference, before, log), BASE_ADVICE);
    found.offset = Some(after.offset);
    found.advice = Some(
        "the base is what the server held; moments between the two bases may come back with these keys wrong: keep both bases, and report it"
            .to_owned(),
    );
    Outcome::Found(Box::new(found))
}

/// What a fold that failed says of the link.
fn of_failure(error: Error, before: &ShardRecord, object: &str) -> Result<VerifyFinding> {
    let from = format!("from the base at offset {}", before.offset);
    match error.kind() {
        ErrorKind::Unsupported => {
            let what = format!("it can't be proved {from}: {error}");
            let advice = error.advice().unwrap_or_default().to_owned();
            Ok(finding(Severity::Warning, FOLD, object, what, &advice))
        }
        ErrorKind::Corrupt | ErrorKind::Gap | ErrorKind::Failed => {
            let what = format!("the log does not lead to it {from}: {error}");
            Ok(problem(FOLD, object, what, error.advice().unwrap_or_default()))
        }
        _ => Err(error),
    }
}
