use super::*;
use crate::vl3::Changes;
use tokio::task::JoinHandle;

struct Endpoint {
    addresses: Addresses,
    names: Names,
    task: JoinHandle<()>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn by_label(connection: &Connection) -> Option<String> {
    Some(format!("spiffe://x/{}", connection.labels["who"]))
}

async fn endpoint(prefix: &str) -> Endpoint {
    let addresses = Addresses::new(1, Changes::default());
    addresses.set(0, prefix.parse().unwrap());
    let zone = Zone::new(["office"]);
    let server = Resolver::start_with("127.0.0.1:0".parse().unwrap(), zone.clone()).await.unwrap();
    let templates = vec!["{{ index .Labels \"podName\" }}.{{ .NetworkService }}.".parse().unwrap()];
    let names = Names::new(addresses.clone(), templates, by_label, (server, zone));
    let running = names.clone();
    Endpoint { addresses, names, task: tokio::spawn(async move { running.run().await }) }
}

fn draft(id: &str, who: &str, pod: &str) -> Draft {
    let mut connection = Connection::new(id.parse().unwrap(), "office".parse().unwrap());
    connection.labels = [("who", who), ("podName", pod)].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Draft { connection, preferences: vec![], files: Files::default() }
}

/// The Request of a client, answered and committed.
fn join(endpoint: &Endpoint, mut draft: Draft) -> Connection {
    endpoint.addresses.reserve(&mut draft).unwrap();
    endpoint.names.reserve(&mut draft).unwrap();
    endpoint.names.keep(&draft.connection);
    draft.connection
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

/// wire.md 10.4
#[tokio::test]
async fn a_client_learns_the_server_and_where_to_search_and_has_a_name() {
    let one = endpoint("172.16.1.0/24").await;
    let mut connection = join(&one, draft("c1", "alice", "alice"));
    let configs = &connection.context.dns_context.as_ref().unwrap().configs;
    assert_eq!(
        (configs.len(), &configs[0].dns_server_ips[..], &configs[0].search_domains[..]),
        (1, &["172.16.1.0".to_owned()][..], &["office".to_owned()][..])
    );
    until("alice is named", || one.names.0.zone.holder("alice.office.").is_some()).await;
    // A refresh changes nothing; a Request that comes from another endpoint of the network loses that one's server.
    connection.context.dns_context.as_mut().unwrap().configs[0].dns_server_ips = vec!["172.16.9.0".to_owned()];
    let again = join(&one, Draft { connection, preferences: vec![], files: Files::default() });
    assert_eq!(again.context.dns_context.unwrap().configs.len(), 1);
    one.names.publish_own(&[("podName".to_owned(), "vl3-1".to_owned())].into(), &"office".parse().unwrap(), "spiffe://x/vl3");
    until("the endpoint is named", || one.names.0.zone.holder("vl3-1.office.").is_some()).await;
    one.names.release(&"c1".parse().unwrap());
    assert_eq!(one.names.0.zone.holder("alice.office."), None);
}

/// A foreign name is never taken over by a label: neither here nor at another endpoint; when it is free it is given.
#[tokio::test]
async fn a_name_belongs_to_an_identity_in_the_whole_network() {
    let (one, two) = (endpoint("172.16.1.0/24").await, endpoint("172.16.2.0/24").await);
    let at = |endpoint: &Endpoint| vec![endpoint.names.0.server.address().to_string()];
    two.names.ask_there("wire", at(&one));
    one.names.ask_there("wire", at(&two));
    join(&one, draft("c1", "alice", "alice"));
    until("alice is named", || one.names.0.zone.holder("alice.office.").is_some()).await;
    join(&one, draft("c2", "mallory", "alice"));
    join(&two, draft("c3", "mallory", "Alice"));
    join(&two, draft("c4", "alice", "alice"));
    until("the same workload has its name at both", || two.names.0.zone.holder("alice.office.") == Some(mark("spiffe://x/alice"))).await;
    let missing = |endpoint: &Endpoint, id: &str| endpoint.names.wanted()[id].told;
    until("both others were looked at", || missing(&one, "c2") && missing(&two, "c3")).await;
    two.names.release(&"c4".parse().unwrap());
    one.names.release(&"c1".parse().unwrap());
    let free = |endpoint: &Endpoint| endpoint.names.0.zone.holder("alice.office.") == Some(mark("spiffe://x/mallory"));
    until("a free name is given", || free(&one) || free(&two)).await;
}
