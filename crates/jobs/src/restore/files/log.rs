//! The log behind a base, as the append-only file that a server loads.
//!
//! Invariants: the file holds whole commands, up to exactly the last byte that is wanted; what is no data is left out; times at which
//! keys expire are absolute, so that loading the file later gives the same keys; the first command works on the database that was selected
//! when the base was made.

use std::path::Path;
use std::sync::Arc;

use slotkeep_format::SegmentRecord;
use slotkeep_format::manifest::ObjectRecord;
use slotkeep_model::{Product, ReplOffset};
use slotkeep_wire::resp::Command;
use slotkeep_wire::stream::{AbsoluteExpiry, Filter, Gap, Reader};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::dataset::DatasetLog;
use super::write::failed;
use crate::link::TimeOf;
use crate::log::apply::time_of;
use crate::log::{LogReader, Past};
use crate::progress::{ShardProgress, add};
use crate::rdb_head::RdbHead;
use crate::{Context, Error, ErrorKind, Result};

/// Appends the log behind a base to a file, as the server is to load it.
pub(super) async fn append_log(
    context: &Context,
    past: &Arc<Past>,
    (file, path): (&mut File, &Path),
    (base, log): (&ObjectRecord, &DatasetLog),
    progress: &ShardProgress,
) -> Result<()> {
    let mut reader = LogReader::new(Arc::clone(past), &log.pieces)?;
    let mut editor: Option<Editor> = None;
    while let Some(chunk) = context.unless_stopped(reader.next()).await? {
        let editor = match &mut editor {
            Some(editor) => editor,
            None => {
                // A server that followed would take the one that the base names; nothing but 0 is meant by a base that names none.
                let database = match reader.database() {
                    None => RdbHead::read(past.repository(), base).await?.database,
                    known => known,
                };
                editor.insert(Editor::new(chunk.start, database))
            }
        };
        if editor.lacks_times(&chunk.segment) {
            editor.time_of = Some(time_of(past, &log.pieces, log.at).await?);
        }
        let edited = editor.edit(chunk.start, &chunk.bytes, &chunk.segment)?;
        file.write_all(&edited).await.map_err(|error| failed("write", path, &error))?;
        add(&progress.raw_bytes, chunk.bytes.len() as u64);
    }
    match editor {
        Some(editor) if !editor.filter.is_between_commands() => {
            let at = editor.filter.account().original;
            Err(Error::new(ErrorKind::Corrupt, format!("the log ends inside a command, at offset {at}")))
        }
        _ => Ok(()),
    }
}

/// Makes stream bytes into bytes of an append-only file.
struct Editor {
    filter: Filter,
    /// Only for servers that pass on relative times; anew for each segment.
    expiry: Option<AbsoluteExpiry>,
    /// The end of the segment that `expiry` is for.
    expiry_end: u64,
    /// Gives the time where a segment has no samples of its own.
    time_of: Option<TimeOf>,
    /// What goes before the first byte.
    prefix: Vec<u8>,
}

impl Editor {
    fn new(start: u64, database: Option<u32>) -> Self {
        let before = ReplOffset(start.saturating_sub(1));
        // A server begins to load a file in database 0.
        let select = database.filter(|database| *database != 0);
        let prefix = select.map(|database| Command::new("SELECT").arg_number(database).to_bytes());
        Self {
            filter: Filter::new(before, Reader::AofFile, Gap::Close),
            expiry: None,
            expiry_end: 0,
            time_of: None,
            prefix: prefix.unwrap_or_default(),
        }
    }

    /// Whether times are needed that a segment has no samples for.
    fn lacks_times(&self, segment: &SegmentRecord) -> bool {
        self.time_of.is_none() && segment.times.samples().is_empty() && passes_on_relative_times(segment)
    }

