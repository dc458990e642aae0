//! Whether the user may run what Slotkeep sends.
//!
//! Three sources, the surest first: `ACL DRYRUN` (7.0+); the user's own rules by `ACL GETUSER` or `ACL LIST`; the command itself,
//! where it changes nothing. `PSYNC`, `REPLCONF` and `CLIENT PAUSE` are never tried: `PSYNC` makes the server fork.
//! Source: `ACLSetUser`, `ACLDescribeUser` and `aclCommand` in `src/acl.c` of Redis 6.2 to 8.8 and Valkey 7.2 to 9.1.

use slotkeep_wire::acl::{COMMANDS, Need, UsedCommand, barrier_rules, minimal_backup_user, quoted};
use slotkeep_wire::resp::{Command, Value};
use slotkeep_wire::server_error::ServerError;

use super::finding::Findings;
use crate::net::{Connection, LinkError};

const CHECK: &str = "permissions";
/// The categories of `PSYNC` and `REPLCONF` (`src/commands/psync.json`, `replconf.json`), the same in all versions.
const REPLICA_CATEGORIES: [&str; 4] = ["all", "admin", "slow", "dangerous"];
/// Those of `CLIENT PAUSE` and `CLIENT UNPAUSE` (`client-pause.json`, `client-unpause.json`).
const PAUSE_CATEGORIES: [&str; 5] = ["all", "admin", "slow", "dangerous", "connection"];
/// The user to make when the one at hand is the default user, who should not be cut down to what a backup needs.
const SUGGESTED_USER: &str = "backup";

/// What else there is where replication is refused.
const WITHOUT_REPLICATION: &str =
    " (`slotkeep backup --source scan` does without replication: docs/sources.md)";

/// Whether a command may be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    Denied,
    /// The server does not have it under that name.
    Unknown,
    /// Nothing tells.
    Untold,
}

/// What was learnt about the user's rights.
#[derive(Clone, Debug)]
pub(super) struct Permissions {
    pub(super) user: String,
    pub(super) verdicts: Vec<(UsedCommand, Verdict)>,
}

/// Asks the server about every command that a backup sends.
pub(super) async fn ask(connection: &mut Connection, login: Option<&str>) -> Result<Permissions, LinkError> {
    let whoami = connection.exchange(&Command::new("ACL").arg("WHOAMI")).await?;
    let user = whoami.as_text().filter(|_| whoami.as_error().is_none()).or(login).unwrap_or("default");
    let user = user.to_owned();
    let rules = own_rules(connection, &user).await?;
    let mut verdicts = Vec::new();
    for command in COMMANDS {
        let mut verdict = dry_run(connection, &user, command.name).await?;
        if verdict == Verdict::Untold {
            verdict = match command.name {
                "psync" | "replconf" | "client|pause" | "client|unpause" => {
                    rules.as_deref().map_or(Verdict::Untold, |rules| by_rules(rules, command.name))
                }
                name => {
                    let (name, arguments) = sample(name);
                    by_reply(&connection.exchange(&Command::new(name).args(arguments)).await?)
                }
            };
        }
        // It came with 7.0: without it, ports are taken from CLUSTER NODES.
        if verdict == Verdict::Unknown && command.name == "cluster|shards" {
            verdict = Verdict::Allowed;
        }
        verdicts.push((*command, verdict));
    }
    Ok(Permissions { user, verdicts })
}

/// The command's name and harmless arguments.
fn sample(name: &'static str) -> (&'static str, Vec<&'static str>) {
    let (command, subcommand) = name.split_once('|').map_or((name, None), |(name, sub)| (name, Some(sub)));
    let arguments = match name {
        "psync" => vec!["?", "-1"],
        "replconf" => vec!["capa", "eof"],
        "config|get" => vec!["get", "maxmemory"],
        "command" => vec!["count"],
        "client|pause" => vec!["pause", "1", "WRITE"],
        _ => subcommand.into_iter().collect(),
    };
    (command, arguments)
}

async fn dry_run(connection: &mut Connection, user: &str, name: &'static str) -> Result<Verdict, LinkError> {
    let (command, arguments) = sample(name);
    let dry = Command::new("ACL").args(["DRYRUN", user, command]).args(arguments);
    Ok(by_dry_run(&connection.exchange(&dry).await?))
}

/// `ACL DRYRUN` answers `OK`, or a sentence that says what is missing, or that there is no such command.
fn by_dry_run(reply: &Value) -> Verdict {
    match reply.as_error() {
        None if reply.is_ok() => Verdict::Allowed,
        None => Verdict::Denied,
        Some(text) if text.contains("not found") && text.starts_with("ERR Command") => Verdict::Unknown,
        Some(_) => Verdict::Untold,
    }
}

