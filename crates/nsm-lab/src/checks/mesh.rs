//! Checks of what the processes say: connections, readiness, refusals, closing.

use super::Seen;
use crate::{
    plan::unix,
    process::PROGRAM_SPEAKS,
    schema::{Connections, Of},
    world::World,
};
use ipnet::IpNet;
use nsm_api::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// The parts of a connection, as `nsm get connections --json` prints it, that checks look at.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Listed {
    pub(crate) network_service: String,
    pub(crate) state: String,
    pub(crate) network_service_endpoint_name: Option<String>,
    pub(crate) mechanism: Option<ListedMechanism>,
    pub(crate) path: ListedPath,
    pub(crate) context: ListedContext,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct ListedContext {
    pub(crate) ip_context: ListedIpContext,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct ListedIpContext {
    pub(crate) dst_ip_addrs: Vec<IpNet>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct ListedMechanism {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) parameters: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ListedPath {
    pub(crate) path_segments: Vec<ListedSegment>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ListedSegment {
    pub(crate) name: String,
    pub(crate) id: String,
    /// When its token ends, in seconds of the Unix time.
    pub(crate) expires: Option<f64>,
}

impl Listed {
    /// Names of the hops, in order.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.path.path_segments.iter().map(|segment| segment.name.as_str()).collect()
    }
    /// The id that the client gave it.
    pub(crate) fn first_id(&self) -> &str {
        self.path.path_segments.first().map_or("", |segment| &segment.id)
    }
    /// The name of the interface at the side that asked.
    pub(crate) fn interface(&self) -> Option<&str> {
        self.mechanism.as_ref()?.parameters.get("name").map(String::as_str)
    }
}

/// Reads the answer of `nsm get connections --json`.
pub(crate) fn listed(text: &str) -> Result<Vec<Listed>> {
    serde_json::from_str(text.trim()).map_err(|error| Error::internal("list of connections", format!("is not as expected: {error}")))
}

/// What the manager of a node lists, as JSON.
pub(crate) async fn connections_at(world: &World, node: &str) -> Result<String> {
    let args = ["get", "connections", "--connect-to", &unix(&world.files.manager(node)), "--json"].map(str::to_owned);
    world.ask(&args).await
}

async fn at_node(world: &World, node: &str) -> Result<Vec<Listed>> {
    listed(&connections_at(world, node).await?)
}

/// Every manager sees the stretches that pass it. One that was ended sees nothing.
pub(super) async fn everywhere(world: &World) -> Result<Vec<Listed>> {
    let asks = world.file.lab.nodes.iter().filter(|node| !world.was_ended(&node.name)).map(|node| at_node(world, &node.name));
    Ok(futures::future::try_join_all(asks).await?.into_iter().flatten().collect())
}

/// What any manager sees of this client's connections.
pub(crate) async fn connections_of(world: &World, client: &str) -> Result<Vec<Listed>> {
    Ok(of_client(everywhere(world).await?, client, None))
}

/// The connections of a client or of a node are as expected.
pub(super) async fn connections(world: &World, of: &Of, expected: &Connections) -> Result<Seen> {
    let all = match of {
        Of::Node(node) => at_node(world, node).await?,
        Of::Client { name, interface } => of_client(everywhere(world).await?, name, interface.as_deref()),
    };
    Ok(compare(&all, expected))
}

/// All stretches of this client's connections, or of the one that has this interface at the client.
pub(super) fn of_client(mut all: Vec<Listed>, client: &str, interface: Option<&str>) -> Vec<Listed> {
    all.retain(|listed| listed.names().first() == Some(&client));
    if let Some(interface) = interface {
        let ids: BTreeSet<String> = all.iter().filter(|l| l.interface() == Some(interface)).map(|l| l.first_id().to_owned()).collect();
        all.retain(|listed| ids.contains(listed.first_id()));
    }
    all
}

/// The longest path tells the whole way; a mechanism may be that of any stretch.
fn compare(all: &[Listed], expected: &Connections) -> Seen {
    let whole = all.iter().max_by_key(|listed| listed.path.path_segments.len());
    let names = whole.map(Listed::names).unwrap_or_default();
    let mechanisms: BTreeSet<&str> = all.iter().filter_map(|listed| Some(listed.mechanism.as_ref()?.kind.as_str())).collect();
    let mut hops = names.iter();
    let holds = [
        expected.count.is_none_or(|count| count == all.len()),
        expected.count.is_some() || whole.is_some(),
        expected.endpoint.as_deref().is_none_or(|endpoint| names.last() == Some(&endpoint)),
        expected.mechanism.as_deref().is_none_or(|mechanism| mechanisms.contains(mechanism)),
        expected.path.is_empty() || expected.path == names,
        expected.through.iter().all(|wanted| hops.any(|hop| hop == wanted)),
        expected.avoids.iter().all(|avoided| !names.contains(&avoided.as_str())),
    ];
    let mut text = if expected.count.is_some() { format!("{} connections; ", all.len()) } else { String::new() };
    text.push_str(&if names.is_empty() { "none".to_owned() } else { names.join(" > ") });
    if expected.mechanism.is_some() {
        text.push_str(&format!("; {}", mechanisms.into_iter().collect::<Vec<_>>().join(", ")));
    }
    Seen::new(holds.iter().all(|holds| *holds), text)
}

/// All vWires of a client are up.
pub(super) async fn ready(world: &mut World, client: &str) -> Result<Seen> {
    world.look_outside(client).await?;
    let process = world.process(client)?;
    let ready = process.notice.borrow().ready;
    let text = if ready { "all vWires up".to_owned() } else { process.last_words().unwrap_or_else(|| "not yet".to_owned()) };
    if ready {
        world.note_birth(client)?;
    }
    Ok(Seen::new(ready, text))
}

/// A client was refused in one sentence: `hop: object: reason; fix`.
pub(super) fn refusal(world: &mut World, client: &str, hop: Option<&str>, contains: &[String]) -> Result<Seen> {
    let process = world.process(client)?;
    if process.notice.borrow().ready {
        return Ok(Seen::new(false, "accepted: all vWires are up"));
    }
    let (sentences, ours) = (process.sentences(), process.spec.program.is_none());
    let says = |sentence: &&String| if ours { is_refusal(sentence, hop, contains) } else { mentions(sentence, hop, contains) };
    match sentences.iter().find(says) {
        Some(sentence) => Ok(Seen::new(true, sentence)),
        None => Ok(Seen::new(false, sentences.last().cloned().unwrap_or_else(|| "no refusal yet".to_owned()))),
    }
}

fn is_refusal(sentence: &str, hop: Option<&str>, contains: &[String]) -> bool {
    let lower = sentence.to_lowercase();
    // Passed on from hop to hop, it begins with the one that refused.
    let speaker = sentence.strip_prefix(PROGRAM_SPEAKS).unwrap_or(sentence);
    let by_hop = hop.is_none_or(|hop| speaker.strip_prefix(hop).is_some_and(|rest| rest.starts_with(": ")));
    let has_fix = sentence.split_once("; ").is_some_and(|(_, fix)| !fix.trim().is_empty());
    by_hop && has_fix && contains.iter().all(|word| lower.contains(&word.to_lowercase()))
}

/// A line of somebody else's log in which our refusal is somewhere.
fn mentions(line: &str, hop: Option<&str>, contains: &[String]) -> bool {
    let lower = line.to_lowercase();
    hop.is_none_or(|hop| line.contains(&format!("{hop}: "))) && contains.iter().all(|word| lower.contains(&word.to_lowercase()))
}

/// Tells a client to stop and waits until it has.
pub(super) async fn end(world: &mut World, client: &str) -> Result<()> {
    let problem = world.process(client)?.stop().await;
    problem.map_or(Ok(()), |problem| Err(Error::internal(format!("client {client:?}"), problem)))
}

/// Nothing of a client's vWires is left in any namespace, nor in any manager.
pub(super) async fn closed(world: &World, client: &str) -> Result<Seen> {
    let now = world.places.additions()?;
    let own = world.births.get(client).cloned().unwrap_or_default();
    if let Some((netns, line)) = own.iter().find(|line| now.contains(*line)) {
        return Ok(Seen::new(false, format!("{netns} still has: {line}")));
    }
    if let Some(left) = everywhere(world).await?.iter().find(|listed| listed.names().contains(&client)) {
        return Ok(Seen::new(false, format!("a manager still lists {}", left.names().join(" > "))));
    }
    Ok(Seen::new(true, format!("nothing remains of {} kernel objects", own.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"[
      {"id":"1","network_service":"a","network_service_endpoint_name":"e","mechanism":{"cls":"LOCAL","type":"KERNEL","parameters":{"name":"nsm-1"}},
       "path":{"index":1,"path_segments":[{"name":"c","id":"c-0"},{"name":"m","id":"1"},{"name":"f","id":"2"},{"name":"e","id":"3"}]}},
      {"id":"3","network_service":"a","network_service_endpoint_name":null,"mechanism":{"type":"VXLAN","parameters":{}},
       "path":{"path_segments":[{"name":"c","id":"c-0"},{"name":"m","id":"1"}]}},
      {"id":"9","network_service":"b","path":{"path_segments":[{"name":"c","id":"c-1"},{"name":"m","id":"9"},{"name":"x","id":"8"}]}}
    ]"#;

    fn expected() -> Connections {
        Connections { endpoint: Some("e".into()), mechanism: Some("VXLAN".into()), ..Connections::default() }
    }

    #[test]
    fn the_connection_of_an_interface_is_told_from_its_neighbours() {
        let all = of_client(listed(LIST).unwrap(), "c", Some("nsm-1"));
        assert_eq!(all.len(), 2);
        let seen = compare(&all, &expected());
        assert!(seen.ok, "{}", seen.text);
        assert_eq!(seen.text, "c > m > f > e; VXLAN, KERNEL".replace("VXLAN, KERNEL", "KERNEL, VXLAN"));
        assert!(of_client(listed(LIST).unwrap(), "other", None).is_empty());
    }

    #[test]
    fn ways_are_compared_exactly_in_order_and_by_absence() {
        let all = of_client(listed(LIST).unwrap(), "c", Some("nsm-1"));
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<String>>();
        let check = |path: &[&str], through: &[&str], avoids: &[&str]| {
            let expected = Connections { path: words(path), through: words(through), avoids: words(avoids), ..Connections::default() };
            compare(&all, &expected).ok
        };
        assert!(check(&["c", "m", "f", "e"], &[], &[]));
        assert!(!check(&["c", "m", "e"], &[], &[]));
        assert!(check(&[], &["m", "e"], &["x"]));
        assert!(!check(&[], &["e", "m"], &[]));
        assert!(!check(&[], &[], &["f"]));
        assert!(!compare(&[], &Connections::default()).ok);
        assert!(compare(&[], &Connections { count: Some(0), ..Connections::default() }).ok);
    }

    #[test]
    fn a_refusal_names_hop_and_fix() {
        let sentence = "node-1-forwarder: network service \"nobody\": is not registered; register it with nsm apply";
        let words = ["nobody".to_owned(), "Registered".to_owned()];
        assert!(is_refusal(sentence, Some("node-1-forwarder"), &words));
        assert!(is_refusal(&format!("nsm: {sentence}"), Some("node-1-forwarder"), &words), "its last words");
        assert!(!is_refusal(sentence, Some("node-2-forwarder"), &words));
        assert!(!is_refusal(&format!("client: {sentence}"), Some("node-1-forwarder"), &words), "somebody else speaks");
        assert!(!is_refusal("node-1-forwarder: nobody: is not registered", None, &words), "without a fix it is no full sentence");
    }
}
