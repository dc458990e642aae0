//! Servers must not outlive the process that started them, however that one ends.
//!
//! Beside each cluster runs a shell that reads a pipe whose other end only this process holds. It is told of every server
//! before the server starts: a server is first a shell that waits for a word on its own pipe, and becomes the server
//! (`exec`) when it gets it. If this process ends without a farewell, the kernel closes the pipes; the watchdog kills every process
//! group it knows, snapshot children included, and removes the cluster's folder; a server that had not yet got its word
//! never starts.
//!
//! A parent-death signal would not do: it is sent when the *thread* that started the child ends.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::random::Random;

const SCRIPT: &str = r#"
trap '' HUP INT TERM
groups=
while read -r word group; do
  case $word in
    add) groups="$groups $group" ;;
    remove)
      kept=
      for other in $groups; do
        if [ "$other" != "$group" ]; then kept="$kept $other"; fi
      done
      groups=$kept
      ;;
    farewell) exit 0 ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }
"#;

/// Waits for a word, then becomes the program that its arguments name.
const WAIT_FOR_WORD: &str = r#"read -r word && exec "$@" </dev/null"#;

/// The shell that outlives this process if need be.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shell: Child,
    pipe: Mutex<Option<ChildStdin>>,
}

impl Watchdog {
    /// A new folder whose name begins with `prefix`, and its watchdog. The watchdog is there first: there is no moment at which a
    /// killed process would leave the folder behind.
    pub(crate) fn with_folder(prefix: &str) -> Result<(Self, TempDir)> {
        let parent = std::env::temp_dir();
        let name = format!("{prefix}{:016x}", Random::unpredictable().next());
        let watchdog = Self::start(&parent.join(&name))?;
        let folder = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir_in(&parent);
        Ok((watchdog, folder.map_err(Error::io(format!("make {}", parent.join(&name).display())))?))
    }

    /// Starts a watchdog that will remove `folder`.
    fn start(folder: &Path) -> Result<Self> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Away from this process's group, or an interrupt from the keyboard would reach it too.
            .process_group(0)
            .spawn()
            .map_err(Error::io("start the watchdog"))?;
        let pipe = Mutex::new(shell.stdin.take());
        Ok(Self { shell, pipe })
    }

    /// Starts a program under this watchdog, as the leader of a process group of its own. `command` names the program and
    /// its arguments; where its output goes is the caller's.
    pub(crate) fn spawn(
        &self,
        program: &Path,
        arguments: &[&OsStr],
        output: Stdio,
        errors: Stdio,
    ) -> Result<Child> {
        let mut child = Command::new("sh")
            .args(["-c", WAIT_FOR_WORD, "sh"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(Error::io(format!("start {}", program.display())))?;
        self.tell("add", child.id())?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(b"go\n").map_err(Error::io(format!("start {}", program.display())))?;
        }
        Ok(child)
    }

    /// Forgets a process that has ended and been reaped: its number may become somebody else's.
    pub(crate) fn forget(&self, process: u32) -> Result<()> {
        self.tell("remove", process)
    }

    fn tell(&self, word: &str, process: u32) -> Result<()> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        match pipe.as_mut() {
            Some(pipe) => writeln!(pipe, "{word} {process}").map_err(Error::io("tell the watchdog")),
            None => Ok(()),
        }
    }
}

impl Drop for Watchdog {
    /// Ends the watchdog without a kill: who drops it has ended the servers. Nothing useful can be done about a failure here.
    fn drop(&mut self) {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut pipe) = pipe.take() {
            let _ = pipe.write_all(b"farewell\n");
        }
        drop(pipe);
        let _ = self.shell.wait();
    }
}