/// What the reply to a command that was really sent tells: any answer but a refusal means that it may be run.
fn by_reply(reply: &Value) -> Verdict {
    match reply.as_error().map(ServerError::classify) {
        Some(ServerError::NoPermission { .. }) => Verdict::Denied,
        Some(ServerError::UnknownCommand { .. }) => Verdict::Unknown,
        _ => Verdict::Allowed,
    }
}

/// The user's own rules about commands, if the user may see them.
async fn own_rules(connection: &mut Connection, user: &str) -> Result<Option<String>, LinkError> {
    let reply = connection.exchange(&Command::new("ACL").args(["GETUSER", user])).await?;
    if let Some(rules) = reply.get("commands").and_then(Value::as_text) {
        let selectors = reply.get("selectors").and_then(Value::as_array).unwrap_or_default();
        let more = selectors.iter().filter_map(|selector| selector.get("commands")?.as_text());
        return Ok(Some(more.fold(rules.to_owned(), |all, one| format!("{all} ({one})"))));
    }
    let reply = connection.exchange(&Command::new("ACL").arg("LIST")).await?;
    let lines = reply.as_array().unwrap_or_default().iter().filter_map(Value::as_text);
    let mine = lines.filter_map(|line| line.strip_prefix("user ")?.strip_prefix(user)?.strip_prefix(' '));
    Ok(mine.map(str::to_owned).next())
}

/// Whether the rules allow a command that is not tried: the user's own, or one of the selectors in parentheses.
fn by_rules(rules: &str, name: &str) -> Verdict {
    let mut allowed = vec![false];
    let mut depth = 0_usize;
    for word in rules.split_ascii_whitespace() {
        if word.starts_with('(') {
            depth = depth.saturating_add(1);
            allowed.push(false);
        }
        let rule = word.trim_start_matches('(').trim_end_matches(')');
        let at = if depth > 0 { allowed.len().saturating_sub(1) } else { 0 };
        if let (Some(verdict), Some(place)) = (by_rule(rule, name), allowed.get_mut(at)) {
            *place = verdict;
        }
        if word.ends_with(')') {
            depth = 0;
        }
    }
    if allowed.contains(&true) { Verdict::Allowed } else { Verdict::Denied }
}

/// What one rule says of the command; nothing if it is about others.
fn by_rule(rule: &str, name: &str) -> Option<bool> {
    match rule {
        "allcommands" => return Some(true),
        "nocommands" | "reset" => return Some(false),
        _ => {}
    }
    let (allows, what) = match (rule.strip_prefix('+'), rule.strip_prefix('-')) {
        (Some(what), _) => (true, what),
        (None, Some(what)) => (false, what),
        (None, None) => return None,
    };
    let container = name.split_once('|').map(|(container, _)| container);
    let about = match what.strip_prefix('@') {
        Some(category) if container.is_some() => PAUSE_CATEGORIES.contains(&category),
        Some(category) => REPLICA_CATEGORIES.contains(&category),
        None => {
            what.eq_ignore_ascii_case(name) || container.is_some_and(|name| what.eq_ignore_ascii_case(name))
        }
    };
    about.then_some(allows)
}

/// The exact command that gives the user what a backup needs.
pub(super) fn acl_line(user: &str) -> String {
    minimal_backup_user(if user == "default" { SUGGESTED_USER } else { user })
}

fn set_user(user: &str) -> String {
    let line = acl_line(user);
    if user == "default" {
        format!("as an administrator, on every node, with a password of your choice added: {line}")
    } else {
        format!("as an administrator, on every node: {line}")
    }
}

