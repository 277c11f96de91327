//! Hears of what others do to our interfaces, and of namespaces that end. One socket in each namespace in which somebody
//! is on watch, whoever it is, however many there are.
//!
//! Only what may be a loss is told: an interface that goes, goes down, gets another name or another MTU; an address, a
//! route, a neighbour or a rule that is removed. It is a hint: whoever is told looks for himself.
//!
//! A namespace has ended when nobody is in it and no name leads to it. That it is open here and in other processes of the
//! mesh says nothing, so only one that has been seen alive, by a process or a name, is ever told to have ended.

use super::observe;
use crate::{
    error::refused,
    find,
    link::{self, LINK_FIXED, Link},
    netns::{self, Visitor},
    nl::{self, Attributes, Socket, messages, read_u32},
    sys,
    uapi::*,
};
use async_trait::async_trait;
use nsm_api::{InodeKey, Result};
use nsm_hop::kernel::{Disturbance, Netns, Sentry, Wire, Wires};
use rustix::{io::Errno, net::RecvFlags};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::unix::AsyncFd,
    sync::{Mutex as AsyncMutex, Notify},
    task::JoinHandle,
    time::sleep,
};
use tracing::{debug, info};

/// Bytes that are read at once; an event about a link is the longest.
const READ_BYTES: usize = 32 * 1024;
/// Between two looks whether namespaces have ended. Two in a row must say so.
const LIFE_PAUSE: Duration = Duration::from_millis(500);
/// The same after a loss, which may be that of a whole pod.
const LOSS_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of the fixed part of a route message.
const ROUTE_FIXED: usize = 12;
/// What is listened to.
const GROUPS: u32 = RTMGRP_LINK
    | RTMGRP_NEIGH
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_IPV6_RULE;

/// All who are on watch.
#[derive(Default)]
pub(super) struct Watches {
    places: Mutex<BTreeMap<InodeKey, Place>>,
    /// Held while a place is opened.
    opening: AsyncMutex<()>,
    numbers: AtomicU64,
    looks_after_lives: AtomicBool,
}

/// One namespace.
struct Place {
    posts: Arc<Mutex<Posts>>,
    life: Arc<Life>,
    listener: JoinHandle<()>,
}

/// Who is to be told of what there.
#[derive(Default)]
struct Posts {
    by_name: BTreeMap<String, BTreeMap<u64, Arc<Post>>>,
    /// They have rules.
    of_rules: BTreeMap<u64, Arc<Post>>,
}

/// One who is on watch.
#[derive(Default)]
struct Post {
    told: Notify,
    ended: AtomicBool,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Posts {
    fn all(&self) -> impl Iterator<Item = &Arc<Post>> {
        self.by_name.values().flat_map(BTreeMap::values).chain(self.of_rules.values())
    }
    fn of(&self, news: &News) -> Vec<&Arc<Post>> {
        match news {
            News::Of(name) => self.by_name.get(name).into_iter().flat_map(BTreeMap::values).collect(),
            News::Rules => self.of_rules.values().collect(),
            News::Anything => self.all().collect(),
        }
    }
    fn concerned(&self, news: &News) -> bool {
        !self.of(news).is_empty()
    }
    fn tell(&self, news: &News) {
        self.of(news).into_iter().for_each(|post| post.told.notify_one());
    }
    fn tell_end(&self) {
        for post in self.all() {
            post.ended.store(true, Ordering::SeqCst);
            post.told.notify_one();
        }
    }
}

/// What may be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
enum News {
    /// The interface of this name, or something on it.
    Of(String),
    /// A rule.
    Rules,
    /// News were lost.
    Anything,
}

impl Watches {
    /// A sentry at all that `about` names.
    pub(super) async fn post(self: &Arc<Self>, about: &Wires) -> Result<Guard> {
        let post = Arc::new(Post::default());
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut guard = Guard { watches: self.clone(), post: post.clone(), number, places: BTreeSet::new() };
        let ruled: BTreeSet<InodeKey> =
            about.iter().filter_map(|wire| if let Wire::Policy { on, .. } = wire { Some(on.netns.key) } else { None }).collect();
        for iface in observe::places(about).into_iter().filter(|iface| iface.netns.file.is_some()) {
            let key = iface.netns.key;
            let enters = |place: &Place| {
                let mut posts = lock(&place.posts);
                posts.by_name.entry(iface.name.as_str().to_owned()).or_default().insert(number, post.clone());
                if ruled.contains(&key) {
                    posts.of_rules.insert(number, post.clone());
                }
            };
            guard.places.insert(key);
            // A place that was just opened may be left by another at once, and closed.
            while lock(&self.places).get(&key).map(enters).is_none() {
                self.open(&iface.netns).await?;
            }
        }
        if !self.looks_after_lives.swap(true, Ordering::SeqCst) {
            tokio::spawn(look_after_lives(Arc::downgrade(self)));
        }
        Ok(guard)
    }

