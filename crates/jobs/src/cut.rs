//! Where all shards' parts of a backup end: every offset at one instant, or behind a barrier.
//!
//! *Instant*: all primaries are asked at the same time; by how much their offsets can lie apart in time is measured, with how far the
//! servers' clocks are apart. *Barrier*: writes are paused on all primaries, and every offset is read while none took writes.
//!
//! Invariants: an offset comes from a reply to `INFO`, which a server answers between commands and outside transactions. Writes that
//! were paused go on by the server's own time-out at the latest, whatever happens here; a barrier counts only if on every node the
//! offset was read before that time-out can have run out.
//! Source: `CLIENT PAUSE` in `src/networking.c` of Redis 6.2 to 8.8 and Valkey 7.2 to 9.1.

use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use jiff::Timestamp;
use slotkeep_format::manifest::{ClusterCut, CutMethod, ShardCut};
use slotkeep_model::NodeAddr;
use slotkeep_wire::resp::Command;

use crate::archive::sampler::{ClockReading, read_clock};
use crate::net::{Connection, LinkError};
use crate::{Context, Result};

/// How many connections are made at a time.
const DIALS_IN_FLIGHT: usize = 64;

/// How to make a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutOptions {
    /// The longest time for which writes may be paused; without it they are not.
    pub barrier: Option<Duration>,
}

/// A cut, with the shards in the order in which their primaries were given.
#[derive(Clone, Debug)]
pub(crate) struct TakenCut {
    pub(crate) cut: ClusterCut,
    pub(crate) shards: Vec<ShardCut>,
}

/// A reading, with when it was made by our own clock, in microseconds of any beginning.
#[derive(Clone, Debug)]
struct Timed {
    reading: ClockReading,
    sent_us: i64,
    received_us: i64,
}

/// Makes a cut over these primaries.
pub(crate) async fn take_cut(
    context: &Context,
    primaries: &[NodeAddr],
    options: CutOptions,
) -> Result<TakenCut> {
    context
        .unless_stopped(async {
            let mut connections = connect_all(context, primaries).await?;
            let Some(budget) = options.barrier else { return instant(context, &mut connections, None).await };
            match barrier(context, &mut connections, budget).await {
                Ok(cut) => Ok(cut),
                Err(why) => {
                    tracing::info!(%why, "no barrier");
                    resume_all(context, primaries).await;
                    // What was asked on the connections before may still be on its way.
                    let mut connections = connect_all(context, primaries).await?;
                    instant(context, &mut connections, Some(why)).await
                }
            }
        })
        .await
}

async fn connect_all(context: &Context, primaries: &[NodeAddr]) -> Result<Vec<Connection>> {
    let dials = futures::stream::iter(primaries.to_vec())
        .map(|addr| async move { context.connector.connect(&addr).await });
    let connections: Vec<_> = dials.buffered(DIALS_IN_FLIGHT).collect().await;
    Ok(connections.into_iter().collect::<Result<_, LinkError>>()?)
}

fn now_us(context: &Context) -> i64 {
    i64::try_from(context.clock.elapsed().as_micros()).unwrap_or(i64::MAX)
}

async fn read_all(context: &Context, connections: &mut [Connection]) -> Result<Vec<Timed>> {
    let readings = connections.iter_mut().map(async |connection| {
        let sent_us = now_us(context);
        let reading = read_clock(connection).await?;
        Ok(Timed { reading, sent_us, received_us: now_us(context) })
    });
    join_all(readings).await.into_iter().collect()
}

async fn instant(
    context: &Context,
    connections: &mut [Connection],
    fell_back: Option<String>,
) -> Result<TakenCut> {
    let readings = read_all(context, connections).await?;
    let (at_us, error_us) = spread(&readings, wall_us(context));
    let cut = ClusterCut {
        method: CutMethod::Instant,
        at: timestamp(at_us),
        error_ms: whole_ms(error_us),
        paused_ms: None,
        fell_back,
    };
    Ok(TakenCut { cut, shards: shard_cuts(&readings) })
}

fn shard_cuts(readings: &[Timed]) -> Vec<ShardCut> {
    let cut = |timed: &Timed| ShardCut {
        history: timed.reading.replication.replid.clone(),
        offset: timed.reading.replication.offset.0,
    };
    readings.iter().map(cut).collect()
}

