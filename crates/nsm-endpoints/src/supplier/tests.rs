use super::*;
use futures::{future::join_all, stream};

/// Knows each endpoint for which there is a file of its name in a directory.
struct InDirectory(PathBuf);

#[async_trait]
impl RegistryApi for InDirectory {
    async fn register_service(&self, service: NetworkService, _: Caller) -> Result<NetworkService> {
        Ok(service)
    }
    async fn find_services(&self, _: ServiceQuery, _: Caller) -> Result<ServiceUpdates> {
        Ok(stream::empty().boxed())
    }
    async fn unregister_service(&self, _: NetworkService, _: Caller) -> Result<()> {
        Ok(())
    }
    async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, _: Files, _: Caller) -> Result<NetworkServiceEndpoint> {
        Ok(endpoint)
    }
    async fn find_endpoints(&self, query: EndpointQuery, _: Caller) -> Result<EndpointUpdates> {
        let name = query.name.unwrap();
        let there = self.0.join(name.as_str()).exists();
        let endpoint = NetworkServiceEndpoint::new(name, vec![], String::new());
        let update = there.then(|| Ok((EndpointUpdate { endpoint, deleted: false }, Files::default())));
        Ok(stream::iter(update).boxed())
    }
    async fn unregister_endpoint(&self, _: NetworkServiceEndpoint, _: Caller) -> Result<()> {
        Ok(())
    }
}

fn supplier(dir: &std::path::Path, template: &str) -> Supplier {
    let file = dir.join("template.yaml");
    std::fs::write(&file, template.replace("{dir}", &dir.display().to_string())).unwrap();
    let place = Labels::from([("nodeName".to_owned(), "n1".to_owned())]);
    Supplier::open(file, Arc::new(InDirectory(dir.to_owned())), place, BTreeMap::new()).unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// T-07: a hundred clients at once start exactly one.
#[tokio::test]
async fn a_herd_starts_one() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo started >> {dir}/starts; sleep 0.2; touch {dir}/nse-$APP; exec sleep 60";
    let template = format!("name: \"nse-{{{{ .app }}}}\"\ncommand: [sh, -c, \"{script}\"]\nenv: {{APP: \"{{{{ .app }}}}\"}}\n");
    let supplier = supplier(dir.path(), &template);
    let wanted = labels(&[("app", "web"), ("nodeName", "n1")]);
    let all = join_all((0..100).map(|_| supplier.supply(&wanted))).await;
    assert!(all.iter().all(|name| name.as_deref() == Ok("nse-web")), "{all:?}");
    let starts = || std::fs::read_to_string(dir.path().join("starts")).unwrap().lines().count();
    assert_eq!(starts(), 1);
    assert_eq!(supplier.supply(&labels(&[("app", "db")])).await.unwrap(), "nse-db");
    assert_eq!(starts(), 2, "another need, another endpoint");
    let foreign = supplier.supply(&labels(&[("app", "web"), ("nodeName", "n2")])).await.unwrap_err();
    assert!(foreign.to_string().contains("n2") && foreign.retryable());
    supplier.close().await;
    assert!(supplier.slots().values().all(|state| matches!(*state.borrow(), State::Failed(..) | State::Ended)));
}

#[tokio::test]
async fn one_that_fails_is_not_started_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let supplier = supplier(dir.path(), "name: bad\ncommand: [sh, -c, 'echo x >> {dir}/starts; exit 3']\n");
    for _ in 0..5 {
        let error = supplier.supply(&Labels::new()).await.unwrap_err();
        assert!(error.to_string().contains('3') && error.retryable(), "{error}");
    }
    let starts = std::fs::read_to_string(dir.path().join("starts")).unwrap().lines().count();
    assert_eq!(starts, 1);
}

#[test]
fn a_label_is_one_word_of_the_command() {
    let template = || Template { name: "n".to_owned(), command: vec!["{{ .app }}".to_owned()], env: BTreeMap::new(), netns: Place::Own };
    assert_eq!(rendered(template(), &labels(&[("app", "web-1")])).unwrap().command, ["web-1"]);
    for bad in ["--flag", "a b", "a;b", "", "../x", "{{ .x }}"] {
        assert!(rendered(template(), &labels(&[("app", bad)])).is_err(), "{bad:?}");
    }
    assert!(rendered(template(), &Labels::new()).is_err());
}
