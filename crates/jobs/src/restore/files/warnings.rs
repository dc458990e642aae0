//! What the user should know of a plan.

use std::collections::BTreeSet;
use std::net::IpAddr;

use slotkeep_model::ServerVersion;

use super::conf::Recorded;
use super::planner::{Planner, Sketch};
use super::users::UsersPolicy;

impl Planner<'_> {
    /// Collects what the user should know, each thing once.
    pub(super) fn warn(&mut self, sketches: &[Sketch<'_>]) {
        let mut said = BTreeSet::new();
        for sketch in sketches {
            for warning in warnings_of(sketch, self.target) {
                if said.insert(warning.clone()) {
                    self.warnings.push(warning);
                }
            }
        }
        if self.leaves_slots_uncovered() {
            self.warnings.push(format!(
                "the slots {} ({} of 16384) stay uncovered; cluster-require-full-coverage is set to no, so that the others are served",
                self.manifest.missing_slots,
                self.manifest.missing_slots.len()
            ));
        }
        let for_now: Vec<String> = sketches
            .iter()
            .filter(|sketch| sketch.keeps_log_for_now)
            .map(|sketch| sketch.addr.to_string())
            .collect();
        if !for_now.is_empty() {
            self.warnings.push(format!(
                "these nodes load the log from an append-only file, so their configuration says `appendonly yes`, where `no` was recorded: {}. \
                 To go back: BGSAVE, and when it is done, CONFIG SET appendonly no and CONFIG REWRITE",
                for_now.join(", ")
            ));
        }
        if matches!(self.options.users, UsersPolicy::None) {
            self.warnings.push(
                "users and passwords are left out: whoever reaches the nodes may do everything, and nodes in protected mode \
                 take no replicas from other hosts"
                    .to_owned(),
            );
        }
    }
}

fn warnings_of(sketch: &Sketch<'_>, target: ServerVersion) -> Vec<String> {
    let mut warnings = Vec::new();
    let Recorded { unknown, tls, .. } = &sketch.recorded;
    if !tls.is_empty() {
        warnings.push(format!(
            "the nodes will speak plain text: TLS needs certificates, which a backup does not hold (left out: {})",
            tls.join(", ")
        ));
    }
    if !unknown.is_empty() {
        warnings.push(format!("{target} does not know these settings, left out: {}", unknown.join(", ")));
    }
    if !sketch.users.locked_out.is_empty() {
        warnings.push(format!(
            "these users can't log in until they get a password (ACL SETUSER), for none is stored: {}",
            sketch.users.locked_out.join(", ")
        ));
    }
    match sketch.settings {
        None => warnings.push("the backup holds no settings: the nodes get the server's defaults".to_owned()),
        Some(settings) => {
            let incomplete = settings
                .unreadable
                .iter()
                .map(|what| format!("the recorded settings are incomplete: {what}"));
            warnings.extend(incomplete);
            if !settings.modules.is_empty() {
                let modules = settings.modules.iter().map(|(name, version)| format!("{name} {version}"));
                warnings.push(format!(
                    "modules were loaded: {}; give their paths in the configuration files before the nodes start",
                    modules.collect::<Vec<_>>().join(", ")
                ));
            }
        }
    }
    if let Some((primary, ..)) = &sketch.follows
        && primary.host() == sketch.addr.host()
        && !primary.host().parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    {
        warnings.push(format!("replica {} is on the same host as its primary {primary}", sketch.addr));
    }
    warnings
}
