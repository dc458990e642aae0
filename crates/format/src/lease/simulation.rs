//! Many processes, one line, a store that loses requests and answers and delivers some late, clocks at different speeds, pauses and
//! crashes at every step; from a seed.

use std::collections::BTreeMap;

use super::*;

const DURATION_MS: u64 = 10_000;

fn process(name: &str) -> Holder {
    Holder { process: name.to_owned(), agent: None, duration_ms: DURATION_MS }
}

/// A small generator of random numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.roll(chances) == 0
    }
}

/// A write to the store.
#[derive(Clone, Debug)]
enum Write {
    Lease(Box<LeaseRecord>),
    /// Start, end, and the epoch it was written under.
    Segment(u64, u64, u64),
}

#[derive(Default)]
struct Store {
    leases: BTreeMap<u64, LeaseRecord>,
    segments: BTreeMap<(u64, u64), u64>,
    /// Requests that are still under way although whoever sent them has given up: when they arrive.
    late: Vec<(u64, Write)>,
}

impl Store {
    fn apply(&mut self, write: &Write) -> bool {
        match write {
            Write::Lease(record) => {
                let free = !self.leases.contains_key(&record.number);
                if free {
                    self.leases.insert(record.number, (**record).clone());
                }
                free || self.leases.get(&record.number) == Some(&**record)
            }
            Write::Segment(start, end, epoch) => {
                self.segments.entry((*start, *end)).or_insert(*epoch);
                true
            }
        }
    }

    fn newest(&self) -> Option<LeaseRecord> {
        self.leases.values().next_back().cloned()
    }

    /// How far the line is covered from its beginning.
    fn end(&self) -> u64 {
        let mut end = 0;
        for (start, until) in self.segments.keys() {
            if *start <= end {
                end = end.max(*until);
            }
        }
        end
    }

    /// Some answer, or none: nothing happened, or it did, or it will.
    fn ask(&mut self, write: Write, now_ms: u64, dice: &mut Dice) -> Option<bool> {
        match dice.roll(12) {
            0 => None,
            1 => {
                self.apply(&write);
                None
            }
            2 => {
                self.late.push((now_ms + dice.roll(3 * DURATION_MS), write));
                None
            }
            _ => Some(self.apply(&write)),
        }
    }
}

/// Where an agent is between two requests.
#[derive(Clone, Debug)]
enum At {
    Looking,
    Deciding,
    /// Created, not yet confirmed.
    Made(Box<LeaseRecord>, u64),
    /// Confirmed; has not looked how far the line goes.
    New,
    /// Holds, and the line stands here.
    Writing(u64),
    /// Has written this much, not yet confirmed.
    Wrote(u64, u64),
}

struct Agent {
    claim: LeaseClaim,
    at: At,
    /// Thousandths of the true speed.
    speed: u64,
    ahead_ms: u64,
    asleep_until_ms: u64,
    wakes_own_ms: u64,
}

impl Agent {
    fn new(holder: &str, dice: &mut Dice) -> Self {
        Self {
            claim: LeaseClaim::new(process(holder)),
            at: At::Looking,
            speed: 950 + dice.roll(101),
            ahead_ms: dice.roll(1_000_000),
            asleep_until_ms: 0,
            wakes_own_ms: 0,
        }
    }

    fn clock(&self, now_ms: u64) -> u64 {
        now_ms * self.speed / 1000 + self.ahead_ms
    }
}

#[derive(Default)]
struct Outcome {
    commits: Vec<(u64, u64, u64)>,
    epochs: u64,
}

struct World {
    store: Store,
    dice: Dice,
    outcome: Outcome,
    now_ms: u64,
}

impl World {
    fn act(&mut self, agent: &mut Agent) {
        let own = agent.clock(self.now_ms);
        agent.at = match agent.at.clone() {
            At::Looking => {
                agent.claim.observe(self.store.newest(), own);
                At::Deciding
            }
            At::Deciding => match agent.claim.next(own) {
                LeaseStep::Wait { until_ms } => {
                    agent.wakes_own_ms = until_ms;
                    At::Looking
                }
                LeaseStep::Create(record) => {
                    match self.store.ask(Write::Lease(record.clone()), self.now_ms, &mut self.dice) {
                        Some(true) => At::Made(record, own),
                        Some(false) | None => {
                            agent.claim.lost();
                            At::Looking
                        }
                    }
                }
            },
            At::Made(record, sent_ms) => {
                if self.store.newest().as_ref() == Some(&*record) {
                    self.outcome.epochs = self.outcome.epochs.max(record.epoch);
                    agent.claim.created(*record, sent_ms);
                    At::New
                } else {
                    agent.claim.lost();
                    At::Looking
                }
            }
            At::New => At::Writing(self.store.end()),
            At::Writing(end) => match (agent.claim.next(own), agent.claim.held(own)) {
                (LeaseStep::Wait { .. }, Some(record)) => {
                    let until = end + 1 + self.dice.roll(5);
                    let write = Write::Segment(end, until, record.epoch);
                    match self.store.ask(write, self.now_ms, &mut self.dice) {
                        Some(_) => At::Wrote(end, until),
                        None => At::Writing(end),
                    }
                }
                (LeaseStep::Create(_), _) => At::Deciding,
                (LeaseStep::Wait { .. }, None) => At::Looking,
            },
            // The clock is not asked: confirming needs none.
            At::Wrote(start, end) => {
                let newest = self.store.newest();
                let held = agent.claim.held.as_ref().map(|held| held.record.clone());
                match held {
                    Some(record) if newest.as_ref() == Some(&record) => {
                        self.outcome.commits.push((start, end, record.epoch));
                        At::Writing(end)
                    }
                    _ => {
                        agent.claim.lost();
                        At::Looking
                    }
                }
            }
        };
    }

