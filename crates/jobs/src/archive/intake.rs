//! What to do with the bytes of a stream: where to cut it into pieces, which time samples belong to which piece, what the server
//! asks to be acknowledged.
//!
//! Invariants: a piece begins behind a safe cut and ends with one; the pieces in a row are the bytes that were fed; a sample is given
//! to a piece only if it may stand in its segment's record. Bytes in, steps out: no I/O and no clock.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use slotkeep_format::TimeSample;
use slotkeep_model::ReplOffset;
use slotkeep_wire::stream::{Splitter, StreamError, StreamStart};
use thiserror::Error;

/// Samples that wait for their bytes; when there are more, the oldest are forgotten.
const MOST_PENDING: usize = 1024;

/// When a piece is long enough to be sealed.
#[derive(Clone, Copy, Debug)]
pub struct SealPolicy {
    /// So long after its first command.
    pub after: Duration,
    /// So long after its first byte, if it holds nothing but heartbeats.
    pub quiet_after: Duration,
    /// At so many bytes. A transaction or command that is longer makes a longer piece.
    pub size_bytes: u64,
}

impl Default for SealPolicy {
    fn default() -> Self {
        Self { after: Duration::from_secs(10), quiet_after: Duration::from_secs(60), size_bytes: 16 << 20 }
    }
}

/// What is to be done next, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// These bytes of the input belong to the current piece.
    Bytes {
        range: Range<usize>,
        /// The last safe cut once they are taken in.
        safe_cut: u64,
    },
    /// This sample belongs to the current piece.
    Time(TimeSample),
    /// The piece ends here, and the next one begins.
    Cut {
        /// The last byte of the piece.
        end: u64,
        /// The database that is selected there, if it is known.
        database: Option<u32>,
        /// Whether the history ends here as well.
        fork: bool,
        /// How many commands the piece holds.
        commands: u64,
        /// Whether its size ended it: more comes than its age allows for.
        full: bool,
    },
}

/// Why a stream can't go on.
#[derive(Debug, Error)]
pub(crate) enum IntakeError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the histories part at offset {0}, which is not between two commands")]
    ForkInside(u64),
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Intake {
    splitter: Splitter,
    policy: SealPolicy,
    /// The first byte of the current piece.
    start: u64,
    first_byte_at: Option<Duration>,
    first_command_at: Option<Duration>,
    /// Commands of the current piece that came to their end.
    commands: u64,
    /// Age alone does not end a piece: what has been cut is not sealed fast enough.
    patient: bool,
    /// The piece ends at the first safe cut from here on.
    seal_from: Option<u64>,
    /// The history ends here.
    fork: Option<u64>,
    ack_wanted: Option<u64>,
    pending: VecDeque<TimeSample>,
    last_sample: Option<TimeSample>,
    /// The last safe cut of the bytes that steps have given out, and the database that is selected there.
    given_out: (u64, Option<u32>),
}

impl Intake {
    /// Begins right behind `offset`, which is a safe cut.
    pub(crate) fn new(offset: u64, database: Option<u32>, policy: SealPolicy) -> Self {
        let start = StreamStart { offset: ReplOffset(offset), db: database, in_transaction: false };
        Self {
            splitter: Splitter::new(start),
            policy,
            start: offset.saturating_add(1),
            first_byte_at: None,
            first_command_at: None,
            commands: 0,
            patient: false,
            seal_from: None,
            fork: None,
            ack_wanted: None,
            pending: VecDeque::new(),
            last_sample: None,
            given_out: (offset, database),
        }
    }

    /// The last byte taken.
    pub(crate) const fn received(&self) -> u64 {
        self.splitter.offset().0
    }

    /// The last place where a recovery may end.
    pub(crate) const fn safe_cut(&self) -> u64 {
        self.splitter.safe_cut().0
    }

    /// The database selected at the last safe cut; `None` if that is not known.
    pub(crate) fn database(&self) -> Option<u32> {
        if self.splitter.in_transaction() { None } else { self.splitter.db() }
    }

    /// The last safe cut up to which bytes were given out, and the database selected there, if it is known. Of a stream that can't go on
    /// there may be more in what was fed.
    pub(crate) const fn given_out(&self) -> (u64, Option<u32>) {
        self.given_out
    }