/// What our clock that counts from any beginning has to be added to give the time of day, in microseconds.
fn wall_us(context: &Context) -> i64 {
    context.clock.now().as_microsecond().saturating_sub(now_us(context))
}

/// The latest moment of the readings by the servers' clocks, and by how much two of them can lie apart, in microseconds. Where a
/// server does not tell its time, all are judged by our clock, between question and answer.
fn spread(readings: &[Timed], wall_us: i64) -> (i64, i64) {
    let clocks: Option<Vec<(i64, i64)>> = readings.iter().map(|timed| timed.reading.clock_us).collect();
    let (moments, difference) = match clocks {
        Some(clocks) => {
            let difference = clock_difference(readings, &clocks);
            (clocks, difference)
        }
        None => {
            let ours = |us: i64| us.saturating_add(wall_us);
            (readings.iter().map(|timed| (ours(timed.sent_us), ours(timed.received_us))).collect(), 0)
        }
    };
    let latest = moments.iter().map(|(_, until)| *until).max().unwrap_or_default();
    let earliest = moments.iter().map(|(from, _)| *from).min().unwrap_or(latest);
    (latest, latest.saturating_sub(earliest).saturating_add(difference))
}

/// How far two servers' clocks may be apart at the most: each was read between sending a question and receiving its answer by ours.
fn clock_difference(readings: &[Timed], clocks: &[(i64, i64)]) -> i64 {
    // The first TIME was told before the second, and both between the two moments of ours: lowest and highest lead over us.
    let leads = readings.iter().zip(clocks).map(|(timed, (from, until))| {
        (until.saturating_sub(timed.received_us), from.saturating_sub(timed.sent_us))
    });
    let leads: Vec<(i64, i64)> = leads.collect();
    let pairs = leads.iter().enumerate().flat_map(|(number, (_, highest))| {
        let others = leads.iter().enumerate().filter(move |(other, _)| *other != number);
        others.map(move |(_, (lowest, _))| highest.saturating_sub(*lowest))
    });
    pairs.max().unwrap_or_default().max(0)
}

fn timestamp(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or_default()
}

/// Rounded up.
fn whole_ms(us: i64) -> u64 {
    u64::try_from(us).unwrap_or_default().div_ceil(1000)
}

/// Pauses, reads, resumes. Fails with the reason if not every node could be read while every one was paused.
async fn barrier(
    context: &Context,
    connections: &mut [Connection],
    budget: Duration,
) -> std::result::Result<TakenCut, String> {
    if let Some(why) = busy_migrating(connections).await {
        return Err(why);
    }
    let late = || {
        format!("not every primary paused its writes and told its offset within {} ms", budget.as_millis())
    };
    let began: Vec<Duration> = connections.iter().map(|_| context.clock.elapsed()).collect();
    let command = Command::new("CLIENT").arg("PAUSE").arg_number(budget.as_millis()).arg("WRITE");
    let in_time = async {
        let paused = join_all(connections.iter_mut().map(|connection| connection.call(&command))).await;
        if let Some(error) = paused.into_iter().find_map(std::result::Result::err) {
            return Err(error.to_string());
        }
        read_all(context, connections).await.map_err(|error| error.to_string())
    };
    let readings = tokio::select! {
        readings = in_time => readings?,
        () = context.clock.sleep(budget) => return Err(late()),
    };
    // On every node the pause had not run out when its offset was read.
    let read_at = context.clock.elapsed();
    if began.iter().any(|began| read_at.saturating_sub(*began) >= budget) {
        return Err(late());
    }
    let resume = Command::new("CLIENT").arg("UNPAUSE");
    let resumed = tokio::select! {
        resumed = join_all(connections.iter_mut().map(|connection| connection.call(&resume))) => resumed,
        () = context.clock.sleep(budget) => Vec::new(),
    };
    let ended = context.clock.elapsed();
    let measured = began.iter().map(|began| ended.saturating_sub(*began)).max().unwrap_or_default();
    // A node that did not take the word to resume has resumed by itself when its time was up.
    let all_took_it = resumed.len() == connections.len() && resumed.iter().all(std::result::Result::is_ok);
    let paused = if all_took_it { measured.min(budget) } else { budget };
    let (at_us, _) = spread(&readings, wall_us(context));
    let cut = ClusterCut {
        method: CutMethod::Barrier,
        at: timestamp(at_us),
        error_ms: 0,
        paused_ms: Some(whole_ms(i64::try_from(paused.as_micros()).unwrap_or(i64::MAX))),
        fell_back: None,
    };
    Ok(TakenCut { cut, shards: shard_cuts(&readings) })
}

