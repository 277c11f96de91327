//! Whether what enters one end of a vWire leaves the other end and is seen nowhere else: marked probes go both ways while
//! every interface of every namespace of the lab is watched.

use super::Seen;
use crate::{
    judges::Spot,
    places::{Place, Places},
    plan::{Cable, FABRIC, Plan},
    world::World,
};
use nsm_api::{Error, Kind, Result};
use nsm_linux::{
    probe,
    sniff::{MARK_BYTES, Sniffer, payload},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{net::UdpSocket, time::timeout};

/// Probes each way.
const PROBES: u32 = 10;
/// How long one probe may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a stray copy may take after the last probe has arrived. Nothing tells that there is none.
const QUIET: Duration = Duration::from_millis(20);
/// Kind of a link whose packets travel inside others between two nodes.
const TUNNEL: &str = "vxlan";

/// The numbers of the probes seen at each interface where any was.
type Sightings = BTreeMap<Spot, Vec<u32>>;

/// One end of a vWire.
struct End<'a> {
    pod: &'a str,
    place: &'a Place,
    dev: String,
    address: IpAddr,
}

impl<'a> End<'a> {
    /// The end in `pod`, by which the kernel sends from `address` to `to`.
    fn of(pod: &'a str, place: &'a Place, to: IpAddr, address: Option<IpAddr>) -> Result<End<'a>> {
        let hop = place.net.route_get(&nsm_linux::net::Packet { from: address, ..nsm_linux::net::Packet::to(to) })?;
        let unknown = || Error::new(Kind::NotFound, format!("route to {to} in {pod}"), "has no source address", "give the interface one");
        Ok(End { pod, place, dev: hop.dev, address: address.or(hop.src).ok_or_else(unknown)? })
    }
    fn is_tunnel(&self) -> Result<bool> {
        Ok(self.place.net.link_named(&self.dev)?.is_some_and(|link| link.kind == TUNNEL))
    }
}

/// Sends probes both ways between pod `from` and whoever has the address `to`.
pub(super) async fn isolation(world: &World, from: &str, to: IpAddr, at: Option<&str>) -> Result<Seen> {
    let near_name = world.file.lab.namespace(from);
    let near = End::of(&near_name, world.places.get(&near_name)?, to, None)?;
    let (far_name, place) = match at.map(|pod| world.file.lab.namespace(pod)) {
        Some(name) => (name.clone(), world.places.get(&name)?),
        None => owner(&world.places, to).map(|(name, place)| (name.to_owned(), place))?,
    };
    let far = End::of(&far_name, place, near.address, Some(to))?;
    let tunnel = if near.is_tunnel()? || far.is_tunnel()? { underlay(world, [near.pod, far.pod]) } else { BTreeSet::new() };
    let ends = [&near, &far].map(|end| (end.pod.to_owned(), end.dev.clone()));
    Ok(judge(&watch(&world.places, [&near, &far]).await?, &ends, &tunnel))
}

/// The only place with this address.
fn owner(places: &Places, address: IpAddr) -> Result<(&str, &Place)> {
    let mut owners = Vec::new();
    for (name, place) in places.iter() {
        if place.net.addresses()?.iter().any(|own| own.address.addr() == address) {
            owners.push((name, place));
        }
    }
    match owners[..] {
        [owner] => Ok(owner),
        _ => {
            let reason = format!("{} pods of the lab have it", owners.len());
            Err(Error::invalid(format!("address {address}"), reason, "name the address of exactly one pod, or the pod with `at`"))
        }
    }
}

/// The interfaces between the nodes of these two pods, where the tunnel between them shows.
fn underlay(world: &World, pods: [&str; 2]) -> BTreeSet<Spot> {
    let lab = &world.file.lab;
    let endpoints = lab.endpoints.iter().map(|endpoint| (&endpoint.name, &endpoint.node));
    let all = endpoints.chain(lab.clients.iter().map(|client| (&client.name, &client.node)));
    let nodes: BTreeSet<String> =
        all.filter(|(pod, _)| pods.contains(&lab.namespace(pod).as_str())).map(|(_, node)| lab.namespace(node)).collect();
    let fabric = lab.namespace(FABRIC);
    links(&world.plan, |cable| cable.a.netns == fabric && nodes.contains(&cable.b.netns))
}

