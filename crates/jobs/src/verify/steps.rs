//! The steps of something long, how long each took, and which is under way.

use std::sync::PoisonError;
use std::time::Duration;

use slotkeep_format::verify::DrillStep;

use super::VerifyProgress;
use crate::Context;

/// Steps that are measured one after the other.
pub(super) struct Steps<'a> {
    context: &'a Context,
    progress: &'a VerifyProgress,
    began: Duration,
    last: Duration,
    done: Vec<DrillStep>,
    /// What is being done; empty if nothing is.
    now: &'static str,
}

impl<'a> Steps<'a> {
    pub(super) fn new(context: &'a Context, progress: &'a VerifyProgress) -> Self {
        let began = context.clock.elapsed();
        Self { context, progress, began, last: began, done: Vec::new(), now: "" }
    }

    /// Ends the step under way and begins the next.
    pub(super) fn begin(&mut self, name: &'static str) {
        self.end();
        self.now = name;
        self.show(Some(name));
    }

    /// Ends the step under way.
    pub(super) fn end(&mut self) {
        let now = self.context.clock.elapsed();
        if !self.now.is_empty() {
            let ms = millis(now.saturating_sub(self.last));
            self.done.push(DrillStep { name: self.now.to_owned(), ms });
        }
        self.last = now;
        self.now = "";
        self.show(None);
    }

    /// Since the first step began, in ms.
    pub(super) fn since_start_ms(&self) -> u64 {
        millis(self.context.clock.elapsed().saturating_sub(self.began))
    }

    /// Ends the step under way; gives all of them.
    pub(super) fn finish(mut self) -> Vec<DrillStep> {
        self.end();
        self.done
    }

    fn show(&self, name: Option<&'static str>) {
        *self.progress.step.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
