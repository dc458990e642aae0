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
use std::process::{ChildStdin, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

/// The shell that every system has, whatever the `PATH` of this process leads to.
const SHELL: &str = "/bin/sh";
/// Where `rm` and `sleep` are.
const SHELL_PATH: &str = "/usr/bin:/bin";

/// A number is a group that begins, one behind a minus sign a group that has ended.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
groups=' '
while read -r word; do
  case $word in
    farewell) exit 0 ;;
    -*) word=${word#-}; groups="${groups%% $word *} ${groups#* $word }" ;;
    *) groups="$groups$word " ;;
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
        let mut shell = Command::new(SHELL)
            .args(["-c", SCRIPT, "sh"])
            .arg(folder)
            .env("PATH", SHELL_PATH)
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
        let mut command = waiting(server.program)?;
        command
            .arg(server.config_file)
            .current_dir(server.folder)
            .stdout(server.output)
            .stderr(server.errors)
            .kill_on_drop(server.ends_with_handle);
        Ok(self.begin(command).await?.0)
    }

    /// Runs a program to its end, with a variable in its environment. What it has started and not ended ends with it, and all of it when
    /// this is cancelled.
    pub(crate) async fn run(&self, program: &Path, (name, value): (&str, &str)) -> io::Result<Output> {
        let mut command = waiting(program)?;
        command.env(name, value).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (child, number) = self.begin(command).await?;
        let _group = Group { guard: self, number };
        child.wait_with_output().await
    }

    /// Starts a command that [`waiting`] gave, once the guard knows of it. Gives the number of its process group, too.
    async fn begin(&self, mut command: tokio::process::Command) -> io::Result<(Child, i32)> {
        let mut child = command.spawn()?;
        let number = child.id().and_then(|pid| i32::try_from(pid).ok());
        let number = number.ok_or_else(|| io::Error::other("it ended at once"))?;
        self.tell(&number.to_string())?;
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(b"go\n").await?;
            stdin.flush().await?;
        }
        Ok((child, number))
    }

    /// Kills the servers, snapshot children included.
    pub(crate) fn kill(&self) {
        let groups = std::mem::take(&mut *self.groups.lock().unwrap_or_else(PoisonError::into_inner));
        groups.into_iter().for_each(kill_group);
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

/// A process group that ends with this.
struct Group<'g> {
    guard: &'g Guard,
    number: i32,
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        kill_group(self.number);
        self.guard
            .groups
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|other| *other != self.number);
        // The number may be given to others now.
        let _ = self.guard.tell(&format!("-{}", self.number));
    }
}

fn kill_group(number: i32) {
    if let Some(group) = Pid::from_raw(number) {
        // One that has ended already needs no signal.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// A command that waits for a word before it becomes the program, as the leader of a process group of its own.
fn waiting(program: &Path) -> io::Result<tokio::process::Command> {
    // A relative path would not be found from the server's folder.
    let program = std::path::absolute(program)?;
    let mut command = tokio::process::Command::new(SHELL);
    command.args(["-c", WAIT_FOR_WORD, "sh"]).arg(program).stdin(Stdio::piped()).process_group(0);
    Ok(command)
}
