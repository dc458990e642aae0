//! Who may get into the restored nodes.
//!
//! Rule: a restored node is never more open than the recorded one was, unless the user asks for it. So where the default user
//! needs a password that was not stored, or where it is not known whether it does, a new password or [`UsersPolicy::None`]
//! must be given.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};
use slotkeep_format::manifest::SettingsRecord;

use crate::{Error, ErrorKind, Result};

/// What to do about users and passwords.
#[derive(Clone, Default)]
pub enum UsersPolicy {
    /// As they were recorded.
    #[default]
    AsRecorded,
    /// As they were recorded, but the default user gets this password.
    NewPassword(String),
    /// None: whoever reaches the nodes may do everything.
    None,
}

/// The users of one node.
#[derive(Clone, Default)]
pub(super) struct Users {
    /// The lines of its ACL file; none if it has no such file.
    pub(super) lines: Vec<String>,
    /// How a replica logs in at its primary: user, if it is not the default one, and password.
    pub(super) replication: Option<(Option<String>, String)>,
    /// How to log in as the default user, if a password is needed and known.
    pub(super) password: Option<String>,
    /// Users who had a password that was not stored.
    pub(super) locked_out: Vec<String>,
}

impl Users {
    /// Whether the default user needs a password, or can't be used.
    pub(super) fn needs_password(&self) -> bool {
        self.lines.iter().any(|line| is_default(line) && !has(line, "nopass"))
    }
}

/// The users of a node with these settings.
pub(super) fn users(settings: Option<&SettingsRecord>, policy: &UsersPolicy) -> Result<Users> {
    let new_password = match policy {
        UsersPolicy::AsRecorded => None,
        UsersPolicy::NewPassword(password) => Some(password),
        UsersPolicy::None => return Ok(Users::default()),
    };
    let lines = settings.map(|settings| settings.acl.clone()).unwrap_or_default();
    // Servers accept no such name and no such rule; in a file it would be a line of its own.
    if lines.iter().any(|line| line.contains(char::is_control)) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "the recorded rules of a user hold a line feed or the like",
        )
        .hint("the manifest was changed by somebody: use another backup, or leave users out with --no-acl"));
    }
    match new_password {
        Some(password) => with_new_password(&lines, settings, password),
        None => as_recorded(lines, settings),
    }
}

fn as_recorded(lines: Vec<String>, settings: Option<&SettingsRecord>) -> Result<Users> {
    let secrets = settings.is_some_and(|settings| settings.secrets);
    let Some(default) = lines.iter().find(|line| is_default(line)) else {
        return Err(refused(
            "the backup does not say whether the default user needs a password (ACL LIST was not read)",
        ));
    };
    if !secrets && !has(default, "nopass") {
        return Err(refused(if has(default, "on") {
            "the default user needs a password, and the backup holds none"
        } else {
            "the default user is off, and the backup holds no password for the user that replicas log in as"
        }));
    }
    let setting = |names: &[&str]| {
        let found = names.iter().find_map(|name| settings?.config.get(*name));
        found.filter(|value| !value.is_empty()).cloned()
    };
    let replication = setting(&["primaryauth", "masterauth"])
        .map(|password| (setting(&["primaryuser", "masteruser"]), password));
    let locked_out = if secrets { vec![] } else { locked_out(&lines) };
    let password = setting(&["requirepass"]);
    Ok(Users { lines, replication, password, locked_out })
}

fn with_new_password(lines: &[String], settings: Option<&SettingsRecord>, password: &str) -> Result<Users> {
    if password.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "the new password is empty"));
    }
    let secrets = settings.is_some_and(|settings| settings.secrets);
    let locked_out = if secrets { vec![] } else { locked_out(lines) };
    let recorded =
        lines.iter().find(|line| is_default(line)).map_or("user default on ~* &* +@all", String::as_str);
    if has(recorded, "off") {
        return Err(Error::new(
            ErrorKind::Usage,
            "the default user is off: a new password for it would not let replicas in",
        )
        .hint(
            "restore a backup taken with --include-secrets, or leave users and passwords out with --no-acl",
        ));
    }
    let kept = recorded.split(' ').filter(|word| *word != "nopass" && !word.starts_with('#'));
    let default = format!("{} #{}", kept.collect::<Vec<_>>().join(" "), hash(password));
    let others = lines.iter().filter(|line| !is_default(line)).cloned();
    Ok(Users {
        lines: std::iter::once(default).chain(others).collect(),
        replication: Some((None, password.to_owned())),
        password: Some(password.to_owned()),
        locked_out: locked_out.into_iter().filter(|name| name != "default").collect(),
    })
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::Usage, why).hint(
        "give the default user a new one with --new-password-file FILE, leave users and passwords out with --no-acl, or \
         restore a backup taken with --include-secrets",
    )
}