    async fn open(&self, netns: &Netns) -> Result<()> {
        let _alone = self.opening.lock().await;
        if lock(&self.places).contains_key(&netns.key) {
            return Ok(());
        }
        let wanted = netns.clone();
        let (events, names, alive) = netns::visit(move |visitor| listen(visitor, &wanted)).await??;
        let failed = |error: std::io::Error| refused("kernel events", "wait for them", Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let (events, posts) = (sys::watch(events).map_err(failed)?, Arc::<Mutex<Posts>>::default());
        let life = Arc::new(Life { key: netns.key, seen: AtomicBool::new(alive) });
        let listener = tokio::spawn(hear(events, names, posts.clone(), life.clone()));
        lock(&self.places).insert(netns.key, Place { posts, life, listener });
        Ok(())
    }
}

/// Somebody's watch; ends with its drop.
pub(super) struct Guard {
    watches: Arc<Watches>,
    post: Arc<Post>,
    number: u64,
    places: BTreeSet<InodeKey>,
}

#[async_trait]
impl Sentry for Guard {
    async fn disturbed(&self) -> Disturbance {
        self.post.told.notified().await;
        if self.post.ended.load(Ordering::SeqCst) { Disturbance::Ended } else { Disturbance::Changed }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut places = lock(&self.watches.places);
        for key in &self.places {
            let Some(place) = places.get(key) else { continue };
            let mut posts = lock(&place.posts);
            posts.of_rules.remove(&self.number);
            posts.by_name.retain(|_, posts| {
                posts.remove(&self.number);
                !posts.is_empty()
            });
            let deserted = posts.by_name.is_empty();
            drop(posts);
            if deserted {
                places.remove(key);
            }
        }
    }
}

/// Names of links and their MTU, by index.
type Names = BTreeMap<u32, (String, u32)>;

/// First the subscription, then a look: nothing is missed between the two.
fn listen(visitor: &Visitor, netns: &Netns) -> Result<(OwnedFd, Names, bool)> {
    visitor.enter(netns)?;
    let events = nl::events(GROUPS).map_err(|errno| refused("kernel events", "subscribe to them", errno))?;
    let links = link::all(&mut Socket::open()?).map_err(|refusal| refused("links", "list them", refusal))?;
    let names = links.into_iter().map(|link| (link.index, (link.name, link.mtu))).collect();
    Ok((events, names, find::is_alive(netns.key)))
}

/// Tells the posts of a place what it hears.
async fn hear(events: AsyncFd<OwnedFd>, mut names: Names, posts: Arc<Mutex<Posts>>, life: Arc<Life>) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let Ok(mut ready) = events.readable().await else { return };
        let mut news: Vec<News> = match rustix::net::recv(&events, &mut buffer[..], RecvFlags::empty()) {
            Ok((read, _)) => messages(&buffer[..read]).filter_map(|(header, body)| said(header.kind, body, &mut names)).collect(),
            Err(Errno::AGAIN) => {
                ready.clear_ready();
                continue;
            }
            Err(Errno::INTR) => continue,
            Err(Errno::NOBUFS) => {
                debug!("kernel events were lost: everything is looked at");
                vec![News::Anything]
            }
            Err(_) => return,
        };
        drop(ready);
        news.retain(|news| lock(&posts).concerned(news));
        if news.is_empty() {
            continue;
        }
        // It may be the end of the whole pod: then nothing is to be made again.
        let ended = life.has_ended().await;
        let posts = lock(&posts);
        if ended { posts.tell_end() } else { news.iter().for_each(|news| posts.tell(news)) }
    }
}

/// What a message says that somebody may have lost.
fn said(kind: u16, body: &[u8], names: &mut Names) -> Option<News> {
    let of = |names: &Names, index: Option<u32>| index.and_then(|index| names.get(&index)).map(|(name, _)| News::Of(name.clone()));
    match kind {
        RTM_NEWLINK => {
            let link = Link::parse(body).filter(|_| body.len() >= LINK_FIXED)?;
            let before = names.insert(link.index, (link.name.clone(), link.mtu));
            match before {
                Some((before, _)) if before != link.name => Some(News::Of(before)),
                Some((_, mtu)) if mtu != link.mtu => Some(News::Of(link.name)),
                _ => (!link.up()).then_some(News::Of(link.name)),
            }
        }
        RTM_DELLINK => names.remove(&read_u32(body, 4)?).map(|(name, _)| News::Of(name)),
        RTM_DELADDR => of(names, read_u32(body, 4)),
        RTM_DELROUTE => of(names, Attributes::after(body, ROUTE_FIXED).find(RTA_OIF).and_then(|index| read_u32(index, 0))),
        RTM_DELNEIGH => of(names, read_u32(body, 4)),
        RTM_DELRULE => Some(News::Rules),
        _ => None,
    }
}

