//! Moments that can be restored, as the product itself says: which those are depends on when the agent looked, and how busy the machine was.

use std::time::Duration;

use serde_json::Value;
use slotkeep_testkit::deadline::{NotYet, wait_for};

use crate::harness::{Bench, Run, free_addrs};
use crate::recorder::{now, pause};

const LIMIT: Duration = Duration::from_secs(60);

/// Waits until moments can be restored, and gives the first such moment. After a failover, a move or a kill they can't before every shard is
/// followed again, a shard whose primary took bytes with it has a new base, and slots have been seen where they are.
pub(crate) fn next_restorable(bench: &Bench, shards: usize) -> i64 {
    let moment = wait_for(LIMIT, "a moment that can be restored", || {
        let moment_ms = now().as_millisecond();
        // Until what was written by then is sealed.
        pause(1500);
        let run = plan(bench, moment_ms, shards);
        if run.code == 0 { Ok(moment_ms) } else { Err(NotYet::because(run.stderr)) }
    });
    moment.unwrap_or_else(|error| panic!("{error}"))
}

/// The moment, or the last one before it of which it is known who served what: a machine that is busy elsewhere looks seldom, and slots that moved
/// soon after a moment may have moved before it for all that anybody knows.
pub(crate) fn known(bench: &Bench, moment_ms: i64, shards: usize) -> i64 {
    let run = plan(bench, moment_ms, shards);
    if run.code == 0 {
        return moment_ms;
    }
    run.failed(24, "changed hands between");
    let told: Value = serde_json::from_str(&run.stderr).unwrap();
    let hint = told["error"]["hint"].as_str().unwrap();
    let earlier = hint.strip_prefix("restore to ").and_then(|hint| hint.split_once(" or earlier")).unwrap().0;
    let earlier: jiff::Timestamp = earlier.parse().unwrap();
    // Looks follow each other within seconds even so.
    assert!(moment_ms - earlier.as_millisecond() < 20_000, "{}", run.stderr);
    earlier.as_millisecond()
}

/// Whether `list` offers that moment.
pub(crate) fn is_listed(bench: &Bench, moment_ms: i64) -> bool {
    let list = bench.slotkeep(&["list"]).json();
    let moment = |end: &Value| end.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond();
    let spans = list["restorable"][0]["moments"].as_array().unwrap();
    spans.iter().any(|span| moment(&span["from"]) <= moment_ms && moment_ms <= moment(&span["to"]))
}

/// What a restore to that moment would do, with so many shards.
pub(crate) fn plan(bench: &Bench, moment_ms: i64, shards: usize) -> Run {
    let at = jiff::Timestamp::from_millisecond(moment_ms).unwrap().to_string();
    bench.restore("plan", &free_addrs(shards), &["--at", &at, "--no-replicas", "--dry-run"])
}