    /// Bytes of the current piece.
    pub(crate) const fn piece_bytes(&self) -> u64 {
        self.received().saturating_add(1).saturating_sub(self.start)
    }

    /// The offset that the server wants to see acknowledged, if it asked since the last call.
    pub(crate) const fn take_ack_wanted(&mut self) -> Option<u64> {
        self.ack_wanted.take()
    }

    /// Ends a piece at the first safe cut at or behind `offset`.
    pub(crate) fn seal_by(&mut self, offset: u64) {
        self.seal_from = Some(self.seal_from.map_or(offset, |earlier| earlier.max(offset)));
    }

    /// Ends the history behind that byte, which has not been taken yet.
    pub(crate) const fn fork_at(&mut self, offset: u64) {
        self.fork = Some(offset);
    }

    /// Whether pieces may grow beyond their age.
    pub(crate) const fn set_patient(&mut self, patient: bool) {
        self.patient = patient;
    }

    /// Takes the next bytes. When the stream can't go on, what came before that is given out all the same: as far as commands are whole.
    pub(crate) fn feed(
        &mut self,
        input: &[u8],
        now: Duration,
        steps: &mut Vec<Step>,
    ) -> Result<(), IntakeError> {
        if !input.is_empty() {
            self.first_byte_at.get_or_insert(now);
        }
        let mut done = 0;
        let mut whole = Whole { taken: 0, safe_cut: self.safe_cut(), database: self.database() };
        let outcome = self.feed_commands(input, now, (&mut done, &mut whole), steps);
        if outcome.is_ok() {
            whole = Whole { taken: input.len(), safe_cut: self.safe_cut(), database: self.database() };
        }
        self.give_out(done, whole, steps);
        if let Err(IntakeError::ForkInside(fork)) = outcome {
            // From before it the same would come again; from behind it the server refuses, and the line begins anew.
            self.given_out = (fork.saturating_add(1), None);
        }
        outcome?;
        self.release(self.received(), steps);
        Ok(())
    }

    fn feed_commands(
        &mut self,
        input: &[u8],
        now: Duration,
        (done, whole): (&mut usize, &mut Whole),
        steps: &mut Vec<Step>,
    ) -> Result<(), IntakeError> {
        let mut rest = input;
        while let Some(seen) = self.next_command(&mut rest)? {
            self.commands = self.commands.saturating_add(1);
            if seen.carries_data {
                self.first_command_at.get_or_insert(now);
            }
            if let Some(offset) = seen.acknowledge {
                self.ack_wanted = Some(offset);
            }
            let is_cut = self.safe_cut() == self.received() && self.is_due(now);
            self.check_fork(is_cut)?;
            let taken = input.len().saturating_sub(rest.len());
            *whole = Whole { taken, safe_cut: self.safe_cut(), database: self.database() };
            if is_cut {
                self.give_out(*done, *whole, steps);
                *done = taken;
                self.cut(steps);
                if !rest.is_empty() {
                    self.first_byte_at = Some(now);
                }
            }
        }
        self.check_fork(false)
    }

    /// Refuses a fork that has been reached, unless a piece ends there.
    fn check_fork(&self, is_cut: bool) -> Result<(), IntakeError> {
        let received = self.received();
        match self.fork {
            Some(fork) if fork < received || (fork == received && !is_cut) => {
                Err(IntakeError::ForkInside(fork))
            }
            _ => Ok(()),
        }
    }

    /// Gives out the bytes of the input from `done` on that are whole.
    fn give_out(&mut self, done: usize, whole: Whole, steps: &mut Vec<Step>) {
        if done < whole.taken {
            steps.push(Step::Bytes { range: done..whole.taken, safe_cut: whole.safe_cut });
            self.given_out = (whole.safe_cut, whole.database);
        }
    }

    fn next_command(&mut self, rest: &mut &[u8]) -> Result<Option<Seen>, IntakeError> {
        let Some(command) = self.splitter.next(rest)? else { return Ok(None) };
        let asks = command.asks_for_ack();
        Ok(Some(Seen {
            acknowledge: asks.then(|| command.start.0.saturating_sub(1)),
            carries_data: !asks && !command.is("PING") && !command.is("SELECT"),
        }))
    }

