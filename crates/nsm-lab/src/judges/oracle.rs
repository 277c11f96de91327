//! The packet oracle: watches every interface of every namespace of a lab, and tells of each marked packet that is seen where
//! packets of its vWire have no business.
//!
//! Where they have is said by the facts of clients and endpoints, never by the mesh.

use super::{Service, Spot};
use crate::places::Places;
use nsm_api::{Error, Result};
use nsm_linux::{
    net::Net,
    sniff::{MARK_BYTES, Sniffer},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Between two looks; the queues of the kernel hold what passes meanwhile.
const PAUSE: Duration = Duration::from_millis(20);
/// Strays that are told; more say no more.
const MAX_STRAYS: usize = 100;

/// Where packets may be seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed {
    /// Those of every vWire: on any interface of these namespaces.
    pub(crate) everywhere_in: BTreeSet<String>,
    /// Those of every vWire: on these interfaces.
    pub(crate) at: BTreeSet<Spot>,
    /// Those of one vWire, by its number: on these interfaces.
    pub(crate) own: Vec<BTreeSet<Spot>>,
}

impl Allowed {
    fn holds(&self, track: u32, spot: &Spot) -> bool {
        let own = self.own.get(track as usize).is_some_and(|own| own.contains(spot));
        own || self.everywhere_in.contains(&spot.0) || self.at.contains(spot)
    }
}

/// What was seen so far.
pub(crate) struct Sighted {
    /// Packets looked at.
    pub(crate) packets: usize,
    /// (vWire, namespace, interface) of those that strayed.
    pub(crate) strays: BTreeSet<(u32, String, String)>,
}

/// Watches until it is ended.
pub(crate) struct Oracle(Service<Result<Sighted>>);

impl Oracle {
    /// Starts to watch for packets with this mark in all namespaces that there are.
    pub(crate) fn start(places: &Places, mark: [u8; MARK_BYTES], allowed: Allowed) -> Result<Oracle> {
        let mut eyes = Vec::new();
        for (name, place) in places.iter() {
            eyes.push(Eye {
                netns: name.to_owned(),
                net: place.net.clone(),
                names: BTreeMap::new(),
                sniffer: Sniffer::open(&place.netns, mark)?,
            });
        }
        Service::start("oracle", move |over| watch(&mut eyes, &allowed, over)).map(Oracle)
    }
    /// What it saw.
    pub(crate) fn end(self) -> Result<Sighted> {
        self.0.end()?
    }
}

/// Watches one namespace.
struct Eye {
    netns: String,
    net: Arc<Net>,
    names: BTreeMap<u32, String>,
    sniffer: Sniffer,
}

impl Eye {
    /// The name of an interface. One that is gone already is called by its number.
    fn name(&mut self, index: u32) -> Result<String> {
        if !self.names.contains_key(&index) {
            self.names.extend(self.net.links()?.into_iter().map(|link| (link.index, link.name)));
        }
        Ok(self.names.entry(index).or_insert_with(|| format!("interface {index}")).clone())
    }
}

fn watch(eyes: &mut [Eye], allowed: &Allowed, over: &AtomicBool) -> Result<Sighted> {
    let mut sighted = Sighted { packets: 0, strays: BTreeSet::new() };
    loop {
        let last = over.load(Ordering::Relaxed);
        for eye in eyes.iter_mut() {
            let seen = eye.sniffer.sightings().map_err(|error| Error { object: format!("{} in {}", error.object, eye.netns), ..error })?;
            sighted.packets += seen.len();
            let spots: BTreeSet<(u32, u32)> = seen.into_iter().map(|sighting| (sighting.number, sighting.interface)).collect();
            for (track, index) in spots {
                let spot = (eye.netns.clone(), eye.name(index)?);
                if !allowed.holds(track, &spot) && sighted.strays.len() < MAX_STRAYS {
                    sighted.strays.insert((track, spot.0, spot.1));
                }
            }
        }
        if last {
            return Ok(sighted);
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::pulse::{Pulse, Track},
        *,
    };
    use std::time::Instant;

    const MUST: &str = "this test makes network namespaces: run it as root or under `unshare -Urnm`";

    /// Needs the right to make namespaces; without it this test fails.
    #[test]
    fn a_packet_that_is_seen_elsewhere_is_told() {
        let names = ["near", "far"].map(|name| format!("unit-oracle-{name}-{}", std::process::id()));
        let mut places = Places::default();
        names.iter().for_each(|name| places.make(name).expect(MUST));
        let [near, far] = [&names[0], &names[1]].map(|name| places.get(name).unwrap());
        near.net.veth("nsm-1", &far.netns, "nsm-1").unwrap();
        for (place, address) in [(near, "10.8.1.1/24"), (far, "10.8.1.2/24")] {
            place.net.address_add("nsm-1", address.parse().unwrap()).unwrap();
            place.net.up("nsm-1").unwrap();
        }
        let seen = |allowed: Allowed| {
            let track = Track { netns: near.netns.clone(), to: vec!["10.8.1.2".parse().unwrap()] };
            let pulse = Pulse::start(&[track], Duration::from_millis(5)).unwrap();
            let oracle = Oracle::start(&places, pulse.mark(), allowed).unwrap();
            let (from, until) = (pulse.now(), Instant::now() + Duration::from_secs(10));
            let answered = |toll: super::super::pulse::Toll| toll.sent > toll.lost;
            while !answered(pulse.toll(0, from, pulse.now())) && Instant::now() < until {
                std::thread::yield_now();
            }
            let sighted = oracle.end().unwrap();
            assert!(sighted.packets >= 2, "{}", sighted.packets);
            sighted.strays
        };
        let spots: BTreeSet<Spot> = names.iter().map(|name| (name.clone(), "nsm-1".to_owned())).collect();
        assert!(seen(Allowed { own: vec![spots.clone()], ..Allowed::default() }).is_empty());
        assert!(seen(Allowed { at: spots, ..Allowed::default() }).is_empty());
        let only_near = Allowed { everywhere_in: [names[0].clone()].into(), ..Allowed::default() };
        assert_eq!(seen(only_near), BTreeSet::from([(0, names[1].clone(), "nsm-1".to_owned())]));
        assert!(places.delete().is_empty());
    }
}
