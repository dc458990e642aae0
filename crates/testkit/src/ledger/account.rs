//! What a ledger says a dataset must hold at a moment, and what it must not.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{LedgerOptions, Sent, arrived_key, balance_key, counter_key, left_key, list_key};
use crate::error::{Error, Result};
use crate::resp::Value;

/// One write, which was sent once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    number: u64,
    sent_ms: i64,
    acknowledged_ms: Option<i64>,
    /// It was acknowledged, and the cluster has lost it since.
    lost: bool,
}

impl Write {
    pub(super) const fn new(number: u64, sent: Sent) -> Self {
        Self { number, sent_ms: sent.sent_ms, acknowledged_ms: sent.acknowledged_ms, lost: false }
    }

    /// Whether a dataset that lacks nothing acknowledged by that moment must hold it.
    fn must_be_there(&self, moment_ms: i64) -> bool {
        !self.lost && self.acknowledged_ms.is_some_and(|acknowledged_ms| acknowledged_ms <= moment_ms)
    }
}

/// An amount that goes from one account to another.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) amount: i64,
    pub(super) debit: Write,
    /// Sent only once the debit was acknowledged.
    pub(super) credit: Option<Write>,
}

/// Which writes a dataset may hold and which it must.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Writes sent after this moment, in ms since 1970, must not be there.
    pub nothing_after_ms: i64,
    /// Writes acknowledged at or before this moment, in ms since 1970, must be there.
    pub nothing_missing_before_ms: i64,
    /// Whether all shards must show one moment: nothing has arrived that has not left.
    pub consistent: bool,
}

/// Everything that was written.
#[derive(Debug)]
pub struct Account {
    options: LedgerOptions,
    opening: i64,
    entries: BTreeMap<u64, Vec<Write>>,
    transfers: Vec<Transfer>,
}

/// Asks a dataset: a command whose first argument is its key.
type Ask<'a> = dyn FnMut(&[&str]) -> Result<Value> + 'a;

impl Account {
    pub(super) fn new(
        options: LedgerOptions,
        opening: i64,
        written: Vec<(u64, Write)>,
        transfers: Vec<Transfer>,
    ) -> Self {
        let mut entries: BTreeMap<u64, Vec<Write>> = BTreeMap::new();
        for (list, write) in written {
            entries.entry(list).or_default().push(write);
        }
        Self { options, opening, entries, transfers }
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        let credits = self.transfers.iter().filter_map(|transfer| transfer.credit.as_ref());
        let debits = self.transfers.iter().map(|transfer| &transfer.debit);
        let entries = self.entries.values().flatten();
        entries.chain(debits).chain(credits).filter(|write| write.acknowledged_ms.is_some()).count()
    }

    /// How many acknowledged writes the cluster has lost.
    pub fn lost(&self) -> usize {
        self.lost_writes().count()
    }

    /// The moments at which the first and the last of them were acknowledged, in ms since 1970.
    pub fn lost_span_ms(&self) -> Option<(i64, i64)> {
        let moments = || self.lost_writes().filter_map(|write| write.acknowledged_ms);
        Some((moments().min()?, moments().max()?))
    }

    fn lost_writes(&self) -> impl Iterator<Item = &Write> {
        let credits = self.transfers.iter().filter_map(|transfer| transfer.credit.as_ref());
        let debits = self.transfers.iter().map(|transfer| &transfer.debit);
        self.entries.values().flatten().chain(debits).chain(credits).filter(|write| write.lost)
    }

    /// The moments of the first and the last acknowledgement, in ms since 1970.
    pub fn span_ms(&self) -> Option<(i64, i64)> {
        let moments = || self.entries.values().flatten().filter_map(|write| write.acknowledged_ms);
        Some((moments().min()?, moments().max()?))
    }

    /// Marks what the cluster no longer has.
    pub(super) fn note_losses(&mut self, ask: &mut Ask<'_>) -> Result<()> {
        for (list, writes) in &mut self.entries {
            let found: BTreeSet<u64> = numbers(ask, &list_key(*list))?.into_iter().collect();
            for write in writes {
                write.lost = write.acknowledged_ms.is_some() && !found.contains(&write.number);
            }
        }
        let books = self.read_books(ask)?;
        for transfer in &mut self.transfers {
            let number = transfer.debit.number;
            let has = |of: &[BTreeSet<u64>], account: u64| {
                usize::try_from(account)
                    .ok()
                    .and_then(|at| of.get(at))
                    .is_some_and(|set| set.contains(&number))
            };
            transfer.debit.lost =
                transfer.debit.acknowledged_ms.is_some() && !has(&books.left, transfer.from);
            if let Some(credit) = &mut transfer.credit {
                credit.lost = credit.acknowledged_ms.is_some() && !has(&books.arrived, transfer.to);
            }
        }
        Ok(())
    }

