//! Following the stream on one link.
//!
//! Invariants: the server is never told of more than the kind of acknowledgement that was chosen promises, and of nothing while the
//! base before the stream is not yet durable; whatever ends the session, the line's position is a safe cut that is durable.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use slotkeep_format::spool::SPOOL_VERSION;
use slotkeep_format::{HistoryRecord, Parent, SpoolHeader};
use slotkeep_model::{NodeAddr, ReplId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::decide::Position;
use super::intake::{Intake, Step};
use super::line::{Ack, End, Line, LineState};
use super::link::Link;
use super::pack::PieceEnd;
use super::sampler::Sampled;
use super::sealer::{Patience, history_record};
use super::silence::Silence;
use super::spool::{SpoolState, SpoolStopped, SpoolWriter};
use super::status::{LinePhase, NoticeKind};
use crate::backup::Candidate;
use crate::backup::base::TakenBase;
use crate::progress::Phase;
use crate::{Error, ErrorKind, Result};

/// How often time alone is looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often a replica acknowledges.
const ACK_EVERY: Duration = Duration::from_secs(1);
/// How long nothing may come from a node while the primary is known to have written more.
const STALLED: Duration = Duration::from_secs(10);
/// While so many files wait to be sealed, pieces are cut by size alone.
const PATIENT_FROM: u64 = 4;

/// The history that the stream goes on in.
#[derive(Clone, Debug)]
pub(crate) struct Fork {
    pub(crate) history: ReplId,
    /// The last byte that both have in common.
    pub(crate) offset: u64,
}

/// A stream that is being followed.
pub(crate) struct Session<'l> {
    link: Link<'l>,
    source: NodeAddr,
    intake: Intake,
    steps: Vec<Step>,
    /// That of the current piece.
    header: SpoolHeader,
    fork: Option<Fork>,
    writer: SpoolWriter,
    spooled: watch::Receiver<SpoolState>,
    /// The base before the stream, while it is being stored.
    storing: Option<JoinHandle<Result<TakenBase>>>,
    silence: Silence,
    last_ack_at: Option<Duration>,
    last_tick_at: Duration,
    /// What the server wants to see acknowledged as soon as it can be.
    ack_wanted: Option<u64>,
    stream_begun: bool,
}

/// What happened on one of the many ways that something can come.
enum Event {
    Stop,
    Read(Result<Vec<u8>>),
    Stored(Box<Result<TakenBase>>),
    Spooled,
    Sealed,
    SealBy,
    Sampled(Sampled),
    Tick,
}

impl<'l> Session<'l> {
    /// Begins behind `position`.
    pub(crate) async fn begin(
        line: &Line,
        connection: Link<'l>,
        candidate: &Candidate,
        position: Position,
        storing: Option<JoinHandle<Result<TakenBase>>>,
        fork: Option<Fork>,
    ) -> Result<Self> {
        let now = line.context.clock.elapsed();
        let mut intake = Intake::new(position.offset, position.database, line.shared.policy);
        let writer = SpoolWriter::start(
            Arc::clone(&line.shared.folder),
            position.history.clone(),
            position.offset,
            line.sealer.files(),
            Arc::clone(&line.context.clock),
        );
        let awaited = storing.is_some().then(|| (position.history.clone(), position.offset));
        line.state.send_modify(|state| state.awaited = awaited);
        let header = SpoolHeader {
            format_version: SPOOL_VERSION,
            cluster: line.shared.cluster.clone(),
            parent: line.state.borrow().lineage.parent(&position.history),
            history: position.history,
            start: position.offset.saturating_add(1),
            database: position.database,
            slots: line.shard.borrow().slots.clone(),
            source: candidate.addr.clone(),
            server: candidate.server.into(),
            begun_at: line.context.clock.now(),
        };
        if let Some(offset) = *line.seal_by.borrow() {
            intake.seal_by(offset);
        }
        let spooled = writer.state();
        let mut session = Self {
            link: connection,
            source: candidate.addr.clone(),
            intake,
            steps: Vec::new(),
            header,
            fork: None,
            writer,
            spooled,
            storing,
            silence: Silence::default(),
            last_ack_at: None,
            last_tick_at: now,
            ack_wanted: None,
            stream_begun: false,
        };
        match fork {
            Some(fork) if fork.offset == position.offset => session.enter(&fork, line),
            Some(fork) => {
                session.intake.fork_at(fork.offset);
                session.fork = Some(fork);
            }
            None => {}
        }
        // Without it the first file could not be begun; why is told when the session ends.
        let _ = session.writer.begin(session.header.clone(), None).await;
        session.publish(line);
        Ok(session)
    }

