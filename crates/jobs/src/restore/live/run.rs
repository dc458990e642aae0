//! What all tasks of a restore share: where commands go, what answers mean, and when to stop.
//!
//! A command is sent to the node that the slot map names. An answer is final (done, skipped, an error that ends the restore), or
//! it sends the command elsewhere (`MOVED`, `ASK`), or it asks for patience: such commands are gathered and, after a pause that grows
//! and a new look at the target, sent again. None is ever dropped or forgotten: a batch is closed only when all of its pieces are.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slotkeep_model::NodeAddr;
use slotkeep_wire::resp::Value;
use slotkeep_wire::server_error::{Redirect, ServerError};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::batch::{Batch, Ticket};
use super::lane::{self, Input};
use super::options::{LiveOptions, OnConflict};
use super::target::Target;
use crate::{Context, Error, ErrorKind};

/// How many bytes may be on their way to one node: enough to keep it busy over any link, few enough to hold in memory.
pub(super) const WINDOW_BYTES: usize = 4 << 20;
/// After so many redirections in a row a command waits: the nodes disagree, and will agree soon.
const MOST_REDIRECTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The pause between two looks at the slot map, as one of [`Run::pause`]: a third of a second.
const MAP_PAUSE_ATTEMPT: u32 = 4;

/// Numbers for the report.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) skipped_existing: AtomicU64,
    pub(super) skipped_expired: AtomicU64,
    pub(super) already_restored: AtomicU64,
    pub(super) element_wise: AtomicU64,
    pub(super) without_metadata: AtomicU64,
    pub(super) pending_left_out: AtomicU64,
    pub(super) rdb_bytes: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) redirected: AtomicU64,
    pub(super) sent_again: AtomicU64,
    restored: Mutex<BTreeMap<NodeAddr, u64>>,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }

    /// Counts keys written on a node.
    pub(super) fn restored(&self, node: &NodeAddr, keys: u64) {
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        match restored.get_mut(node) {
            Some(count) => *count = count.saturating_add(keys),
            None => {
                restored.insert(node.clone(), keys);
            }
        }
    }

    /// Keys written, by node.
    pub(super) fn restored_by_node(&self) -> BTreeMap<NodeAddr, u64> {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A command that waits to be sent again, and why.
pub(super) struct Later {
    pub(super) ticket: Ticket,
    pub(super) node: NodeAddr,
    pub(super) reason: Arc<str>,
}

/// What all tasks of a restore share.
pub(super) struct Run {
    pub(super) context: Context,
    pub(super) target: Target,
    pub(super) options: LiveOptions,
    pub(super) counters: Counters,
    /// Cancelled when everything is to end: the user's wish, or an error.
    pub(super) halt: CancellationToken,
    pub(super) tasks: TaskTracker,
    lanes: Mutex<HashMap<NodeAddr, mpsc::UnboundedSender<Input>>>,
    windows: Mutex<HashMap<NodeAddr, Arc<Semaphore>>>,
    later: mpsc::UnboundedSender<Later>,
    /// Told when a node says that the slot map is out of date.
    stale: Notify,
    error: Mutex<Option<Error>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    /// Makes ready to send, and starts what sends again.
    pub(super) fn start(context: Context, target: Target, options: LiveOptions) -> Arc<Self> {
        let (later, waiting) = mpsc::unbounded_channel();
        let run = Arc::new(Self {
            halt: context.stop.child_token(),
            context,
            target,
            options,
            counters: Counters::default(),
            tasks: TaskTracker::new(),
            lanes: Mutex::default(),
            windows: Mutex::default(),
            later,
            stale: Notify::new(),
            error: Mutex::default(),
        });
        run.tasks.spawn(send_again(Arc::clone(&run), waiting));
        run.tasks.spawn(keep_map(Arc::clone(&run)));
        run
    }

    /// Ends every task.
    pub(super) async fn end(&self) {
        self.halt.cancel();
        locked(&self.lanes).clear();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Ends the restore with an error; the first one counts.
    pub(super) fn fail(&self, error: Error) {
        // What was stopped only because everything ended has nothing to tell.
        if error.kind() != ErrorKind::Interrupted {
            locked(&self.error).get_or_insert(error);
        }
        self.halt.cancel();
    }

    /// The error that ended everything, or that the user did.
    pub(super) fn why_ended(&self) -> Error {
        locked(&self.error).take().unwrap_or_else(Error::interrupted)
    }

    /// The window of commands on their way to a node.
    pub(super) fn window(&self, node: &NodeAddr) -> Arc<Semaphore> {
        let mut windows = locked(&self.windows);
        if let Some(window) = windows.get(node) {
            return Arc::clone(window);
        }
        let window = Arc::new(Semaphore::new(WINDOW_BYTES));
        windows.insert(node.clone(), Arc::clone(&window));
        window
    }

    /// Sends to a node, over the connection there is or a new one.
    pub(super) fn dispatch(self: &Arc<Self>, node: &NodeAddr, input: Input) {
        let mut lanes = locked(&self.lanes);
        let refused = match lanes.get(node) {
            Some(lane) => match lane.send(input) {
                Ok(()) => return,
                Err(mpsc::error::SendError(input)) => input,
            },
            None => input,
        };
        let (lane, inbox) = mpsc::unbounded_channel();
        // The other end is right here.
        let _ = lane.send(refused);
        lanes.insert(node.clone(), lane);
        drop(lanes);
        self.tasks.spawn(lane::run(Arc::clone(self), node.clone(), inbox));
    }

    /// Sends a batch.
    pub(super) fn dispatch_batch(self: &Arc<Self>, node: &NodeAddr, batch: Arc<Batch>) {
        self.dispatch(node, Input::Batch(batch));
    }

    /// Lets a command wait before it is sent again.
    pub(super) fn later(&self, ticket: Ticket, node: &NodeAddr, reason: &Arc<str>) {
        // The receiver ends only when everything ends.
        let _ = self.later.send(Later { ticket, node: node.clone(), reason: Arc::clone(reason) });
    }

    /// Acts on the answer of a node to a command.
    pub(super) fn settle(self: &Arc<Self>, node: &NodeAddr, ticket: Ticket, reply: &Value) {
        let Some(text) = reply.as_error() else {
            Counters::add(&self.counters.sent_bytes, ticket.bytes().len() as u64);
            ticket.done();
            return;
        };
        match ServerError::classify(text) {
            ServerError::Moved(redirect) => self.redirect(node, ticket, &redirect, false),
            ServerError::Ask(redirect) => self.redirect(node, ticket, &redirect, true),
            ServerError::BusyKey => self.exists(ticket),
            error if is_passing(&error) => self.later(ticket, node, &Arc::from(text)),
            error => self.fail(refusal(node, &error, text, &ticket.key_text())),
        }
    }

    fn redirect(self: &Arc<Self>, node: &NodeAddr, mut ticket: Ticket, redirect: &Redirect, asking: bool) {
        Counters::add(&self.counters.redirected, 1);
        ticket.redirects += 1;
        let to = redirect.addr(node);
        if !asking {
            self.stale.notify_one();
        }
        if ticket.redirects > MOST_REDIRECTS {
            self.later(ticket, node, &Arc::from(format!("nodes disagree on slot {}", redirect.slot)));
        } else {
            self.dispatch(&to, Input::Ticket { ticket, asking });
        }
    }

    fn exists(&self, ticket: Ticket) {
        match self.options.on_conflict {
            _ if ticket.may_be_ours() => Counters::add(&self.counters.already_restored, 1),
            OnConflict::Skip => Counters::add(&self.counters.skipped_existing, 1),
            OnConflict::Fail | OnConflict::Replace => {
                self.fail(key_exists(&ticket.key_text(), ticket.slot()));
                return;
            }
        }
        ticket.done();
    }

    /// A pause before attempt number `attempt`, counted from 0.
    pub(super) async fn pause(&self, attempt: u32) {
        let pause = FIRST_PAUSE.saturating_mul(1 << attempt.min(10)).min(LONGEST_PAUSE);
        tokio::select! {
            () = self.context.clock.sleep(pause) => {}
            () = self.halt.cancelled() => {}
        }
    }

    /// The error of a restore whose patience has run out.
    pub(super) fn out_of_patience(&self, node: &NodeAddr, slot: slotkeep_model::Slot, reason: &str) -> Error {
        let seconds = self.options.patience.as_secs();
        let what = format!("slot {slot} could not be written for {seconds} s; {node} last: {reason}");
        Error::new(ErrorKind::Unreachable, what)
            .hint("see that the target is whole (CLUSTER INFO), then run the same command again: it goes on from here")
    }
}

/// That a key exists although it must not.
pub(super) fn key_exists(key: &str, slot: slotkeep_model::Slot) -> Error {
    let what = format!("key `{key}` (slot {slot}) exists on the target: something else is writing to it");
    Error::new(ErrorKind::Conflict, what)
        .hint("stop what writes there and run the same command again, or use --on-conflict skip or replace with --restart")
}

/// Whether the same command may be accepted later, here or where the slot is by then.
pub(super) fn is_passing(error: &ServerError) -> bool {
    error.is_transient() || matches!(error, ServerError::ReadOnly)
}

/// What a refusal that will not pass means.
pub(super) fn refusal(node: &NodeAddr, error: &ServerError, text: &str, key: &str) -> Error {
    let what = format!("{node} refuses key `{key}`: {text}");
    match error {
        ServerError::OutOfMemory => Error::new(ErrorKind::Full, what)
            .hint("raise maxmemory on the target, or add shards, then run the same command again: it goes on from here"),
        ServerError::CannotPersist => Error::new(ErrorKind::Full, what)
            .hint("see why the server can't save to its disk, then run the same command again: it goes on from here"),
        ServerError::NoPermission { .. } | ServerError::UnknownCommand { .. } => {
            Error::new(ErrorKind::Permission, what)
                .hint("the user needs ~* and +restore +select +asking, and the write commands for values too long for RESTORE")
        }
        ServerError::AuthRequired | ServerError::WrongPassword => {
            Error::new(ErrorKind::Authentication, what)
                .hint("give the password in SLOTKEEP_PASSWORD or --password-file, the user in --user")
        }
        _ => Error::new(ErrorKind::Failed, what)
            .hint("a module that the value needs may be missing on the target, or its limits may be lower"),
    }
}

/// Looks at the target again when a node has said that a slot is elsewhere, so that later keys go there at once.
async fn keep_map(run: Arc<Run>) {
    loop {
        tokio::select! {
            () = run.halt.cancelled() => return,
            () = run.stale.notified() => {}
        }
        if let Err(error) = run.target.look_again(&run.context, None).await {
            tracing::debug!(%error, "the target can't be looked at");
        }
        // Redirections come in swarms.
        run.pause(MAP_PAUSE_ATTEMPT).await;
    }
}

/// Sends commands again that wait for their turn.
async fn send_again(run: Arc<Run>, mut waiting: mpsc::UnboundedReceiver<Later>) {
    let mut attempt = 0;
    let mut last_round = Duration::ZERO;
    loop {
        let first = tokio::select! {
            biased;
            () = run.halt.cancelled() => return,
            first = waiting.recv() => first,
        };
        let Some(first) = first else { return };
        // Trouble long past says nothing about this one.
        if run.context.clock.elapsed().saturating_sub(last_round) > 4 * LONGEST_PAUSE {
            attempt = 0;
        }
        run.pause(attempt).await;
        attempt = attempt.saturating_add(1);
        let avoid = first.node.clone();
        let mut round = vec![first];
        while let Ok(more) = waiting.try_recv() {
            round.push(more);
        }
        if let Err(error) = run.target.look_again(&run.context, Some(&avoid)).await {
            tracing::debug!(%error, "the target can't be looked at");
        }
        last_round = run.context.clock.elapsed();
        tracing::info!(commands = round.len(), node = %avoid, reason = %round.first().map_or("", |later| &later.reason), "sending again");
        let map = run.target.map();
        for mut later in round {
            let since = *later.ticket.failing_since.get_or_insert(last_round);
            if last_round.saturating_sub(since) > run.options.patience {
                run.fail(run.out_of_patience(&later.node, later.ticket.slot(), &later.reason));
                return;
            }
            Counters::add(&run.counters.sent_again, 1);
            later.ticket.redirects = 0;
            if let Some(owner) = map.owner(later.ticket.slot()) {
                run.dispatch(&owner.addr, Input::Ticket { ticket: later.ticket, asking: false });
            }
        }
    }
}
