//! Brings the loopback of this process's network namespace up: a new one has it down. For the tests of an ordinary user.

fn main() -> nsm_api::Result<()> {
    nsm_linux::net::Net::new(&nsm_linux::netns::current()?)?.loopback_up()
}