/// That a primary moves slots in a way that a pause would cancel (Redis 8.4+ tells so in `CLUSTER INFO`).
async fn busy_migrating(connections: &mut [Connection]) -> Option<String> {
    for connection in connections {
        let reply = connection.exchange(&Command::new("CLUSTER").arg("INFO")).await.ok()?;
        let text = reply.as_text().unwrap_or_default();
        let active = text
            .lines()
            .find_map(|line| line.strip_prefix("cluster_slot_migration_active_tasks:"))
            .and_then(|count| count.trim().parse::<u64>().ok());
        if active.is_some_and(|active| active > 0) {
            return Some(format!("{} is moving slots, which a pause would cancel", connection.node()));
        }
    }
    None
}

/// Lets writes go on, where they may have been paused. A node that does not hear it resumes by itself.
async fn resume_all(context: &Context, primaries: &[NodeAddr]) {
    let resume = Command::new("CLIENT").arg("UNPAUSE");
    let each = futures::stream::iter(primaries.to_vec()).map(|addr| {
        let resume = &resume;
        async move {
            let Ok(mut connection) = context.connector.connect(&addr).await else { return };
            if let Err(error) = connection.call(resume).await {
                tracing::debug!(%error, "writes resume by the server's own time-out");
            }
        }
    });
    each.buffer_unordered(DIALS_IN_FLIGHT).collect::<Vec<()>>().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use slotkeep_model::{ReplOffset, Role};
    use slotkeep_wire::info::Replication;

    /// A server whose clock is `ahead_us` ahead of ours, asked at `sent_us` and answering `round_us` later.
    fn timed(ahead_us: i64, sent_us: i64, round_us: i64) -> Timed {
        let replication = Replication {
            role: Role::Primary,
            replid: "a".repeat(40).parse().unwrap(),
            previous_replid: None,
            previous_valid_to: None,
            offset: ReplOffset(7),
            backlog: None,
            link: None,
            replicas: vec![],
        };
        let middle = sent_us + round_us / 2;
        let clock_us = Some((middle + ahead_us, middle + ahead_us + 10));
        let reading = ClockReading { clock_us, replication };
        Timed { reading, sent_us, received_us: sent_us + round_us }
    }

    fn difference(readings: &[Timed]) -> i64 {
        let clocks: Vec<_> = readings.iter().map(|timed| timed.reading.clock_us.unwrap()).collect();
        clock_difference(readings, &clocks)
    }

    #[test]
    fn clocks_that_agree_are_apart_by_the_round_trips_at_most() {
        let readings = [timed(0, 1000, 400), timed(0, 1010, 600)];
        let difference = difference(&readings);
        assert!((0..=1000).contains(&difference), "{difference}");
        let (at, error) = spread(&readings, 0);
        assert_eq!(at, 1320);
        assert!(error >= 110 + difference && error < 1200, "{error}");
    }

    #[test]
    fn clocks_that_are_apart_widen_the_error() {
        let readings = [timed(0, 1000, 400), timed(5_000_000, 1000, 400)];
        assert!(difference(&readings) >= 5_000_000);
        let (_, error) = spread(&readings, 0);
        assert!(error >= 10_000_000, "the readings look as far apart as the clocks are: {error}");
    }

    #[test]
    fn one_shard_has_nothing_to_differ_from() {
        assert_eq!(difference(&[timed(5, 1000, 400)]), 0);
        assert_eq!(whole_ms(spread(&[timed(5, 1000, 400)], 0).1), 1);
    }

    #[test]
    fn without_a_servers_clock_ours_bounds_the_cut() {
        let mut silent = timed(5_000_000, 1000, 400);
        silent.reading.clock_us = None;
        assert_eq!(spread(&[silent, timed(0, 1100, 200)], 9000), (10_400, 400));
    }
}
