//! Tells the service manager how the process is: `READY=1`, `STATUS=...`, `STOPPING=1` to `$NOTIFY_SOCKET`.
//!
//! Without that variable nothing happens. A message that cannot be sent is only logged: readiness must never
//! keep a role from working.

use std::{
    io,
    os::{linux::net::SocketAddrExt, unix::net::SocketAddr, unix::net::UnixDatagram},
    sync::Arc,
};

/// Where to tell; nowhere by default. Clones share the socket.
#[derive(Clone, Debug, Default)]
pub struct Notify(Option<Arc<(UnixDatagram, SocketAddr)>>);

impl Notify {
    /// Tells whoever `$NOTIFY_SOCKET` names.
    pub fn from_environment() -> Notify {
        let Some(address) = std::env::var("NOTIFY_SOCKET").ok().filter(|address| !address.is_empty()) else { return Notify::default() };
        Notify::to(&address).unwrap_or_else(|problem| {
            tracing::warn!(address, %problem, "NOTIFY_SOCKET cannot be used, nobody is told when this process is ready");
            Notify::default()
        })
    }
    /// Tells a datagram socket: a path, or `@name` in the abstract namespace.
    pub fn to(address: &str) -> io::Result<Notify> {
        let address = match address.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A service manager that does not read must not stop us.
        socket.set_nonblocking(true)?;
        Ok(Notify(Some(Arc::new((socket, address)))))
    }
    /// The process serves.
    pub fn ready(&self) {
        self.send("READY=1");
    }
    /// What the process does, in one line.
    pub fn status(&self, line: &str) {
        self.send(&format!("STATUS={}", line.replace('\n', " ")));
    }
    /// The process ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }
    fn send(&self, message: &str) {
        let Some(target) = &self.0 else { return };
        if let Err(problem) = target.0.send_to_addr(message.as_bytes(), &target.1) {
            tracing::warn!(message, %problem, "the service manager cannot be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn next(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn tells_a_path_and_an_abstract_name() {
        let path = std::env::temp_dir().join(format!("nsm-notify-{}", std::process::id()));
        let name = format!("nsm-notify-{}", std::process::id());
        let on_path = UnixDatagram::bind(&path).unwrap();
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let in_abstract = UnixDatagram::bind_addr(&abstract_address).unwrap();
        for (address, socket) in [(path.display().to_string(), &on_path), (format!("@{name}"), &in_abstract)] {
            let notify = Notify::to(&address).unwrap();
            notify.ready();
            notify.status("two\nlines");
            notify.stopping();
            assert_eq!([next(socket), next(socket), next(socket)], ["READY=1", "STATUS=two lines", "STOPPING=1"]);
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn nobody_to_tell_is_fine() {
        Notify::default().ready();
        Notify::to("/nonexistent/nsm/notify").unwrap().ready();
    }
}
