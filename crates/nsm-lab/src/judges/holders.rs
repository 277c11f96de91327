//! The ledger of addresses: who holds which, seen on the interfaces of the pods, and that no two hold the same at one time.

use super::Service;
use crate::places::is_own_address;
use nsm_api::Result;
use nsm_linux::net::Net;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Between two looks at all pods.
const PAUSE: Duration = Duration::from_millis(25);

/// Pods that hold the same address.
pub(crate) type Shared = BTreeMap<IpAddr, BTreeSet<String>>;

/// Looks at pods until it is ended.
pub(crate) struct Holders(Service<Result<Shared>>);

impl Holders {
    /// Starts to look at these pods. Addresses that several hold from the beginning on, because they have them of different
    /// services, are nobody's mistake.
    pub(crate) fn start(pods: Vec<(String, Arc<Net>)>) -> Result<Holders> {
        let before: BTreeSet<IpAddr> = shared(&pods)?.into_keys().collect();
        let work = move |over: &AtomicBool| {
            let mut all = Shared::new();
            while !over.load(Ordering::Relaxed) {
                for (address, holders) in shared(&pods)?.into_iter().filter(|(address, _)| !before.contains(address)) {
                    all.entry(address).or_default().extend(holders);
                }
                std::thread::sleep(PAUSE);
            }
            Ok(all)
        };
        Service::start("holders", work).map(Holders)
    }
    /// The addresses that two or more pods held at one time.
    pub(crate) fn end(self) -> Result<Shared> {
        self.0.end()?
    }
}

/// The addresses that more than one of these pods hold now. Pods are looked at one after the other, so one that moved in
/// between was seen at both: what looks shared is looked at again, in those pods only, backwards.
fn shared(pods: &[(String, Arc<Net>)]) -> Result<Shared> {
    let suspects = held(pods.iter())?;
    if suspects.is_empty() {
        return Ok(suspects);
    }
    let names: BTreeSet<&String> = suspects.values().flatten().collect();
    let again = held(pods.iter().rev().filter(|(name, _)| names.contains(name)))?;
    Ok(again.into_iter().filter(|(address, _)| suspects.contains_key(address)).collect())
}

fn held<'a>(pods: impl Iterator<Item = &'a (String, Arc<Net>)>) -> Result<Shared> {
    let mut all = Shared::new();
    for (name, net) in pods {
        for address in net.addresses()?.into_iter().map(|info| info.address.addr()).filter(|address| is_own_address(*address)) {
            all.entry(address).or_default().insert(name.clone());
        }
    }
    all.retain(|_, holders| holders.len() > 1);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nsm_linux::netns;
    use std::time::Instant;

    /// Needs the right to make namespaces; without it this test fails.
    #[test]
    fn an_address_in_two_pods_at_a_time_is_told_and_one_that_moves_is_not() {
        let pod = |name: &str| {
            let netns = netns::create().expect("this test makes network namespaces: run it as root or under `unshare -Urnm`");
            (name.to_owned(), Arc::new(Net::new(&netns).unwrap()))
        };
        let (a, b) = (pod("a"), pod("b"));
        let add = |net: &Net, text: &str| net.address_add("lo", text.parse().unwrap()).unwrap();
        [&a, &b].iter().for_each(|pod| add(&pod.1, "10.0.0.9/32"));
        let holders = Holders::start(vec![a.clone(), b.clone()]).unwrap();
        for _ in 0..50 {
            add(&a.1, "10.0.0.1/32");
            a.1.address_delete("lo", "10.0.0.1/32".parse().unwrap()).unwrap();
            add(&b.1, "10.0.0.1/32");
            b.1.address_delete("lo", "10.0.0.1/32".parse().unwrap()).unwrap();
        }
        assert!(holders.end().unwrap().is_empty(), "moved, and shared from the beginning");
        let holders = Holders::start(vec![a.clone(), b.clone()]).unwrap();
        [&a, &b].iter().for_each(|pod| add(&pod.1, "10.0.0.2/32"));
        let until = Instant::now() + PAUSE * 20;
        while Instant::now() < until {
            std::thread::yield_now();
        }
        let both: BTreeSet<String> = ["a", "b"].map(str::to_owned).into();
        assert_eq!(holders.end().unwrap(), Shared::from([("10.0.0.2".parse().unwrap(), both)]));
    }
}