    /// Holds a dataset against the ledger. `ask` sends a command to the node that has its first argument's key.
    pub fn check(&self, bounds: Bounds, ask: &mut Ask<'_>) -> Result<()> {
        for (list, writes) in &self.entries {
            let key = list_key(*list);
            let found = numbers(ask, &key)?;
            check_writes(&key, &found, writes.iter(), bounds)?;
            let counted = number(&ask(&["GET", &counter_key(*list)])?);
            let listed = i64::try_from(found.len()).unwrap_or(i64::MAX);
            if counted != listed {
                return Err(mismatch(&counter_key(*list), format!("{listed}, as its list is long"), counted));
            }
        }
        self.check_accounts(bounds, ask)
    }

    fn check_accounts(&self, bounds: Bounds, ask: &mut Ask<'_>) -> Result<()> {
        let books = self.read_books(ask)?;
        let amounts: HashMap<u64, i64> =
            self.transfers.iter().map(|transfer| (transfer.debit.number, transfer.amount)).collect();
        let worth = |numbers: &BTreeSet<u64>| -> i64 {
            numbers.iter().filter_map(|number| amounts.get(number)).sum()
        };
        for account in 0..self.options.accounts {
            let Some((left, arrived)) = usize::try_from(account)
                .ok()
                .and_then(|at| Some((books.left.get(at)?, books.arrived.get(at)?)))
            else {
                continue;
            };
            let debits = self.transfers.iter().filter(|transfer| transfer.from == account);
            let credits = self.transfers.iter().filter(|transfer| transfer.to == account);
            let listed: Vec<u64> = left.iter().copied().collect();
            check_writes(&left_key(account), &listed, debits.map(|transfer| &transfer.debit), bounds)?;
            let listed: Vec<u64> = arrived.iter().copied().collect();
            let credits = credits.filter_map(|transfer| transfer.credit.as_ref());
            check_writes(&arrived_key(account), &listed, credits, bounds)?;
            let key = balance_key(account);
            let (found, expected) =
                (number(&ask(&["GET", &key])?), self.opening - worth(left) + worth(arrived));
            if found != expected {
                return Err(mismatch(&key, format!("{expected}, by what left and arrived"), found));
            }
        }
        if bounds.consistent {
            self.check_consistency(&books)?;
        }
        Ok(())
    }

    /// Nothing has arrived that has not left: what left and has not arrived is on its way, and the sum is what it was.
    fn check_consistency(&self, books: &Books) -> Result<()> {
        let left: BTreeSet<u64> = books.left.iter().flatten().copied().collect();
        let lost: BTreeSet<u64> = self
            .transfers
            .iter()
            .filter(|transfer| transfer.debit.lost)
            .map(|transfer| transfer.debit.number)
            .collect();
        let arrived = books.arrived.iter().flatten();
        match arrived.copied().find(|number| !left.contains(number) && !lost.contains(number)) {
            None => Ok(()),
            Some(number) => Err(mismatch(
                "bank",
                "nothing that arrived before it left".to_owned(),
                format!("transfer {number}"),
            )),
        }
    }

    fn read_books(&self, ask: &mut Ask<'_>) -> Result<Books> {
        let mut books = Books::default();
        for account in 0..self.options.accounts {
            for (key, into) in
                [(left_key(account), &mut books.left), (arrived_key(account), &mut books.arrived)]
            {
                let listed = numbers(ask, &key)?;
                let set: BTreeSet<u64> = listed.iter().copied().collect();
                if set.len() != listed.len() {
                    return Err(mismatch(&key, "each number once".to_owned(), "one of them twice"));
                }
                into.push(set);
            }
        }
        Ok(books)
    }
}

/// What left and what arrived, for each account.
#[derive(Default)]
struct Books {
    left: Vec<BTreeSet<u64>>,
    arrived: Vec<BTreeSet<u64>>,
}

