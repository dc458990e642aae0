//! A verification's record for people: on a terminal, as Markdown, as HTML.

use slotkeep_format::verify::{DrillRecord, DrillStep, LiveRecord};
use slotkeep_format::{Severity, VerifyFinding, VerifyRecord};
use slotkeep_jobs::{Error, ErrorKind, Result};

use crate::output::{bytes, count, seconds, table, table_text};

/// How a report file is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Format {
    Markdown,
    Html,
    Json,
}

/// The record on a terminal.
pub(super) fn text(record: &VerifyRecord, _place: &str) -> String {
    let mut text = String::new();
    if !record.findings.is_empty() {
        let mut rows = table(&["severity", "depth", "check", "object, what was found, what to do"]);
        for finding in &record.findings {
            let advice = finding.advice.as_ref().map(|advice| format!("\n→ {advice}")).unwrap_or_default();
            rows.add_row([
                shout(finding.severity).to_owned(),
                finding.depth.to_string(),
                finding.check.clone(),
                format!("{}\n{}{advice}", place_of(finding), finding.what),
            ]);
        }
        text = table_text(&rows) + "\n\n";
    }
    text + &summary(record)
}

/// A report for a file.
pub(super) fn file(record: &VerifyRecord, place: &str, format: Format) -> Result<String> {
    match format {
        Format::Markdown => Ok(markdown(record, place)),
        Format::Html => Ok(html(record, place)),
        Format::Json => serde_json::to_string_pretty(record)
            .map(|json| json + "\n")
            .map_err(|error| Error::new(ErrorKind::Failed, format!("can't write JSON: {error}"))),
    }
}

/// The object, and where in it.
fn place_of(finding: &VerifyFinding) -> String {
    match finding.offset {
        Some(offset) => format!("{} at {offset}", finding.object),
        None => finding.object.clone(),
    }
}

const fn shout(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Note => "note",
        Severity::Warning => "WARNING",
        Severity::Problem => "PROBLEM",
    }
}

fn named(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn counts(record: &VerifyRecord) -> String {
    let number = |wanted| record.findings.iter().filter(|finding| finding.severity == wanted).count();
    format!(
        "{}, {}, {}",
        named(number(Severity::Problem), "problem"),
        named(number(Severity::Warning), "warning"),
        named(number(Severity::Note), "note")
    )
}

/// How it ended, in one word.
fn verdict(record: &VerifyRecord) -> &'static str {
    match (record.complete, record.worst()) {
        (false, _) => "Broken off",
        (true, Severity::Ok | Severity::Note) => "Sound",
        (true, Severity::Warning) => "Sound with warnings",
        (true, Severity::Problem) => "NOT SOUND",
    }
}

fn took(record: &VerifyRecord) -> std::time::Duration {
    let span = record.finished_at.duration_since(record.started_at);
    std::time::Duration::try_from(span).unwrap_or_default()
}

fn summary(record: &VerifyRecord) -> String {
    let totals = &record.totals;
    let mut parts = vec![format!("{} of {} objects proved", count(totals.proved), count(totals.objects))];
    if totals.proved_before > 0 {
        parts.push(format!("{} proved before", count(totals.proved_before)));
    }
    if totals.left_out > 0 {
        parts.push(format!("{} left out of the sample", count(totals.left_out)));
    }
    let mut read = format!("{} read", bytes(totals.stored_bytes));
    if totals.raw_bytes > 0 {
        read += &format!(
            ", {} taken apart ({} keys, {} commands)",
            bytes(totals.raw_bytes),
            count(totals.keys),
            count(totals.commands)
        );
    }
    if totals.links > 0 {
        let proved = totals.links_proved.saturating_add(totals.links_proved_before);
        read += &format!(", {} of {} bases proved by the log", count(proved), count(totals.links));
    }
    let drill =
        record.drill.as_ref().map(|drill| format!("\nDrill: {}.", drilled(drill))).unwrap_or_default();
    let live = record.live.as_ref().map(|live| format!("\nLive: {}.", compared(live))).unwrap_or_default();
    let only = if record.only { " alone" } else { "" };
    let what = match (record.only, totals.links) {
        (false, _) => format!("{}; {read}", parts.join(", ")),
        (true, 0) => "Done".to_owned(),
        (true, links) => {
            let proved = totals.links_proved.saturating_add(totals.links_proved_before);
            format!("{} of {} bases proved by the log", count(proved), count(links))
        }
    };
    format!(
        "{} at depth {}{only}: {}.\n{what} in {}. Record {}.{drill}{live}",
        verdict(record),
        record.depth,
        counts(record),
        seconds(took(record)),
        record.id
    )
}

