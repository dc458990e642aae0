//! Several agents, several lines, a store that loses requests and answers and delivers some late, clocks at different speeds, crashes, restarts and
//! pauses at every step, agents of which nothing is left when they come back; from a seed. Then calm.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use slotkeep_format::lease::{
    Holder, LeaseClaim, LeaseNote, LeaseRecord, LeaseStep, LeaseTable, presence_name,
};

use super::division::{Ties, View};
use super::lease_name;

const DURATION_MS: u64 = 10_000;
const AGENTS: usize = 4;
const LINES: usize = 6;
const SEEDS: u64 = 30;
const TROUBLED_STEPS: u32 = 2500;
/// What a world in order may need until everything is with somebody, in true time.
const CALM_MS: u64 = 20 * DURATION_MS;

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

#[derive(Clone, Debug)]
enum Write {
    Lease(String, Box<LeaseRecord>),
    /// Line, start, end.
    Segment(String, u64, u64),
}

#[derive(Default)]
struct Store {
    leases: BTreeMap<String, BTreeMap<u64, LeaseRecord>>,
    segments: BTreeMap<String, BTreeSet<(u64, u64)>>,
    late: Vec<(u64, Write)>,
    calm: bool,
}

impl Store {
    fn apply(&mut self, write: &Write) -> bool {
        match write {
            Write::Lease(name, record) => {
                let run = self.leases.entry(name.clone()).or_default();
                run.entry(record.number).or_insert_with(|| (**record).clone());
                run.values().next_back() == Some(&**record)
            }
            Write::Segment(line, start, end) => {
                self.segments.entry(line.clone()).or_default().insert((*start, *end));
                true
            }
        }
    }

    fn newest(&self, name: &str) -> Option<&LeaseRecord> {
        self.leases.get(name)?.values().next_back()
    }

    fn end(&self, line: &str) -> u64 {
        let segments = self.segments.get(line).into_iter().flatten();
        segments.fold(0, |end, (start, until)| if *start <= end { end.max(*until) } else { end })
    }