fn check_writes<'a>(
    key: &str,
    found: &[u64],
    writes: impl Iterator<Item = &'a Write>,
    bounds: Bounds,
) -> Result<()> {
    let mut left: BTreeSet<u64> = found.iter().copied().collect();
    if left.len() != found.len() {
        return Err(mismatch(key, "each number once".to_owned(), "one of them twice"));
    }
    for write in writes {
        let there = left.remove(&write.number);
        if there && write.sent_ms > bounds.nothing_after_ms {
            let late = write.sent_ms - bounds.nothing_after_ms;
            let expected = format!("nothing sent after {}", bounds.nothing_after_ms);
            return Err(mismatch(key, expected, format!("number {}, sent {late} ms later", write.number)));
        }
        if !there && write.must_be_there(bounds.nothing_missing_before_ms) {
            let early = bounds.nothing_missing_before_ms - write.acknowledged_ms.unwrap_or_default();
            let expected = format!("number {}, acknowledged {early} ms before the bound", write.number);
            return Err(mismatch(key, expected, format!("{} numbers without it", found.len())));
        }
    }
    match left.first() {
        None => Ok(()),
        Some(number) => Err(mismatch(key, "only what was written".to_owned(), format!("number {number}"))),
    }
}

fn numbers(ask: &mut Ask<'_>, key: &str) -> Result<Vec<u64>> {
    let reply = ask(&["LRANGE", key, "0", "-1"])?;
    reply
        .array()?
        .iter()
        .map(|item| item.text()?.parse().map_err(|_| item.unexpected("a number of the ledger")))
        .collect()
}

/// The number that a key holds; 0 if there is none.
fn number(reply: &Value) -> i64 {
    reply.text().ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn mismatch(key: &str, expected: String, found: impl std::fmt::Display) -> Error {
    let found = found.to_string();
    Error::Mismatch { key: key.to_owned(), expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dataset with one list of these numbers and two accounts between which transfer 9 went.
    struct Data {
        list: Vec<u64>,
        left: bool,
        arrived: bool,
    }

    impl Data {
        fn answer(&self, args: &[&str]) -> Value {
            let bulk = |text: String| Value::Bulk(text.into_bytes());
            let list = |numbers: &[u64]| Value::Array(numbers.iter().map(|n| bulk(n.to_string())).collect());
            match args[1] {
                "ledger:{0}:list" => list(&self.list),
                "ledger:{0}:count" => bulk(self.list.len().to_string()),
                "bank:{0}:left" if self.left => list(&[9]),
                "bank:{1}:arrived" if self.arrived => list(&[9]),
                "bank:{0}:balance" => bulk((100 - if self.left { 5 } else { 0 }).to_string()),
                "bank:{1}:balance" => bulk((100 + if self.arrived { 5 } else { 0 }).to_string()),
                _ => list(&[]),
            }
        }
    }

    fn write(number: u64, sent_ms: i64, acknowledged_ms: Option<i64>) -> Write {
        Write::new(number, Sent { sent_ms, acknowledged_ms })
    }

    fn outcome(data: &Data, nothing_after_ms: i64, nothing_missing_before_ms: i64, consistent: bool) -> bool {
        let options = LedgerOptions { seed: 0, lists: 1, accounts: 2 };
        let entries = vec![(0, write(1, 10, Some(11))), (0, write(2, 20, None)), (0, write(3, 30, Some(31)))];
        let transfer = Transfer {
            from: 0,
            to: 1,
            amount: 5,
            debit: write(9, 20, Some(21)),
            credit: Some(write(9, 22, Some(23))),
        };
        let account = Account::new(options, 100, entries, vec![transfer]);
        let bounds = Bounds { nothing_after_ms, nothing_missing_before_ms, consistent };
        account.check(bounds, &mut |args| Ok(data.answer(args))).is_ok()
    }

    #[test]
    fn what_is_missing_too_much_or_doubled_is_found() {
        let data = |list: &[u64]| Data { list: list.to_vec(), left: true, arrived: true };
        assert!(outcome(&data(&[1, 3]), 40, 40, true));
        assert!(outcome(&data(&[1, 2, 3]), 40, 40, true), "what was not acknowledged may be there");
        assert!(outcome(&data(&[1]), 40, 30, true), "the bound leaves out what was acknowledged after it");
        assert!(!outcome(&data(&[1]), 40, 31, true), "3 is missing");
        assert!(!outcome(&data(&[1, 3]), 29, 29, true), "3 was sent later");
        assert!(!outcome(&data(&[1, 3, 3]), 40, 40, true), "3 is doubled");
        assert!(!outcome(&data(&[1, 3, 7]), 40, 40, true), "7 was never written");
    }

    #[test]
    fn what_arrived_before_it_left_is_found() {
        let data = |left, arrived| Data { list: vec![1], left, arrived };
        assert!(outcome(&data(true, false), 25, 21, true));
        assert!(outcome(&data(false, true), 25, 11, false));
        assert!(!outcome(&data(false, true), 25, 11, true));
    }
}