fn ms(ms: u64) -> String {
    seconds(std::time::Duration::from_millis(ms))
}

fn steps(steps: &[DrillStep]) -> String {
    let steps: Vec<String> = steps.iter().map(|step| format!("{} {}", step.name, ms(step.ms))).collect();
    steps.join(", ")
}

/// What a comparison with the running cluster came to, in two sentences.
fn compared(live: &LiveRecord) -> String {
    let log = live.shards.iter().map(|shard| shard.log_bytes).sum();
    let at = live.at.map(|at| at.strftime(" at %Y-%m-%dT%H:%M:%S.%3fZ").to_string()).unwrap_or_default();
    let by = if live.archived { "an archive" } else { "this run" };
    format!(
        "{} keys in {} captured{at}, compared with their bases and {} of log, fetched by {by}. {}",
        count(live.keys),
        named(live.shards.len(), "shard"),
        bytes(log),
        steps(&live.steps)
    )
}

/// What a drill came to, in one sentence.
fn drilled(drill: &DrillRecord) -> String {
    let point =
        drill.at.map_or_else(|| drill.backup.clone(), |at| at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string());
    let unknown = || "?".to_owned();
    format!(
        "{point} on {} nodes of {}, {} keys; restored in {} (RTO), the newest moment was {} old (RPO). {}",
        drill.nodes,
        drill.server,
        count(drill.keys),
        drill.rto_ms.map_or_else(unknown, ms),
        drill.rpo_ms.map_or_else(unknown, ms),
        steps(&drill.steps)
    )
}

/// Rows of a fact sheet: what, and its value.
fn facts(record: &VerifyRecord, place: &str) -> Vec<(&'static str, String)> {
    let time = |at: &jiff::Timestamp| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let totals = &record.totals;
    let mut facts = vec![
        ("Repository", place.to_owned()),
        ("Cluster", record.cluster.clone()),
        ("Result", format!("{}: {}", verdict(record), counts(record))),
        ("Depth", format!("{}{}", record.depth, scope(record))),
        ("Began", time(&record.started_at)),
        ("Ended", time(&record.finished_at)),
        ("Objects", count(totals.objects)),
        ("Proved in this run", count(totals.proved)),
        ("Proved before, unchanged since", count(totals.proved_before)),
    ];
    if let Some(oldest) = &record.oldest_proof_at {
        facts.push(("Oldest proof relied on", time(oldest)));
    }
    if totals.left_out > 0 {
        facts.push(("Left out of the sample", count(totals.left_out)));
    }
    facts.extend([
        ("Stored bytes read", bytes(totals.stored_bytes)),
        ("Bytes taken apart", bytes(totals.raw_bytes)),
        ("Keys seen", count(totals.keys)),
        ("Commands seen", count(totals.commands)),
        ("Bases that a log leads to", count(totals.links)),
        ("Of those, proved in this run", count(totals.links_proved)),
        ("Of those, proved before", count(totals.links_proved_before)),
        ("Drill", record.drill.as_ref().map_or_else(|| "none".to_owned(), drilled)),
        ("Comparison with the cluster", record.live.as_ref().map_or_else(|| "none".to_owned(), compared)),
        ("Slotkeep", record.slotkeep_version.clone()),
        ("Record", record.id.clone()),
    ]);
    facts
}

fn scope(record: &VerifyRecord) -> String {
    let mut scope = String::new();
    if record.only {
        scope += " alone";
    }
    if record.again {
        scope += ", everything again";
    }
    if let Some(percent) = record.sample_percent {
        scope += &format!(", a sample of {percent} %");
    }
    scope
}

fn markdown(record: &VerifyRecord, place: &str) -> String {
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let mut out = String::from("# Verification of a Slotkeep repository\n\n| | |\n| --- | --- |\n");
    for (what, value) in facts(record, place) {
        out += &format!("| {what} | {} |\n", cell(&value));
    }
    out += "\n## Backups\n\n| backup | result |\n| --- | --- |\n";
    for backup in &record.backups {
        out += &format!("| {} | {} |\n", cell(&backup.id), result_of(backup.worst));
    }
    out += "\n## Findings\n\n";
    if record.findings.is_empty() {
        return out + "None.\n";
    }
    out += "| severity | depth | check | object | what was found | what to do |\n| --- | --- | --- | --- | --- | --- |\n";
    for finding in &record.findings {
        out += &format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            shout(finding.severity),
            finding.depth,
            cell(&finding.check),
            cell(&place_of(finding)),
            cell(&finding.what),
            cell(finding.advice.as_deref().unwrap_or_default())
        );
    }
    out
}

