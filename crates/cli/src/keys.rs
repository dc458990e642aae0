//! The keys that the user has: where they come from, never from an argument itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_repo::{OpenOptions, Problem, Recipients, SigningKey, StateFolder, Unlock, holds_secret, shown};

use crate::args::{KeyArgs, RecipientArgs};
use crate::session::Session;

impl Session {
    /// What opens and proves a repository.
    pub(crate) fn key_options(&self, arguments: &KeyArgs) -> Result<OpenOptions> {
        let file = &self.file;
        let signing_keys = if arguments.signing_key.is_empty() {
            file.signing_key.as_slice()
        } else {
            &arguments.signing_key
        };
        let signing_keys = signing_keys.iter().map(|path| {
            let key = SigningKey::parse(&read_key_file(path)?);
            key.map(Arc::new).map_err(|problem| wrong(&format!("signing key {}", path.display()), &problem))
        });
        let trust = if arguments.trust.is_empty() { file.trust.as_slice() } else { &arguments.trust };
        let (unlock, signing_keys) = (self.unlock(arguments)?, signing_keys.collect::<Result<Vec<_>>>()?);
        let given = [
            (!unlock.is_empty(), "an identity or a passphrase"),
            (!signing_keys.is_empty(), "a signing key"),
            (std::env::var_os("SLOTKEEP_RECIPIENT").is_some_and(|set| !set.is_empty()), "SLOTKEEP_RECIPIENT"),
        ];
        Ok(OpenOptions {
            unlock,
            signing_keys,
            expects_encryption: given.into_iter().find_map(|(is_given, what)| is_given.then_some(what)),
            state: state_folder().map(StateFolder::new),
            trust: trust.to_vec(),
            ..OpenOptions::default()
        })
    }

    fn unlock(&self, arguments: &KeyArgs) -> Result<Unlock> {
        let file = &self.file;
        let mut unlock = Unlock::default();
        for path in if arguments.identity.is_empty() { &file.identity } else { &arguments.identity } {
            let text = read_key_file(path)?;
            let added = unlock.add_identity_file(&text);
            added.map_err(|problem| wrong(&format!("identity file {}", path.display()), &problem))?;
        }
        if let Some(command) = arguments.identity_command.as_ref().or(file.identity_command.as_ref()) {
            let added = unlock.add_identity_file(&run(command)?);
            added.map_err(|problem| wrong(&format!("what `{}` prints", shown(command)), &problem))?;
        }
        if let Some(passphrase) = self.passphrase(arguments)? {
            unlock.add_passphrase(passphrase);
        }
        Ok(unlock)
    }

    fn passphrase(&self, arguments: &KeyArgs) -> Result<Option<String>> {
        match arguments.passphrase_file.as_ref().or(self.file.passphrase_file.as_ref()) {
            Some(path) => Ok(Some(read_key_file(path)?.lines().next().unwrap_or_default().to_owned())),
            None => Ok(self.passphrase.clone()),
        }
    }

    /// Who may read a repository that is made or rekeyed.
    pub(crate) fn recipients(&self, arguments: &RecipientArgs, keys: &KeyArgs) -> Result<Recipients> {
        let mut recipients = Recipients::default();
        for key in &arguments.recipient {
            recipients.add_key(key).map_err(|problem| {
                Error::new(ErrorKind::Key, problem.to_string())
                    .hint("`age-keygen` makes an identity and prints its public key; `age-keygen -y FILE` prints that of an identity")
            })?;
        }
        if arguments.passphrase {
            match self.passphrase(keys)? {
                Some(passphrase) if !passphrase.is_empty() => recipients.set_passphrase(passphrase),
                _ => {
                    return Err(Error::new(ErrorKind::Usage, "--passphrase, but no passphrase was given")
                        .hint("give it in SLOTKEEP_PASSPHRASE or --passphrase-file"));
                }
            }
        }
        Ok(recipients)
    }
}

fn wrong(what: &str, problem: &Problem) -> Error {
    Error::new(ErrorKind::Key, format!("can't use {what}: {problem}"))
        .hint("check --identity, --identity-command and --signing-key")
}

fn read_key_file(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        let name = path.display().to_string();
        let error = Error::new(ErrorKind::Key, format!("can't read key file {}: {error}", shown(&name)));
        error.hint(if holds_secret(&name) {
            "name a file that holds the key, not the key itself: where you have typed it, it may be kept"
        } else {
            "name a file that this user can read"
        })
    })
}

/// What a command prints.
fn run(command: &str) -> Result<String> {
    let failed = |why: String| {
        Error::new(ErrorKind::Key, format!("can't get an identity from `{}`: {why}", shown(command)))
            .hint("run the command by hand; it must print an age identity file to standard output")
    };
    let output = Command::new("sh")
        .args(["-c", command])
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    String::from_utf8(output.stdout).map_err(|_| failed("it prints what is no text".to_owned()))
}

/// Where this machine remembers repositories and keeps signing keys: `SLOTKEEP_STATE`, or a folder of the user's. A dot stands before the name, as
/// no cluster's name begins with one.
fn state_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("SLOTKEEP_STATE")
        .or_else(|| Some(set("XDG_STATE_HOME")?.join("slotkeep")))
        .or_else(|| Some(set("HOME")?.join(".local/state/slotkeep")))?;
    Some(folder.join(".trust"))
}
