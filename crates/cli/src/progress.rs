//! Progress bars, one a shard, from the numbers that a job keeps.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use slotkeep_jobs::fold::FoldProgress;
use slotkeep_jobs::progress::{Phase, ShardProgress};
use slotkeep_jobs::verify::VerifyProgress;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::output::{Output, bytes, count};

const REFRESH: Duration = Duration::from_millis(200);

/// Bars that follow a job until it ends.
pub(crate) struct Display {
    done: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Display {
    /// Shows the progress if it is to be shown.
    pub(crate) fn start(output: &Output, shards: &[Arc<ShardProgress>]) -> Self {
        Self::start_with(output, shards, |_, shard, bar| refresh(shard, bar))
    }

    /// Shows the progress, if it is to be shown, as `refresh` puts it: it gets the number of the row, its numbers and its bar.
    fn start_with(
        output: &Output,
        shards: &[Arc<ShardProgress>],
        refresh: impl Fn(usize, &ShardProgress, &ProgressBar) + Send + 'static,
    ) -> Self {
        let done = CancellationToken::new();
        if !output.shows_progress() {
            return Self { done, task: None };
        }
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let rows: Vec<(Arc<ShardProgress>, ProgressBar)> = shards
            .iter()
            .map(|shard| {
                let bar = bars.add(ProgressBar::new(0).with_style(style()));
                bar.set_prefix(shard.name.clone());
                (Arc::clone(shard), bar)
            })
            .collect();
        let until = done.clone();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(REFRESH);
            loop {
                for (row, (shard, bar)) in rows.iter().enumerate() {
                    refresh(row, shard, bar);
                }
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = until.cancelled() => break,
                }
            }
            for (row, (shard, bar)) in rows.iter().enumerate() {
                refresh(row, shard, bar);
                bar.abandon();
            }
            let _ = bars.clear();
        });
        Self { done, task: Some(task) }
    }

    /// Takes the bars away.
    pub(crate) async fn finish(self) {
        self.done.cancel();
        if let Some(task) = self.task {
            let _ = task.await;
        }
    }
}

fn style() -> ProgressStyle {
    let template = "{prefix:24} {bar:20} {msg}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn refresh(shard: &ShardProgress, bar: &ProgressBar) {
    let keys = shard.keys.load(Ordering::Relaxed);
    let expected = shard.expected_keys.load(Ordering::Relaxed);
    let raw = shard.raw_bytes.load(Ordering::Relaxed);
    bar.set_length(expected.max(keys).max(1));
    bar.set_position(keys);
    bar.set_message(match shard.phase() {
        Phase::Queued => "waits for its turn".to_owned(),
        Phase::Waiting => "the server prepares its snapshot".to_owned(),
        Phase::Running => {
            let elapsed = bar.elapsed().as_secs().max(1);
            let left = if keys > 0 { bar.eta() } else { Duration::ZERO };
            format!(
                "{} keys, {}, {}/s, {} left",
                count(keys),
                bytes(raw),
                bytes(raw / elapsed),
                indicatif::HumanDuration(left)
            )
        }
        Phase::Finishing => format!("{}, being made durable", bytes(raw)),
        Phase::Done => format!("done: {} keys, {}", count(keys), bytes(raw)),
        Phase::Failed => "failed".to_owned(),
        Phase::Verifying => {
            format!("{} read and checked", bytes(shard.stored_bytes.load(Ordering::Relaxed)))
        }
    });
    if matches!(shard.phase(), Phase::Queued | Phase::Waiting | Phase::Verifying) {
        bar.reset_elapsed();
        bar.reset_eta();
    }
}

/// Bars for bytes that are written, each with its total.
pub(crate) struct ByteDisplay(Display);

