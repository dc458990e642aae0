//! What a command used: wall time, CPU time, peak memory. A process of its own runs it, so that the system's account of finished
//! children is that of this command alone.

use std::process::{Command, Stdio};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};
use slotkeep_testkit::deadline::Stopwatch;

/// What a command used.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) wall_s: f64,
    pub(crate) cpu_s: f64,
    pub(crate) peak_mib: f64,
}

/// Runs a command in a measuring process and gives what it used.
pub(crate) fn measure(command: &[String]) -> Result<Usage, Box<dyn std::error::Error>> {
    let output = Command::new(std::env::current_exe()?)
        .args(["measure", "--"])
        .args(command)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("{} failed: {}", command.join(" "), output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The measuring process.
pub(crate) fn child(command: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let clock = Stopwatch::start();
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    let wall_s = clock.elapsed().as_secs_f64();
    if !output.status.success() {
        eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        return Err(format!("{program} ended with {}", output.status).into());
    }
    let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = used.user_time().num_microseconds() + used.system_time().num_microseconds();
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let usage = Usage { wall_s, cpu_s: cpu as f64 / 1e6, peak_mib: used.max_rss() as f64 / 1024.0 };
    println!("{}", serde_json::to_string(&usage)?);
    Ok(())
}

/// Of the figures of several runs the one in the middle; not a number if there are none.
pub(crate) fn median(figures: &[Usage], of: impl Fn(&Usage) -> f64) -> f64 {
    let mut sorted: Vec<f64> = figures.iter().map(of).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
