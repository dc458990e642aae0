//! Why an answer about the cluster cannot be used.

use slotkeep_model::{NodeId, Slot};
use thiserror::Error;

/// A reply, or a `nodes.conf`, that is not what servers write.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TopologyError {
    /// A field of a node's line is not what it should be.
    #[error("line {line}: `{found}` is not {expected}")]
    BadField {
        /// The line, counted from 1.
        line: usize,
        /// What stands there; empty if nothing does.
        found: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// No line has the flag `myself`.
    #[error("no node is marked `myself`")]
    NoMyself,
    /// More than one line has the flag `myself`.
    #[error("both {first} and {second} are marked `myself`")]
    TwoMyselves {
        /// One of them.
        first: NodeId,
        /// Another one.
        second: NodeId,
    },
    /// Two lines have the same id.
    #[error("node {id} is listed twice")]
    DuplicateNode {
        /// The id.
        id: NodeId,
    },
    /// Two nodes own the same slot.
    #[error("slot {slot} is owned by both {first} and {second}")]
    SlotOwnedTwice {
        /// The slot.
        slot: Slot,
        /// One owner.
        first: NodeId,
        /// Another one.
        second: NodeId,
    },
    /// A reply has another shape than its command's replies have.
    #[error("the reply to {command} has no {expected} where one belongs")]
    BadReply {
        /// The command.
        command: &'static str,
        /// What is missing.
        expected: &'static str,
    },
}
