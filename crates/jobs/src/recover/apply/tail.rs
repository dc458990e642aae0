//! Applying what the repository holds, and a replica did not when it was promoted, to the new primary: as commands, in their order.
//!
//! Invariants: the bytes are what followed the very byte at which the primary took over, and not what a failover lost; what it has taken by
//! itself since is looked at first, so that nothing is written over unasked, and nothing is applied twice; transactions stay whole.

use std::sync::Arc;

use slotkeep_model::{NodeAddr, NodeId, ReplOffset, Role, SlotSet};
use slotkeep_wire::replica::Request;
use slotkeep_wire::resp::{Command, Value};
use slotkeep_wire::stream::{Filter, Gap, Reader, Splitter};

use super::{Recovery, Watch, surprise};
use crate::archive::link::{Answer, Link};
use crate::discover::read_info;
use crate::log::chain::Place;
use crate::log::tail::{Mark, Tail, changes, start_behind, tail};
use crate::log::{LogReader, Past, database_behind};
use crate::net::Connection;
use crate::recover::facts::Survey;
use crate::recover::judge::ApplyTail;
use crate::{Error, ErrorKind, Result};

/// What a primary has taken since it took over.
enum Since {
    /// So many commands that change its dataset.
    Commands(u64),
    /// The tail, among others.
    Tail,
}

/// Applies the tail to the primary of those slots.
pub(super) async fn apply(
    recovery: &Recovery,
    survey: &Survey,
    (node, slots): (&NodeId, &SlotSet),
    watch: &dyn Watch,
) -> Result<String> {
    let context = &recovery.context;
    let Some(past) = &recovery.past else {
        return Err(Error::new(ErrorKind::Usage, "there is no repository").hint("give --repo"));
    };
    let owns = |word: &crate::recover::facts::Word| {
        word.role == Role::Primary && word.own_slots().intersection(slots) == *slots
    };
    let found = survey.words().find(|(seen, word)| seen.id == *node && owns(word));
    let Some((seen, word)) = found else {
        return Err(surprise(format!("{} is not the primary of slots {slots}", survey.name(node))));
    };
    let addr = &seen.addr;
    let Some(fork) = &word.former else {
        return Err(surprise(format!(
            "{addr} has not taken over from another history, so nothing belongs behind it"
        )));
    };
    let Some(tail) = tail(context, past, fork, Some(&word.history)).await?.filter(|tail| !tail.is_idle())
    else {
        recovery.memory.applied(node.clone());
        return Ok(format!(
            "nothing to apply: the repository holds no commands that followed offset {} of history {}, where {addr} took over",
            fork.offset, fork.history
        ));
    };
    match since(recovery, addr, fork, &tail).await? {
        Since::Tail => {
            recovery.memory.applied(node.clone());
            return Ok(format!("{addr} has been given them already"));
        }
        Since::Commands(0) => {}
        Since::Commands(count) if recovery.wishes.apply_tail == ApplyTail::Untouched => {
            let what = format!(
                "{addr} has taken {count} commands since it became the primary, at offset {} of history {}: what is older would be applied over them",
                fork.offset, fork.history
            );
            return Err(Error::new(ErrorKind::Conflict, what)
                .hint("nothing was applied. Have its clients stopped, and say --apply-tail=anyway if the older commands may go on top; docs/disaster.md says what may come of it"));
        }
        Since::Commands(count) => {
            watch.note(&format!("  {addr} has taken {count} commands of its own since, which come before"));
        }
    }
    let sent = send(recovery, past, addr, &tail).await?;
    recovery.memory.applied(node.clone());
    match sent.first_refusal {
        None => {
            let end = tail.end();
            Ok(format!("{} commands up to offset {} of history {}", sent.commands, end.offset, end.history))
        }
        Some(first) => Err(Error::new(
            ErrorKind::Failed,
            format!(
                "{addr} refused {} of the commands, of which {} change a dataset; the first time: {first}",
                sent.refused, sent.commands
            ),
        )
        .hint("the others were applied: don't apply them again")),
    }
}

