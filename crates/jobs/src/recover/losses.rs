//! What is lost by what is done. Pure.

use jiff::Timestamp;

use super::plan::Loss;
use crate::log::point::shards::{Lack, Reach};
use crate::log::tail::Tail;

/// What is lost when that replica becomes the primary. `tail` is the log behind what it has, if that can be applied to it.
pub(super) fn loss_of_promotion(
    (addr, tail): (&str, Option<&Tail>),
    lack: Option<Lack>,
    repository: bool,
) -> Loss {
    let beyond = "what the old primary took and passed on to nobody is gone";
    let (what, bytes, ms) = match lack {
        Some(lack) if !lack.writes => (
            format!("of what the repository holds, nothing: {addr} has all of it; {beyond}"),
            Some(0),
            Some(0),
        ),
        Some(lack) => {
            let for_ms = lack.ms.map(|ms| format!(", written within {ms} ms,")).unwrap_or_default();
            let offer = tail.map(Tail::in_words).map(|words| {
                format!(" `--apply-tail` applies them to {addr} once it is the primary: {words}.")
            });
            (
                format!(
                    "{} bytes of the log{for_ms} that the repository holds and {addr} does not.{} `--prefer archive` restores the shard with them \
                     instead, onto new nodes; {beyond}",
                    lack.bytes,
                    offer.unwrap_or_default()
                ),
                Some(lack.bytes),
                lack.ms,
            )
        }
        None if repository => (
            format!("not known: the repository does not know the place at which {addr} stands; {beyond}"),
            None,
            None,
        ),
        None => (format!("not known without a repository; {beyond}"), None, None),
    };
    Loss { what, bytes, ms, until: None }
}

/// What is lost when a shard is restored from there.
pub(super) fn loss_of_restore(reach: &Reach, at: Option<Timestamp>, now: Option<Timestamp>) -> Loss {
    // Not before the earlier end of the span was the last byte written: what came later may be gone.
    let written = reach.written.and_then(|span| span.from.or(span.until));
    let until = at.or(written);
    let ms =
        until.zip(now).and_then(|(until, now)| u64::try_from(now.duration_since(until).as_millis()).ok());
    let what = match (until, ms) {
        (Some(until), Some(ms)) => format!(
            "everything written after {}, which is {} s ago",
            until.strftime("%Y-%m-%dT%H:%M:%S.%3fZ"),
            ms / 1000
        ),
        _ => format!("everything behind offset {} of history {}", reach.end.offset, reach.end.history),
    };
    Loss { what, bytes: None, ms, until }
}
