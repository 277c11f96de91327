//! Whose a name is, who passed a registration on, and which policies judge that.

use crate::world::*;
use async_trait::async_trait;
use futures::TryStreamExt;
use nsm::{
    roles::{guard, process::Process, registry},
    settings::Settings,
};
use nsm_api::*;
use nsm_policy::PolicySet;
use nsm_registry::LocalBypass;
use std::{
    fs,
    sync::{Arc, Mutex},
    time::SystemTime,
};

const NAMES: [&str; 4] = ["endpoint", "manager", "registry", "evil"];

fn server_policies(masks: &str) -> PolicySet {
    let mut settings = Settings::new("registry", registry::OPTIONS).with_environment([("NSM_REGISTRY_SERVER_POLICIES", masks)]);
    let policies = guard::server_policies(&mut settings);
    settings.finish().unwrap();
    policies
}

fn client_policies() -> PolicySet {
    PolicySet::load(&guard::CLIENT_POLICIES.default.split(',').map(str::to_owned).collect::<Vec<_>>()).unwrap()
}

/// A registry as `nsm registry` runs it.
fn start_registry(world: &World, policies: Option<&str>) -> tokio::task::JoinHandle<Result<()>> {
    let mut variables = vec![("SPIFFE_ENDPOINT_SOCKET", world.url("registry.id")), ("NSM_LISTEN_ON", world.url("registry.sock"))];
    variables.push(("NSM_STORE", "memory".to_owned()));
    variables.extend(policies.map(|masks| ("NSM_REGISTRY_SERVER_POLICIES", masks.to_owned())));
    let settings = Settings::new("registry", registry::OPTIONS).with_environment(variables);
    tokio::spawn(registry::run(settings, world.context.clone()))
}

/// A manager's registry before that at `registry`.
async fn start_manager(world: &World, process: &Process, registry: &str) {
    let above = guard::client(process.dialer.registry(&world.target(registry)), client_policies());
    let local = LocalBypass::new(above, "tcp://127.0.0.1:5001", Labels::new(), Arc::new(SystemTime::now));
    let guarded = guard::server(Arc::new(local), server_policies(guard::SERVER_POLICIES.default));
    process.serve(vec![world.target("manager.sock")], None, Some(guarded), &world.context).await.unwrap();
}

fn endpoint(name: &str) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint::new(name.parse().unwrap(), vec!["svc".parse().unwrap()], "tcp://127.0.0.1:9")
}

async fn up(world: &World, process: &Process, socket: &str) -> Arc<dyn RegistryApi> {
    bounded(async {
        while process.dialer.health(&world.target(socket), "", BOUND).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    process.dialer.registry(&world.target(socket))
}

async fn register(api: &Arc<dyn RegistryApi>, endpoint: NetworkServiceEndpoint) -> Result<NetworkServiceEndpoint> {
    bounded(api.register_endpoint(endpoint, Files::default(), Caller::within(BOUND))).await
}

async fn found(api: &Arc<dyn RegistryApi>, name: &str) -> Option<NetworkServiceEndpoint> {
    let query = EndpointQuery { name: Some(name.parse().unwrap()), ..EndpointQuery::default() };
    let found: Vec<_> = bounded(async { api.find_endpoints(query, Caller::within(BOUND)).await?.try_collect().await }).await.unwrap();
    found.into_iter().map(|(update, _): (EndpointUpdate, Files)| update.endpoint).next()
}

fn ids(world: &World, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| world.id(name).to_string()).collect()
}

/// wire.md 2.8: every process on the way judges the one it called and the one that called it.
#[tokio::test]
async fn a_registration_carries_its_whole_way_and_a_name_stays_with_its_owner() {
    let world = World::new(&NAMES);
    start_registry(&world, None);
    let (own, evil, manager) = (world.process("endpoint").await, world.process("evil").await, world.process("manager").await);
    let direct = up(&world, &evil, "registry.sock").await;
    start_manager(&world, &manager, "registry.sock").await;
    let through = guard::client(up(&world, &own, "manager.sock").await, client_policies());
    let caller = Caller::within(BOUND);
    let answer = bounded(through.register_endpoint(endpoint("nse"), Files::default(), caller.clone())).await.unwrap();
    assert_eq!(answer.path_ids, ids(&world, &["endpoint", "manager", "registry"]));
    assert_eq!(caller.trail.answered().unwrap().tokens.len(), 3, "the path shows the registry above, too");
    register(&through, answer.clone()).await.unwrap();

    let at_manager = up(&world, &evil, "manager.sock").await;
    let claims =
        NetworkServiceEndpoint { path_ids: ids(&world, &["endpoint", "manager"]), url: "tcp://127.0.0.1:66".into(), ..endpoint("nse") };
    for (api, endpoint) in
        [(&direct, endpoint("nse")), (&direct, claims.clone()), (&at_manager, endpoint("nse")), (&at_manager, claims.clone())]
    {
        let refused = register(api, endpoint.clone()).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Denied, "{refused}");
        let refused = bounded(api.unregister_endpoint(endpoint, Caller::within(BOUND))).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Denied, "{refused}");
    }
    let still = found(&direct, "nse").await.unwrap();
    assert_eq!((still.url.as_str(), still.path_ids.first()), ("tcp://127.0.0.1:5001", ids(&world, &["endpoint"]).first()));
    bounded(through.unregister_endpoint(answer, Caller::within(BOUND))).await.unwrap();
    assert_eq!(found(&direct, "nse").await, None);
    assert_eq!(register(&direct, endpoint("nse")).await.unwrap().path_ids, ids(&world, &["evil", "registry"]), "a free name is free");
}