    /// Goes over to the next history.
    fn enter(&mut self, fork: &Fork, line: &Line) {
        let parent = Parent { history: self.header.history.clone(), fork: fork.offset };
        self.write_down_if_empty(fork, line);
        line.state.send_modify(|state| state.lineage.add(&fork.history, &parent));
        let words = format!(
            "{} goes on as history {} from offset {} on (it was {})",
            self.source,
            fork.history,
            fork.offset.saturating_add(1),
            parent.history
        );
        line.shared.board.pin(NoticeKind::Fork, Some(&self.header.slots), words);
        line.shared.changed.notify_one();
        self.header.history = fork.history.clone();
        self.header.parent = Some(parent);
        self.header.begun_at = line.context.clock.now();
    }

    /// Writes down where a history comes from that ends before its first byte. No file is its own, and whoever takes this line over, or this agent after it
    /// was killed, would not find the way to the next one. The stream does not wait for it: a segment of the next one writes it down as well.
    fn write_down_if_empty(&self, fork: &Fork, line: &Line) {
        let Some(record) = record_of_empty(&self.header, fork) else { return };
        let shared = Arc::clone(&line.shared);
        tokio::spawn(async move {
            if let Err(error) = shared.repository.put_history(&shared.cluster, &record).await {
                tracing::info!(%error, "a history without a byte is written down with the next one");
            }
        });
    }

    /// Follows the stream until something comes between.
    pub(crate) async fn run(mut self, line: &mut Line) -> Result<End> {
        line.set_phase(if self.storing.is_some() { LinePhase::Base } else { LinePhase::Following });
        line.state.send_modify(|state| state.trouble = None);
        let words = format!("{} is followed from offset {} on", self.source, self.header.start);
        line.shared.board.pin(NoticeKind::Following, Some(&self.header.slots), words);
        let outcome = loop {
            match self.step(line).await {
                Ok(None) => {}
                Ok(Some(end)) => break Ok(end),
                Err(error) => break Err(error),
            }
        };
        self.close(line, outcome).await
    }

    async fn step(&mut self, line: &mut Line) -> Result<Option<End>> {
        let now = line.context.clock.elapsed();
        if now.saturating_sub(self.last_tick_at) >= TICK {
            self.last_tick_at = now;
            if let Some(end) = self.tick(line, now).await? {
                return Ok(Some(end));
            }
        }
        self.acknowledge(line, now).await?;
        let listens_from = line.context.clock.elapsed();
        let event = self.next_event(line).await;
        if matches!(event, Event::Read(_)) || self.storing.is_some() {
            self.silence.end();
        } else {
            let listened = line.context.clock.elapsed().saturating_sub(listens_from);
            self.silence.goes_on(listened, TICK);
        }
        match event {
            Event::Stop => return Ok(Some(End::Stopped)),
            Event::Read(bytes) => {
                let bytes = bytes?;
                if bytes.is_empty() {
                    return Err(self.link.closed());
                }
                self.take(line, bytes).await?;
            }
            Event::Stored(stored) => self.base_stored(line, *stored)?,
            Event::Spooled => {
                let failed = self.spooled.borrow_and_update().failed.clone();
                if let Some(why) = failed {
                    return Err(spool_failed(Some(&why)));
                }
            }
            Event::Sealed => take_notice(line)?,
            Event::SealBy => {
                if let Some(offset) = *line.seal_by.borrow_and_update() {
                    self.intake.seal_by(offset);
                }
                self.intake.tick(now, &mut self.steps);
                self.apply(line, Vec::new()).await?;
            }
            Event::Sampled(sampled) => {
                if sampled.history == self.header.history {
                    self.intake.sample(sampled.sample, &mut self.steps);
                    self.apply(line, Vec::new()).await?;
                }
            }
            Event::Tick => {}
        }
        Ok(None)
    }

