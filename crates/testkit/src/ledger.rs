//! Clients that write while things happen to a cluster, and keep a ledger of what they wrote, when they sent it and when the
//! server acknowledged it: what a recovery to any moment is held against.
//!
//! Two kinds of writes, each a script, so that a part of one is a part of a transaction:
//!
//! - *entries*: a number that is written once is appended to one of many lists, and a counter beside the list is raised;
//! - *transfers*: an amount leaves one account and, once that is acknowledged, arrives in another, mostly on another shard. Each account
//!   keeps the numbers of what left and what arrived.
//!
//! Invariants: no write is sent twice; a write whose connection broke is neither taken for done nor for undone.

mod account;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub use account::{Account, Bounds};

use account::{Transfer, Write};

use crate::cluster::Cluster;
use crate::cluster_client::ClusterClient;
use crate::deadline::{NotYet, breathe, now_ms, wait_for};
use crate::error::Result;
use crate::random::Random;

/// How long a write is tried again while its slot is not served.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the last look at everything may take: an election may be under way.
const LOOK_PATIENCE: Duration = Duration::from_secs(30);
/// What each account holds in the beginning.
const OPENING_BALANCE: i64 = 1_000_000;

const ENTER: &str = "redis.call('RPUSH', KEYS[1], ARGV[1]) return redis.call('INCR', KEYS[2])";
const MOVE: &str = "redis.call('RPUSH', KEYS[1], ARGV[1]) return redis.call('INCRBY', KEYS[2], ARGV[2])";

/// How much is written where.
#[derive(Clone, Copy, Debug)]
pub struct LedgerOptions {
    /// Decides which lists and accounts are written in which order.
    pub seed: u64,
    /// How many lists there are.
    pub lists: u64,
    /// How many accounts there are; with fewer than two there are no transfers.
    pub accounts: u64,
}

/// The clients, while they write. Dropped, they stop.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
    options: LedgerOptions,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    numbers: AtomicU64,
    entries: Mutex<Vec<(u64, Write)>>,
    transfers: Mutex<Vec<Transfer>>,
}

impl Ledger {
    /// Opens the accounts and begins to write.
    pub fn start(cluster: &Cluster, options: LedgerOptions) -> Result<Self> {
        let mut opening = cluster.client()?;
        for account in 0..options.accounts {
            opening.command(&["SET", &balance_key(account), &OPENING_BALANCE.to_string()])?;
        }
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        let mut client = cluster.client()?;
        client.set_patience(PATIENCE);
        let mine = Arc::clone(&shared);
        threads.push(thread::spawn(move || mine.write_entries(&mut client, options)));
        if options.accounts > 1 {
            let mut client = cluster.client()?;
            client.set_patience(PATIENCE);
            let mine = Arc::clone(&shared);
            threads.push(thread::spawn(move || mine.write_transfers(&mut client, options)));
        }
        Ok(Self { shared, options, threads })
    }

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until that many more writes were acknowledged.
    pub fn wait_for_more(&self, writes: u64) -> Result<()> {
        let goal = self.acknowledged().saturating_add(writes);
        wait_for(Duration::from_mins(1), &format!("{writes} more writes"), || match self.acknowledged() {
            count if count >= goal => Ok(()),
            count => Err(NotYet::because(format!("{} are missing", goal - count))),
        })
    }

    /// Stops after the current writes, and looks at the cluster once more: what was acknowledged and is no longer there was lost by the
    /// cluster itself, in a failover.
    pub fn stop(self, cluster: &Cluster) -> Result<Account> {
        self.stop_at(cluster.client()?)
    }

    /// [`Self::stop`], looking at another cluster: the one that took the place of the first.
    pub fn stop_at(mut self, mut client: ClusterClient) -> Result<Account> {
        self.end();
        let entries =
            std::mem::take(&mut *self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner));
        let transfers =
            std::mem::take(&mut *self.shared.transfers.lock().unwrap_or_else(PoisonError::into_inner));
        let mut account = Account::new(self.options, OPENING_BALANCE, entries, transfers);
        client.set_patience(LOOK_PATIENCE);
        account.note_losses(&mut |args| client.command(args))?;
        Ok(account)
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A panic of the thread has been reported by then, and what it wrote is known.
            let _ = thread.join();
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Sends one write, once.
    fn send(&self, client: &mut ClusterClient, key: &str, args: &[&str]) -> Sent {
        breathe();
        let sent_ms = now_ms();
        let acknowledged = client.command_once_on(key.as_bytes(), args).is_ok();
        if acknowledged {
            self.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        Sent { sent_ms, acknowledged_ms: acknowledged.then(now_ms) }
    }

    fn write_entries(&self, client: &mut ClusterClient, options: LedgerOptions) {
        let mut random = Random::from_seed(options.seed);
        while !self.stops() {
            let list = random.below(options.lists.max(1));
            let number = self.number();
            let (key, counter) = (list_key(list), counter_key(list));
            let sent = self.send(client, &key, &["EVAL", ENTER, "2", &key, &counter, &number.to_string()]);
            let write = Write::new(number, sent);
            self.entries.lock().unwrap_or_else(PoisonError::into_inner).push((list, write));
        }
    }

    fn write_transfers(&self, client: &mut ClusterClient, options: LedgerOptions) {
        let mut random = Random::for_item(options.seed, 1);
        while !self.stops() {
            let from = random.below(options.accounts);
            let to = (from + 1 + random.below(options.accounts - 1)) % options.accounts;
            let (number, amount) = (self.number(), 1 + random.below(9).cast_signed());
            let text = number.to_string();
            let debit = (left_key(from), balance_key(from), (-amount).to_string());
            let debited =
                self.send(client, &debit.0, &["EVAL", MOVE, "2", &debit.0, &debit.1, &text, &debit.2]);
            let credit = (arrived_key(to), balance_key(to), amount.to_string());
            let credited = debited.acknowledged_ms.map(|_| {
                self.send(client, &credit.0, &["EVAL", MOVE, "2", &credit.0, &credit.1, &text, &credit.2])
            });
            let transfer = Transfer {
                from,
                to,
                amount,
                debit: Write::new(number, debited),
                credit: credited.map(|credited| Write::new(number, credited)),
            };
            self.transfers.lock().unwrap_or_else(PoisonError::into_inner).push(transfer);
        }
    }
}

/// When a write was sent and acknowledged, in ms since 1970.
#[derive(Clone, Copy, Debug)]
struct Sent {
    sent_ms: i64,
    acknowledged_ms: Option<i64>,
}

fn list_key(list: u64) -> String {
    format!("ledger:{{{list}}}:list")
}

fn counter_key(list: u64) -> String {
    format!("ledger:{{{list}}}:count")
}

fn balance_key(account: u64) -> String {
    format!("bank:{{{account}}}:balance")
}

fn left_key(account: u64) -> String {
    format!("bank:{{{account}}}:left")
}

fn arrived_key(account: u64) -> String {
    format!("bank:{{{account}}}:arrived")
}