const fn result_of(worst: Severity) -> &'static str {
    match worst {
        Severity::Ok | Severity::Note => "sound",
        Severity::Warning => "warnings",
        Severity::Problem => "NOT SOUND",
    }
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{border:1px solid #d0d7de;padding:.35rem .6rem;text-align:left;\
vertical-align:top;overflow-wrap:anywhere}th{background:#f6f8fa}.problem{background:#ffebe9}.warning{background:#fff8c5}";

fn html(record: &VerifyRecord, place: &str) -> String {
    let title = "Verification of a Slotkeep repository";
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n<table>\n"
    );
    for (what, value) in facts(record, place) {
        out += &format!("<tr><th>{what}</th><td>{}</td></tr>\n", escaped(&value));
    }
    out += "</table>\n<h2>Backups</h2>\n<table>\n<tr><th>backup</th><th>result</th></tr>\n";
    for backup in &record.backups {
        let (class, result) = (class(backup.worst), result_of(backup.worst));
        out += &format!("<tr{class}><td>{}</td><td>{result}</td></tr>\n", escaped(&backup.id));
    }
    out += "</table>\n<h2>Findings</h2>\n";
    if record.findings.is_empty() {
        return out + "<p>None.</p>\n</html>\n";
    }
    out += "<table>\n<tr><th>severity</th><th>depth</th><th>check</th><th>object</th><th>what was found</th><th>what to do</th></tr>\n";
    for finding in &record.findings {
        out += &format!(
            "<tr{}><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            class(finding.severity),
            shout(finding.severity),
            finding.depth,
            escaped(&finding.check),
            escaped(&place_of(finding)),
            escaped(&finding.what),
            escaped(finding.advice.as_deref().unwrap_or_default())
        );
    }
    out + "</table>\n</html>\n"
}

const fn class(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok | Severity::Note => "",
        Severity::Warning => " class=\"warning\"",
        Severity::Problem => " class=\"problem\"",
    }
}

/// Text inside HTML: paths and findings carry whatever bytes were found.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use slotkeep_format::Depth;
    use slotkeep_format::verify::{BackupVerdict, VerifyTotals};

    fn record() -> VerifyRecord {
        let finding = VerifyFinding {
            severity: Severity::Problem,
            depth: Depth::Objects,
            check: "bytes".to_owned(),
            object: "main/<x>|y".to_owned(),
            offset: Some(7),
            what: "its bytes & more".to_owned(),
            advice: Some("take a new backup".to_owned()),
        };
        VerifyRecord {
            format_version: 1,
            id: "id".to_owned(),
            cluster: "main".to_owned(),
            depth: Depth::Structure,
            complete: true,
            only: false,
            again: false,
            sample_percent: None,
            started_at: jiff::Timestamp::UNIX_EPOCH,
            finished_at: jiff::Timestamp::UNIX_EPOCH,
            slotkeep_version: "0".to_owned(),
            totals: VerifyTotals::default(),
            oldest_proof_at: None,
            backups: vec![BackupVerdict { id: "b".to_owned(), worst: Severity::Problem }],
            drill: None,
            live: None,
            findings: vec![finding],
        }
    }

    #[test]
    fn reports_hold_every_finding_and_escape_it() {
        let page = html(&record(), "/srv/<repo>");
        assert!(page.contains("main/&lt;x&gt;|y at 7") && page.contains("its bytes &amp; more"), "{page}");
        assert!(!page.contains("<repo>"), "{page}");
        let sheet = markdown(&record(), "/srv/repo");
        assert!(sheet.contains("main/<x>\\|y at 7 | its bytes & more | take a new backup |"), "{sheet}");
        assert!(sheet.contains("| b | NOT SOUND |"), "{sheet}");
    }

    #[test]
    fn what_was_broken_off_is_not_called_sound() {
        let mut record = record();
        record.findings.clear();
        assert_eq!(verdict(&record), "Sound");
        record.complete = false;
        assert_eq!(verdict(&record), "Broken off");
    }
}