    /// Takes a sample of the server's clock and offset.
    pub(crate) fn sample(&mut self, sample: TimeSample, steps: &mut Vec<Step>) {
        if self.pending.len() == MOST_PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back(sample);
        self.release(self.received(), steps);
    }

    /// Looks whether time alone ends the piece.
    pub(crate) fn tick(&mut self, now: Duration, steps: &mut Vec<Step>) {
        if self.received() >= self.start && self.safe_cut() == self.received() && self.is_due(now) {
            self.cut(steps);
        }
        if self.seal_from.is_some_and(|from| from <= self.safe_cut()) && self.piece_bytes() == 0 {
            self.seal_from = None;
        }
    }

    /// Whether the piece is to end at the byte taken last, a safe cut.
    fn is_due(&self, now: Duration) -> bool {
        let older = |since: Option<Duration>, limit: Duration| {
            since.is_some_and(|since| now.saturating_sub(since) >= limit)
        };
        self.fork == Some(self.received())
            || self.piece_bytes() >= self.policy.size_bytes
            || self.seal_from.is_some_and(|from| from <= self.received())
            || (!self.patient
                && (older(self.first_command_at, self.policy.after)
                    || older(self.first_byte_at, self.policy.quiet_after)))
    }

    fn cut(&mut self, steps: &mut Vec<Step>) {
        let end = self.received();
        self.release(end, steps);
        let fork = self.fork.take_if(|fork| *fork == end).is_some();
        if fork {
            // They tell of bytes that the history left behind had there, and this one has not.
            self.pending.clear();
        }
        let full = self.piece_bytes() >= self.policy.size_bytes;
        let commands = std::mem::take(&mut self.commands);
        steps.push(Step::Cut { end, database: self.splitter.db(), fork, commands, full });
        self.start = end.saturating_add(1);
        self.first_byte_at = None;
        self.first_command_at = None;
        self.seal_from.take_if(|from| *from <= end);
        // The next piece begins with what is known of its beginning.
        if let Some(sample) = self.last_sample.filter(|sample| sample.offset == end) {
            steps.push(Step::Time(sample));
        }
    }

    /// Gives out the samples whose bytes have come, up to that offset.
    fn release(&mut self, offset: u64, steps: &mut Vec<Step>) {
        while let Some(sample) = self.pending.pop_front_if(|sample| sample.offset <= offset) {
            if sample.offset.saturating_add(1) >= self.start {
                self.last_sample = Some(sample);
                steps.push(Step::Time(sample));
            }
        }
    }
}

/// How far an input makes sense.
#[derive(Clone, Copy)]
struct Whole {
    /// So many bytes of it.
    taken: usize,
    /// The last safe cut there.
    safe_cut: u64,
    /// The database selected there.
    database: Option<u32>,
}

/// What matters of a command.
struct Seen {
    acknowledge: Option<u64>,
    carries_data: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

    const fn policy() -> SealPolicy {
        SealPolicy {
            after: Duration::from_secs(10),
            quiet_after: Duration::from_secs(60),
            size_bytes: 1 << 20,
        }
    }

