//! Doing what a plan says.
//!
//! Order, which makes it safe to be killed anywhere and to run beside backups: marks; what is given up, written down; another look at what
//! there is and what is needed; manifests; bases and log, as far as no manifest that is still there needs them; files of histories and
//! topologies; marks and what was given up as they are now. Whatever is repeated finds nothing to do.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use slotkeep_format::prune::PRUNE_VERSION;
use slotkeep_format::{MarkRecord, MarkedObject, PrunedRecord, Unneeded};
use slotkeep_repo::{Repository, layout};

use super::judge::{Candidate, judge};
use super::report::{PruneReport, Step};
use super::stock::Stock;
use super::{PrunePlan, SHORTEST_GRACE};
use crate::backup::new_backup_id;
use crate::{Context, Error, ErrorKind, ObjectKind, Result};

/// How many objects are deleted at a time.
const DELETES_IN_FLIGHT: usize = 8;

/// What comes of clocks that are apart.
const NOTHING_DELETED: &str = "nothing is deleted";

/// What goes in which order: each row when the one before is gone.
const ORDER: [&[ObjectKind]; 3] = [
    &[ObjectKind::Backup],
    &[ObjectKind::Base, ObjectKind::Log],
    &[ObjectKind::History, ObjectKind::Topology],
];

/// Fails if this machine's clock is not the store's: `told` is when something was written just now. What is young by the one would be old by the
/// other, and what was marked a moment ago be due. `so` says what is not done because of it.
pub(crate) fn compare_clocks(
    context: &Context,
    told: Timestamp,
    tolerance: Option<SignedDuration>,
    so: &str,
) -> Result<()> {
    let apart = context.clock.now().duration_since(told);
    if tolerance.is_none_or(|tolerance| apart.abs() <= tolerance) {
        return Ok(());
    }
    let apart = SignedDuration::from_secs(apart.as_secs());
    let way = if apart.is_negative() { "behind" } else { "ahead of" };
    let words = format!(
        "this machine's clock is {:#} {way} the store's: how old things are can't be told, and {so}",
        apart.abs()
    );
    Err(Error::new(ErrorKind::ClockOff, words)
        .hint("synchronise this machine's clock (NTP), or the store's, and run it again"))
}

/// What is to be deleted, by path.
type Announced = BTreeMap<String, Candidate>;
/// What became of it, and what the store said if it refused.
type Done = BTreeMap<String, (Step, Option<String>)>;

/// What became of an object that is to be deleted.
enum Outcome {
    Deleted,
    /// It is there still.
    Refused(String),
    /// The store failed, and nobody can tell whether it is there.
    Unknown(String),
}

impl PrunePlan {
    /// Marks what is not needed, and deletes what was marked for as long as the grace.
    pub async fn run(&self, context: &Context, repository: &Repository) -> Result<PruneReport> {
        repository.check_signs()?;
        let marked = self.mark(context, repository).await?;
        let mut done = Done::new();
        self.remove_unfinished(repository, &mut done).await;
        let announced: Announced =
            self.due().map(|(path, candidate)| (path.clone(), candidate.clone())).collect();
        let mut records = Records::open(context, repository, &self.options.cluster).await?;
        if announced.is_empty() {
            records.settle_dead_runs(&self.stock).await?;
            return Ok(self.report(false, &done));
        }
        records.announce(&announced, self.options.clock_tolerance).await?;
        let stock = Stock::take(repository, &self.options.cluster).await?;
        let mut unknown = BTreeSet::new();
        let swept = self.sweep(context, repository, (&stock, &announced), (&mut done, &mut unknown)).await;
        let deleted = |path: &str| matches!(done.get(path), Some((Step::Deleted, _)));
        records.settle(&stock, &deleted, &unknown).await?;
        let left: Vec<MarkedObject> =
            marked.objects.iter().filter(|object| !deleted(&object.path)).cloned().collect();
        self.replace_marks(context, repository, left).await?;
        swept?;
        Ok(self.report(false, &done))
    }

    /// Writes down what is not needed, unless that is known already.
    async fn mark(&self, context: &Context, repository: &Repository) -> Result<MarkRecord> {
        let object = |(path, candidate): (&String, &Candidate)| MarkedObject {
            path: path.clone(),
            bytes: candidate.object.bytes,
            modified_ms: candidate.object.modified_ms,
            why: candidate.why,
            marked_at: self.marked.get(path).copied().unwrap_or(self.now),
        };
        let objects: Vec<MarkedObject> = self.judgement.unneeded.iter().map(object).collect();
        match &self.marks.newest {
            Some(newest)
                if newest.objects == objects && self.marks.ids.len() == 1 && self.unfinished.is_empty() =>
            {
                Ok(newest.clone())
            }
            _ => {
                // How old unfinished files are is told by the same clocks.
                if !objects.is_empty() || !self.unfinished.is_empty() {
                    self.check_clock(context, repository).await?;
                }
                self.replace_marks(context, repository, objects).await
            }
        }
    }