/// What a message says of its way counts for nothing without the tokens of that way.
#[tokio::test]
async fn path_ids_are_those_of_the_tokens() {
    let world = World::new(&NAMES);
    start_registry(&world, None);
    let (own, evil) = (world.process("endpoint").await, world.process("evil").await);
    let api = up(&world, &evil, "registry.sock").await;
    let claims = |name: &str, list: &[&str]| NetworkServiceEndpoint { path_ids: ids(&world, list), ..endpoint(name) };
    assert_eq!(register(&api, claims("a", &["endpoint"])).await.unwrap().path_ids, ids(&world, &["evil", "registry"]));
    let real = token(&own, &world.id("evil")).0;
    let for_another = token(&own, &world.id("manager")).0;
    let passed_on = |first: &str| Caller { trail: Trail::new(vec![first.to_owned(), String::new()]), ..Caller::within(BOUND) };
    for (what, first, list) in [
        ("other ids than tokens", &*real, &["manager", "evil"][..]),
        ("a token for somebody else", &*for_another, &["endpoint"]),
        ("no token", "", &["endpoint"]),
        ("nonsense", "a.b.c", &["endpoint"]),
    ] {
        let refused = bounded(api.register_endpoint(claims("b", list), Files::default(), passed_on(first))).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Denied, "{what}: {refused}");
        assert_eq!(found(&api, "b").await, None, "{what}");
    }
    let honest = bounded(api.register_endpoint(claims("b", &["endpoint"]), Files::default(), passed_on(&real))).await.unwrap();
    assert_eq!(honest.path_ids, ids(&world, &["endpoint", "evil", "registry"]));
}

/// wire.md 2.7: the masks take effect, files replace and add, and what cannot be decided is refused.
#[tokio::test]
async fn masks_choose_the_policies_of_a_registry() {
    for (policies, names, outcome) in [
        ("valid { input.resource_name == \"good\" }", ["good", "bad"], Err("own.rego")),
        (
            "valid { input.resource_path_ids_map[\"good\"][0] == input.resource_id }\nvalid { not input.resource_path_ids_map.good }",
            ["good", "good"],
            Ok(()),
        ),
        (
            "n := numbers.range(1, 3000)\nvalid { input.resource_name == \"good\" }\nvalid { input.resource_name == \"bad\"; count([1 | n[_] > 0; n[_] > 1; n[_] > 2]) > 0 }",
            ["good", "bad"],
            Err("own.rego"),
        ),
    ] {
        let world = World::new(&NAMES);
        fs::write(world.dir.path().join("own.rego"), format!("package nsm\n{policies}")).unwrap();
        let mask = format!("etc/nsm/opa/common/.*.rego,{}/.*.rego", world.dir.path().display());
        start_registry(&world, Some(&mask));
        let process = world.process("endpoint").await;
        let api = up(&world, &process, "registry.sock").await;
        register(&api, endpoint(names[0])).await.unwrap();
        match (register(&api, endpoint(names[1])).await, outcome) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(says)) => assert!(error.kind == Kind::Denied && error.to_string().contains(says), "{error}"),
            (result, outcome) => panic!("{policies}: expected {outcome:?}, but {result:?}"),
        }
    }
}

