//! An RDB on its way into the pipeline, which is written here because no server wrote it.

use jiff::Timestamp;
use slotkeep_model::{Product, RdbVersion, ServerVersion};
use slotkeep_rdb::{ErrorKind as RdbProblem, KeyHead, RdbWriter};

use crate::archive::link::Interruption;
use crate::backup::pipeline::Pipeline;
use crate::{Error, ErrorKind};

/// So much waits before it goes into the pipeline.
const BUFFER_BYTES: usize = 256 << 10;

/// The RDB.
pub(super) struct RdbOut<'p> {
    writer: RdbWriter,
    buffer: Vec<u8>,
    pipeline: &'p mut Pipeline,
}

impl<'p> RdbOut<'p> {
    /// Begins an RDB as that server would write it.
    pub(super) fn begin(
        server: ServerVersion,
        at: Timestamp,
        pipeline: &'p mut Pipeline,
    ) -> Result<Self, Error> {
        let version = server.newest_rdb();
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let mut writer = RdbWriter::new(version, &mut buffer).map_err(|_| {
            Error::new(ErrorKind::Unsupported, format!("{server} has RDB version {version}, which can't be written yet"))
                .hint("back it up over replication (`slotkeep backup`), which stores what the server sends, or install a newer Slotkeep")
        })?;
        let name: &[u8] = match server.product {
            Product::Redis => b"redis-ver",
            Product::Valkey => b"valkey-ver",
        };
        let number = format!("{}.{}.{}", server.major, server.minor, server.patch);
        writer.aux(name, number.as_bytes(), &mut buffer);
        writer.aux(b"ctime", at.as_second().to_string().as_bytes(), &mut buffer);
        Ok(Self { writer, buffer, pipeline })
    }

    /// The version that is written.
    pub(super) const fn version(&self) -> RdbVersion {
        self.writer.version()
    }

    /// A function library.
    pub(super) async fn function(&mut self, source: &[u8]) -> Result<(), Interruption> {
        self.writer.function(source, &mut self.buffer).map_err(|problem| unwritable(&problem))?;
        self.pass_on().await
    }

    /// Says that the keys that follow are in that database, and about how many they are.
    pub(super) fn database(&mut self, number: u32, keys: u64, expires: u64) {
        self.writer.select_db(number, &mut self.buffer);
        self.writer.resize_db(keys, expires, &mut self.buffer);
    }

    /// A key; its value follows.
    pub(super) fn key(&mut self, head: &KeyHead<'_>) -> Result<(), Error> {
        self.writer.key(head, &mut self.buffer).map_err(|problem| unwritable(&problem))
    }

    /// Bytes of the value of the key before.
    pub(super) async fn value(&mut self, bytes: &[u8]) -> Result<(), Interruption> {
        self.writer.value_bytes(bytes, &mut self.buffer);
        self.pass_on().await
    }

    async fn pass_on(&mut self) -> Result<(), Interruption> {
        if self.buffer.len() >= BUFFER_BYTES {
            self.pipeline.write(&self.buffer).await?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Ends the RDB.
    pub(super) async fn finish(mut self) -> Result<(), Interruption> {
        self.writer.finish(&mut self.buffer);
        self.pipeline.write(&self.buffer).await?;
        Ok(())
    }
}

fn unwritable(problem: &RdbProblem) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("it can't be written into an RDB of the server's version: {problem}"),
    )
    .hint("back it up over replication (`slotkeep backup`), which stores what the server sends")
}