    fn deliver(&mut self) {
        let now_ms = self.now_ms;
        let (due, later) =
            std::mem::take(&mut self.store.late).into_iter().partition(|(at, _)| *at <= now_ms);
        self.store.late = later;
        let due: Vec<(u64, Write)> = due;
        for (_, write) in due {
            self.store.apply(&write);
        }
    }
}

fn run(seed: u64) -> Outcome {
    let mut world =
        World { store: Store::default(), dice: Dice(seed), outcome: Outcome::default(), now_ms: 0 };
    let mut agents: Vec<Agent> =
        (0..3).map(|number| Agent::new(&format!("{number}"), &mut world.dice)).collect();
    for step in 0..600 {
        world.now_ms += world.dice.roll(400);
        world.deliver();
        let chosen = usize::try_from(world.dice.roll(3)).unwrap();
        if world.dice.one_in(60) {
            // Killed, and started anew: it knows nothing of what it had begun.
            agents[chosen] = Agent::new(&format!("{chosen}-{step}"), &mut world.dice);
        } else if world.dice.one_in(40) {
            agents[chosen].asleep_until_ms = world.now_ms + world.dice.roll(4 * DURATION_MS);
        }
        let awake = agents[chosen].asleep_until_ms <= world.now_ms
            && agents[chosen].wakes_own_ms <= agents[chosen].clock(world.now_ms);
        if awake {
            world.act(&mut agents[chosen]);
        }
        let holders =
            agents.iter().filter(|agent| agent.claim.held(agent.clock(world.now_ms)).is_some()).count();
        assert!(holders <= 1, "seed {seed}, step {step}: {holders} hold it");
    }
    check(seed, &world);
    world.outcome
}

fn check(seed: u64, world: &World) {
    let mut commits = world.outcome.commits.clone();
    assert!(commits.is_sorted_by_key(|(_, _, epoch)| *epoch), "seed {seed}: an old epoch after a new one");
    commits.sort_unstable();
    for pair in commits.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "seed {seed}: {:?} and {:?} were both committed", pair[0], pair[1]);
    }
    for (start, end, _) in &commits {
        assert!(world.store.segments.contains_key(&(*start, *end)), "seed {seed}: {start}..{end} is lost");
        assert!(world.store.end() >= *end, "seed {seed}: a gap before {end}");
    }
}

#[test]
fn no_two_commit_one_range_and_nothing_committed_is_lost() {
    let (mut commits, mut epochs) = (0, 0);
    for seed in 0..4000 {
        let outcome = run(seed);
        commits += outcome.commits.len();
        epochs += outcome.epochs;
    }
    // The lease changes hands often, and work is done: what was checked did happen.
    assert!(commits > 4000 * 10, "{commits}");
    assert!(epochs > 4000 * 3, "{epochs}");
}

#[test]
fn a_record_reads_as_it_was_written() {
    let mut claim = LeaseClaim::new(process("a"));
    claim.observe(None, 5);
    let LeaseStep::Create(record) = claim.next(5) else { panic!("it is free") };
    assert_eq!(LeaseRecord::parse(&record.render().unwrap()).unwrap(), *record);
    assert!(claim.held(5).is_none());
    claim.created(*record, 5);
    assert_eq!(claim.held(5 + DURATION_MS * 7 / 8 - 1).unwrap().epoch, 1);
    assert!(claim.held(5 + DURATION_MS * 7 / 8).is_none());
    let last = claim.release().unwrap();
    assert!(last.released && last.number == 2);
    let mut other = LeaseClaim::new(process("b"));
    other.observe(Some(last), 0);
    assert!(matches!(other.next(0), LeaseStep::Create(record) if record.epoch == 2));
}
