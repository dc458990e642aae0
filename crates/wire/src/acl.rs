//! What Slotkeep may do on a server: the rules of its user, and users' rules without their secrets.
//!
//! Source: `src/acl.c` and `src/commands/*.json` of Redis 6.2 to 8.8 and Valkey 7.2 to 9.1. `PSYNC` is not filtered by key or
//! channel permissions, so the user needs none.

use slotkeep_model::{Product, ServerVersion};

/// What a command is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// No backup without it.
    Backup,
    /// Makes a backup more complete or a check more telling; Slotkeep does without, and says so.
    Optional,
    /// For `backup --barrier` only.
    Barrier,
}

/// A command that Slotkeep sends to the clusters it backs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedCommand {
    /// The command as ACL rules name it: `ping`, `cluster|nodes`.
    pub name: &'static str,
    /// What it is needed for.
    pub need: Need,
    /// Why it is sent.
    pub why: &'static str,
}

const fn used(name: &'static str, need: Need, why: &'static str) -> UsedCommand {
    UsedCommand { name, need, why }
}

/// Every command that a backup sends. All are known to every version from Redis 6.2 and Valkey 7.2 on: a rule that names an
/// unknown command makes `ACL SETUSER` fail. (`cluster|shards` came with 7.0, but 6.2 does not check subcommands.)
pub const COMMANDS: &[UsedCommand] = &[
    used("psync", Need::Backup, "the snapshot and the replication stream"),
    used("replconf", Need::Backup, "says what the reader understands, and acknowledges offsets"),
    used("ping", Need::Backup, "begins a connection"),
    used("info", Need::Backup, "version, role, offsets, backlog, memory, snapshots under way"),
    used("cluster|shards", Need::Backup, "health and ports of the nodes"),
    used("cluster|slots", Need::Backup, "the endpoints that clients are told"),
    used("cluster|nodes", Need::Backup, "the topology"),
    used("cluster|myid", Need::Backup, "which node answers"),
    used("cluster|info", Need::Backup, "the cluster's state and epoch"),
    used("time", Need::Optional, "the server's clock, to map offsets to time"),
    used("role", Need::Optional, "role and offset in one short reply"),
    used("dbsize", Need::Optional, "the number of keys, for estimates"),
    used("config|get", Need::Optional, "limits to stay under, and the configuration to restore"),
    used("module|list", Need::Optional, "the modules that a restore needs"),
    used("acl|list", Need::Optional, "the users to restore, kept without their secrets"),
    used("acl|whoami", Need::Optional, "the user's own name, for messages"),
    used("command", Need::Optional, "whether the server knows a command before it is relied on"),
    used("client|pause", Need::Barrier, "stops writes for the cut"),
    used("client|unpause", Need::Barrier, "resumes them"),
];

/// The command, in one line, that creates a user for backups without a barrier. It sets no password, so that none can be
/// left in place by mistake: until the administrator adds `>password` to the line, nobody can log in as that user.
pub fn minimal_backup_user(user: &str) -> String {
    let rules = rules(|need| need != Need::Barrier);
    format!("ACL SETUSER {} on -@all {rules}", quoted(user))
}

/// The command, in one line, that creates a user for `backup --source scan` on servers of that version. It sets no password either. The user
/// can read every key: without one of them a backup would not be whole.
pub fn minimal_scan_user(user: &str, server: ServerVersion) -> String {
    // A rule that names an unknown command makes `ACL SETUSER` fail.
    let has_functions = server.product == Product::Valkey || server.major >= 7;
    let newer = if has_functions { " +pexpiretime +function|dump" } else { "" };
    let not_counted =
        if has_functions && (server.major, server.minor) >= (7, 2) { " +client|no-touch" } else { "" };
    format!(
        "ACL SETUSER {} on ~* -@all +ping +info +time +cluster|nodes +cluster|shards +scan +dump +pttl +multi +exec +select \
         +readonly +memory|usage +config|get +module|list +acl|list{newer}{not_counted}",
        quoted(user)
    )
}

/// The rules that `backup --barrier` needs in addition, to be added to `ACL SETUSER <user>`.
pub fn barrier_rules() -> String {
    rules(|need| need == Need::Barrier)
}

fn rules(wanted: impl Fn(Need) -> bool) -> String {
    let names = COMMANDS.iter().filter(|command| wanted(command.need)).map(|command| command.name);
    names.map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ")
}

/// The name as `redis-cli` and `valkey-cli` read it back.
pub fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-.:@".contains(c);
    if !name.is_empty() && name.chars().all(plain) { name.to_owned() } else { format!("{name:?}") }
}

/// A line of `ACL LIST` or of an ACL file without passwords and their hashes. A user who had one cannot log in with what
/// remains until a password is set; `nopass` stays.
pub fn without_secrets(line: &str) -> String {
    let mut words = line.split_ascii_whitespace();
    // `user <name>`: a name may begin with any of the marks.
    let mut kept: Vec<&str> = words.by_ref().take(2).collect();
    kept.extend(words.filter(|word| !word.starts_with(['#', '>', '<', '!'])));
    kept.join(" ")
}

#[cfg(test)]
mod tests;
