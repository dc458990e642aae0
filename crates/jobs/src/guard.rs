//! Sees to it that servers that this process has started for itself do not outlive it, however it ends.
//!
//! Beside them runs a shell that reads a pipe whose other end only this process holds. It is told of each server before that starts:
//! a server is first a shell that waits for a word, and becomes the server (`exec`) when it gets it. If this process ends
//! without a farewell, the kernel closes the pipes: the guard kills the servers' process groups, snapshot children included,
//! and removes their folder; a server that had not yet got its word never starts.
//!
//! A parent-death signal would not do: it is sent when the *thread* that started the child ends, and no other system than Linux has
//! one.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

const SCRIPT: &str = r#"
trap '' HUP INT TERM
groups=
while read -r word; do
  case $word in
    farewell) exit 0 ;;
    *) groups="$groups $word" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }
"#;

/// Waits for a word, then becomes the program that its arguments name.
const WAIT_FOR_WORD: &str = r#"read -r word && exec "$@" </dev/null"#;

/// The shell that outlives this process if need be. Dropped, it has killed the servers.
pub(crate) struct Guard {
    shell: Mutex<std::process::Child>,
    pipe: Mutex<Option<ChildStdin>>,
    /// The servers' process groups.
    groups: Mutex<Vec<i32>>,
}

/// A server to be started.
pub(crate) struct Guarded<'a> {
    pub(crate) program: &'a Path,
    pub(crate) config_file: &'a Path,
    /// Where it runs.
    pub(crate) folder: &'a Path,
    pub(crate) output: Stdio,
    pub(crate) errors: Stdio,
    /// Whether it ends with the handle that [`Guard::spawn`] gives.
    pub(crate) ends_with_handle: bool,
}

impl Guard {
    /// Starts a guard that will remove `folder`.
    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Away from this process's group, or an interrupt from the keyboard would reach it too.
            .process_group(0)
            .spawn()?;
        let pipe = Mutex::new(shell.stdin.take());
        Ok(Self { shell: Mutex::new(shell), pipe, groups: Mutex::default() })
    }

    /// Starts the program with its configuration file, as the leader of a process group of its own.
    pub(crate) async fn spawn(&self, server: Guarded<'_>) -> io::Result<Child> {
        // A relative path would not be found from the server's folder.
        let program = std::path::absolute(server.program)?;
        let mut child = tokio::process::Command::new("sh")
            .args(["-c", WAIT_FOR_WORD, "sh"])
            .arg(program)
            .arg(server.config_file)
            .current_dir(server.folder)
            .stdin(Stdio::piped())
            .stdout(server.output)
            .stderr(server.errors)
            .process_group(0)
            .kill_on_drop(server.ends_with_handle)
            .spawn()?;
        let number = child.id().and_then(|pid| i32::try_from(pid).ok());
        let number = number.ok_or_else(|| io::Error::other("it ended at once"))?;
        self.tell(&number.to_string())?;
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(b"go\n").await?;
            stdin.flush().await?;
        }
        Ok(child)
    }

    /// Kills the servers, snapshot children included.
    pub(crate) fn kill(&self) {
        let groups = std::mem::take(&mut *self.groups.lock().unwrap_or_else(PoisonError::into_inner));
        for group in groups.into_iter().filter_map(Pid::from_raw) {
            // One that has ended already needs no signal.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn tell(&self, word: &str) -> io::Result<()> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.as_mut().map_or(Ok(()), |pipe| writeln!(pipe, "{word}"))
    }
}

impl Drop for Guard {
    /// Nothing useful can be done about a failure here.
    fn drop(&mut self) {
        self.kill();
        let _ = self.tell("farewell");
        drop(self.pipe.lock().unwrap_or_else(PoisonError::into_inner).take());
        let _ = self.shell.lock().unwrap_or_else(PoisonError::into_inner).wait();
    }
}