#[tokio::test]
async fn a_policy_that_cannot_be_had_keeps_a_registry_from_starting() {
    let world = World::new(&NAMES);
    fs::write(world.dir.path().join("broken.rego"), "package nsm\nvalid {").unwrap();
    for mask in ["etc/nsm/opa/comon/.*.rego".to_owned(), world.dir.path().join("broken.rego").display().to_string(), "(".to_owned()] {
        let refused = bounded(start_registry(&world, Some(&mask))).await.unwrap().unwrap_err();
        assert!(refused.kind == Kind::Invalid && refused.to_string().contains("registry-server-policies"), "{refused}");
    }
    assert!(!world.dir.path().join("registry.sock").exists());
}

/// A registry that answers with tokens of its own choice, and remembers what is taken back.
#[derive(Default)]
struct Liar {
    tokens: Vec<String>,
    taken_back: Mutex<Vec<EndpointName>>,
}

#[async_trait]
impl RegistryApi for Liar {
    async fn register_service(&self, service: NetworkService, _: Caller) -> Result<NetworkService> {
        Ok(service)
    }
    async fn find_services(&self, _: ServiceQuery, _: Caller) -> Result<ServiceUpdates> {
        Err(Error::internal("find", "not part of this test"))
    }
    async fn unregister_service(&self, _: NetworkService, _: Caller) -> Result<()> {
        Ok(())
    }
    async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, _: Files, caller: Caller) -> Result<NetworkServiceEndpoint> {
        let own = caller.trail.tokens[0].clone();
        caller.trail.answer(TrailEnd { tokens: [vec![own], self.tokens.clone()].concat(), certificate: None });
        Ok(endpoint)
    }
    async fn find_endpoints(&self, _: EndpointQuery, _: Caller) -> Result<EndpointUpdates> {
        Err(Error::internal("find", "not part of this test"))
    }
    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, _: Caller) -> Result<()> {
        self.taken_back.lock().unwrap().push(endpoint.name);
        Ok(())
    }
}

#[tokio::test]
async fn an_answer_of_somebody_else_is_refused_and_taken_back() {
    let world = World::new(&NAMES);
    let (own, evil, registry) = (world.process("endpoint").await, world.process("evil").await, world.process("registry").await);
    let good = token(&registry, &world.id("endpoint")).0;
    let lies = [
        vec![],
        vec![String::new()],
        vec![token(&evil, &world.id("endpoint")).0],
        vec![token(&registry, &world.id("evil")).0, good.clone(), good.clone()],
    ];
    for (number, tokens) in lies.into_iter().enumerate() {
        let (liar, socket) = (Arc::new(Liar { tokens, ..Liar::default() }), format!("liar-{number}.sock"));
        registry.serve(vec![world.target(&socket)], None, Some(liar.clone()), &world.context).await.unwrap();
        let api = guard::client(own.dialer.registry(&world.target(&socket)), client_policies());
        let refused = register(&api, endpoint("nse")).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Denied, "{number}: {refused}");
        assert_eq!(liar.taken_back.lock().unwrap().len(), 1, "{number}");
    }
    let honest = Arc::new(Liar { tokens: vec![good], ..Liar::default() });
    registry.serve(vec![world.target("honest.sock")], None, Some(honest), &world.context).await.unwrap();
    register(&guard::client(own.dialer.registry(&world.target("honest.sock")), client_policies()), endpoint("nse")).await.unwrap();
}
