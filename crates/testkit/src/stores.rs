//! A real S3 server for tests.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::deadline::{NotYet, wait_for};
use crate::error::{Error, Result};
use crate::ports::PortLease;
use crate::watchdog::Watchdog;

const SCRIPT: &str = include_str!("../../../scripts/stores.sh");
const START_LIMIT: Duration = Duration::from_secs(60);

/// An S3 server that is empty when it starts, and dies with this. moto, which keeps everything in memory, or s3s-fs, which is faster, and
/// looks before it writes where a condition wants both at once.
#[derive(Debug)]
pub struct S3Server {
    child: Child,
    port: PortLease,
    watchdog: Watchdog,
    /// Where buckets are folders.
    files: Option<PathBuf>,
    _folder: TempDir,
}

impl S3Server {
    /// Fetches moto if it is missing, starts it, and waits until it answers.
    pub fn start() -> Result<Self> {
        let program = fetch("moto")?;
        let port = PortLease::take(false)?;
        let (watchdog, folder) = Watchdog::with_folder("slotkeep-store-")?;
        let number = port.port().to_string();
        let arguments = ["-H", "127.0.0.1", "-p", &number].map(OsStr::new);
        let child = watchdog.spawn(&program, &arguments, Stdio::null(), Stdio::null())?;
        Self { child, port, watchdog, files: None, _folder: folder }.answering()
    }

    /// Builds s3s-fs if it is missing, starts it, and waits until it answers. It keeps objects as files in that folder.
    pub fn start_s3s_fs(files: &Path) -> Result<Self> {
        let program = fetch("s3s-fs")?;
        let port = PortLease::take(false)?;
        let (watchdog, folder) = Watchdog::with_folder("slotkeep-store-")?;
        let number = port.port().to_string();
        let options =
            ["--host", "127.0.0.1", "--port", &number, "--access-key", "test", "--secret-key", "test"];
        let arguments: Vec<&OsStr> =
            options.iter().map(OsStr::new).chain(std::iter::once(files.as_os_str())).collect();
        let child = watchdog.spawn(&program, &arguments, Stdio::null(), Stdio::null())?;
        Self { child, port, watchdog, files: Some(files.to_owned()), _folder: folder }.answering()
    }

    fn answering(self) -> Result<Self> {
        let server = self;
        wait_for(START_LIMIT, "the S3 server to answer", || {
            TcpStream::connect(("127.0.0.1", server.port.port()))
                .map_err(|error| NotYet::because(error.to_string()))
        })?;
        Ok(server)
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr())
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port.port()).into()
    }

    /// The environment with which an S3 client reaches it.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        Self::environment_of(&self.endpoint())
    }

    pub(crate) fn environment_of(endpoint: &str) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT", endpoint.to_owned()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ]
    }

    /// Makes a bucket.
    pub fn make_bucket(&self, name: &str) -> Result<()> {
        use std::io::{Read, Write};
        let failed = || Error::io(format!("make bucket {name}"));
        if let Some(files) = &self.files {
            return std::fs::create_dir(files.join(name)).map_err(failed());
        }
        let mut stream = TcpStream::connect(("127.0.0.1", self.port.port())).map_err(failed())?;
        write!(
            stream,
            "PUT /{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .map_err(failed())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(failed())?;
        match answer.lines().next() {
            Some(status) if status.contains(" 200 ") => Ok(()),
            status => {
                Err(Error::Setup { reason: format!("bucket {name}: {}", status.unwrap_or("no answer")) })
            }
        }
    }
}

impl S3Server {
    /// Stops it from answering; connections stay open. It is not started again.
    pub fn freeze(&self) -> Result<()> {
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let group =
            group.ok_or_else(|| Error::Setup { reason: "the S3 server has no process".to_owned() })?;
        kill_process_group(group, Signal::STOP)
            .map_err(|error| Error::Setup { reason: format!("stop the S3 server: {error}") })
    }
}

impl Drop for S3Server {
    /// Nothing useful can be done about a failure here.
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
        let _ = self.watchdog.forget(self.child.id());
    }
}

fn fetch(name: &str) -> Result<PathBuf> {
    let failed = |message: String| Error::Fetch { name: name.to_owned(), message };
    let output = Command::new("bash")
        .args(["-c", SCRIPT, "stores.sh", name])
        .output()
        .map_err(Error::io("start bash"))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(Path::new(String::from_utf8_lossy(&output.stdout).trim()).to_owned())
}
