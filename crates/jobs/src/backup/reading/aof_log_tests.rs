use tokio::fs::File;

use super::*;

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";

async fn files(folder: &Path, texts: &[&[u8]]) -> Vec<AofFile> {
    let mut files = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let name = number.to_string();
        std::fs::write(folder.join(&name), text).unwrap();
        let file = File::open(folder.join(&name)).await.unwrap();
        files.push(AofFile { name, file, bytes: text.len() as u64 });
    }
    files
}

/// What lies behind a place, in pieces, and the bytes of the stream.
async fn read(folder: &Path, texts: &[&[u8]], from: AofCut, piece_bytes: u64) -> Result<(Vec<u8>, Scanned)> {
    let mut files = files(folder, texts).await;
    let scanned = scan(&mut files, folder, from, piece_bytes).await?;
    let mut log = AofLog::new(files, folder.to_owned(), from, scanned.end);
    let mut all = Vec::new();
    while let Some(bytes) = log.next().await? {
        all.extend_from_slice(&bytes);
    }
    Ok((all, scanned))
}

#[tokio::test]
async fn a_log_ends_with_its_last_whole_command_outside_transactions() {
    let folder = tempfile::tempdir().unwrap();
    let first = [b"#TS:1\r\n", PING, b"#TS:2\r\n"].concat();
    for (tail, kept) in [
        (vec![], 1),
        (PING.to_vec(), 2),
        (PING[..5].to_vec(), 1),
        ([MULTI, PING].concat(), 1),
        ([MULTI, PING, &EXEC[..13]].concat(), 1),
        ([MULTI, EXEC, b"#TS", b""].concat(), 3),
    ] {
        let (bytes, scanned) = read(folder.path(), &[&first, &tail], AofCut::START, 1 << 20).await.unwrap();
        let whole = match kept {
            3 => [PING, MULTI, EXEC].concat(),
            kept => PING.repeat(kept),
        };
        let is_torn = !tail.is_empty() && kept == 1;
        assert_eq!(scanned.is_torn, is_torn, "{}", tail.escape_ascii());
        assert_eq!(
            (bytes.as_slice(), scanned.end.offset),
            (whole.as_slice(), whole.len() as u64),
            "{}",
            tail.escape_ascii()
        );
    }
    assert!(read(folder.path(), &[&PING[..5], PING], AofCut::START, 1 << 20).await.is_err());
    let (bytes, scanned) = read(folder.path(), &[], AofCut::START, 1 << 20).await.unwrap();
    assert!(bytes.is_empty() && scanned.pieces.is_empty());
}

/// Wherever the file is cut off, what goes on there later gives, together, the stream and the times of the whole file.
#[tokio::test]
async fn a_log_goes_on_at_every_end_that_a_file_may_have() {
    let folder = tempfile::tempdir().unwrap();
    let first = [b"#TS:1\r\n", PING].concat();
    let second = [b"#TS:3\r\n", MULTI, b"#TS:4\r\n", PING, EXEC, b"#TS:5\r\n", PING, PING].concat();
    let stream = [PING, MULTI, PING, EXEC, PING, PING].concat();
    let samples = |scanned: &[&Scanned]| {
        let pieces = scanned.iter().flat_map(|scanned| &scanned.pieces);
        let all = pieces.flat_map(|piece| piece.times.samples().to_vec());
        let mut rows: Vec<(i64, u64)> = all.map(|sample| (sample.until_ms, sample.offset)).collect();
        rows.dedup();
        rows
    };
    for end in 0..=second.len() {
        let (before, head) = read(folder.path(), &[&first, &second[..end]], AofCut::START, 20).await.unwrap();
        let (after, tail) = read(folder.path(), &[&first, &second], head.end, 20).await.unwrap();
        assert_eq!([before, after].concat(), stream, "at {end}");
        let mut next = 1;
        for piece in head.pieces.iter().chain(&tail.pieces) {
            assert_eq!(piece.range.start, next);
            next = piece.range.end;
        }
        assert_eq!(next, stream.len() as u64 + 1);
        // None within the transaction. Without a command behind it, the last one may be told twice.
        let whole = (PING.len() * 2 + MULTI.len() + EXEC.len()) as u64;
        let expected = [(1000, 0), (3000, PING.len() as u64), (5000, whole)];
        let mut found = samples(&[&head, &tail]);
        found.dedup();
        assert_eq!(found, expected, "at {end}");
    }
}

#[tokio::test]
async fn a_mark_tells_files_apart() {
    let folder = tempfile::tempdir().unwrap();
    let long = vec![7; 200 << 10];
    let (mut middle, mut end) = (long.clone(), long.clone());
    (middle[100 << 10], end[(200 << 10) - 1]) = (8, 8);
    let mut files = files(folder.path(), &[&long, &middle, &end, b"ab", b"abc"]).await;
    let mut marks = Vec::new();
    for (number, bytes) in [(0, 200 << 10), (1, 200 << 10), (2, 200 << 10), (3, 2), (4, 2), (4, 3)] {
        marks.push(mark(&mut files[number], folder.path(), bytes).await.unwrap().blake3);
    }
    // The middle is not looked at.
    assert_eq!(marks[0], marks[1]);
    assert_ne!(marks[0], marks[2]);
    assert_eq!(marks[3], marks[4]);
    assert_eq!(marks[5], blake3::hash(b"abc").to_hex().to_string());
}
