//! A pipelined connection to one node: commands go out as they come, answers are taken as they come, neither waits for the other.
//!
//! Invariants: `in_flight` holds what was sent and not answered, in order; what it expects is noted before the bytes leave. When
//! the connection ends, everything in flight or not yet sent is handed on to be sent again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slotkeep_model::NodeAddr;
use slotkeep_wire::resp::{Command, Decoder, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::UnboundedReceiver;

use super::batch::{Batch, Ticket};
use super::run::Run;
use crate::Error;
use crate::net::{Reading, Writing};

const READ_BYTES: usize = 64 << 10;

/// What is to be sent.
pub(super) enum Input {
    /// Every command of a batch.
    Batch(Arc<Batch>),
    /// One command, after `ASKING` if so.
    Ticket {
        /// The command.
        ticket: Ticket,
        /// Whether the node must be told that the slot is on its way there.
        asking: bool,
    },
}

/// What an answer is to.
enum Sent {
    /// `SELECT` or `ASKING`.
    Preamble,
    Ticket(Ticket),
}

/// Why a connection ended.
enum Ending {
    /// Everything ends.
    Halt,
    /// It broke; commands may have been done without an answer.
    Broken(String),
    /// It was never there, for a reason that will not pass.
    Hopeless(Error),
}

struct Lane<'a> {
    run: &'a Arc<Run>,
    node: &'a NodeAddr,
    in_flight: Mutex<VecDeque<Sent>>,
    timeout: Duration,
}

/// Sends what comes until there is nothing more to come, the connection breaks or everything ends.
pub(super) async fn run(run: Arc<Run>, node: NodeAddr, mut inbox: UnboundedReceiver<Input>) {
    let lane = Lane {
        run: &run,
        node: &node,
        in_flight: Mutex::default(),
        timeout: run.context.connector.timeout(),
    };
    let ending = tokio::select! {
        ending = lane.serve(&mut inbox) => ending,
        () = run.halt.cancelled() => Ending::Halt,
    };
    let reason: Arc<str> = match ending {
        Ending::Halt => return,
        Ending::Hopeless(error) => return run.fail(error),
        Ending::Broken(reason) => Arc::from(reason),
    };
    tracing::warn!(%node, %reason, "a connection to the target ended");
    // From here on senders get their commands back and open a new connection.
    inbox.close();
    let unanswered = std::mem::take(&mut *lane.in_flight());
    for sent in unanswered {
        if let Sent::Ticket(mut ticket) = sent {
            ticket.unsure = true;
            run.later(ticket, &node, &reason);
        }
    }
    while let Some(input) = inbox.recv().await {
        match input {
            Input::Batch(batch) => batch.tickets().for_each(|ticket| run.later(ticket, &node, &reason)),
            Input::Ticket { ticket, .. } => run.later(ticket, &node, &reason),
        }
    }
}

impl Lane<'_> {
    fn in_flight(&self) -> MutexGuard<'_, VecDeque<Sent>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(&self, inbox: &mut UnboundedReceiver<Input>) -> Ending {
        let connection = match self.run.context.connector.connect(self.node).await {
            Ok(connection) => connection,
            Err(error) if error.problem.is_transient() => return Ending::Broken(error.to_string()),
            Err(error) => return Ending::Hopeless(error.into()),
        };
        let (reading, writing, decoder) = connection.split();
        tokio::select! {
            ending = self.send(writing, inbox) => ending,
            ending = self.receive(reading, decoder) => ending,
        }
    }

    async fn send(&self, mut writing: Writing, inbox: &mut UnboundedReceiver<Input>) -> Ending {
        let mut database = 0;
        let mut preamble = Vec::new();
        while let Some(input) = inbox.recv().await {
            preamble.clear();
            let wanted = match &input {
                Input::Batch(batch) => batch.database,
                Input::Ticket { ticket, .. } => ticket.database(),
            };
            let mut expected = Vec::new();
            if wanted != database {
                Command::new("SELECT").arg_number(wanted).encode_into(&mut preamble);
                expected.push(Sent::Preamble);
                database = wanted;
            }
            let written = match input {
                Input::Batch(batch) => {
                    expected.extend(batch.tickets().map(Sent::Ticket));
                    self.in_flight().extend(expected);
                    self.write(&mut writing, &preamble, batch.bytes()).await
                }
                Input::Ticket { ticket, asking } => {
                    if asking {
                        Command::new("ASKING").encode_into(&mut preamble);
                        expected.push(Sent::Preamble);
                    }
                    preamble.extend_from_slice(ticket.bytes());
                    expected.push(Sent::Ticket(ticket));
                    self.in_flight().extend(expected);
                    self.write(&mut writing, &preamble, &[]).await
                }
            };
            if let Err(reason) = written {
                return Ending::Broken(reason);
            }
        }
        // Nobody can send any more, which happens only at the end.
        Ending::Halt
    }

    async fn write(&self, writing: &mut Writing, first: &[u8], second: &[u8]) -> Result<(), String> {
        let write = async {
            writing.write_all(first).await?;
            writing.write_all(second).await?;
            writing.flush().await
        };
        match tokio::time::timeout(self.timeout, write).await {
            Ok(written) => written.map_err(|error| format!("the connection broke: {error}")),
            Err(_) => Err(format!("it takes nothing for {} s", self.timeout.as_secs())),
        }
    }

    async fn receive(&self, mut reading: Reading, mut decoder: Decoder) -> Ending {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let mut keys = 0;
            loop {
                match decoder.next() {
                    Ok(Some(reply)) => match self.answer(&reply) {
                        Ok(restored) => keys += u64::from(restored),
                        Err(ending) => return ending,
                    },
                    Ok(None) => break,
                    Err(error) => return Ending::Broken(error.to_string()),
                }
            }
            if keys > 0 {
                self.run.counters.restored(self.node, keys);
            }
            let read = match tokio::time::timeout(self.timeout, reading.read(&mut buffer)).await {
                Ok(Ok(0)) => return Ending::Broken("the server closed the connection".to_owned()),
                Ok(Ok(read)) => read,
                Ok(Err(error)) => return Ending::Broken(format!("the connection broke: {error}")),
                Err(_) if self.in_flight().is_empty() => continue,
                Err(_) => return Ending::Broken(format!("no answer for {} s", self.timeout.as_secs())),
            };
            decoder.feed(buffer.get(..read).unwrap_or_default());
        }
    }

    /// Acts on an answer; true if it means that a key was written.
    fn answer(&self, reply: &Value) -> Result<bool, Ending> {
        let Some(sent) = self.in_flight().pop_front() else {
            return Err(Ending::Broken("an answer to nothing".to_owned()));
        };
        match sent {
            Sent::Ticket(ticket) => {
                let restored = reply.as_error().is_none();
                self.run.settle(self.node, ticket, reply);
                Ok(restored)
            }
            // What was to follow would go to the wrong place.
            Sent::Preamble => match reply.as_error() {
                Some(text) => Err(Ending::Broken(format!("SELECT or ASKING: {text}"))),
                None => Ok(false),
            },
        }
    }
}