/// Both ends of these cables.
pub(crate) fn links(plan: &Plan, which: impl Fn(&Cable) -> bool) -> BTreeSet<Spot> {
    let ends = plan.cables.iter().filter(|cable| which(cable)).flat_map(|cable| [&cable.a, &cable.b]);
    ends.map(|end| (end.netns.clone(), end.interface.clone())).collect()
}

/// Sends the probes, one after the other, and tells where each was seen. A probe that is lost is the last.
async fn watch(places: &Places, [near, far]: [&End<'_>; 2]) -> Result<Sightings> {
    let mark: [u8; MARK_BYTES] = rand::random();
    let mut sniffers = Vec::new();
    for (name, place) in places.iter() {
        sniffers.push((name, place, Sniffer::open(&place.netns, mark)?));
    }
    let (near, far) = (socket(near).await?, socket(far).await?);
    for number in 0..PROBES {
        if !carried(&near, &far, &payload(&mark, number)).await || !carried(&far, &near, &payload(&mark, PROBES + number)).await {
            break;
        }
    }
    tokio::time::sleep(QUIET).await;
    let mut seen = Sightings::new();
    for (name, place, sniffer) in &sniffers {
        let names: BTreeMap<u32, String> = place.net.links()?.into_iter().map(|link| (link.index, link.name)).collect();
        for sighting in sniffer.sightings()? {
            let dev = names.get(&sighting.interface).cloned().unwrap_or_else(|| format!("interface {}", sighting.interface));
            seen.entry(((*name).to_owned(), dev)).or_default().push(sighting.number);
        }
    }
    Ok(seen)
}

async fn socket(end: &End<'_>) -> Result<UdpSocket> {
    probe::udp_socket(&end.place.netns, SocketAddr::new(end.address, 0)).await
}

async fn carried(from: &UdpSocket, to: &UdpSocket, probe: &[u8]) -> bool {
    let mut buffer = [0; 64];
    let exchange = async {
        from.send_to(probe, to.local_addr()?).await?;
        to.recv(&mut buffer).await
    };
    matches!(timeout(PATIENCE, exchange).await, Ok(Ok(length)) if &buffer[..length] == probe)
}

/// Every probe exactly once at both ends and in the tunnel, if there is one, and nothing anywhere else.
fn judge(seen: &Sightings, ends: &[Spot], tunnel: &BTreeSet<Spot>) -> Seen {
    let whole: Vec<u32> = (0..2 * PROBES).collect();
    let expected: BTreeSet<&Spot> = ends.iter().chain(tunnel).collect();
    let leaks: Vec<&Spot> = seen.keys().filter(|spot| !expected.contains(spot)).collect();
    if !leaks.is_empty() {
        return Seen::new(false, format!("seen at {}, too", list(leaks)));
    }
    for spot in expected {
        let mut numbers = seen.get(spot).cloned().unwrap_or_default();
        numbers.sort_unstable();
        if numbers != whole {
            let (passed, times) = (numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len());
            return Seen::new(false, format!("{passed} of {} probes seen {times} times at {}", whole.len(), list([spot])));
        }
    }
    let inside = if tunnel.is_empty() { String::new() } else { format!(", in the tunnel at {}", list(tunnel)) };
    Seen::new(true, format!("{} probes, each once at {}{inside}, nowhere else", whole.len(), list(ends)))
}

fn list<'a>(spots: impl IntoIterator<Item = &'a Spot>) -> String {
    spots.into_iter().map(|(netns, dev)| format!("{netns}/{dev}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nsm_linux::{net::Net, probe::PingOptions};

    /// Tries of a tenth of a second.
    const MAX_TRIES: u32 = 50;

    const MUST: &str = "this test makes network namespaces: run it as root or under `unshare -Urnm`";

    fn spot(name: &str) -> Spot {
        (name.to_owned(), "nsm-1".to_owned())
    }

    #[test]
    fn a_probe_too_many_too_few_or_elsewhere_is_told() {
        let ends = [spot("near"), spot("far")];
        let whole: Vec<u32> = (0..2 * PROBES).collect();
        let clean: Sightings = ends.iter().map(|end| (end.clone(), whole.clone())).collect();
        let none = BTreeSet::new();
        assert!(judge(&clean, &ends, &none).ok);

        let mut twice = clean.clone();
        twice.get_mut(&ends[1]).unwrap().push(3);
        assert_eq!(judge(&twice, &ends, &none).text, "20 of 20 probes seen 21 times at far/nsm-1");
        let mut lost = clean.clone();
        lost.get_mut(&ends[0]).unwrap().pop();
        assert_eq!(judge(&lost, &ends, &none).text, "19 of 20 probes seen 19 times at near/nsm-1");
        assert!(!judge(&Sightings::new(), &ends, &none).ok);
        let mut leaked = clean.clone();
        leaked.insert(spot("other"), vec![7]);
        assert_eq!(judge(&leaked, &ends, &none).text, "seen at other/nsm-1, too");

        let tunnel = BTreeSet::from([spot("other")]);
        assert!(!judge(&leaked, &ends, &tunnel).ok, "a tunnel carries every probe");
        leaked.insert(spot("other"), whole);
        assert!(judge(&leaked, &ends, &tunnel).ok);
    }

    /// Two pods to be joined, and a third place.
    struct Stage(Places, String);

    impl Stage {
        fn new(case: &str) -> Stage {
            let mut stage = Stage(Places::default(), format!("unit-{case}-{}", std::process::id()));
            for place in ["near", "far", "third"] {
                let name = stage.name(place);
                stage.0.make(&name).expect(MUST);
            }
            stage
        }
        fn name(&self, place: &str) -> String {
            format!("{}-{place}", self.1)
        }
        fn net(&self, place: &str) -> &Net {
            &self.0.get(&self.name(place)).unwrap().net
        }
        /// Addresses at both ends; waits until they reach each other, as the kernel takes a moment to start a new link.
        async fn dress(&self) {
            for (place, address) in [("near", "10.8.0.1/24"), ("far", "10.8.0.2/24")] {
                self.net(place).address_add("nsm-1", address.parse().unwrap()).unwrap();
                self.net(place).up("nsm-1").unwrap();
            }
            for _ in 0..MAX_TRIES {
                let options = PingOptions { timeout: Duration::from_millis(100), ..PingOptions::once("10.8.0.2".parse().unwrap()) };
                if probe::ping(self.net("near").netns(), options).await.unwrap().complete() {
                    return;
                }
            }
            panic!("the two ends do not reach each other");
        }
        async fn look(&self) -> Seen {
            let (near, far) = (self.name("near"), self.name("far"));
            let (one, two) = ("10.8.0.1".parse().unwrap(), "10.8.0.2".parse().unwrap());
            let near = End::of(&near, self.0.get(&near).unwrap(), two, None).unwrap();
            let far = End::of(&far, self.0.get(&far).unwrap(), one, Some(two)).unwrap();
            let seen = watch(&self.0, [&near, &far]).await.unwrap();
            judge(&seen, &[&near, &far].map(|end| (end.pod.to_owned(), end.dev.clone())), &BTreeSet::new())
        }
    }

    impl Drop for Stage {
        fn drop(&mut self) {
            let problems = self.0.delete();
            assert!(problems.is_empty() || std::thread::panicking(), "{problems:?}");
        }
    }

    /// Needs the right to make namespaces; without it this test fails.
    #[tokio::test]
    async fn a_pair_is_isolated() {
        let stage = Stage::new("pair");
        stage.net("near").veth("nsm-1", stage.net("far").netns(), "nsm-1").unwrap();
        stage.dress().await;
        let seen = stage.look().await;
        assert!(seen.ok, "{}", seen.text);
    }

    /// Needs the right to make namespaces; without it this test fails.
    #[tokio::test]
    async fn interfaces_on_the_way_that_get_a_copy_are_told() {
        let stage = Stage::new("hub");
        let third = stage.net("third");
        third.bridge("hub").unwrap();
        third.up("hub").unwrap();
        for place in ["near", "far"] {
            third.veth(place, stage.net(place).netns(), "nsm-1").unwrap();
            third.set_master(place, Some("hub")).unwrap();
            third.up(place).unwrap();
        }
        stage.dress().await;
        let seen = stage.look().await;
        let name = stage.name("third");
        assert!(!seen.ok);
        assert_eq!(seen.text, format!("seen at {name}/far, {name}/near, too"));
    }
}