impl ByteDisplay {
    /// Shows the progress if it is to be shown.
    pub(crate) fn start(output: &Output, rows: &[(Arc<ShardProgress>, u64)]) -> Self {
        let totals: Vec<u64> = rows.iter().map(|(_, total)| *total).collect();
        let shards: Vec<_> = rows.iter().map(|(shard, _)| Arc::clone(shard)).collect();
        Self(Display::start_with(output, &shards, move |row, shard, bar| {
            let done = shard.raw_bytes.load(Ordering::Relaxed);
            let total = totals.get(row).copied().filter(|total| *total > 0);
            bar.set_length(total.unwrap_or(done).max(1));
            bar.set_position(done);
            bar.set_message(match shard.phase() {
                Phase::Queued | Phase::Waiting | Phase::Verifying => "waits for its turn".to_owned(),
                Phase::Running => {
                    let elapsed = bar.elapsed().as_secs().max(1);
                    let left = if done > 0 { bar.eta() } else { Duration::ZERO };
                    let left = indicatif::HumanDuration(left);
                    // Of standard input nobody knows how much is to come.
                    let left = total.map(|_| format!(", {left} left")).unwrap_or_default();
                    format!("{}, {}/s{left}", bytes(done), bytes(done / elapsed))
                }
                Phase::Finishing => format!("{}, being made durable", bytes(done)),
                Phase::Done => format!("done: {}", bytes(done)),
                Phase::Failed => "failed".to_owned(),
            });
        }))
    }

    /// Takes the bars away.
    pub(crate) async fn finish(self) {
        self.0.finish().await;
    }
}

/// One bar for a verification.
pub(crate) struct VerifyDisplay(Display);

impl VerifyDisplay {
    /// Shows the progress if it is to be shown.
    pub(crate) fn start(output: &Output, progress: &Arc<VerifyProgress>) -> Self {
        let row = ShardProgress::new("verify".to_owned());
        let progress = Arc::clone(progress);
        Self(Display::start_with(output, &[row], move |_, _, bar| {
            let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            let (done, total) = (load(&progress.stored_bytes), load(&progress.total_bytes));
            let step = *progress.step.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(step) = step {
                bar.set_message(format!("{step}, {} findings", count(load(&progress.findings))));
                return;
            }
            if total == 0 {
                bar.reset_elapsed();
                bar.set_message("looks at what there is");
                return;
            }
            bar.set_length(total.max(done));
            bar.set_position(done);
            let links = load(&progress.total_links);
            if links > 0 {
                bar.set_message(format!(
                    "{} of {} bases folded and compared, {} findings",
                    count(load(&progress.links)),
                    count(links),
                    count(load(&progress.findings))
                ));
                return;
            }
            let rate = done / bar.elapsed().as_secs().max(1);
            let left = if done > 0 { bar.eta() } else { Duration::ZERO };
            bar.set_message(format!(
                "{} of {} objects, {}, {}/s, {} left, {} findings",
                count(load(&progress.objects)),
                count(load(&progress.total_objects)),
                bytes(done),
                bytes(rate),
                indicatif::HumanDuration(left),
                count(load(&progress.findings))
            ));
        }))
    }

    /// Takes the bar away.
    pub(crate) async fn finish(self) {
        self.0.finish().await;
    }
}

/// Bars for shards that are folded, each with the bytes of its base and log.
pub(crate) struct FoldDisplay(Display);

impl FoldDisplay {
    /// Shows the progress if it is to be shown.
    pub(crate) fn start(output: &Output, rows: &[(Arc<FoldProgress>, u64)]) -> Self {
        let rows: Vec<(Arc<FoldProgress>, u64)> =
            rows.iter().map(|(progress, total)| (Arc::clone(progress), *total)).collect();
        let shards: Vec<_> = rows.iter().map(|(progress, _)| Arc::clone(&progress.capture)).collect();
        Self(Display::start_with(output, &shards, move |row, shard, bar| {
            let Some((progress, total)) = rows.get(row) else { return };
            let fed = progress.fed_bytes.load(Ordering::Relaxed);
            let taken = shard.raw_bytes.load(Ordering::Relaxed);
            bar.set_length((*total).max(1));
            bar.set_position(fed);
            bar.set_message(match shard.phase() {
                Phase::Queued => "waits for its turn".to_owned(),
                Phase::Done => format!("done: {}", bytes(taken)),
                Phase::Failed => "failed".to_owned(),
                _ if taken > 0 => format!("{} of the result taken", bytes(taken)),
                _ => {
                    let rate = fed / bar.elapsed().as_secs().max(1);
                    format!("{} of base and log applied, {}/s", bytes(fed), bytes(rate))
                }
            });
        }))
    }

    /// Takes the bars away.
    pub(crate) async fn finish(self) {
        self.0.finish().await;
    }
}
