//! `nsm get rules`: what the rules of the firewalls in this network namespace have decided.

use super::table;
use crate::{context::Context, exit::Exit, settings::Settings};
use nsm_api::Result;
use nsm_linux::{firewall::Firewall, netns};
use serde::Serialize;

#[derive(Serialize)]
struct Row {
    firewall: String,
    rule: String,
    packets: u64,
    bytes: u64,
}

pub(crate) async fn run(settings: Settings, context: Context) -> Result<Exit> {
    settings.finish()?;
    let all = Firewall::all_counts(&netns::current()?)?;
    let row = |firewall: &String, count: nsm_linux::firewall::Count| Row {
        firewall: firewall.clone(),
        rule: count.rule,
        packets: count.packets,
        bytes: count.bytes,
    };
    let rows: Vec<Row> = all.iter().flat_map(|(name, counts)| counts.iter().cloned().map(|count| row(name, count))).collect();
    table::print(context.output, ["FIREWALL", "RULE", "PACKETS", "BYTES"], &rows, |row| {
        [row.firewall.clone(), row.rule.clone(), row.packets.to_string(), row.bytes.to_string()]
    })?;
    Ok(Exit::Ok)
}