    /// Compares this machine's clock with the store's, by a record of what was marked before: a run that is killed meanwhile must not leave a mark
    /// that was set by a clock that is wrong, as the next one would take it for older than it is.
    async fn check_clock(&self, context: &Context, repository: &Repository) -> Result<()> {
        let before = self.marks.newest.iter().flat_map(|record| &record.objects);
        let still = before.filter(|object| self.marked.contains_key(&object.path)).cloned().collect();
        let probe = self.fresh_marks(context, self.marks.ids.last(), still)?;
        repository.put_marks(&probe).await?;
        let told = repository.marked_at(&probe).await?;
        let compared = compare_clocks(context, told, self.options.clock_tolerance, NOTHING_DELETED);
        if compared.is_err() {
            repository.delete_marks(&probe.cluster, &probe.id).await?;
        }
        compared
    }

    fn fresh_marks(
        &self,
        context: &Context,
        newest: Option<&String>,
        objects: Vec<MarkedObject>,
    ) -> Result<MarkRecord> {
        let (id, cluster) = (newer_id(context, newest)?, self.options.cluster.clone());
        Ok(MarkRecord { format_version: PRUNE_VERSION, id, cluster, objects })
    }

    /// Writes a record of marks that takes the place of all others.
    async fn replace_marks(
        &self,
        context: &Context,
        repository: &Repository,
        objects: Vec<MarkedObject>,
    ) -> Result<MarkRecord> {
        let cluster = &self.options.cluster;
        let others = repository.marks(cluster).await?.ids;
        let record = self.fresh_marks(context, others.last(), objects)?;
        if !record.objects.is_empty() {
            repository.put_marks(&record).await?;
        }
        // The oldest first: as long as one is there, the newest of them must not be an old one that names what is needed now.
        for id in others {
            repository.delete_marks(cluster, &id).await?;
        }
        Ok(record)
    }

    /// Deletes what writes have left that were killed.
    async fn remove_unfinished(&self, repository: &Repository, done: &mut Done) {
        for file in &self.unfinished {
            let became = match repository.remove_unfinished(file).await {
                Ok(true) => (Step::Deleted, None),
                // Somebody writes there.
                Ok(false) => (Step::Needed, None),
                Err(error) => (Step::Refused, Some(error.problem.to_string())),
            };
            done.insert(file.path.clone(), became);
        }
    }

    async fn sweep(
        &self,
        context: &Context,
        repository: &Repository,
        (stock, announced): (&Stock, &Announced),
        (done, unknown): (&mut Done, &mut BTreeSet<String>),
    ) -> Result<()> {
        let mut standing: BTreeSet<String> = BTreeSet::new();
        let there = stock.paths();
        for kinds in ORDER {
            // Backups whose manifests are there still are as good as kept.
            let judgement = judge(stock, &self.options.rules(self.now, &standing));
            let blocked = histories_left(stock, done);
            let mut now = Vec::new();
            for (path, candidate) in announced.iter().filter(|(_, candidate)| kinds.contains(&candidate.kind))
            {
                let needed = match judgement.unneeded.get(path) {
                    Some(found) => {
                        let same = |one: &Candidate| (one.object.bytes, one.object.modified_ms);
                        same(found) != same(candidate)
                    }
                    // Gone already, or needed.
                    None => there.contains(path.as_str()),
                };
                if needed || blocked.contains(path) {
                    done.insert(path.clone(), (Step::Needed, None));
                } else {
                    now.push(path.clone());
                }
            }
            delete(context, repository, now, (done, unknown)).await?;
            if kinds.contains(&ObjectKind::Backup) {
                let left =
                    stock.manifest_objects.iter().filter(|(_, object)| !is_deleted(done, &object.path));
                standing = left.map(|(id, _)| id.clone()).collect();
            }
        }
        Ok(())
    }
}

fn is_deleted(done: &Done, path: &str) -> bool {
    matches!(done.get(path), Some((Step::Deleted, _)))
}

/// The files of histories of which something is still there.
fn histories_left(stock: &Stock, done: &Done) -> BTreeSet<String> {
    let left = stock.histories.values().filter(|history| {
        let mut contents = history.contents();
        contents.any(|object| !is_deleted(done, &object.path))
    });
    left.filter_map(|history| history.file.as_ref()).map(|file| file.path.clone()).collect()
}

async fn delete(
    context: &Context,
    repository: &Repository,
    paths: Vec<String>,
    (done, unknown): (&mut Done, &mut BTreeSet<String>),
) -> Result<()> {
    let mut deletes = futures::stream::iter(paths)
        .take_while(|_| std::future::ready(!context.stop.is_cancelled()))
        .map(async |path| {
            let outcome = delete_one(repository, &path).await;
            (path, outcome)
        })
        .buffer_unordered(DELETES_IN_FLIGHT);
    while let Some((path, outcome)) = deletes.next().await {
        let became = match outcome {
            Outcome::Deleted => (Step::Deleted, None),
            Outcome::Refused(why) => (Step::Refused, Some(why)),
            Outcome::Unknown(why) => {
                unknown.insert(path.clone());
                (Step::Refused, Some(why))
            }
        };
        done.insert(path, became);
    }
    if context.stop.is_cancelled() { Err(Error::interrupted()) } else { Ok(()) }
}

