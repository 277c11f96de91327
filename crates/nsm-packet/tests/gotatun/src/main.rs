//! A gotatun device for comparisons: called as the program in `../wireguard-go/main.go` is, with the name and the MTU of the
//! interface and the file of the namespace in which it is to be; the socket is where the process is. The configuration comes
//! on standard input, ended by an empty line; "ready" is the answer, and the end of standard input is the end.

use gotatun::{
    device::{DeviceBuilder, Peer},
    tun::tun_async_device::TunDevice,
    x25519::{PublicKey, StaticSecret},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{collections::HashMap, error::Error, fs::File, io::BufRead, os::fd::AsFd};

/// Values by key. The one that stands there twice is not needed: all addresses may pass.
fn configuration(input: impl BufRead) -> Result<HashMap<String, String>, Box<dyn Error>> {
    let mut values = HashMap::new();
    for line in input.lines() {
        match line?.split_once('=') {
            Some((key, value)) => values.insert(key.to_owned(), value.to_owned()),
            None => break,
        };
    }
    Ok(values)
}

fn key(hex: &str) -> Result<[u8; 32], Box<dyn Error>> {
    let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    Ok(bytes.as_slice().try_into()?)
}

fn enter(namespace: &File) -> rustix::io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, name, _mtu, pod] = arguments.as_slice() else { return Err("called with name, MTU and namespace".into()) };
    let runtime = tokio::runtime::Runtime::new()?; // its threads stay in this namespace
    let _entered = runtime.enter();
    let (home, pod) = (File::open("/proc/thread-self/ns/net")?, File::open(pod)?);
    enter(&pod)?;
    let tun = TunDevice::from_name(name)?;
    enter(&home)?;
    let values = configuration(std::io::stdin().lock())?;
    let value = |key: &str| values.get(key).map(String::as_str).ok_or_else(|| format!("{key} is missing"));
    let peer = Peer::new(PublicKey::from(key(value("public_key")?)?)).with_endpoint(value("endpoint")?.parse()?);
    let peer = peer.with_allowed_ips(["0.0.0.0/0".parse()?, "::/0".parse()?]);
    let builder = DeviceBuilder::new().with_default_udp().with_ip(tun).with_peer(peer);
    let builder =
        builder.with_private_key(StaticSecret::from(key(value("private_key")?)?)).with_listen_port(value("listen_port")?.parse()?);
    let device = runtime.block_on(builder.build())?;
    println!("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    runtime.block_on(device.stop());
    Ok(())
}