    fn edit(&mut self, start: u64, bytes: &[u8], segment: &SegmentRecord) -> Result<Vec<u8>> {
        let mut out = std::mem::take(&mut self.prefix);
        let damaged = |what: String| {
            Error::new(
                ErrorKind::Corrupt,
                format!("the log of history {} behind offset {start} can't be used: {what}", segment.history),
            )
        };
        if passes_on_relative_times(segment) {
            let absolute = self.make_absolute(start, bytes, segment).map_err(damaged)?;
            self.filter.feed(&absolute, &mut out).map_err(|error| damaged(error.to_string()))?;
        } else {
            self.filter.feed(bytes, &mut out).map_err(|error| damaged(error.to_string()))?;
        }
        Ok(out)
    }

    fn make_absolute(
        &mut self,
        start: u64,
        bytes: &[u8],
        segment: &SegmentRecord,
    ) -> Result<Vec<u8>, String> {
        if self.expiry.is_none() || self.expiry_end != segment.end {
            self.expiry = Some(AbsoluteExpiry::new(ReplOffset(start.saturating_sub(1))));
            self.expiry_end = segment.end;
        }
        let mut absolute = Vec::with_capacity(bytes.len());
        if let Some(expiry) = &mut self.expiry {
            let time_of = &mut self.time_of;
            let time = |offset: ReplOffset| match time_of {
                Some(time_of) if segment.times.samples().is_empty() => time_of(offset),
                _ => written_ms(segment, offset.0),
            };
            expiry.feed(bytes, &mut absolute, time).map_err(|error| error.to_string())?;
        }
        Ok(absolute)
    }
}

/// Redis before 7.0 passes on for how long a key shall live, not until when.
fn passes_on_relative_times(segment: &SegmentRecord) -> bool {
    segment.server.version().is_some_and(|server| server.product == Product::Redis && server.major < 7)
}

/// When a byte was written, by the sample nearest to it, in ms since 1970.
fn written_ms(segment: &SegmentRecord, offset: u64) -> u64 {
    let (from, until) = segment.times.produced(offset);
    u64::try_from(until.or(from).unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use slotkeep_format::manifest::{ProductRecord, ServerRecord};
    use slotkeep_format::{TimeSample, Timeline};

    use super::*;

    fn segment(version: &str) -> SegmentRecord {
        let mut times = Timeline::default();
        assert!(times.push(TimeSample { from_ms: 990, until_ms: 1000, offset: 500 }));
        SegmentRecord {
            format_version: 1,
            history: "a".repeat(40).parse().unwrap(),
            start: 11,
            end: 1000,
            database: Some(0),
            commands: 2,
            source: "127.0.0.1:7000".parse().unwrap(),
            server: ServerRecord { product: ProductRecord::Redis, version: version.to_owned() },
            times,
            stored_bytes: 5,
            blake3: String::new(),
        }
    }

    fn edit(version: &str, database: Option<u32>, commands: &[&[&str]]) -> String {
        let bytes: Vec<u8> =
            commands.iter().flat_map(|words| Command::new(words[0]).args(&words[1..]).to_bytes()).collect();
        let mut editor = Editor::new(11, database);
        let mut out = Vec::new();
        for (number, byte) in bytes.iter().enumerate() {
            out.extend(editor.edit(11 + number as u64, &[*byte], &segment(version)).unwrap());
        }
        assert!(editor.filter.is_between_commands());
        String::from_utf8(out).unwrap().replace("\r\n", " ")
    }

    #[test]
    fn what_is_no_data_is_left_out_and_times_are_absolute() {
        let commands: &[&[&str]] =
            &[&["PING"], &["SET", "k", "v", "PX", "500"], &["REPLCONF", "GETACK", "*"]];
        assert_eq!(edit("6.2.14", Some(0), commands), "*5 $3 SET $1 k $1 v $4 PXAT $4 1500 ");
        assert_eq!(edit("7.0.15", Some(0), commands), "*5 $3 SET $1 k $1 v $2 PX $3 500 ");
    }

    #[test]
    fn the_selected_database_is_selected_again() {
        let commands: &[&[&str]] = &[&["DEL", "k"]];
        assert_eq!(edit("7.0.15", Some(3), commands), "*2 $6 SELECT $1 3 *2 $3 DEL $1 k ");
        assert_eq!(edit("7.0.15", None, commands), "*2 $3 DEL $1 k ");
    }
}
