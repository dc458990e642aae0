//! Running `slotkeep` as a user would.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod agent;
pub mod log;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use slotkeep_testkit::{Server, servers};

/// The stock server of that name, fetched if it is missing.
pub fn server(name: &str) -> Server {
    servers::require(name).unwrap_or_else(|error| panic!("server {name}: {error}"))
}

/// What a run of `slotkeep` came to.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails unless the run ended with that exit code.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}\n{}", self.stdout))
    }
}

/// A `slotkeep` command whose settings come from its arguments alone.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotkeep"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SLOTKEEP_")) {
        if name != "SLOTKEEP_SERVERS" {
            command.env_remove(name);
        }
    }
    command.env("XDG_STATE_HOME", std::env::temp_dir().join("slotkeep-test-state"));
    command
}

/// Runs `slotkeep` to its end.
pub fn slotkeep<A: AsRef<std::ffi::OsStr>>(arguments: &[A]) -> Run {
    Run::of(&command().args(arguments).output().unwrap())
}

/// Moves a folder away and puts a file in its place: even root can't write there. Who was writing in that instant may make a folder there.
pub fn take_away(folder: &Path, away: &Path) {
    std::fs::rename(folder, away).unwrap();
    let away_for_good = (0..100).any(|_| {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::write(folder, b"").is_ok()
    });
    assert!(away_for_good, "nothing could be put in the place of {}", folder.display());
}

/// Puts a folder back that was moved away, whatever is in its place by now.
pub fn bring_back(away: &Path, folder: &Path) {
    let back = (0..100).any(|_| {
        let _ = std::fs::remove_file(folder).or_else(|_| std::fs::remove_dir_all(folder));
        std::fs::rename(away, folder).is_ok()
    });
    assert!(back, "{} could not be put back", folder.display());
}

/// Every file below a folder, as path and content, in order. Others may write there: what goes while we look is left out.
pub fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let entries = std::fs::read_dir(&next);
        for entry in entries.unwrap_or_else(|error| panic!("{}: {error}", next.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
            match std::fs::read(&path) {
                Ok(content) => found.push((name, content)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }
    found.sort();
    found
}
