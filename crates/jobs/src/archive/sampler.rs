//! What time it is on a server, and how far it has come: asked again and again beside the stream.
//!
//! It is the primary that is asked, whichever node is followed: its clock stamps the writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use slotkeep_format::TimeSample;
use slotkeep_model::{ReplId, Shard};
use slotkeep_wire::info::{Info, Replication};
use slotkeep_wire::resp::{Command, Value};
use tokio::sync::{mpsc, watch};

use crate::net::{Connection, LinkError, LinkProblem};
use crate::{Context, Result};

/// How often the server is asked while its offset moves.
const BUSY: Duration = Duration::from_millis(100);
/// How often it is asked while it does not.
const QUIET: Duration = Duration::from_secs(1);

/// How often a server is asked that does not tell its time.
const WITHOUT_TIME: Duration = Duration::from_secs(30);

/// A sample, with the history that its offset counts in.
#[derive(Clone, Debug)]
pub(crate) struct Sampled {
    pub(crate) history: ReplId,
    pub(crate) sample: TimeSample,
}

/// Samples the shard's primary until it is aborted.
pub(crate) async fn sample(
    context: Context,
    mut shard: watch::Receiver<Shard>,
    out: mpsc::Sender<Sampled>,
    primary_offset: Arc<AtomicU64>,
) {
    loop {
        let primary = shard.borrow_and_update().primary.addr.clone();
        if let Ok(mut connection) = context.connector.connect(&primary).await {
            let mut last = None;
            while shard.borrow().primary.addr == primary {
                let Ok(sampled) = ask(&mut connection).await else { break };
                // A user that may not ask for the time.
                let Some(sampled) = sampled else {
                    context.clock.sleep(WITHOUT_TIME).await;
                    continue;
                };
                let offset = sampled.sample.offset;
                primary_offset.store(offset, Ordering::Relaxed);
                // A line that is busy with something else does without this one.
                let _ = out.try_send(sampled);
                let moved = last.replace(offset) != Some(offset);
                context.clock.sleep(if moved { BUSY } else { QUIET }).await;
            }
        }
        tokio::select! {
            () = context.clock.sleep(QUIET) => {}
            _ = shard.changed() => {}
        }
        if context.stop.is_cancelled() {
            return;
        }
    }
}

async fn ask(connection: &mut Connection) -> Result<Option<Sampled>> {
    let reading = read_clock(connection).await?;
    Ok(reading.clock_us.map(|(from_us, until_us)| {
        let sample = TimeSample {
            from_ms: from_us.div_euclid(1000),
            until_ms: until_us.div_euclid(1000).saturating_add(1),
            offset: reading.replication.offset.0,
        };
        Sampled { history: reading.replication.replid, sample }
    }))
}

/// A server's replication state, and its clock before and after.
#[derive(Clone, Debug)]
pub(crate) struct ClockReading {
    /// In microseconds since 1970; nothing if the user may not ask for it.
    pub(crate) clock_us: Option<(i64, i64)>,
    pub(crate) replication: Replication,
}

/// Asks `TIME`, `INFO replication`, `TIME` in one go. Not cancel-safe.
pub(crate) async fn read_clock(connection: &mut Connection) -> Result<ClockReading> {
    let mut question = Command::new("TIME").to_bytes();
    question.extend(Command::new("INFO").arg("replication").to_bytes());
    question.extend(Command::new("TIME").to_bytes());
    connection.send(&question).await?;
    let (before, info, after) =
        (connection.reply().await?, connection.reply().await?, connection.reply().await?);
    let failed = |problem| LinkError { node: connection.node().clone(), problem };
    if let Some(text) = info.as_error() {
        return Err(failed(LinkProblem::from_reply("INFO", text)).into());
    }
    let replication = info.as_text().and_then(|text| Info::parse(text).replication().ok());
    let senseless = || failed(LinkProblem::Protocol("it does not tell its offset".to_owned()));
    Ok(ClockReading {
        clock_us: microseconds(&before).zip(microseconds(&after)),
        replication: replication.ok_or_else(senseless)?,
    })
}

/// The answer to `TIME`.
fn microseconds(reply: &Value) -> Option<i64> {
    let [seconds, microseconds] = reply.as_array()? else { return None };
    seconds.as_i64()?.checked_mul(1_000_000)?.checked_add(microseconds.as_i64()?)
}
