//! The log of a repository, and the same bytes from a server: read independently, to be compared.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::Value;
use slotkeep_format::SegmentRecord;
use slotkeep_model::ReplId;
use slotkeep_repo::{Location, Repository};
use slotkeep_testkit::{Node, client};

/// The log of one line, put together along its histories.
#[derive(Debug)]
pub struct Line {
    /// The offset of the first byte.
    pub start: u64,
    pub bytes: Vec<u8>,
    /// The histories, the oldest first.
    pub histories: Vec<ReplId>,
    pub records: Vec<SegmentRecord>,
}

impl Line {
    /// The offset of the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64 - 1
    }
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Reads the log from behind a base to the end of `to`, and fails if there is a gap.
pub fn line(repo: &Path, base: &Value, to: &str) -> Line {
    let first: ReplId = base["history"].as_str().unwrap().parse().unwrap();
    let from = base["offset"].as_u64().unwrap();
    block(async {
        let repository = Repository::open(&Location::Folder(repo.to_owned())).await.unwrap();
        // From the end back to the base: each history with the last byte that the next one shares.
        let mut chain: Vec<(ReplId, u64)> = vec![(to.parse().unwrap(), u64::MAX)];
        while chain.last().unwrap().0 != first {
            let at = &chain.last().unwrap().0;
            let record = repository.history("main", at).await.unwrap();
            let parent = record.unwrap_or_else(|| panic!("nothing is known of {at}")).parent;
            let parent = parent.unwrap_or_else(|| panic!("{at} has no parent"));
            chain.push((parent.history, parent.fork));
        }
        chain.reverse();
        let mut line = Line { start: from + 1, bytes: Vec::new(), histories: vec![], records: vec![] };
        let mut next = from + 1;
        for (history, until) in chain {
            for entry in repository.segments("main", &history).await.unwrap() {
                if entry.end <= next || next > until {
                    continue;
                }
                assert!(entry.start <= next, "a gap in {history}: {next}..{}", entry.start);
                let mut reader = repository.read_segment(&entry).await.unwrap();
                let mut bytes = Vec::new();
                while let Some(piece) = reader.next().await.unwrap() {
                    bytes.extend(piece);
                }
                let skip = usize::try_from(next - entry.start).unwrap();
                let wanted = usize::try_from((until.min(entry.end - 1) + 1) - next).unwrap();
                line.bytes.extend(&bytes[skip..skip + wanted]);
                next += wanted as u64;
                line.records.push(reader.record().clone());
            }
            assert!(until == u64::MAX || next == until + 1, "{history} ends at {next}, not at {until}");
            line.histories.push(history);
        }
        line
    })
}

/// The stream of a server between two offsets, both included, from its backlog.
pub fn from_server(node: &Node, first: u64, last: u64) -> Vec<u8> {
    let mut asking = node.client().unwrap();
    let history = field(&mut asking, "master_replid");
    let mut stream = TcpStream::connect(node.addr()).unwrap();
    let request =
        format!("*3\r\n$5\r\nPSYNC\r\n$40\r\n{history}\r\n${}\r\n{first}\r\n", first.to_string().len());
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"+CONTINUE"), "{}", String::from_utf8_lossy(&answer));
    let mut bytes = vec![0; usize::try_from(last + 1 - first).unwrap()];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// A field of `INFO replication`.
pub fn field(client: &mut client::Client, name: &str) -> String {
    client.info_field("replication", name).unwrap().unwrap()
}

/// The log behind the base of one shard of a backup is what its server holds, byte for byte.
#[track_caller]
pub fn assert_log_is_the_stream(repo: &Path, shard: &Value, node: &Node) -> Line {
    let history = field(&mut node.client().unwrap(), "master_replid");
    let line = line(repo, shard, &history);
    assert!(!line.bytes.is_empty(), "the log holds nothing");
    let expected = from_server(node, line.start, line.end());
    assert!(line.bytes == expected, "the log of {history} differs from the stream");
    line
}