    fn ask(&mut self, write: Write, now_ms: u64, dice: &mut Dice) -> Option<bool> {
        match dice.roll(12) {
            _ if self.calm => Some(self.apply(&write)),
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

/// One request, and what belongs to it.
#[derive(Clone, Debug)]
enum Task {
    Renew,
    Renewed(LeaseRecord, u64),
    Look,
    Divide,
    Take(String),
    Begin(String, LeaseRecord),
    Seal(String),
    Confirm(String, u64, u64),
    Give(String),
}

/// A line that an agent follows, and what it knows to be committed.
struct Line {
    record: LeaseRecord,
    end: u64,
    busy: bool,
}

struct Agent {
    holder: Holder,
    claim: LeaseClaim,
    table: LeaseTable,
    first_seen: BTreeMap<String, u64>,
    near: Vec<String>,
    lines: BTreeMap<String, Line>,
    tasks: VecDeque<Task>,
    next_beat_ms: u64,
    speed: u64,
    ahead_ms: u64,
    asleep_until_ms: u64,
    /// Whether its presence is removed while it is away.
    is_forgotten: bool,
}

impl Agent {
    fn new(number: usize, process: &str, dice: &mut Dice) -> Self {
        let holder = Holder {
            process: process.to_owned(),
            agent: Some(format!("{number}")),
            duration_ms: DURATION_MS,
        };
        Self {
            claim: LeaseClaim::new(holder.clone()),
            holder,
            table: LeaseTable::default(),
            first_seen: BTreeMap::new(),
            near: lines().into_iter().skip(number).step_by(AGENTS).collect(),
            lines: BTreeMap::new(),
            tasks: VecDeque::new(),
            next_beat_ms: 0,
            speed: 950 + dice.roll(101),
            ahead_ms: dice.roll(1_000_000),
            asleep_until_ms: 0,
            is_forgotten: false,
        }
    }

    fn name(&self) -> &str {
        self.holder.agent.as_deref().unwrap()
    }

    fn clock(&self, now_ms: u64) -> u64 {
        now_ms * self.speed / 1000 + self.ahead_ms
    }
}

fn lines() -> Vec<String> {
    (0..LINES).map(|number| format!("{number}")).collect()
}

struct World {
    seed: u64,
    store: Store,
    dice: Dice,
    now_ms: u64,
    agents: Vec<Agent>,
    /// Of each line: start, end, epoch.
    commits: BTreeMap<String, Vec<(u64, u64, u64)>>,
    epochs: u64,
    /// How often an agent came back of which nothing was left.
    forgotten: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let agents: Vec<Agent> =
            (0..AGENTS).map(|number| Agent::new(number, &format!("{number}"), &mut dice)).collect();
        let mut store = Store::default();
        // They have been here for long: one that comes back to nothing does not soon count as far again.
        for agent in &agents {
            let holder = Holder { process: "before".to_owned(), ..agent.holder.clone() };
            let first = LeaseRecord::taking(None, &holder, LeaseNote::default());
            let last = LeaseRecord { number: 1000, released: true, ..first };
            store.apply(&Write::Lease(presence_name(agent.name()), Box::new(last)));
        }
        Self { seed, store, dice, now_ms: 0, agents, commits: BTreeMap::new(), epochs: 0, forgotten: 0 }
    }

    /// Does one thing of one agent.
    fn act(&mut self, number: usize) {
        let own_ms = self.agents[number].clock(self.now_ms);
        let agent = &mut self.agents[number];
        if own_ms >= agent.next_beat_ms {
            agent.next_beat_ms = own_ms + DURATION_MS / 5;
            agent.tasks.extend([Task::Renew, Task::Look, Task::Divide]);
        }
        let task = agent.tasks.pop_front().or_else(|| {
            let idle: Vec<&String> =
                agent.lines.iter().filter(|(_, line)| !line.busy).map(|(name, _)| name).collect();
            let chosen = usize::try_from(self.dice.roll(idle.len().max(1) as u64)).unwrap();
            idle.get(chosen).map(|name| Task::Seal((*name).clone()))
        });
        if let Some(task) = task {
            self.run(number, task, own_ms);
        }
    }

    fn run(&mut self, number: usize, task: Task, own_ms: u64) {
        let Self { store, dice, now_ms, agents, commits, epochs, .. } = self;
        let agent = &mut agents[number];
        let presence = presence_name(agent.name());
        match task {
            Task::Renew => {
                if agent.claim.held(own_ms).is_some()
                    && matches!(agent.claim.next(own_ms), LeaseStep::Wait { .. })
                {
                    return;
                }
                agent.claim.say(LeaseNote { near: agent.near.clone(), ..LeaseNote::default() });
                agent.claim.observe(store.newest(&presence).cloned(), own_ms);
                if let LeaseStep::Create(record) = agent.claim.next(own_ms) {
                    let record = *record;
                    match store.ask(Write::Lease(presence, Box::new(record.clone())), *now_ms, dice) {
                        Some(true) => agent.tasks.push_front(Task::Renewed(record, own_ms)),
                        _ => agent.claim.lost(),
                    }
                }
            }
            Task::Renewed(record, sent_ms) => agent.claim.created(record, sent_ms),
            Task::Look => self.look(number, own_ms),
            Task::Divide => {
                let own: Vec<(String, Ties)> =
                    agent.lines.keys().map(|line| (line.clone(), Ties::Stream)).collect();
                let me = agent.holder.agent.clone().unwrap();
                let near = &agent.near;
                let view = View { table: &agent.table, me: &me, own: &own, near, is_strange: &|_| false };
                let division = view.divide(&lines(), &mut agent.first_seen, DURATION_MS);
                let all = lines();
                agent.tasks.extend(division.take.iter().map(|number| Task::Take(all[*number].clone())));
                agent.tasks.extend(division.give.iter().map(|number| Task::Give(all[*number].clone())));
            }
            Task::Take(line) => {
                if agent.lines.contains_key(&line) {
                    return;
                }
                let before = agent.table.newest(&lease_name(&line));
                let record = LeaseRecord::taking(before, &agent.holder, LeaseNote::default());
                if store.ask(Write::Lease(lease_name(&line), Box::new(record.clone())), *now_ms, dice)
                    == Some(true)
                {
                    agent.table.observe(&lease_name(&line), record.clone(), own_ms);
                    agent.tasks.push_front(Task::Begin(line, record));
                }
            }
            Task::Begin(line, record) => {
                *epochs = (*epochs).max(record.epoch);
                let end = store.end(&line);
                agent.lines.insert(line, Line { record, end, busy: false });
            }
            Task::Seal(name) => {
                let Some(line) = agent.lines.get_mut(&name) else { return };
                let holds = agent.claim.held(own_ms).is_some();
                if !holds && store.newest(&lease_name(&name)) != Some(&line.record) {
                    agent.lines.remove(&name);
                    return;
                }
                let until = line.end + 1 + dice.roll(5);
                // An answer that is lost does not matter: what counts is what is there when it is confirmed.
                let written = store.ask(Write::Segment(name.clone(), line.end, until), *now_ms, dice);
                if written == Some(true) {
                    line.busy = true;
                    let confirm = Task::Confirm(name, line.end, until);
                    agent.tasks.push_back(confirm);
                }
            }
            Task::Confirm(name, start, end) => {
                let Some(line) = agent.lines.get_mut(&name) else { return };
                line.busy = false;
                if store.newest(&lease_name(&name)) == Some(&line.record) {
                    line.end = end;
                    commits.entry(name).or_default().push((start, end, line.record.epoch));
                } else {
                    agent.lines.remove(&name);
                }
            }
            Task::Give(name) => {
                let Some(line) = agent.lines.remove(&name) else { return };
                let last = line.record.releasing(LeaseNote::default());
                store.ask(Write::Lease(lease_name(&name), Box::new(last)), *now_ms, dice);
            }
        }
    }

    /// Sees all leases, leaves lines that are another's, and gives back what an answer was lost of.
    fn look(&mut self, number: usize, own_ms: u64) {
        let Self { store, dice, now_ms, agents, .. } = self;
        let agent = &mut agents[number];
        agent.table.look(own_ms, DURATION_MS / 2);
        for (name, run) in &store.leases {
            let newest = run.values().next_back().unwrap();
            agent.table.observe(name, newest.clone(), own_ms);
        }
        // Lines that are seen to be another's are left; what an answer was lost of is given back.
        let (table, process) = (&agent.table, &agent.holder.process);
        agent
            .lines
            .retain(|line, _| table.newest(&lease_name(line)).is_none_or(|newest| newest.holder == *process));
        for line in lines() {
            let newest = table.newest(&lease_name(&line));
            let stray = newest.is_some_and(|newest| newest.holder == *process && !newest.released);
            let begun = agent.tasks.iter().any(|task| matches!(task, Task::Begin(name, _) if *name == line));
            if stray && !begun && !agent.lines.contains_key(&line) {
                let last = newest.unwrap().releasing(LeaseNote::default());
                store.ask(Write::Lease(lease_name(&line), Box::new(last)), *now_ms, dice);
            }
        }
    }

    fn step(&mut self, troubled: bool) {
        self.now_ms += self.dice.roll(200);
        let now_ms = self.now_ms;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.store.late).into_iter().partition(|(at, _)| *at <= now_ms);
        self.store.late = later;
        for (_, write) in due {
            self.store.apply(&write);
        }
        let chosen = usize::try_from(self.dice.roll(AGENTS as u64)).unwrap();
        if troubled && self.dice.one_in(400) {
            // Killed, and started again on the same machine: it knows who it is, and nothing else.
            let process = format!("{chosen}-{now_ms}");
            self.agents[chosen] = Agent::new(chosen, &process, &mut self.dice);
            let agent = &mut self.agents[chosen];
            match self.dice.roll(4) {
                0 | 1 => agent.asleep_until_ms = now_ms + self.dice.roll(6 * DURATION_MS),
                2 => {
                    agent.asleep_until_ms = now_ms + 3 * DURATION_MS + self.dice.roll(3 * DURATION_MS);
                    agent.is_forgotten = true;
                }
                _ => {}
            }
        } else if troubled && self.dice.one_in(200) {
            self.agents[chosen].asleep_until_ms = now_ms + self.dice.roll(4 * DURATION_MS);
        }
        let agent = &mut self.agents[chosen];
        if agent.asleep_until_ms <= now_ms {
            if std::mem::take(&mut agent.is_forgotten) {
                self.store.leases.remove(&presence_name(agent.name()));
                self.forgotten += 1;
            }
            self.act(chosen);
        }
    }

    fn check_commits(&self) {
        for (line, commits) in &self.commits {
            let seed = self.seed;
            assert!(
                commits.is_sorted_by_key(|(_, _, epoch)| *epoch),
                "seed {seed}, line {line}: an old epoch"
            );
            for pair in commits.windows(2) {
                assert!(pair[0].1 <= pair[1].0, "seed {seed}, line {line}: {pair:?} were both committed");
            }
            let end = commits.last().map_or(0, |commit| commit.1);
            assert!(self.store.end(line) >= end, "seed {seed}, line {line}: a gap before {end}");
        }
    }

    fn committed(&self, line: &str) -> usize {
        self.commits.get(line).map_or(0, Vec::len)
    }
}

/// Gives how many epochs there were, how many commits, and how many agents that came back to nothing of theirs.
fn run(seed: u64) -> (u64, usize, usize) {
    let mut world = World::new(seed);
    for _ in 0..TROUBLED_STEPS {
        world.step(true);
    }
    world.check_commits();
    world.store.calm = true;
    for agent in &mut world.agents {
        agent.asleep_until_ms = 0;
    }
    let calm_until_ms = world.now_ms + CALM_MS;
    while world.now_ms < calm_until_ms {
        world.step(false);
    }
    let before: Vec<usize> = lines().iter().map(|line| world.committed(line)).collect();
    for _ in 0..2000 {
        world.step(false);
    }
    world.check_commits();
    for (line, before) in lines().iter().zip(before) {
        let holders: Vec<usize> =
            (0..AGENTS).filter(|number| world.agents[*number].lines.contains_key(line)).collect();
        assert_eq!(holders.len(), 1, "seed {seed}: line {line} is followed by {holders:?}");
        assert!(world.committed(line) > before, "seed {seed}: line {line} stands still");
    }
    let loads: Vec<usize> = world.agents.iter().map(|agent| agent.lines.len()).collect();
    let (most, least) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
    assert!(most - least <= 1, "seed {seed}: {loads:?}");
    (world.epochs, world.commits.values().map(Vec::len).sum(), world.forgotten)
}

#[test]
fn lines_have_one_writer_at_a_time_and_in_the_end_everybody_has_a_share() {
    let (mut epochs, mut commits, mut forgotten) = (0, 0, 0);
    for seed in 0..SEEDS {
        let (more_epochs, more_commits, more_forgotten) = run(seed);
        epochs += more_epochs;
        commits += more_commits;
        forgotten += more_forgotten;
    }
    // Lines change hands often, and work is done: what was checked did happen.
    assert!(epochs > SEEDS * 5, "{epochs}");
    assert!(commits as u64 > SEEDS * 500, "{commits}");
    assert!(forgotten > 10, "{forgotten}");
}
