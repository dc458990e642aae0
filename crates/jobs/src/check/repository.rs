//! The checks of the repository.

use jiff::Timestamp;
use slotkeep_format::Manifest;
use slotkeep_format::manifest::sort_newest_first;
use slotkeep_repo::{Listing, Location, OpenOptions, Probe, RepoError, Repository};

use super::finding::{Finding, Findings, Subject, size, span};
use crate::discover::Discovery;
use crate::kinship;
use crate::ports::random_hex;
use crate::{Context, Error, Result};

/// A backup older than this is named.
const RECENT_S: i64 = 86_400;

/// What the repository said.
pub(super) struct RepositoryFacts {
    pub(super) location: String,
    pub(super) state: State,
    /// Whether what is written there can be signed, or need not be.
    pub(super) signs: Result<(), RepoError>,
    /// Whether nothing is remembered of a repository that is signed.
    pub(super) forgets: bool,
    /// That the cluster is another than the one it knows under that name, if it seems so.
    pub(super) unlike: Option<String>,
    /// What a probe has shown, unless there was nothing to probe.
    pub(super) probe: Result<Probe, RepoError>,
    /// Free space, where that can be known.
    pub(super) free_bytes: Option<u64>,
    pub(super) now: Timestamp,
}

/// What is at the place.
pub(super) enum State {
    /// A repository, and its backups of this cluster.
    Open(Result<Listing, RepoError>),
    /// A new folder, which the first backup makes a repository.
    New,
    /// Nothing that can be used.
    Unusable(RepoError),
}

/// Looks at the repository, for the cluster that was found, if one was. What is written to probe it is deleted again.
pub(super) async fn gather(
    context: &Context,
    location: &Location,
    cluster: &str,
    open: &OpenOptions,
    discovery: Option<&Discovery>,
) -> Result<RepositoryFacts> {
    let (mut signs, mut forgets, mut unlike) = (Ok(()), false, None);
    let state = match location.can_become_repository().await {
        Ok(true) => match Repository::check_may_be_made(location, open).await {
            Ok(()) => State::New,
            Err(error) => State::Unusable(error),
        },
        Ok(false) => match Repository::open_with(location, open).await {
            Ok(repository) => {
                signs = repository.check_signs();
                forgets = open.state.is_none() && repository.file().signing_key.is_some();
                let listing = repository.backups(cluster).await;
                if let Some(discovery) = discovery {
                    let mut backups: Vec<&Manifest> =
                        listing.iter().flat_map(|listing| &listing.backups).collect();
                    sort_newest_first(&mut backups);
                    let looked = repository.newest_topology(cluster).await;
                    unlike = kinship::judge(cluster, discovery, backups.first().copied(), looked);
                }
                State::Open(listing)
            }
            Err(error) => State::Unusable(error),
        },
        Err(error) => State::Unusable(error),
    };
    let probe = location.probe(&random_hex(&*context.rng, 16)?).await;
    let free_bytes = location.free_bytes().await.ok().flatten();
    let now = context.clock.now();
    let location = location.to_string();
    Ok(RepositoryFacts { location, state, signs, forgets, unlike, probe, free_bytes, now })
}

/// Every finding about the repository; a backup is expected to need `needed_bytes` at the most.
pub(super) fn judge(facts: RepositoryFacts, needed_bytes: u64) -> Vec<Finding> {
    let mut out = Findings::about(Subject::Repository);
    let RepositoryFacts { location, state, signs, forgets, unlike, probe, free_bytes, now } = facts;
    let usable = match state {
        State::Open(listing) => {
            out.ok("open", format!("{location} is a repository"));
            backups(listing, now, &mut out);
            true
        }
        State::New => {
            out.ok("open", format!("{location} is new: the first backup makes it a repository"));
            true
        }
        State::Unusable(error) => {
            failed("open", error, &mut out);
            false
        }
    };
    if usable {
        if let Err(error) = signs {
            failed("signing key", error, &mut out);
        }
        if let Some(unlike) = unlike {
            out.warning("cluster", unlike, kinship::ADVICE);
        }
        if forgets {
            out.warning(
                "memory",
                "nothing is remembered of it: should it be swapped or put back to an older state, nobody will notice",
                "set SLOTKEEP_STATE to a folder that stays from run to run",
            );
        }
        writable(probe, &mut out);
        space(free_bytes, needed_bytes, &mut out);
    }
    out.into_vec()
}

fn failed(check: &'static str, error: RepoError, out: &mut Findings) {
    let error = Error::from(error);
    out.problem(check, error.to_string(), error.advice().unwrap_or("check --repo"));
}

fn writable(probe: Result<Probe, RepoError>, out: &mut Findings) {
    match probe {
        Ok(Probe { refuses_overwrite: true }) => {
            out.ok("writable", "it takes, gives back and deletes objects, and never overwrites one unasked");
        }
        Ok(Probe { refuses_overwrite: false }) => out.problem(
            "writable",
            "the store overwrites an object although the request forbids it (If-None-Match is ignored)",
            "use a store that honours conditional writes: here, two writers could destroy each other's backups",
        ),
        Err(error) => failed("writable", error, out),
    }
}

fn space(free_bytes: Option<u64>, needed_bytes: u64, out: &mut Findings) {
    let Some(free) = free_bytes else { return };
    let text = format!("{} free, a backup needs some {} at the most", size(free), size(needed_bytes));
    if free < needed_bytes {
        out.warning("space", text, "free some space, or name a larger place");
    } else {
        out.ok("space", text);
    }
}

fn backups(listing: Result<Listing, RepoError>, now: Timestamp, out: &mut Findings) {
    let listing = match listing {
        Ok(listing) => listing,
        Err(error) => return failed("backups", error, out),
    };
    for unreadable in listing.unreadable {
        failed("backups", unreadable.error, out);
    }
    let Some(last) = listing.backups.last() else {
        return out.note(
            "last backup",
            "it holds no backup of this cluster yet",
            "take one: slotkeep backup",
        );
    };
    let age_s = now.duration_since(last.finished_at).as_secs();
    let text = format!("{} was finished {} ago", last.id, span(age_s.unsigned_abs()));
    if age_s > RECENT_S {
        out.note("last backup", text, "take one now, and let a timer take them: slotkeep backup");
    } else {
        out.ok("last backup", text);
    }
}

#[cfg(test)]
mod tests;
