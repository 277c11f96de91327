//! Faults in a running lab: what is done to its processes, links, kernels and disk, as somebody from outside would.
//!
//! Not here: who watches meanwhile ([`crate::judges`]), and the death and restart of processes, which the world does itself.

use crate::{
    schema::{Check, Ending, Fault, LinkFault, Removal},
    world::World,
};
use nsm_api::{Error, Kind, Result};
use rustix::process::Signal;
use std::{io::Write, net::IpAddr};

/// The file that fills the disk of the journals.
const FILLER: &str = "filler";
/// Bytes that are written at a time to fill it; the last write may be shorter.
const FILLING: usize = 4096;

impl World {
    /// Does what a check that acts says. Errors are those of doing it.
    pub(crate) async fn act(&mut self, check: &Check) -> Result<()> {
        match check {
            Check::Do(fault) => self.fault(fault).await,
            Check::End { process, ending } => self.end(process, *ending).await,
            Check::Restart { process, ending } => self.restart(process, *ending).await,
            Check::Write { file, text } => self.write(file, text),
            Check::Apply { name, text } => self.apply(name, text).await,
            other => Err(Error::internal(format!("check {other:?}"), "does nothing by itself")),
        }
    }

    /// Puts one fault into the lab.
    pub(crate) async fn fault(&mut self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::Stop { process } => self.process(process)?.signal_alive(Signal::STOP),
            Fault::Continue { process } => self.process(process)?.signal_alive(Signal::CONT),
            Fault::Start { process } => self.begin(process).await,
            Fault::Death { pod } => self.death(pod).await,
            Fault::Link { node, fault } => self.link(node, fault),
            Fault::Remove { pod, removal } => self.remove(pod, removal),
            Fault::Down { pod, interface: Some(interface) } => self.places.get(&self.file.lab.namespace(pod))?.net.down(interface),
            Fault::Down { pod, interface: None } => {
                let net = &self.places.get(&self.file.lab.namespace(pod))?.net;
                self.made(pod)?.iter().try_for_each(|link| net.down(link))
            }
            Fault::Disk { full: true } => self.fill_disk(),
            Fault::Disk { full: false } => {
                let path = self.files.state().join(FILLER);
                std::fs::remove_file(&path).map_err(|error| Error::internal(format!("file {}", path.display()), error.to_string()))
            }
            Fault::Wait { span } => {
                tokio::time::sleep(span.0).await;
                Ok(())
            }
        }
    }

    /// The end of a pod as its neighbours see it: the process is gone, the name of the namespace, and all that was in it.
    async fn death(&mut self, pod: &str) -> Result<()> {
        if !self.process(pod)?.has_ended() {
            self.end(pod, Ending::Kill).await?;
        }
        let name = self.file.lab.namespace(pod);
        let net = &self.places.get(&name)?.net;
        nsm_linux::netns::delete_named(&name)?;
        for link in self.made(pod)? {
            match net.delete(&link) {
                Err(error) if error.kind != Kind::NotFound => return Err(error),
                _ => {} // the other end of one that is gone
            }
        }
        Ok(())
    }

    /// The interfaces in a pod that were made since the lab was built.
    fn made(&self, pod: &str) -> Result<Vec<String>> {
        let name = self.file.lab.namespace(pod);
        let cables = self.plan.cables.iter().flat_map(|cable| [&cable.a, &cable.b]);
        let own: Vec<&str> = cables.filter(|end| end.netns == name).map(|end| end.interface.as_str()).chain(["lo"]).collect();
        let links = self.places.get(&name)?.net.links()?.into_iter().map(|link| link.name);
        Ok(links.filter(|link| !own.contains(&link.as_str())).collect())
    }

    fn link(&self, node: &str, fault: &LinkFault) -> Result<()> {
        let relay = self.places.relay.as_ref().ok_or_else(|| Error::internal(format!("link of {node}"), "is a plain cable"))?;
        let peer = fault.peer.as_deref().map(|peer| self.underlay_address(peer)).transpose()?;
        relay.set(node, fault.clone(), peer);
        Ok(())
    }

    /// The address by which the other nodes reach this one.
    pub(crate) fn underlay_address(&self, node: &str) -> Result<IpAddr> {
        let netns = self.file.lab.namespace(node);
        let uplink = self.plan.cables.iter().find(|cable| cable.b.netns == netns).and_then(|cable| cable.b.address);
        uplink.map(|address| address.addr()).ok_or_else(|| Error::internal(format!("node {node:?}"), "has no address"))
    }

    fn remove(&self, pod: &str, removal: &Removal) -> Result<()> {
        let net = &self.places.get(&self.file.lab.namespace(pod))?.net;
        let some = |count: usize| if count > 0 { Ok(()) } else { Err(absent(pod, removal)) };
        match removal {
            Removal::Interface(name) => net.delete(name),
            Removal::Address(name, address) => net.address_delete(name, *address),
            Removal::Route(name, to) => net.routes_remove(*to, name).and_then(some),
            Removal::Rules(table) => net.rules_remove(*table).and_then(some),
        }
    }

    fn fill_disk(&self) -> Result<()> {
        let path = self.files.state().join(FILLER);
        let failed = |error: std::io::Error| Error::internal(format!("file {}", path.display()), error.to_string());
        let mut file = std::fs::File::create(&path).map_err(failed)?;
        let block = [0; FILLING];
        loop {
            match file.write(&block) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

fn absent(pod: &str, removal: &Removal) -> Error {
    Error::new(Kind::NotFound, format!("{removal} in {pod}"), "is not there", "look with nsm lab exec while the lab is up")
}

/// A disk of so many bytes in a directory of this lab.
pub(crate) fn mount_disk(at: &std::path::Path, bytes: u64) -> Result<()> {
    let options = std::ffi::CString::new(format!("size={bytes},mode=700")).expect("digits hold no zero byte");
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount("tmpfs", at, "tmpfs", flags, options.as_c_str())
        .map_err(|errno| Error::internal(format!("disk at {}", at.display()), format!("cannot be mounted: {errno}")))
}

/// Takes it away, if it is there.
pub(crate) fn unmount_disk(at: &std::path::Path) {
    let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
}
