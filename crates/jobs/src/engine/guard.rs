//! Sees to it that an engine does not outlive us, however we end.
//!
//! Beside the engine runs a shell that reads a pipe whose other end only this process holds. It is told of the engine before that starts:
//! the engine is first a shell that waits for a word, and becomes the server (`exec`) when it gets it. If this process ends
//! without a farewell, the kernel closes the pipes: the guard kills the engine's process group, snapshot children included,
//! and removes its folder; an engine that had not yet got its word never starts.
//!
//! A parent-death signal would not do: it is sent when the *thread* that started the child ends, and no other system than Linux has
//! one.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

const SCRIPT: &str = r#"
trap '' HUP INT TERM
group=
while read -r word; do
  case $word in
    farewell) exit 0 ;;
    *) group=$word ;;
  esac
done
if [ -n "$group" ]; then kill -s KILL -- "-$group"; fi
rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }
"#;

/// Waits for a word, then becomes the program that its arguments name.
const WAIT_FOR_WORD: &str = r#"read -r word && exec "$@" </dev/null"#;

/// The shell that outlives this process if need be. Dropped, it has killed the engine.
pub(super) struct Guard {
    shell: Mutex<std::process::Child>,
    pipe: Mutex<Option<ChildStdin>>,
    /// The engine's process group; 0 while there is none.
    group: AtomicI32,
}

impl Guard {
    /// Starts a guard that will remove `folder`.
    pub(super) fn start(folder: &Path) -> io::Result<Self> {
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
        Ok(Self { shell: Mutex::new(shell), pipe, group: AtomicI32::new(0) })
    }

    /// Starts the program with its configuration file, as the leader of a process group of its own.
    pub(super) async fn spawn(
        &self,
        program: &Path,
        config_file: &Path,
        folder: &Path,
        output: Stdio,
        errors: Stdio,
    ) -> io::Result<Child> {
        // A relative path would not be found from the engine's folder.
        let program = std::path::absolute(program)?;
        let mut child = tokio::process::Command::new("sh")
            .args(["-c", WAIT_FOR_WORD, "sh"])
            .arg(program)
            .arg(config_file)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let number = child.id().and_then(|pid| i32::try_from(pid).ok());
        let number = number.ok_or_else(|| io::Error::other("it ended at once"))?;
        self.tell(&number.to_string())?;
        self.group.store(number, Ordering::Release);
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(b"go\n").await?;
            stdin.flush().await?;
        }
        Ok(child)
    }

    /// Kills the engine, snapshot children included.
    pub(super) fn kill(&self) {
        if let Some(group) = Pid::from_raw(self.group.swap(0, Ordering::AcqRel)) {
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