/// What the user lacks.
pub(super) fn judge(permissions: &Permissions, out: &mut Findings) {
    let user = &permissions.user;
    let with = |need: Need, wanted: Verdict| {
        let fitting = permissions
            .verdicts
            .iter()
            .filter(move |(command, verdict)| command.need == need && *verdict == wanted);
        fitting.map(|(command, _)| command.name).collect::<Vec<_>>().join(", ")
    };
    let before = (with(Need::Backup, Verdict::Denied), with(Need::Backup, Verdict::Unknown));
    if !before.0.is_empty() {
        let replicates = before.0.split(", ").any(|lacks| ["psync", "replconf"].contains(&lacks));
        let without = if replicates { WITHOUT_REPLICATION } else { "" };
        // The advice is the line and nothing else, to be copied.
        out.problem(CHECK, format!("user {user} may not run {}{without}", before.0), set_user(user));
    }
    if !before.1.is_empty() {
        out.problem(
            CHECK,
            format!("the server does not know {}", before.1),
            format!(
                "the commands are renamed or blocked, as managed services do; a backup by replication needs them{WITHOUT_REPLICATION}"
            ),
        );
    }
    let untold = with(Need::Backup, Verdict::Untold);
    if !untold.is_empty() {
        out.note(
            CHECK,
            format!("nothing tells whether user {user} may run {untold}: it may not see its own rules"),
            format!(
                "let an administrator ask: ACL DRYRUN {user} psync ? -1; or allow it: {}",
                acl_line(user)
            ),
        );
    }
    let optional: Vec<String> = permissions
        .verdicts
        .iter()
        .filter(|(command, verdict)| {
            command.need == Need::Optional && matches!(verdict, Verdict::Denied | Verdict::Unknown)
        })
        .map(|(command, _)| format!("{} ({})", command.name, command.why))
        .collect();
    if !optional.is_empty() {
        let what = format!("user {user} may not run {}", optional.join("; "));
        out.note(CHECK, what, format!("backups do without; to allow it: {}", acl_line(user)));
    }
    let barrier = with(Need::Barrier, Verdict::Denied);
    if !barrier.is_empty() {
        let name = if user == "default" { SUGGESTED_USER } else { user };
        out.note(
            CHECK,
            format!("user {user} may not run {barrier}: with --barrier the cut is made without one"),
            format!(
                "to allow it, as an administrator, on every node: ACL SETUSER {} {}",
                quoted(name),
                barrier_rules()
            ),
        );
    }
    if before.0.is_empty() && before.1.is_empty() && untold.is_empty() {
        out.ok(CHECK, format!("user {user} may run what a backup needs"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::{Severity, Subject};
    use super::*;

    #[test]
    fn rules_are_read_in_their_order() {
        for (rules, expected) in [
            ("+@all", Verdict::Allowed),
            ("-@all +psync +ping", Verdict::Allowed),
            ("on #00 ~* &* -@all +@read", Verdict::Denied),
            ("+@all -@dangerous", Verdict::Denied),
            ("+@all -@admin +psync", Verdict::Allowed),
            ("+psync -psync", Verdict::Denied),
            ("-@all +ping (~a* +get +psync)", Verdict::Allowed),
            ("-@all +ping (~a* +get) (+psync -@all)", Verdict::Denied),
            ("", Verdict::Denied),
        ] {
            assert_eq!(by_rules(rules, "psync"), expected, "{rules}");
        }
        for (rules, expected) in [
            ("-@all +client", Verdict::Allowed),
            ("-@all +client|pause", Verdict::Allowed),
            ("+@all -client|pause", Verdict::Denied),
            ("-@all +client|unpause", Verdict::Denied),
        ] {
            assert_eq!(by_rules(rules, "client|pause"), expected, "{rules}");
        }
    }

    #[test]
    fn replies_of_a_dry_run_are_told_apart() {
        let error = |text: &str| Value::Error(text.to_owned());
        assert_eq!(by_dry_run(&Value::Simple("OK".to_owned())), Verdict::Allowed);
        let denied = b"User x has no permissions to run the 'psync' command".to_vec();
        assert_eq!(by_dry_run(&Value::Bulk(denied)), Verdict::Denied);
        assert_eq!(by_dry_run(&error("ERR Command 'psync' not found")), Verdict::Unknown);
        assert_eq!(by_dry_run(&error("NOPERM User x has no permissions to run …")), Verdict::Untold);
        assert_eq!(by_dry_run(&error("ERR unknown subcommand 'DRYRUN'")), Verdict::Untold);
    }

    #[test]
    fn a_missing_right_comes_with_the_exact_line() {
        let verdicts = COMMANDS.iter().map(|command| {
            let lacks = ["psync", "time"].contains(&command.name);
            (*command, if lacks { Verdict::Denied } else { Verdict::Allowed })
        });
        let permissions = Permissions { user: "eve".to_owned(), verdicts: verdicts.collect() };
        let mut out = Findings::about(Subject::Cluster);
        judge(&permissions, &mut out);
        let found = out.into_vec();
        assert_eq!(
            found.iter().map(|one| one.severity).collect::<Vec<_>>(),
            [Severity::Problem, Severity::Note]
        );
        assert!(found[0].what.contains("psync") && !found[0].what.contains("time"));
        assert!(found[0].advice.as_ref().unwrap().contains(&minimal_backup_user("eve")));
    }
}
