//! Beginning a line anew: a base, where nothing was held or the stream can't be continued.
//!
//! Invariants: what was held before counts until the base is durable; that a line is broken is announced.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use slotkeep_format::Parent;
use slotkeep_model::ReplId;
use slotkeep_repo::layout::BaseLayout;
use slotkeep_wire::replica::Request;
use tokio_util::sync::CancellationToken;

use super::decide::{Position, Refusal};
use super::gates::Turn;
use super::line::{ANSWER_LIMIT, End, Line, fork_of};
use super::link::{Answer, Link};
use super::sealer::Patience;
use super::session::Session;
use super::status::{LinePhase, NoticeKind};
use crate::backup::base::{Announced, receive};
use crate::backup::{Candidate, new_backup_id};
use crate::discover::replication_at;
use crate::progress::Phase;
use crate::{Context, Error, ErrorKind, Result};

/// How long a replica may take to receive what its primary had written.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(10);
const CATCH_UP_LOOK: Duration = Duration::from_millis(50);

impl Line {
    /// Takes a base on that node, and follows the stream behind it.
    pub(crate) async fn rebase(
        &mut self,
        candidate: &Candidate,
        written_to: Option<u64>,
        refusal: Option<&Refusal>,
        candidates: &[Candidate],
    ) -> Result<End> {
        let (context, shared) = (self.context.clone(), Arc::clone(&self.shared));
        self.set_phase(LinePhase::Queued);
        let turn = tokio::select! {
            turn = shared.gates.enter(candidate.addr.host()) => turn,
            () = self.stop.cancelled() => return Ok(End::Stopped),
        };
        self.progress.restart();
        self.progress.expected_keys.store(candidate.keys, Ordering::Relaxed);
        self.set_phase(LinePhase::Base);
        // No server is to fork for a repository that takes nothing.
        context.unless_stopped(async { Ok(shared.repository.clusters().await?) }).await?;
        catch_up(&context, candidate, written_to).await?;
        let mut link = context.unless_stopped(Link::open(&context, &candidate.addr)).await?;
        let answer = context.unless_stopped(link.begin(Request::Full)).await?;
        self.capture(link, answer, candidate, turn, refusal, candidates).await
    }

    pub(crate) async fn capture(
        &mut self,
        mut link: Link<'_>,
        answer: Answer,
        candidate: &Candidate,
        turn: Turn,
        refusal: Option<&Refusal>,
        candidates: &[Candidate],
    ) -> Result<End> {
        let Answer::Snapshot { history, offset, header, server_time } = answer else {
            return Err(link.senseless("+CONTINUE where a full resynchronisation was asked for".to_owned()));
        };
        let (context, shared) = (self.context.clone(), Arc::clone(&self.shared));
        self.set_phase(LinePhase::Base);
        let id = match &shared.backup_id {
            Some(id) => id.clone(),
            None => new_backup_id(&context)?,
        };
        let announced = Announced {
            source: candidate.addr.clone(),
            source_role: candidate.role.into(),
            server: candidate.server.into(),
            history: history.clone(),
            offset: offset.0,
            server_time,
            layout: BaseLayout::new(&shared.cluster, &history, offset, &id),
        };
        let mut received =
            receive(&context, &shared.repository, &mut link, header, announced, &self.progress).await?;
        if !shared.follows {
            drop(link);
            let base = received.store(&context, &shared.repository).await?;
            self.progress.enter(Phase::Done);
            self.state.send_modify(|state| state.base = Some(Arc::new(base)));
            return Ok(End::Stopped);
        }
        // A replica passes its primary's stream on and selects nothing itself.
        let database = received.database();
        let parent = self.parent_of(&history, candidates).await;
        self.announce_break(&history, offset.0, refusal);
        // An archive ends in order, with a base that was received; a job alone is to end soon.
        let stop = match shared.patience {
            Patience::None => context.stop.clone(),
            Patience::Persistent => CancellationToken::new(),
        };
        let (repository, context) = (shared.repository.clone(), Context { stop, ..context.clone() });
        let storing = tokio::spawn(async move {
            let stored = received.store(&context, &repository).await;
            drop(turn);
            stored
        });
        if let Some(parent) = parent {
            self.state.send_modify(|state| state.lineage.add(&history, &parent));
        }
        let position = Position { history, offset: offset.0, database };
        let session = Session::begin(self, link, candidate, position, Some(storing), None).await?;
        session.run(self).await
    }

    /// Says that the line is broken, if there was one.
    fn announce_break(&self, history: &ReplId, offset: u64, refusal: Option<&Refusal>) {
        let Some(held) = &self.position else { return };
        let slots = self.shard.borrow().slots.clone();
        let why =
            refusal.map_or_else(|| "the server answered with a snapshot".to_owned(), ToString::to_string);
        let (kind, what) = if refusal.is_some_and(Refusal::is_divergence) {
            (NoticeKind::Diverged, "a divergent tail is kept, and a new base begins a new line")
        } else {
            (NoticeKind::Gap, "a gap: what was written between is in no segment, and a new base begins")
        };
        let words = format!(
            "{why}; {what}: held up to {} of {}, from {offset} of {history} on",
            held.offset, held.history
        );
        self.state.send_modify(|state| state.gaps = state.gaps.saturating_add(1));
        self.shared.board.pin(kind, Some(&slots), words);
    }

    /// Where a history that began with a snapshot comes from, if the servers tell and the repository knows that one.
    async fn parent_of(&self, history: &ReplId, candidates: &[Candidate]) -> Option<Parent> {
        let told = candidates.iter().find_map(|candidate| {
            let replication = &candidate.replication;
            let before = replication.previous_replid.as_ref()?;
            Some(Parent { history: before.clone(), fork: fork_of(replication, history, before)? })
        })?;
        let held = self.position.as_ref().is_some_and(|position| position.history == told.history);
        let known = async || {
            let histories = self.shared.repository.histories(&self.shared.cluster);
            let histories = self.context.within(ANSWER_LIMIT, histories).await;
            histories.is_some_and(|known| known.is_ok_and(|known| known.contains(&told.history)))
        };
        (held || known().await).then_some(told)
    }
}

/// Waits until a replica has received what its primary had written when it was asked. A replica that has just attached says that its
/// link is up a second before the stream flows (the primary waits for its first acknowledgement).
pub(crate) async fn catch_up(
    context: &Context,
    candidate: &Candidate,
    written_to: Option<u64>,
) -> Result<()> {
    let Some(wanted) = written_to.filter(|offset| candidate.offset < *offset) else { return Ok(()) };
    let wait = async {
        let began = context.clock.elapsed();
        loop {
            let offset = replication_at(context, &candidate.addr).await?.offset.0;
            if offset >= wanted {
                return Ok(());
            }
            if context.clock.elapsed().saturating_sub(began) > CATCH_UP_LIMIT {
                let behind = wanted.saturating_sub(offset);
                let words = format!("{}: it is still {behind} bytes behind its primary", candidate.addr);
                return Err(Error::new(ErrorKind::Unreachable, words)
                    .hint("find out why the replica lags, or take the primary: --prefer primary"));
            }
            context.clock.sleep(CATCH_UP_LOOK).await;
        }
    };
    context.unless_stopped(wait).await
}