    fn command(words: &[&str]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
        }
        bytes
    }

    fn feed(intake: &mut Intake, bytes: &[u8], at_s: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        intake.feed(bytes, Duration::from_secs(at_s), &mut steps).unwrap();
        steps
    }

    fn tick(intake: &mut Intake, at_s: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        intake.tick(Duration::from_secs(at_s), &mut steps);
        steps
    }

    fn sample(offset: u64) -> TimeSample {
        TimeSample { from_ms: 5, until_ms: 6, offset }
    }

    #[test]
    fn data_is_sealed_by_its_age_and_silence_later() {
        let mut intake = Intake::new(100, Some(0), policy());
        assert!(tick(&mut intake, 0).is_empty(), "nothing to seal");
        feed(&mut intake, PING, 1);
        assert!(tick(&mut intake, 60).is_empty());
        assert_eq!(
            tick(&mut intake, 61),
            [Step::Cut { end: 114, database: Some(0), fork: false, commands: 1, full: false }]
        );
        feed(&mut intake, &command(&["SET", "k", "v"]), 70);
        assert!(tick(&mut intake, 79).is_empty());
        assert_eq!(tick(&mut intake, 80).len(), 1);
        assert_eq!(intake.piece_bytes(), 0);
    }

    #[test]
    fn a_piece_never_ends_inside_a_transaction() {
        let mut intake = Intake::new(0, None, policy());
        feed(&mut intake, &command(&["MULTI"]), 0);
        feed(&mut intake, &command(&["SET", "k", "v"]), 0);
        assert!(tick(&mut intake, 100).is_empty());
        assert_eq!(intake.safe_cut(), 0);
        let steps = feed(&mut intake, &[command(&["EXEC"]), PING.to_vec()].concat(), 100);
        let end = intake.received() - PING.len() as u64;
        assert!(matches!(steps[1], Step::Cut { end: found, .. } if found == end), "{steps:?}");
        assert_eq!(intake.piece_bytes(), PING.len() as u64);
    }

    #[test]
    fn a_piece_ends_at_its_size_and_where_it_is_asked_to() {
        let mut intake = Intake::new(0, None, SealPolicy { size_bytes: 20, ..policy() });
        assert_eq!(feed(&mut intake, PING, 0).len(), 1);
        assert!(matches!(feed(&mut intake, PING, 0)[1], Step::Cut { end: 28, .. }));
        intake.seal_by(30);
        assert!(matches!(feed(&mut intake, PING, 0)[1], Step::Cut { end: 42, .. }));
        feed(&mut intake, PING, 0);
        intake.seal_by(50);
        assert!(matches!(tick(&mut intake, 0)[..], [Step::Cut { end: 56, .. }]));
    }

    #[test]
    fn a_history_ends_at_its_fork() {
        let mut intake = Intake::new(0, Some(3), policy());
        intake.fork_at(28);
        let steps = feed(&mut intake, &PING.repeat(3), 0);
        assert_eq!(
            steps,
            [
                Step::Bytes { range: 0..28, safe_cut: 28 },
                Step::Cut { end: 28, database: Some(3), fork: true, commands: 2, full: false },
                Step::Bytes { range: 28..42, safe_cut: 42 },
            ]
        );
        let mut intake = Intake::new(0, None, policy());
        intake.fork_at(20);
        let outcome = intake.feed(&PING.repeat(2), Duration::ZERO, &mut Vec::new());
        assert!(matches!(outcome, Err(IntakeError::ForkInside(_))));
    }

    #[test]
    fn what_came_before_the_fork_inside_a_command_is_given_out_and_the_line_begins_anew() {
        for parts in
            [vec![&PING.repeat(2)[..]], vec![&PING.repeat(2)[..22]], vec![PING, &PING[..8], &PING[8..]]]
        {
            let mut intake = Intake::new(0, None, policy());
            intake.fork_at(20);
            let mut steps = Vec::new();
            let refused = parts.iter().any(|part| intake.feed(part, Duration::ZERO, &mut steps).is_err());
            assert!(refused);
            assert_eq!(steps[0], Step::Bytes { range: 0..14, safe_cut: 14 });
            assert_eq!(intake.given_out(), (21, None));
        }
    }

    #[test]
    fn what_came_before_senseless_bytes_is_given_out() {
        let input = [&command(&["SET", "a", "1"])[..], PING, b"-NOPERM no\r\n"].concat();
        let good = input.len() - 12;
        for split in 0..input.len() {
            let mut intake = Intake::new(0, Some(0), policy());
            let mut given = 0;
            let (mut failed, mut steps) = (false, Vec::new());
            for part in [&input[..split], &input[split..]] {
                failed |= intake.feed(part, Duration::ZERO, &mut steps).is_err();
                for step in steps.drain(..) {
                    if let Step::Bytes { range, .. } = step {
                        given += range.len();
                    }
                }
                if failed {
                    break;
                }
            }
            assert!(failed && given >= good, "split at {split}: {given}");
            assert_eq!(intake.given_out(), (good as u64, Some(0)));
        }
    }

    #[test]
    fn samples_of_the_history_before_end_with_it() {
        let mut intake = Intake::new(0, None, policy());
        intake.fork_at(28);
        let mut steps = Vec::new();
        intake.sample(sample(28), &mut steps);
        intake.sample(sample(60), &mut steps);
        let steps = feed(&mut intake, &PING.repeat(6), 0);
        assert!(steps.contains(&Step::Time(sample(28))), "{steps:?}");
        assert!(!steps.contains(&Step::Time(sample(60))), "{steps:?}");
    }

    #[test]
    fn samples_wait_for_their_bytes_and_stay_with_their_piece() {
        let mut intake = Intake::new(0, None, policy());
        let mut steps = Vec::new();
        intake.sample(sample(14), &mut steps);
        assert!(steps.is_empty());
        assert_eq!(feed(&mut intake, PING, 0)[1], Step::Time(sample(14)));
        intake.seal_by(14);
        let steps = tick(&mut intake, 0);
        assert_eq!(steps[1], Step::Time(sample(14)), "the next piece knows its beginning");
        let mut steps = Vec::new();
        intake.sample(sample(13), &mut steps);
        assert!(steps.is_empty(), "its piece is gone");
    }

    #[test]
    fn the_acknowledgement_asked_for_is_that_before_the_question() {
        let mut intake = Intake::new(0, None, policy());
        feed(&mut intake, &[PING, &command(&["REPLCONF", "GETACK", "*"])].concat(), 0);
        assert_eq!(intake.take_ack_wanted(), Some(14));
        assert_eq!(intake.take_ack_wanted(), None);
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let plain = prop_oneof![
            Just(PING.to_vec()),
            "[a-z]{0,40}".prop_map(|value| command(&["SET", "key", &value])),
            Just(command(&["REPLCONF", "GETACK", "*"])),
        ];
        let transaction = proptest::collection::vec(plain.clone(), 0..4)
            .prop_map(|inside| [command(&["MULTI"]), inside.concat(), command(&["EXEC"])].concat());
        proptest::collection::vec(prop_oneof![3 => plain, 1 => transaction], 1..30)
            .prop_map(|commands| commands.concat())
    }

    proptest! {
        #[test]
        fn pieces_are_the_stream_and_end_at_safe_cuts(
            stream in stream(),
            chunk in 1_usize..60,
            size in 1_u64..200,
            after in 0_u64..5,
        ) {
            let policy = SealPolicy { after: Duration::from_secs(after), size_bytes: size, ..policy() };
            let mut intake = Intake::new(1000, None, policy);
            let mut pieces = vec![Vec::new()];
            let mut counts = Vec::new();
            for (second, bytes) in stream.chunks(chunk).enumerate() {
                let mut steps = Vec::new();
                let now = Duration::from_secs(second as u64);
                intake.feed(bytes, now, &mut steps).unwrap();
                intake.sample(sample(intake.received()), &mut steps);
                intake.tick(now, &mut steps);
                for step in steps {
                    match step {
                        Step::Bytes { range, .. } => pieces.last_mut().unwrap().extend(&bytes[range]),
                        Step::Time(_) => {}
                        Step::Cut { end, commands, full, .. } => {
                            prop_assert_eq!(full, pieces.last().unwrap().len() as u64 >= size);
                            counts.push(commands);
                            let held: usize = pieces.iter().map(Vec::len).sum();
                            prop_assert_eq!(end, 1000 + held as u64);
                            pieces.push(Vec::new());
                        }
                    }
                }
            }
            prop_assert_eq!(pieces.concat(), stream);
            let mut at = 1000;
            for (piece, wanted) in pieces.iter().zip(counts) {
                let start = StreamStart { offset: ReplOffset(at), db: None, in_transaction: false };
                let mut splitter = Splitter::new(start);
                let mut rest = piece.as_slice();
                let mut found = 0;
                while splitter.next(&mut rest).unwrap().is_some() {
                    found += 1;
                }
                prop_assert_eq!(found, wanted);
                at += piece.len() as u64;
                prop_assert_eq!(splitter.safe_cut().0, at);
            }
        }
    }
}
