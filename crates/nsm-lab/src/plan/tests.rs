use super::*;

const TEXT: &str = "
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: two}
spec:
  nodes: [{name: east}, {name: west}]
  endpoints:
  - {name: gateway, node: west, kind: passthrough, services: [a, b], labels: {app: fw, v: 1}, clientLabels: {app: x}, payload: ETHERNET,
     cidr: [172.16.1.0/30, 10.0.0.0/8], routes: [172.31.0.0/16], lifetime: 1m, env: {NSM_X: y}}
  clients:
  - {name: client, node: east, services: ['kernel://a/nsm-1?app=foo', 'kernel://b/nsm-2']}
  - {name: lost, node: east, services: ['kernel://a/nsm-1'], manager: missing.sock}
  hosts:
  - {name: server, pod: gateway, address: 172.31.0.10/16, podInterface: corp, podAddress: 172.31.0.1/16}
";

fn planned() -> Plan {
    planned_from(TEXT)
}

fn planned_from(text: &str) -> Plan {
    let (lab, _) = crate::read(text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    plan(&lab, &Files::new("/d"))
}

fn line(plan: &Plan, name: &str) -> String {
    plan.processes.iter().find(|process| process.name == name).unwrap().args.join(" ")
}

#[test]
fn namespaces_and_cables() {
    let plan = planned();
    assert_eq!(plan.namespaces, ["two-fabric", "two-east", "two-west", "two-gateway", "two-client", "two-lost", "two-server"]);
    assert_eq!(plan.cables.len(), 3);
    assert_eq!(plan.cables[1].b.address.unwrap().to_string(), "10.231.0.12/24");
    assert_eq!((plan.cables[2].a.netns.as_str(), plan.cables[2].b.interface.as_str()), ("two-server", "corp"));
}

#[test]
fn command_lines() {
    let plan = planned();
    assert_eq!(
        line(&plan, "west-manager"),
        "manager --name west-manager --listen-on unix:///d/west.sock,tcp://10.231.0.12:5001 --registry-url tcp://10.231.0.1:5002"
    );
    assert_eq!(
        line(&plan, "gateway"),
        "endpoint passthrough --name gateway --connect-to unix:///d/west.sock --service-names a,b --register-service false --dir /d/d/gateway \
         --labels app:fw,v:1 --client-labels app:x --payload ETHERNET --cidr-prefix 172.16.1.0/30,10.0.0.0/8 --route 172.31.0.0/16 \
         --max-token-lifetime 1m"
    );
    assert!(line(&plan, "client").contains("--network-services kernel://a/nsm-1?app=foo,kernel://b/nsm-2 --mode stay"));
    assert!(line(&plan, "lost").contains("--connect-to unix:///d/missing.sock"));
    assert!(line(&plan, "identity").contains("--trust-domain lab.nsm --workload registry=/d/w/registry"));
}

#[test]
fn a_combined_node_is_one_process_and_lifetimes_reach_every_process() {
    let text = TEXT
        .replace("{name: west}", "{name: west, combined: true, lifetime: 3s}")
        .replace("{name: east}", "{name: east, lifetime: 4s}")
        .replace("{name: client,", "{name: client, lifetime: 5s, payload: ETHERNET,");
    let plan = planned_from(&text);
    assert_eq!(
        line(&plan, "west"),
        "node --name west --listen-on unix:///d/west.sock,tcp://10.231.0.12:5001 --registry-url tcp://10.231.0.1:5002 \
         --tunnel-ip 10.231.0.12 --packet-engine unix:///d/west-pkt.sock --authority false --max-token-lifetime 3s"
    );
    let of_west = plan.processes.iter().filter(|process| process.name.starts_with("west-"));
    assert_eq!(of_west.map(|process| process.role).collect::<Vec<_>>(), [Role::Packet]);
    assert!(line(&plan, "east-manager").ends_with("--max-token-lifetime 4s"));
    assert!(line(&plan, "east-forwarder").ends_with("--packet-engine unix:///d/east-pkt.sock --max-token-lifetime 4s"));
    assert_eq!(line(&plan, "east-packet"), "packet --socket unix:///d/east-pkt.sock");
    assert!(line(&plan, "client").ends_with("--payload ETHERNET --max-token-lifetime 5s"));
    assert!(plan.processes.is_sorted_by_key(|process| process.role));
}

#[test]
fn a_program_of_somebody_else_is_told_the_same_by_variables() {
    let text = TEXT
        .replace("{name: east}", "{name: east, manager: {program: [/x/nsmgr, -v], env: {NSM_NAME: other}}}")
        .replace("{name: client,", "{name: client, program: /x/nsc, lifetime: 5s,")
        .replace("env: {NSM_X: y}", "program: [/x/nse], env: {NSM_X: y}")
        .replace("  nodes:", "  registry: {program: [/x/registry]}\n  nodes:");
    let plan = planned_from(&text);
    let find = |name: &str| plan.processes.iter().find(|process| process.name == name).unwrap();
    let manager = find("east-manager");
    assert_eq!((manager.program.as_deref(), manager.args.as_slice()), (Some(Path::new("/x/nsmgr")), ["-v".to_owned()].as_slice()));
    assert_eq!(manager.env["NSM_LISTEN_ON"], "unix:///d/east.sock,tcp://10.231.0.11:5001");
    assert_eq!(manager.env["NSM_NAME"], "other", "the author's word is the last");
    assert_eq!(find("registry").env["NSM_LISTEN_ON"], "tcp://10.231.0.1:5002");
    let client = find("client");
    assert_eq!(client.env["NSM_NETWORK_SERVICES"], "kernel://a/nsm-1?app=foo,kernel://b/nsm-2");
    assert_eq!((client.env["NSM_MAX_TOKEN_LIFETIME"].as_str(), client.env["NSM_NAME"].as_str()), ("5s", "client"));
    assert_eq!(client.env["NSM_LOCAL_DNS_SERVER_ENABLED"], "false");
    let endpoint = find("gateway");
    assert_eq!((endpoint.env["NSM_BASE_DIR"].as_str(), endpoint.env["NSM_X"].as_str()), ("/d/d/gateway", "y"));
    assert!(find("east-forwarder").program.is_none());
}

#[test]
fn processes_start_in_the_order_of_their_roles_and_know_their_place() {
    let plan = planned();
    assert!(plan.processes.is_sorted_by_key(|process| process.role));
    let client = plan.processes.iter().find(|process| process.name == "client").unwrap();
    assert_eq!(client.env["NODE_NAME"], "east");
    assert_eq!(client.env["POD_NAME"], "client");
    assert_eq!(client.env["SPIFFE_ENDPOINT_SOCKET"], "unix:///d/w/client");
    assert!(init_client(client).args.join(" ").contains("--mode init"));
}

/// E-15..E-18, E-20, E-21, E-22
#[test]
fn what_wires_carry_reaches_the_processes() {
    let text = TEXT
        .replace(
            "  nodes: [{name: east}",
            "  underlay: ipv6\n  underlayMtu: 1400\n  files: {x: y}\n  nodes: [{name: east, excludedPrefixes: [10.0.0.0/8, 2001:db8::/64]}",
        )
        .replace("kind: passthrough,", "ipam: strict, dns: [{servers: ['fd00::1'], search: [a.b]}], policyRoutes: [{from: 10.0.0.1/24}],")
        .replace("clientLabels: {app: x},", "")
        .replace("env: {NSM_X: y}", "env: {NSM_X: '{files}/x'}")
        .replace(
            "{name: client,",
            "{name: client, awareness: [['kernel://a/nsm-1?app=foo', 'kernel://b/nsm-2'], []], resolvConf: nameserver ::1,",
        );
    let (lab, _) = crate::read(&text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    let plan = plan(&lab, &Files::new("/d"));
    let find = |name: &str| plan.processes.iter().find(|process| process.name == name).unwrap();
    assert_eq!((plan.bridge.to_string(), plan.cables[0].mtu, plan.cables[2].mtu), ("fd31:231::1/64".to_owned(), Some(1400), None));
    assert!(line(&plan, "west-manager").ends_with(",tcp://[fd31:231::c]:5001 --registry-url tcp://[fd31:231::1]:5002"));
    assert!(line(&plan, "east-forwarder").contains(" --tunnel-ip fd31:231::b "));
    assert_eq!(find("east-manager").env["NSM_EXCLUDED_PREFIXES_FILE"], "/d/f/east-excluded-prefixes.yaml");
    let gateway = find("gateway");
    assert!(line(&plan, "gateway").contains(" --ipam-policy strict "));
    assert!(line(&plan, "gateway").contains(r#" --dns-configs [{"dns_server_ips":["fd00::1"],"search_domains":["a.b"]}]"#));
    assert_eq!((gateway.env["NSM_X"].as_str(), gateway.env["NSM_PBR_CONFIG_PATH"].as_str()), ("/d/f/x", "/d/f/gateway-policy-routes.yaml"));
    assert!(line(&plan, "client").contains(" --awareness-groups [kernel://a/nsm-1?app=foo,kernel://b/nsm-2],[]"));
    assert_eq!(find("client").env["NSM_LOCAL_DNS_SERVER_ENABLED"], "true");
    assert_eq!(find("client").resolv_conf.as_deref(), Some(Path::new("/d/r/client")));
    assert_eq!(find("lost").env["NSM_LOCAL_DNS_SERVER_ENABLED"], "false", "nobody else changes the file of this machine");
    let files = files(&lab);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["east-excluded-prefixes.yaml", "gateway-policy-routes.yaml", "x"]);
    assert_eq!(files["east-excluded-prefixes.yaml"], "prefixes: [10.0.0.0/8, 2001:db8::/64]\n".replace(", ", ","));
}