/// Reads what the primary has put into its stream since it took over.
async fn since(recovery: &Recovery, addr: &NodeAddr, fork: &Place, tail: &Tail) -> Result<Since> {
    let context = &recovery.context;
    let info = read_info(&mut context.connector.connect(addr).await?).await?;
    let number = |name: &str| info.get(name).and_then(|value| value.parse::<u64>().ok());
    let (Some(now), first) = (number("master_repl_offset"), number("repl_backlog_first_byte_offset")) else {
        return Err(Error::new(ErrorKind::Failed, format!("{addr} does not tell its offset")));
    };
    if now <= fork.offset {
        return Ok(Since::Commands(0));
    }
    let unknown = || {
        let what = format!(
            "{addr} does not keep its stream back to offset {}, so what it has taken since is not known",
            fork.offset
        );
        Error::new(ErrorKind::Conflict, what)
            .hint("nothing was applied. `slotkeep restore --to` with --at and --on-conflict brings single keys back")
    };
    if first.is_none_or(|first| first > fork.offset.saturating_add(1)) {
        return Err(unknown());
    }
    let request = Request::after(fork.history.clone(), ReplOffset(fork.offset)).ok_or_else(unknown)?;
    let mut link = Link::open(context, addr).await?;
    let Answer::Stream { .. } = context.unless_stopped(link.begin(request)).await? else {
        return Err(unknown());
    };
    let mut splitter = Splitter::new(start_behind(fork.offset));
    let (mut commands, mut known) = (0_u64, 0_usize);
    while splitter.offset().0 < now {
        let read = async {
            let late = context.connector.timeout();
            context.within(late, link.read()).await.transpose()
        };
        let bytes = context.unless_stopped(read).await?.filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or_else(unknown)?;
        let mut input = bytes.as_slice();
        while let Some(command) = splitter
            .next(&mut input)
            .map_err(|error| Error::new(ErrorKind::Failed, format!("the stream of {addr}: {error}")))?
        {
            if changes(&command) {
                commands = commands.saturating_add(1);
                if tail.marks.get(known) == Some(&Mark::of(&command)) {
                    known = known.saturating_add(1);
                }
            }
        }
    }
    let all = known == tail.marks.len() && !tail.marks.is_empty();
    Ok(if all { Since::Tail } else { Since::Commands(commands) })
}

/// What was sent.
#[derive(Default)]
struct Sent {
    commands: u64,
    refused: u64,
    first_refusal: Option<String>,
}

/// Sends the commands, a piece of the log at a time, each answered before the next. Once begun it goes on to the end.
async fn send(recovery: &Recovery, past: &Arc<Past>, addr: &NodeAddr, tail: &Tail) -> Result<Sent> {
    let mut reader = LogReader::new(Arc::clone(past), &tail.pieces)?;
    let mut filter = Filter::new(ReplOffset(tail.after), Reader::Node, Gap::Close);
    let mut splitter = Splitter::new(start_behind(tail.after));
    let mut connection = recovery.context.connector.connect(addr).await?;
    select(past, &mut connection, &tail.place()).await?;
    let mut sent = Sent::default();
    while let Some(chunk) = reader.next().await? {
        let mut bytes = Vec::new();
        let senseless = |error: String| {
            Error::new(
                ErrorKind::Corrupt,
                format!("the log behind offset {} of history {}: {error}", tail.after, tail.history),
            )
        };
        filter.feed(&chunk.bytes, &mut bytes).map_err(|error| senseless(error.to_string()))?;
        let (mut input, mut answers) = (bytes.as_slice(), 0_u64);
        while let Some(command) = splitter.next(&mut input).map_err(|error| senseless(error.to_string()))? {
            answers = answers.saturating_add(1);
            if changes(&command) {
                sent.commands = sent.commands.saturating_add(1);
            }
        }
        let done = sent.commands;
        let half_way = |error: crate::net::LinkError| {
            Error::from(error)
                .context(format!(
                    "applying the log, at most {done} commands of it up to offset {}",
                    chunk.start
                ))
                .hint("a part was applied: look at what is there before you go on")
        };
        connection.send(&bytes).await.map_err(half_way)?;
        for _ in 0..answers {
            let reply = connection.reply().await.map_err(half_way)?;
            if let Some(text) = refusal(&reply) {
                sent.refused = sent.refused.saturating_add(1);
                sent.first_refusal.get_or_insert(text);
            }
        }
    }
    Ok(sent)
}

/// Selects the database that the log behind a place begins in.
async fn select(past: &Past, connection: &mut Connection, place: &Place) -> Result<()> {
    let database = match database_behind(past, place).await? {
        Some(database) => database,
        None if has_one_database(connection).await? => 0,
        None => {
            let what = format!(
                "nothing tells which database is selected behind offset {} of history {}, and {} has several",
                place.offset,
                place.history,
                connection.node()
            );
            return Err(Error::new(ErrorKind::Gap, what)
                .hint("nothing was applied. `slotkeep restore --to` with --at and --on-conflict brings single keys back"));
        }
    };
    connection.call(&Command::new("SELECT").arg_number(database)).await?;
    Ok(())
}

/// Whether a server has database 0 alone, as most nodes of clusters do: it refuses to select another, and not for want of permission.
async fn has_one_database(connection: &mut Connection) -> Result<bool> {
    let reply = connection.exchange(&Command::new("SELECT").arg("1")).await?;
    Ok(reply.as_error().is_some_and(|text| text.starts_with("ERR")))
}

/// The first error in a reply: that of `EXEC` holds one reply a command.
fn refusal(reply: &Value) -> Option<String> {
    if let Some(text) = reply.as_error() {
        return Some(text.to_owned());
    }
    reply.as_array()?.iter().find_map(|part| part.as_error().map(str::to_owned))
}