    async fn next_event(&mut self, line: &mut Line) -> Event {
        let storing = async {
            match &mut self.storing {
                Some(task) => task.await.unwrap_or_else(|error| {
                    Err(Error::new(ErrorKind::Failed, format!("a worker ended: {error}")))
                }),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = line.stop.cancelled() => Event::Stop,
            stored = storing => Event::Stored(Box::new(stored)),
            Ok(()) = self.spooled.changed() => Event::Spooled,
            Ok(()) = line.seal_by.changed() => Event::SealBy,
            Some(sampled) = line.samples.recv() => Event::Sampled(sampled),
            read = self.link.read() => Event::Read(read),
            Ok(()) = line.sealer.state.changed() => Event::Sealed,
            () = line.context.clock.sleep(TICK) => Event::Tick,
        }
    }

    async fn take(&mut self, line: &mut Line, bytes: Vec<u8>) -> Result<()> {
        let now = line.context.clock.elapsed();
        if !self.stream_begun {
            self.stream_begun = true;
            if self.storing.is_none() {
                line.gets_on();
            }
        }
        let fed = self.intake.feed(&bytes, now, &mut self.steps);
        // What came before the bytes that make no sense is whole.
        self.apply(line, bytes).await?;
        fed.map_err(|error| self.link.senseless(error.to_string()))?;
        if let Some(wanted) = self.intake.take_ack_wanted() {
            self.ack_wanted = Some(wanted);
            self.last_ack_at = None;
            // A client may wait for it.
            if let Err(SpoolStopped) = self.writer.sync().await {
                return Err(self.spool_stopped());
            }
        }
        Ok(())
    }

    /// Does what the intake said.
    async fn apply(&mut self, line: &Line, bytes: Vec<u8>) -> Result<()> {
        let mut bytes = bytes;
        for step in std::mem::take(&mut self.steps) {
            let written = match step {
                Step::Bytes { range, safe_cut } if range == (0..bytes.len()) => {
                    self.writer.bytes(std::mem::take(&mut bytes), safe_cut).await
                }
                Step::Bytes { range, safe_cut } => {
                    let piece = bytes.get(range).unwrap_or_default().to_vec();
                    self.writer.bytes(piece, safe_cut).await
                }
                Step::Time(sample) => self.writer.time(sample).await,
                Step::Cut { end, database, fork, commands, full } => {
                    let before = PieceEnd { end, commands, full };
                    if fork && let Some(fork) = self.fork.take() {
                        self.enter(&fork, line);
                    }
                    self.header.start = end.saturating_add(1);
                    self.header.database = database;
                    self.header.slots = line.shard.borrow().slots.clone();
                    self.header.begun_at = line.context.clock.now();
                    self.writer.begin(self.header.clone(), Some(before)).await
                }
            };
            if let Err(SpoolStopped) = written {
                return Err(self.spool_stopped());
            }
        }
        Ok(())
    }

    fn spool_stopped(&self) -> Error {
        spool_failed(self.spooled.borrow().failed.as_deref())
    }

    async fn tick(&mut self, line: &mut Line, now: Duration) -> Result<Option<End>> {
        let waiting = line.sealer.waiting.load(Ordering::Relaxed);
        self.intake.set_patient(waiting >= PATIENT_FROM);
        self.intake.tick(now, &mut self.steps);
        self.apply(line, Vec::new()).await?;
        self.publish(line);
        let ahead = line.primary_offset.load(Ordering::Relaxed) > self.intake.received();
        let timeout = line.context.connector.timeout();
        let timeout = if ahead { timeout.min(STALLED) } else { timeout };
        if self.silence.length() > timeout {
            return Err(self.link.silent(timeout));
        }
        let gone = line.shard.has_changed().unwrap_or(false)
            && line.shard.borrow_and_update().nodes().all(|node| node.addr != self.source);
        Ok((gone || line.shared.folder.is_full()).then_some(End::Again))
    }

    /// Acknowledges, if it is time to or if the server waits for it.
    async fn acknowledge(&mut self, line: &Line, now: Duration) -> Result<()> {
        let value = self.acknowledged(line);
        // A diskless primary begins its stream at an acknowledgement, and misses those that come before it has seen its child end.
        let every = if self.stream_begun { ACK_EVERY } else { TICK };
        let due = self.last_ack_at.is_none_or(|last| now.saturating_sub(last) >= every);
        let awaited = self.ack_wanted.is_some_and(|wanted| value >= wanted);
        if due || awaited {
            self.link.acknowledge(value).await?;
            self.last_ack_at = Some(now);
            self.ack_wanted.take_if(|_| awaited);
        }
        Ok(())
    }

    /// What may be acknowledged. While a base is being stored nothing is, but the server waits for a word to begin the stream.
    fn acknowledged(&self, line: &Line) -> u64 {
        let safe_cut = self.intake.safe_cut();
        let value = match line.shared.ack {
            Ack::Received => return safe_cut,
            _ if self.storing.is_some() => return 0,
            Ack::Local => self.spooled.borrow().durable,
            Ack::Repo => line.state.borrow().complete.as_ref().map_or(0, |(_, offset)| *offset),
        };
        value.min(safe_cut)
    }

    fn base_stored(&mut self, line: &mut Line, stored: Result<TakenBase>) -> Result<()> {
        self.storing = None;
        let base = stored?;
        line.progress.enter(Phase::Done);
        let words = format!("a base at offset {} of {} was stored", base.offset, base.history);
        line.shared.board.pin(NoticeKind::Base, Some(&self.header.slots), words);
        line.state.send_modify(|state| state.go_on_from(base));
        take_notice(line)?;
        line.gets_on();
        line.set_phase(LinePhase::Following);
        self.publish(line);
        line.shared.changed.notify_one();
        Ok(())
    }

    fn publish(&self, line: &Line) {
        let (received, durable) = (self.intake.received(), self.spooled.borrow().durable);
        let fresh = |state: &LineState| {
            state.received == received
                && state.durable == durable
                && state.source.as_ref() == Some(&self.source)
                && state.history.as_ref() == Some(&self.header.history)
        };
        line.state.send_if_modified(|state| {
            if fresh(state) {
                return false;
            }
            state.received = received;
            state.durable = durable;
            state.source = Some(self.source.clone());
            state.history = Some(self.header.history.clone());
            true
        });
    }

    /// Ends the session in order: what was received is made durable, and the line knows where it is.
    async fn close(mut self, line: &mut Line, outcome: Result<End>) -> Result<End> {
        // The server is free of its replica before anything else happens.
        drop(self.link);
        let state = self.writer.end().await;
        let reached = match state.failed {
            Some(_) => Position { history: state.history, offset: state.durable, database: None },
            None => {
                let (offset, database) = self.intake.given_out();
                Position { history: self.header.history.clone(), offset, database }
            }
        };
        // What lies behind the last safe cut is asked for again.
        line.state.send_modify(|state| {
            state.source = None;
            state.received = reached.offset;
            state.durable = reached.offset;
        });
        if let Some(storing) = self.storing.take() {
            let stored = storing.await.unwrap_or_else(|error| {
                Err(Error::new(ErrorKind::Failed, format!("a worker ended: {error}")))
            });
            let base = stored?;
            line.position = Some(reached);
            line.progress.enter(Phase::Done);
            line.state.send_modify(|state| state.go_on_from(base));
            let sealed = line.sealer.state.borrow_and_update().clone();
            note_sealed(&line.state, sealed.last);
            line.gets_on();
        } else {
            let state = line.state.borrow();
            // Without the base before this stream no log leads here: the line stays where it was, and takes another one.
            if state.base.is_some() && state.awaited.is_none() {
                line.position = Some(reached);
            }
        }
        outcome
    }
}

/// What is to be written down of a history that the stream leaves at `fork`, if that is where it began.
fn record_of_empty(header: &SpoolHeader, fork: &Fork) -> Option<HistoryRecord> {
    let parent = header.parent.clone().filter(|parent| parent.fork == fork.offset)?;
    Some(history_record(header, &header.history, Some(parent)))
}

/// Takes notice of what the sealer has reached. In a job that does not wait for the repository, trouble there ends it.
fn take_notice(line: &mut Line) -> Result<()> {
    let sealed = line.sealer.state.borrow_and_update().clone();
    note_sealed(&line.state, sealed.last);
    match sealed.trouble.filter(|_| line.shared.patience == Patience::None) {
        Some(trouble) => Err(Error::new(ErrorKind::Repository, trouble.to_string())),
        None => Ok(()),
    }
}

/// Takes notice of a segment that was sealed.
pub(crate) fn note_sealed(line: &watch::Sender<LineState>, last: Option<(ReplId, u64)>) {
    let Some(last) = last else { return };
    line.send_if_modified(|state| {
        let advances = state.complete.as_ref().is_some_and(|complete| {
            let leads_there = state.awaited.as_ref().is_none_or(|(history, offset)| {
                last.0 == complete.0 && (last.0 != *history || last.1 <= *offset)
            });
            leads_there && state.lineage.advances(complete, &last)
        });
        if advances {
            state.complete = Some(last);
        }
        advances
    });
}

fn spool_failed(why: Option<&std::io::Error>) -> Error {
    use std::io::ErrorKind as Io;
    let full = why.is_some_and(|why| matches!(why.kind(), Io::StorageFull | Io::QuotaExceeded));
    let kind = if full { ErrorKind::Full } else { ErrorKind::Failed };
    let why = why.map_or_else(|| "it takes no more".to_owned(), ToString::to_string);
    Error::new(kind, format!("the spool can't be written: {why}"))
        .hint("free some space there, or name another folder: --spool DIR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_that_ends_where_it_began_is_written_down_by_itself() {
        let id = |letter: &str| -> ReplId { letter.repeat(40).parse().unwrap() };
        let parent = Parent { history: id("a"), fork: 100 };
        let header = |parent: Option<&Parent>| SpoolHeader {
            format_version: SPOOL_VERSION,
            cluster: "main".to_owned(),
            history: id("b"),
            parent: parent.cloned(),
            start: 101,
            database: None,
            slots: slotkeep_model::SlotSet::full(),
            source: "127.0.0.1:1".parse().unwrap(),
            server: slotkeep_format::manifest::ServerRecord {
                product: slotkeep_format::manifest::ProductRecord::Valkey,
                version: "9.1.2".to_owned(),
            },
            begun_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let left_at = |offset: u64| Fork { history: id("c"), offset };
        let record = record_of_empty(&header(Some(&parent)), &left_at(100)).unwrap();
        assert_eq!((record.history, record.parent.as_ref()), (id("b"), Some(&parent)));
        // Its own segments write it down.
        assert_eq!(record_of_empty(&header(Some(&parent)), &left_at(128)), None);
        assert_eq!(record_of_empty(&header(None), &left_at(100)), None);
    }

    #[test]
    fn what_is_sealed_behind_a_base_that_is_not_stored_is_not_complete() {
        let id = |letter: &str| -> ReplId { letter.repeat(40).parse().unwrap() };
        let (old, new) = (id("a"), id("b"));
        let mut state = LineState { complete: Some((old.clone(), 1000)), ..LineState::default() };
        state.lineage.add(&new, &Parent { history: old.clone(), fork: 950 });
        let line = watch::channel(state).0;
        let complete_after = |awaited: Option<(&ReplId, u64)>, sealed: (&ReplId, u64)| {
            let before = line.borrow().complete.clone();
            let awaited = awaited.map(|(history, offset)| (history.clone(), offset));
            line.send_modify(|state| state.awaited = awaited);
            note_sealed(&line, Some((sealed.0.clone(), sealed.1)));
            let mut after = None;
            line.send_modify(|state| {
                after = std::mem::replace(&mut state.complete, before);
            });
            after.unwrap()
        };
        // The base begins another history, or the same one behind a gap; what was held before is still being sealed.
        assert_eq!(complete_after(Some((&new, 1400)), (&new, 1460)), (old.clone(), 1000));
        assert_eq!(complete_after(Some((&old, 4000)), (&old, 4100)), (old.clone(), 1000));
        assert_eq!(complete_after(Some((&old, 4000)), (&old, 1100)), (old.clone(), 1100));
        assert_eq!(complete_after(Some((&new, 1400)), (&old, 1100)), (old.clone(), 1100));
        assert_eq!(complete_after(None, (&new, 1460)), (new, 1460));
    }
}