/// The life of one namespace.
struct Life {
    key: InodeKey,
    /// It has been seen alive.
    seen: AtomicBool,
}

impl Life {
    /// Whether two looks, one soon after the other, find nobody in it and no name of it.
    async fn has_ended(&self) -> bool {
        if !self.seen.load(Ordering::SeqCst) {
            return false;
        }
        for pause in [Duration::ZERO, LOSS_PAUSE] {
            sleep(pause).await;
            let lives = look(BTreeSet::from([self.key])).await;
            if !lives.complete || lives.living.contains(&self.key) {
                return false;
            }
        }
        true
    }
}

async fn look(wanted: BTreeSet<InodeKey>) -> find::Lives {
    tokio::task::spawn_blocking(move || find::lives(&wanted)).await.unwrap_or_default()
}

/// Looks whether namespaces in which somebody is on watch have ended.
async fn look_after_lives(watches: Weak<Watches>) {
    let mut missed = BTreeSet::new();
    loop {
        sleep(LIFE_PAUSE).await;
        let Some(watched) = watches.upgrade().map(|watches| lock(&watches.places).keys().copied().collect()) else { return };
        let lives = look(watched).await;
        let Some(watches) = watches.upgrade() else { return };
        let mut ended = BTreeSet::new();
        for (key, place) in lock(&watches.places).iter() {
            if lives.living.contains(key) {
                place.life.seen.store(true, Ordering::SeqCst);
            } else if lives.complete && place.life.seen.load(Ordering::SeqCst) {
                ended.insert(*key);
            }
            if ended.contains(key) && missed.contains(key) {
                info!(netns = %key, "a network namespace has ended: nobody is in it, no name leads to it");
                lock(&place.posts).tell_end();
            }
        }
        missed = ended;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::link_fixed;
    use crate::nl::Message;

    #[test]
    fn what_may_be_a_loss_is_told_and_nothing_else() {
        let mut names = Names::from([(3, ("nsm-1".to_owned(), 1500))]);
        let link_of = |index, flags, name: &str, mtu| {
            Message::new(0, 0, &link_fixed(index, flags, 0)).text(IFLA_IFNAME, name).u32(IFLA_MTU, mtu).body().to_vec()
        };
        let link = |index, flags, name| link_of(index, flags, name, 1500);
        let address = |index: u32| [[2, 32, 0, 0].as_slice(), &index.to_ne_bytes()].concat();
        let route = |index: u32| Message::new(0, 0, &[0; ROUTE_FIXED]).u32(RTA_OIF, index).body().to_vec();
        let of = |name: &str| Some(News::Of(name.to_owned()));
        assert_eq!(said(RTM_NEWLINK, &link(3, IFF_UP, "nsm-1"), &mut names), None);
        assert_eq!(said(RTM_NEWLINK, &link(3, 0, "nsm-1"), &mut names), of("nsm-1"), "down");
        assert_eq!(said(RTM_NEWLINK, &link_of(3, IFF_UP, "nsm-1", 1400), &mut names), of("nsm-1"), "another MTU");
        assert_eq!(said(RTM_NEWLINK, &link(4, IFF_UP, "other"), &mut names), None);
        assert_eq!(said(RTM_DELADDR, &address(3), &mut names), of("nsm-1"));
        assert_eq!(said(RTM_DELADDR, &address(9), &mut names), None);
        assert_eq!(said(RTM_NEWADDR, &address(3), &mut names), None);
        assert_eq!(said(RTM_DELROUTE, &route(4), &mut names), of("other"));
        assert_eq!(said(RTM_DELNEIGH, &address(4), &mut names), of("other"));
        assert_eq!(said(RTM_DELRULE, &[], &mut names), Some(News::Rules));
        assert_eq!(said(RTM_NEWLINK, &link(3, IFF_UP, "renamed"), &mut names), of("nsm-1"));
        assert_eq!(said(RTM_DELLINK, &link(3, 0, "renamed"), &mut names), of("renamed"));
        assert_eq!(said(RTM_DELLINK, &[], &mut names), None);
    }
}
