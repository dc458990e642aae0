//! A user's own checks of a drill: a file of commands with the replies that they must give, or a folder of programs that must succeed.
//!
//! ```text
//! # a comment
//! GET user:1 => Ada
//! HGET "a key with spaces" field => 7
//! ```
//!
//! A reply is compared as text: a string as it is, a number in digits, nothing as `(nil)`, a list with a space between its elements, an
//! error as its words. Programs find the nodes in `SLOTKEEP_DRILL_NODES` (`host:port`, separated by commas).

use std::path::{Path, PathBuf};
use std::time::Duration;

use slotkeep_format::{Depth, VerifyFinding};
use slotkeep_model::NodeAddr;
use slotkeep_wire::resp::{Command, Value};

use super::findings::{problem, shortened};
use crate::guard::Guard;
use crate::{Context, Error, ErrorKind, Result};

const CHECK: (Depth, &str) = (Depth::Drill, "check");
/// How long a program may run.
const PROGRAM_LIMIT: Duration = Duration::from_secs(300);
/// Redirections that are followed.
const MOST_HOPS: usize = 5;
const ADVICE: &str =
    "find out whether the check or the data is wrong: `slotkeep restore` brings the same back to look at";

/// What is to be checked.
#[derive(Clone, Debug)]
pub(super) enum Checks {
    /// Commands and the replies that they must give, with the numbers of their lines.
    Commands(Vec<(usize, Vec<String>, String)>),
    /// Programs, by name.
    Programs(Vec<PathBuf>),
}

impl Checks {
    /// Reads a file of commands, or looks for the programs of a folder.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Usage, format!("can't read the checks {}: {error}", path.display()))
                .hint("give --checks a file of lines such as `GET key => value`, or a folder of programs")
        };
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(failed)?;
            let mut programs = Vec::new();
            for entry in entries {
                let program = entry.map_err(failed)?.path();
                if program.is_file() {
                    // The nodes' folders are others than ours.
                    programs.push(program.canonicalize().map_err(failed)?);
                }
            }
            programs.sort();
            return Ok(Self::Programs(programs));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let lines =
            text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let commands = lines.map(|(number, line)| {
            let number = number.saturating_add(1);
            let parsed =
                line.split_once(" => ").map(|(command, reply)| (words(command), reply.trim().to_owned()));
            let parsed = parsed.filter(|(command, _)| !command.is_empty());
            let (command, reply) = parsed.ok_or_else(|| {
                Error::new(ErrorKind::Usage, format!("{}:{number}: that is no check: {line}", path.display()))
                    .hint("write a command, ` => ` and its reply: GET key => value")
            })?;
            Ok((number, command, reply))
        });
        Ok(Self::Commands(commands.collect::<Result<_>>()?))
    }

    /// Runs them; what does not give what it must is a finding about `object`.
    pub(super) async fn run(
        &self,
        context: &Context,
        (nodes, guard): (&[NodeAddr], &Guard),
        object: &str,
    ) -> Result<Vec<VerifyFinding>> {
        let mut found = Vec::new();
        match self {
            Self::Commands(commands) => {
                for (line, command, wanted) in commands {
                    let reply = text(&ask(context, nodes, command).await?);
                    if reply != *wanted {
                        let (reply, wanted) = (shortened(&reply), shortened(wanted));
                        let what =
                            format!("line {line}: {} gives `{reply}`, not `{wanted}`", command.join(" "));
                        found.push(problem(CHECK, object, what, ADVICE));
                    }
                }
            }
            Self::Programs(programs) => {
                for program in programs {
                    if let Err(why) = run_program(program, nodes, guard).await {
                        let what = format!("{}: {why}", program.display());
                        found.push(problem(CHECK, object, what, ADVICE));
                    }
                }
            }
        }
        Ok(found)
    }
}

/// Sends a command to the node that serves its key.
async fn ask(context: &Context, nodes: &[NodeAddr], words: &[String]) -> Result<Value> {
    let Some((name, arguments)) = words.split_first() else { return Ok(Value::Null) };
    let command =
        arguments.iter().fold(Command::new(name.as_str()), |command, word| command.arg(word.as_str()));
    let mut node =
        nodes.first().cloned().ok_or_else(|| Error::new(ErrorKind::Failed, "the cluster has no nodes"))?;
    for _ in 0..MOST_HOPS {
        let reply = context.connector.connect(&node).await?.exchange(&command).await?;
        let moved =
            reply.as_error().and_then(|words| words.strip_prefix("MOVED ")?.split(' ').nth(1)?.parse().ok());
        match moved {
            Some(next) => node = next,
            None => return Ok(reply),
        }
    }
    Err(Error::new(ErrorKind::Failed, format!("{name} is sent from node to node")))
}

async fn run_program(program: &Path, nodes: &[NodeAddr], guard: &Guard) -> std::result::Result<(), String> {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    let nodes = nodes.join(",");
    let run = guard.run(program, ("SLOTKEEP_DRILL_NODES", &nodes));
    let ended = tokio::time::timeout(PROGRAM_LIMIT, run).await;
    let output = ended
        .map_err(|_| format!("it did not end within {} s", PROGRAM_LIMIT.as_secs()))?
        .map_err(|error| format!("it can't be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last =
        said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").to_owned();
    Err(format!("{}: {}", output.status, shortened(&last)))
}

/// The words of a command; one in double quotes may hold spaces.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in text.split('"').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// A reply as text.
fn text(reply: &Value) -> String {
    if let Some(words) = reply.as_error() {
        return words.to_owned();
    }
    if let Some(items) = reply.as_array() {
        return items.iter().map(text).collect::<Vec<_>>().join(" ");
    }
    if let Some(bytes) = reply.as_bytes() {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    match reply.as_i64() {
        Some(number) => number.to_string(),
        None => reply.as_text().map_or_else(|| "(nil)".to_owned(), str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_apart_and_replies_are_text() {
        assert_eq!(words("HGET \"a key\"  field"), ["HGET", "a key", "field"]);
        assert_eq!(words("GET \"\""), ["GET", ""]);
        let list = Value::Array(vec![Value::Bulk(b"a".to_vec()), Value::Integer(3), Value::Null]);
        assert_eq!(text(&list), "a 3 (nil)");
        assert_eq!(text(&Value::Simple("OK".to_owned())), "OK");
    }

    #[test]
    fn a_line_that_is_no_check_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("checks");
        std::fs::write(&file, "# one\n\nGET a => b\nGET c\n").unwrap();
        let error = Checks::load(&file).unwrap_err();
        assert!(error.to_string().contains("checks:4: that is no check: GET c"), "{error}");
        assert!(Checks::load(&folder.path().join("none")).is_err());
    }
}