/// Users who are on and have no way to log in.
fn locked_out(lines: &[String]) -> Vec<String> {
    let locked = lines.iter().filter(|line| has(line, "on") && !has(line, "nopass"));
    locked.filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect()
}

fn is_default(line: &str) -> bool {
    line.split(' ').take(2).eq(["user", "default"])
}

fn has(line: &str, rule: &str) -> bool {
    line.split(' ').skip(2).any(|word| word == rule)
}

/// The hash by which servers keep a password: SHA-256 in hex (`ACLHashPassword` in `src/acl.c`).
fn hash(password: &str) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(password.as_bytes()) {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(acl: &[&str], secrets: bool, config: &[(&str, &str)]) -> SettingsRecord {
        SettingsRecord {
            nodes: vec![],
            config: config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            acl: acl.iter().map(|line| (*line).to_owned()).collect(),
            secrets,
            modules: std::collections::BTreeMap::new(),
            unreadable: vec![],
        }
    }

    #[test]
    fn an_open_default_user_stays_open_and_others_stay_locked() {
        let recorded =
            settings(&["user app on ~app:* +get", "user default on nopass ~* &* +@all"], false, &[]);
        let users = users(Some(&recorded), &UsersPolicy::AsRecorded).unwrap();
        assert_eq!(users.lines, recorded.acl);
        assert_eq!(users.locked_out, ["app"]);
        assert_eq!(users.password, None);
    }

    #[test]
    fn a_node_is_never_more_open_than_it_was() {
        for recorded in [
            Some(settings(&["user default on ~* &* +@all"], false, &[])),
            Some(settings(&["user default off ~* &* +@all"], false, &[])),
            Some(settings(&[], false, &[])),
            None,
        ] {
            let refused = users(recorded.as_ref(), &UsersPolicy::AsRecorded).err().unwrap();
            assert_eq!(refused.kind(), ErrorKind::Usage);
            assert!(refused.advice().unwrap().contains("--new-password-file"));
            assert!(users(recorded.as_ref(), &UsersPolicy::None).unwrap().lines.is_empty());
        }
    }

    #[test]
    fn a_new_password_takes_the_place_of_whatever_the_default_user_had() {
        let policy = UsersPolicy::NewPassword("secret".to_owned());
        // SHA-256 of "secret".
        let hash = "#2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        for (recorded, line) in [
            ("user default on ~* &* +@all", "user default on ~* &* +@all"),
            ("user default on nopass ~* &* +@all", "user default on ~* &* +@all"),
            ("user default on #00 ~a +@all -debug", "user default on ~a +@all -debug"),
        ] {
            let users = users(Some(&settings(&[recorded], true, &[])), &policy).unwrap();
            assert_eq!(users.lines, [format!("{line} {hash}")]);
            assert_eq!(users.password.as_deref(), Some("secret"));
            assert_eq!(users.replication, Some((None, "secret".to_owned())));
        }
        assert_eq!(users(None, &policy).unwrap().lines, [format!("user default on ~* &* +@all {hash}")]);
        assert!(users(Some(&settings(&["user default off +@all"], false, &[])), &policy).is_err());
    }

    #[test]
    fn a_line_feed_in_a_rule_is_refused() {
        let recorded = settings(&["user default on nopass\nuser evil on nopass +@all"], true, &[]);
        assert_eq!(
            users(Some(&recorded), &UsersPolicy::AsRecorded).err().unwrap().kind(),
            ErrorKind::Corrupt
        );
    }

    #[test]
    fn stored_secrets_come_back() {
        let config = [("masterauth", "p"), ("masteruser", "repl"), ("requirepass", "q")];
        let recorded = settings(&["user default on #00 ~* +@all"], true, &config);
        let users = users(Some(&recorded), &UsersPolicy::AsRecorded).unwrap();
        assert_eq!(users.replication, Some((Some("repl".to_owned()), "p".to_owned())));
        assert_eq!(users.password.as_deref(), Some("q"));
        assert!(users.locked_out.is_empty());
    }
}