/// Deletes an object. A store that reports a failure may have deleted it all the same: what is gone and was not written down as given up would be
/// missed.
async fn delete_one(repository: &Repository, path: &str) -> Outcome {
    let Err(error) = repository.delete(path).await else { return Outcome::Deleted };
    let why = error.problem.to_string();
    match repository.is_there(path).await {
        Ok(true) => Outcome::Refused(why),
        Ok(false) => Outcome::Deleted,
        Err(_) => Outcome::Unknown(why),
    }
}

/// The records of what was given up: those of runs that are over, and the one of this run.
struct Records<'a> {
    context: &'a Context,
    repository: &'a Repository,
    cluster: &'a str,
    /// Of runs that are over, or were killed.
    over: Vec<PrunedRecord>,
    newest: Option<String>,
    own: Option<PrunedRecord>,
}

impl<'a> Records<'a> {
    async fn open(context: &'a Context, repository: &'a Repository, cluster: &'a str) -> Result<Self> {
        let records = repository.pruned(cluster).await?.records;
        let now = context.clock.now();
        let newest = records.last().map(|record| record.id.clone());
        // What a run that may be at work has announced stays announced.
        let is_over = |record: &PrunedRecord| {
            record.going.is_empty() || now.duration_since(record.at).abs() > SHORTEST_GRACE
        };
        let over = records.into_iter().filter(is_over).collect();
        Ok(Self { context, repository, cluster, over, newest, own: None })
    }

    /// Writes down what is about to be deleted, with all that was given up before.
    async fn announce(&mut self, going: &Announced, tolerance: Option<SignedDuration>) -> Result<()> {
        let mut record = self.fresh()?;
        record.going = going.iter().map(|(path, candidate)| (path.clone(), candidate.why)).collect();
        let id = record.id.clone();
        self.repository.put_pruned(&record).await?;
        let told = self.repository.announced_at(&record).await?;
        if let Err(error) = compare_clocks(self.context, told, tolerance, NOTHING_DELETED) {
            self.repository.delete_pruned(self.cluster, &id).await?;
            return Err(error);
        }
        self.newest = Some(id);
        self.own = Some(record);
        Ok(())
    }

    /// Writes down what is gone of what was announced: by this run, and by those that were killed. What nobody can tell of stays announced, until
    /// a later run sees whether it is there.
    async fn settle(
        &mut self,
        stock: &Stock,
        deleted: &dyn Fn(&str) -> bool,
        unknown: &BTreeSet<String>,
    ) -> Result<()> {
        let mut record = self.fresh()?;
        let there = stock.paths();
        let announced = self.own.iter().flat_map(|record| &record.going);
        let undecided = announced.filter(|(path, _)| unknown.contains(*path));
        record.going = undecided.map(|(path, why)| (path.clone(), *why)).collect();
        let going = self.own.iter().chain(&self.over).flat_map(|record| &record.going);
        for (path, why) in going.filter(|(path, _)| deleted(path) || !there.contains(path.as_str())) {
            give_up(&mut record, path, *why);
        }
        self.replace(record).await?;
        for over in self.over.drain(..) {
            self.repository.delete_pruned(self.cluster, &over.id).await?;
        }
        Ok(())
    }

    /// Settles what runs that were killed have announced.
    async fn settle_dead_runs(&mut self, stock: &Stock) -> Result<()> {
        if self.over.iter().any(|record| !record.going.is_empty()) {
            self.settle(stock, &|_| false, &BTreeSet::new()).await?;
        }
        Ok(())
    }

    /// A new record that says what was given up before.
    fn fresh(&self) -> Result<PrunedRecord> {
        let id = newer_id(self.context, self.newest.as_ref())?;
        let mut record = PrunedRecord::new(id, self.cluster.to_owned(), self.context.clock.now());
        for over in &self.over {
            record.merge(over);
        }
        Ok(record)
    }

    async fn replace(&mut self, record: PrunedRecord) -> Result<()> {
        self.repository.put_pruned(&record).await?;
        self.newest = Some(record.id.clone());
        if let Some(replaced) = self.own.replace(record) {
            self.repository.delete_pruned(self.cluster, &replaced.id).await?;
        }
        Ok(())
    }
}

fn give_up(record: &mut PrunedRecord, path: &str, why: Unneeded) {
    let name = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    match why {
        Unneeded::NotKept => {
            record.backups.insert(name.to_owned());
        }
        Unneeded::Old => {
            record.topologies.insert(name.to_owned());
        }
        Unneeded::Outside => {
            if let Some((history, range)) = layout::segment_of(path) {
                record.add_log(&history, &[range]);
            }
        }
        // What a larger segment holds is not given up, and bases belong to backups.
        Unneeded::OfRemoved | Unneeded::Unlisted | Unneeded::Covered | Unneeded::Empty => {}
    }
}

/// An id that sorts behind `newest`, whatever the clocks say.
fn newer_id(context: &Context, newest: Option<&String>) -> Result<String> {
    let id = new_backup_id(context)?;
    Ok(match newest {
        Some(newest) if *newest >= id => format!("{newest}-1"),
        _ => id,
    })
}
