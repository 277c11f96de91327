//! The border: generated messages to domain types, checked and bounded, and back.
//!
//! Reading is `TryFrom` (it validates), writing is `From` (it cannot fail). Nothing else in the project
//! touches both sides.

use crate::proto::{connection as pc, connectioncontext as px, networkservice as pn, registry as pr};
use crate::{limits as max, *};
use buffa::MessageField;
use buffa_types::google::protobuf::Timestamp;
use ipnet::IpNet;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

// ---- helpers -------------------------------------------------------------------------------------------------------

fn too_many(what: &str, count: usize, limit: usize) -> Error {
    Error::new(Kind::Invalid, what, format!("has {count} entries, the limit is {limit}"), "send fewer")
}

fn bounded<T>(what: &str, list: &[T], limit: usize) -> Result<()> {
    if list.len() > limit { Err(too_many(what, list.len(), limit)) } else { Ok(()) }
}

fn map(what: &str, map: BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    if map.len() > max::MAX_MAP_ENTRIES {
        return Err(too_many(what, map.len(), max::MAX_MAP_ENTRIES));
    }
    match map.iter().find(|(key, value)| key.len().max(value.len()) > max::MAX_MAP_VALUE_BYTES) {
        None => Ok(map),
        Some((key, _)) => Err(Error::invalid(
            format!("{what} {:?}", key.chars().take(64).collect::<String>()),
            format!("is longer than {} bytes", max::MAX_MAP_VALUE_BYTES),
            "send a shorter one",
        )),
    }
}

/// A CIDR, or a bare address taken as a host prefix. Host bits are kept: they are the address.
fn prefix(what: &str, text: &str) -> Result<IpNet> {
    let parsed = IpNet::from_str(text).ok().or_else(|| IpAddr::from_str(text).ok().map(IpNet::from));
    parsed.ok_or_else(|| Error::invalid(format!("{what} {text:?}"), "is not an address with prefix length", "write it as 10.0.0.1/32"))
}

fn prefixes(what: &str, list: &[String], limit: usize) -> Result<Vec<IpNet>> {
    bounded(what, list, limit)?;
    list.iter().map(|text| prefix(what, text)).collect()
}

fn texts<T: ToString>(list: &[T]) -> Vec<String> {
    list.iter().map(T::to_string).collect()
}

fn each<A, B: TryFrom<A, Error = Error>>(what: &str, list: Vec<A>, limit: usize) -> Result<Vec<B>> {
    bounded(what, &list, limit)?;
    list.into_iter().map(B::try_from).collect()
}

fn optional<T: FromStr<Err = Error>>(text: &str) -> Result<Option<T>> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

fn shown<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map(T::to_string).unwrap_or_default()
}

/// A time as the peer said it, or an error when no clock can show it.
fn time(what: &str, field: MessageField<Timestamp, buffa::Inline<Timestamp>>) -> Result<Option<SystemTime>> {
    let Some(stamp) = field.into_option() else { return Ok(None) };
    let bad = || Error::invalid(what, format!("time {}.{} is out of range", stamp.seconds, stamp.nanos), "check the sender's clock");
    let nanos = u32::try_from(stamp.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or_else(bad)?;
    // Before 1970 means "long ended"; it needs no exact value.
    let seconds = u64::try_from(stamp.seconds).unwrap_or(0);
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)).map(Some).ok_or_else(bad)
}

fn stamp(time: Option<SystemTime>) -> MessageField<Timestamp, buffa::Inline<Timestamp>> {
    time.map(|time| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() as i32, ..Default::default() }
    })
    .into()
}

/// Times in JSON are seconds since 1970 with fraction, or null.
pub(crate) fn serialize_time<S: serde::Serializer>(time: &Option<SystemTime>, s: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => s.serialize_some(&time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()),
        None => s.serialize_none(),
    }
}

// ---- mechanism, path -----------------------------------------------------------------------------------------------

impl TryFrom<pc::Mechanism> for Mechanism {
    type Error = Error;
    fn try_from(m: pc::Mechanism) -> Result<Self> {
        Ok(Mechanism {
            class: m.cls.as_str().into(),
            kind: m.r#type.as_str().into(),
            parameters: map("mechanism parameter", m.parameters)?,
            unknown: Unknown(m.__buffa_unknown_fields),
        })
    }
}

impl From<Mechanism> for pc::Mechanism {
    fn from(m: Mechanism) -> Self {
        pc::Mechanism {
            cls: m.class.as_str().to_owned(),
            r#type: m.kind.as_str().to_owned(),
            parameters: m.parameters,
            __buffa_unknown_fields: m.unknown.0,
        }
    }
}

impl TryFrom<pc::PathSegment> for Segment {
    type Error = Error;
    fn try_from(s: pc::PathSegment) -> Result<Self> {
        if s.token.len() > max::MAX_TOKEN_BYTES {
            return Err(Error::invalid(
                "path segment token",
                format!("is longer than {} bytes", max::MAX_TOKEN_BYTES),
                "send a shorter one",
            ));
        }
        Ok(Segment {
            name: s.name.parse()?,
            id: s.id.parse()?,
            token: s.token,
            expires: time("path segment expiry", s.expires)?,
            metrics: map("path segment metric", s.metrics)?,
            unknown: Unknown(s.__buffa_unknown_fields),
        })
    }
}

impl From<Segment> for pc::PathSegment {
    fn from(s: Segment) -> Self {
        pc::PathSegment {
            name: s.name.to_string(),
            id: s.id.to_string(),
            token: s.token,
            expires: stamp(s.expires),
            metrics: s.metrics,
            __buffa_unknown_fields: s.unknown.0,
        }
    }
}

impl TryFrom<pc::Path> for Path {
    type Error = Error;
    fn try_from(p: pc::Path) -> Result<Self> {
        let segments: Vec<Segment> = each("path", p.path_segments, max::MAX_PATH_SEGMENTS)?;
        if !segments.is_empty() && p.index as usize >= segments.len() {
            return Err(Error::invalid(
                "path",
                format!("index {} is outside its {} segments", p.index, segments.len()),
                "send the index of your own segment",
            ));
        }
        Ok(Path { index: p.index, segments, unknown: Unknown(p.__buffa_unknown_fields) })
    }
}

impl From<Path> for pc::Path {
    fn from(p: Path) -> Self {
        pc::Path { index: p.index, path_segments: p.segments.into_iter().map(Into::into).collect(), __buffa_unknown_fields: p.unknown.0 }
    }
}

// ---- context -------------------------------------------------------------------------------------------------------

impl TryFrom<px::Route> for Route {
    type Error = Error;
    fn try_from(r: px::Route) -> Result<Self> {
        let next_hop = match r.nextHop.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                Error::invalid(format!("next hop {text:?}"), "is not an address", "write a plain address without mask, or leave it empty")
            })?),
        };
        Ok(Route { prefix: prefix("route", &r.prefix)?, next_hop, unknown: Unknown(r.__buffa_unknown_fields) })
    }
}

impl From<Route> for px::Route {
    fn from(r: Route) -> Self {
        px::Route { prefix: r.prefix.to_string(), nextHop: shown(&r.next_hop), __buffa_unknown_fields: r.unknown.0 }
    }
}

impl TryFrom<px::IpNeighbor> for IpNeighbor {
    type Error = Error;
    fn try_from(n: px::IpNeighbor) -> Result<Self> {
        Ok(IpNeighbor {
            ip: prefix("neighbour", &n.ip)?.addr(),
            hardware_address: n.hardware_address.parse()?,
            unknown: Unknown(n.__buffa_unknown_fields),
        })
    }
}

impl From<IpNeighbor> for px::IpNeighbor {
    fn from(n: IpNeighbor) -> Self {
        px::IpNeighbor { ip: n.ip.to_string(), hardware_address: n.hardware_address.to_string(), __buffa_unknown_fields: n.unknown.0 }
    }
}

impl From<px::ExtraPrefixRequest> for ExtraPrefixRequest {
    fn from(e: px::ExtraPrefixRequest) -> Self {
        ExtraPrefixRequest {
            ipv6: e.addr_family.family == px::ip_family::Family::IPV6,
            prefix_len: e.prefix_len,
            required_number: e.required_number,
            requested_number: e.requested_number,
            unknown: Unknown(e.__buffa_unknown_fields),
        }
    }
}

impl From<ExtraPrefixRequest> for px::ExtraPrefixRequest {
    fn from(e: ExtraPrefixRequest) -> Self {
        let family = if e.ipv6 { px::ip_family::Family::IPV6 } else { px::ip_family::Family::IPV4 };
        px::ExtraPrefixRequest {
            addr_family: MessageField::some(px::IpFamily { family: family.into(), ..Default::default() }),
            prefix_len: e.prefix_len,
            required_number: e.required_number,
            requested_number: e.requested_number,
            __buffa_unknown_fields: e.unknown.0,
        }
    }
}

impl TryFrom<px::PolicyRoute> for PolicyRoute {
    type Error = Error;
    fn try_from(p: px::PolicyRoute) -> Result<Self> {
        Ok(PolicyRoute {
            from: p.from,
            proto: p.proto,
            dst_port: p.dst_port,
            src_port: p.src_port,
            routes: each("policy routes", p.routes, max::MAX_ROUTES)?,
            unknown: Unknown(p.__buffa_unknown_fields),
        })
    }
}

impl From<PolicyRoute> for px::PolicyRoute {
    fn from(p: PolicyRoute) -> Self {
        px::PolicyRoute {
            from: p.from,
            proto: p.proto,
            dst_port: p.dst_port,
            src_port: p.src_port,
            routes: p.routes.into_iter().map(Into::into).collect(),
            __buffa_unknown_fields: p.unknown.0,
        }
    }
}

impl TryFrom<px::IPContext> for IpContext {
    type Error = Error;
    fn try_from(c: px::IPContext) -> Result<Self> {
        bounded("extra prefix requests", &c.extra_prefix_request, max::MAX_ADDRESSES)?;
        Ok(IpContext {
            src_ip_addrs: prefixes("source address", &c.src_ip_addrs, max::MAX_ADDRESSES)?,
            dst_ip_addrs: prefixes("destination address", &c.dst_ip_addrs, max::MAX_ADDRESSES)?,
            src_ip_required: c.src_ip_required,
            dst_ip_required: c.dst_ip_required,
            src_routes: each("source routes", c.src_routes, max::MAX_ROUTES)?,
            dst_routes: each("destination routes", c.dst_routes, max::MAX_ROUTES)?,
            excluded_prefixes: prefixes("excluded prefix", &c.excluded_prefixes, max::MAX_EXCLUDED_PREFIXES)?,
            ip_neighbors: each("neighbours", c.ip_neighbors, max::MAX_NEIGHBORS)?,
            extra_prefix_request: c.extra_prefix_request.into_iter().map(Into::into).collect(),
            extra_prefixes: prefixes("extra prefix", &c.extra_prefixes, max::MAX_ADDRESSES)?,
            policies: each("policies", c.policies, max::MAX_POLICIES)?,
            unknown: Unknown(c.__buffa_unknown_fields),
        })
    }
}

impl From<IpContext> for px::IPContext {
    fn from(c: IpContext) -> Self {
        px::IPContext {
            src_ip_addrs: texts(&c.src_ip_addrs),
            dst_ip_addrs: texts(&c.dst_ip_addrs),
            src_ip_required: c.src_ip_required,
            dst_ip_required: c.dst_ip_required,
            src_routes: c.src_routes.into_iter().map(Into::into).collect(),
            dst_routes: c.dst_routes.into_iter().map(Into::into).collect(),
            excluded_prefixes: texts(&c.excluded_prefixes),
            ip_neighbors: c.ip_neighbors.into_iter().map(Into::into).collect(),
            extra_prefix_request: c.extra_prefix_request.into_iter().map(Into::into).collect(),
            extra_prefixes: texts(&c.extra_prefixes),
            policies: c.policies.into_iter().map(Into::into).collect(),
            __buffa_unknown_fields: c.unknown.0,
        }
    }
}

impl TryFrom<px::DNSConfig> for DnsConfig {
    type Error = Error;
    fn try_from(d: px::DNSConfig) -> Result<Self> {
        bounded("DNS servers", &d.dns_server_ips, max::MAX_DNS)?;
        bounded("DNS search domains", &d.search_domains, max::MAX_DNS)?;
        Ok(DnsConfig { dns_server_ips: d.dns_server_ips, search_domains: d.search_domains, unknown: Unknown(d.__buffa_unknown_fields) })
    }
}

impl From<DnsConfig> for px::DNSConfig {
    fn from(d: DnsConfig) -> Self {
        px::DNSConfig { dns_server_ips: d.dns_server_ips, search_domains: d.search_domains, __buffa_unknown_fields: d.unknown.0 }
    }
}

impl TryFrom<px::DNSContext> for DnsContext {
    type Error = Error;
    fn try_from(d: px::DNSContext) -> Result<Self> {
        Ok(DnsContext { configs: each("DNS configurations", d.configs, max::MAX_DNS)?, unknown: Unknown(d.__buffa_unknown_fields) })
    }
}

impl From<DnsContext> for px::DNSContext {
    fn from(d: DnsContext) -> Self {
        px::DNSContext { configs: d.configs.into_iter().map(Into::into).collect(), __buffa_unknown_fields: d.unknown.0 }
    }
}

impl TryFrom<px::EthernetContext> for EthernetContext {
    type Error = Error;
    fn try_from(e: px::EthernetContext) -> Result<Self> {
        Ok(EthernetContext {
            src_mac: optional(&e.src_mac)?,
            dst_mac: optional(&e.dst_mac)?,
            vlan_tag: e.vlan_tag,
            unknown: Unknown(e.__buffa_unknown_fields),
        })
    }
}

impl From<EthernetContext> for px::EthernetContext {
    fn from(e: EthernetContext) -> Self {
        px::EthernetContext {
            src_mac: shown(&e.src_mac),
            dst_mac: shown(&e.dst_mac),
            vlan_tag: e.vlan_tag,
            __buffa_unknown_fields: e.unknown.0,
        }
    }
}

impl TryFrom<px::ConnectionContext> for ConnectionContext {
    type Error = Error;
    fn try_from(c: px::ConnectionContext) -> Result<Self> {
        if c.MTU > max::MAX_MTU {
            return Err(Error::invalid("MTU", format!("{} is above {}", c.MTU, max::MAX_MTU), "send a smaller one, or 0 for unknown"));
        }
        Ok(ConnectionContext {
            ip_context: c.ip_context.into_option().unwrap_or_default().try_into()?,
            dns_context: c.dns_context.into_option().map(TryInto::try_into).transpose()?,
            ethernet_context: c.ethernet_context.into_option().map(TryInto::try_into).transpose()?,
            extra_context: map("extra context", c.extra_context)?,
            mtu: c.MTU,
            unknown: Unknown(c.__buffa_unknown_fields),
        })
    }
}

impl From<ConnectionContext> for px::ConnectionContext {
    fn from(c: ConnectionContext) -> Self {
        px::ConnectionContext {
            ip_context: MessageField::some(c.ip_context.into()),
            dns_context: c.dns_context.map(Into::into).into(),
            ethernet_context: c.ethernet_context.map(Into::into).into(),
            extra_context: c.extra_context,
            MTU: c.mtu,
            __buffa_unknown_fields: c.unknown.0,
        }
    }
}

// ---- connection, request, events -----------------------------------------------------------------------------------

impl From<i32> for State {
    fn from(number: i32) -> State {
        match number {
            0 => State::Up,
            1 => State::Down,
            2 => State::RefreshRequested,
            3 => State::ReselectRequested,
            other => State::Other(other),
        }
    }
}

impl From<State> for i32 {
    fn from(state: State) -> i32 {
        match state {
            State::Up => 0,
            State::Down => 1,
            State::RefreshRequested => 2,
            State::ReselectRequested => 3,
            State::Other(number) => number,
        }
    }
}

impl TryFrom<pc::Connection> for Connection {
    type Error = Error;
    fn try_from(c: pc::Connection) -> Result<Self> {
        Ok(Connection {
            id: c.id.parse()?,
            network_service: c.network_service.parse()?,
            mechanism: c.mechanism.into_option().map(TryInto::try_into).transpose()?,
            context: c.context.into_option().unwrap_or_default().try_into()?,
            labels: map("label", c.labels)?,
            path: c.path.into_option().unwrap_or_default().try_into()?,
            network_service_endpoint_name: optional(&c.network_service_endpoint_name)?,
            payload: c.payload.as_str().into(),
            state: c.state.to_i32().into(),
            unknown: Unknown(c.__buffa_unknown_fields),
        })
    }
}

impl From<Connection> for pc::Connection {
    fn from(c: Connection) -> Self {
        pc::Connection {
            id: c.id.to_string(),
            network_service: c.network_service.to_string(),
            mechanism: c.mechanism.map(Into::into).into(),
            context: MessageField::some(c.context.into()),
            labels: c.labels,
            path: MessageField::some(c.path.into()),
            network_service_endpoint_name: shown(&c.network_service_endpoint_name),
            payload: c.payload.as_str().to_owned(),
            state: i32::from(c.state).into(),
            __buffa_unknown_fields: c.unknown.0,
        }
    }
}

/// The files are not part of the message: the edge adds them.
impl TryFrom<pn::NetworkServiceRequest> for Request {
    type Error = Error;
    fn try_from(r: pn::NetworkServiceRequest) -> Result<Self> {
        let missing = || Error::invalid("Request", "has no connection", "send one");
        Ok(Request {
            connection: r.connection.into_option().ok_or_else(missing)?.try_into()?,
            preferences: each("mechanism preferences", r.mechanism_preferences, max::MAX_PREFERENCES)?,
            files: Files::default(),
        })
    }
}

impl From<Request> for pn::NetworkServiceRequest {
    fn from(r: Request) -> Self {
        pn::NetworkServiceRequest {
            connection: MessageField::some(r.connection.into()),
            mechanism_preferences: r.preferences.into_iter().map(Into::into).collect(),
            ..Default::default()
        }
    }
}

impl TryFrom<pc::ConnectionEvent> for ConnectionEvent {
    type Error = Error;
    fn try_from(e: pc::ConnectionEvent) -> Result<Self> {
        let kind = match e.r#type.to_i32() {
            0 => EventKind::InitialStateTransfer,
            1 => EventKind::Update,
            2 => EventKind::Delete,
            other => return Err(Error::invalid("monitor event", format!("has type {other}"), "speak a type that this version knows")),
        };
        let connections = e.connections.into_iter().map(|(id, connection)| Ok((id.parse()?, connection.try_into()?)));
        Ok(ConnectionEvent { kind, connections: connections.collect::<Result<_>>()? })
    }
}

impl From<ConnectionEvent> for pc::ConnectionEvent {
    fn from(e: ConnectionEvent) -> Self {
        let kind = match e.kind {
            EventKind::InitialStateTransfer => pc::ConnectionEventType::INITIAL_STATE_TRANSFER,
            EventKind::Update => pc::ConnectionEventType::UPDATE,
            EventKind::Delete => pc::ConnectionEventType::DELETE,
        };
        pc::ConnectionEvent {
            r#type: kind.into(),
            connections: e.connections.into_iter().map(|(id, connection)| (id.to_string(), connection.into())).collect(),
            ..Default::default()
        }
    }
}

impl TryFrom<pc::MonitorScopeSelector> for Selector {
    type Error = Error;
    fn try_from(s: pc::MonitorScopeSelector) -> Result<Self> {
        bounded("monitor selector", &s.path_segments, max::MAX_PATH_SEGMENTS)?;
        bounded("monitor selector services", &s.network_services, max::MAX_MAP_ENTRIES)?;
        let pattern = |p: pc::PathSegment| SegmentPattern { name: p.name, id: p.id, token: p.token };
        Ok(Selector { segments: s.path_segments.into_iter().map(pattern).collect(), services: s.network_services })
    }
}

impl From<Selector> for pc::MonitorScopeSelector {
    fn from(s: Selector) -> Self {
        let segment = |p: SegmentPattern| pc::PathSegment { name: p.name, id: p.id, token: p.token, ..Default::default() };
        pc::MonitorScopeSelector {
            path_segments: s.segments.into_iter().map(segment).collect(),
            network_services: s.services,
            ..Default::default()
        }
    }
}

// ---- registry ------------------------------------------------------------------------------------------------------

impl TryFrom<pr::Destination> for Destination {
    type Error = Error;
    fn try_from(d: pr::Destination) -> Result<Self> {
        Ok(Destination {
            destination_selector: map("destination selector", d.destination_selector)?,
            weight: d.weight,
            unknown: Unknown(d.__buffa_unknown_fields),
        })
    }
}

impl From<Destination> for pr::Destination {
    fn from(d: Destination) -> Self {
        pr::Destination { destination_selector: d.destination_selector, weight: d.weight, __buffa_unknown_fields: d.unknown.0 }
    }
}

impl TryFrom<pr::Match> for Match {
    type Error = Error;
    fn try_from(m: pr::Match) -> Result<Self> {
        Ok(Match {
            source_selector: map("source selector", m.source_selector)?,
            routes: each("routes of a match", m.routes, max::MAX_MATCHES)?,
            fallthrough: m.fallthrough,
            metadata: m.metadata.into_option().map(|metadata| map("metadata label", metadata.labels)).transpose()?,
            unknown: Unknown(m.__buffa_unknown_fields),
        })
    }
}

impl From<Match> for pr::Match {
    fn from(m: Match) -> Self {
        pr::Match {
            source_selector: m.source_selector,
            routes: m.routes.into_iter().map(Into::into).collect(),
            fallthrough: m.fallthrough,
            metadata: m.metadata.map(|labels| pr::Metadata { labels, ..Default::default() }).into(),
            __buffa_unknown_fields: m.unknown.0,
        }
    }
}

impl TryFrom<pr::NetworkService> for NetworkService {
    type Error = Error;
    fn try_from(n: pr::NetworkService) -> Result<Self> {
        bounded("path ids", &n.path_ids, max::MAX_PATH_SEGMENTS)?;
        Ok(NetworkService {
            name: n.name.parse()?,
            payload: n.payload.as_str().into(),
            matches: each("matches", n.matches, max::MAX_MATCHES)?,
            path_ids: n.path_ids,
            unknown: Unknown(n.__buffa_unknown_fields),
        })
    }
}

impl From<NetworkService> for pr::NetworkService {
    fn from(n: NetworkService) -> Self {
        pr::NetworkService {
            name: n.name.to_string(),
            payload: n.payload.as_str().to_owned(),
            matches: n.matches.into_iter().map(Into::into).collect(),
            path_ids: n.path_ids,
            __buffa_unknown_fields: n.unknown.0,
        }
    }
}

fn endpoint_labels(labels: BTreeMap<String, pr::NetworkServiceLabels>) -> Result<BTreeMap<ServiceName, Labels>> {
    if labels.len() > max::MAX_SERVICES_PER_ENDPOINT {
        return Err(too_many("endpoint labels", labels.len(), max::MAX_SERVICES_PER_ENDPOINT));
    }
    labels.into_iter().map(|(service, labels)| Ok((service.parse()?, map("endpoint label", labels.labels)?))).collect()
}

fn endpoint_labels_out(labels: BTreeMap<ServiceName, Labels>) -> BTreeMap<String, pr::NetworkServiceLabels> {
    let out = |(service, labels): (ServiceName, Labels)| (service.to_string(), pr::NetworkServiceLabels { labels, ..Default::default() });
    labels.into_iter().map(out).collect()
}

fn services(names: &[String]) -> Result<Vec<ServiceName>> {
    bounded("services of an endpoint", names, max::MAX_SERVICES_PER_ENDPOINT)?;
    names.iter().map(ServiceName::new).collect()
}

impl TryFrom<pr::NetworkServiceEndpoint> for NetworkServiceEndpoint {
    type Error = Error;
    fn try_from(e: pr::NetworkServiceEndpoint) -> Result<Self> {
        bounded("path ids", &e.path_ids, max::MAX_PATH_SEGMENTS)?;
        Ok(NetworkServiceEndpoint {
            name: e.name.parse()?,
            network_service_names: services(&e.network_service_names)?,
            network_service_labels: endpoint_labels(e.network_service_labels)?,
            url: e.url,
            expiration_time: time("endpoint expiration", e.expiration_time)?,
            initial_registration_time: time("endpoint registration", e.initial_registration_time)?,
            path_ids: e.path_ids,
            unknown: Unknown(e.__buffa_unknown_fields),
        })
    }
}

impl From<NetworkServiceEndpoint> for pr::NetworkServiceEndpoint {
    fn from(e: NetworkServiceEndpoint) -> Self {
        pr::NetworkServiceEndpoint {
            name: e.name.to_string(),
            network_service_names: texts(&e.network_service_names),
            network_service_labels: endpoint_labels_out(e.network_service_labels),
            url: e.url,
            expiration_time: stamp(e.expiration_time),
            initial_registration_time: stamp(e.initial_registration_time),
            path_ids: e.path_ids,
            __buffa_unknown_fields: e.unknown.0,
        }
    }
}

impl TryFrom<pr::NetworkServiceQuery> for ServiceQuery {
    type Error = Error;
    fn try_from(q: pr::NetworkServiceQuery) -> Result<Self> {
        let service = q.network_service.into_option().unwrap_or_default();
        Ok(ServiceQuery {
            name: optional(&service.name)?,
            payload: service.payload.as_str().into(),
            matches: each("matches", service.matches, max::MAX_MATCHES)?,
            watch: q.watch,
        })
    }
}

impl From<ServiceQuery> for pr::NetworkServiceQuery {
    fn from(q: ServiceQuery) -> Self {
        let service = pr::NetworkService {
            name: shown(&q.name),
            payload: q.payload.as_str().to_owned(),
            matches: q.matches.into_iter().map(Into::into).collect(),
            ..Default::default()
        };
        pr::NetworkServiceQuery { network_service: MessageField::some(service), watch: q.watch, ..Default::default() }
    }
}

impl TryFrom<pr::NetworkServiceEndpointQuery> for EndpointQuery {
    type Error = Error;
    fn try_from(q: pr::NetworkServiceEndpointQuery) -> Result<Self> {
        let endpoint = q.network_service_endpoint.into_option().unwrap_or_default();
        Ok(EndpointQuery {
            name: optional(&endpoint.name)?,
            services: services(&endpoint.network_service_names)?,
            labels: endpoint_labels(endpoint.network_service_labels)?,
            url: endpoint.url,
            expiration_time: time("endpoint expiration", endpoint.expiration_time)?,
            watch: q.watch,
        })
    }
}

impl From<EndpointQuery> for pr::NetworkServiceEndpointQuery {
    fn from(q: EndpointQuery) -> Self {
        let endpoint = pr::NetworkServiceEndpoint {
            name: shown(&q.name),
            network_service_names: texts(&q.services),
            network_service_labels: endpoint_labels_out(q.labels),
            url: q.url,
            expiration_time: stamp(q.expiration_time),
            ..Default::default()
        };
        pr::NetworkServiceEndpointQuery { network_service_endpoint: MessageField::some(endpoint), watch: q.watch, ..Default::default() }
    }
}

impl TryFrom<pr::NetworkServiceResponse> for ServiceUpdate {
    type Error = Error;
    fn try_from(r: pr::NetworkServiceResponse) -> Result<Self> {
        Ok(ServiceUpdate { service: r.network_service.into_option().unwrap_or_default().try_into()?, deleted: r.deleted })
    }
}

impl From<ServiceUpdate> for pr::NetworkServiceResponse {
    fn from(u: ServiceUpdate) -> Self {
        pr::NetworkServiceResponse { network_service: MessageField::some(u.service.into()), deleted: u.deleted, ..Default::default() }
    }
}

impl TryFrom<pr::NetworkServiceEndpointResponse> for EndpointUpdate {
    type Error = Error;
    fn try_from(r: pr::NetworkServiceEndpointResponse) -> Result<Self> {
        Ok(EndpointUpdate { endpoint: r.network_service_endpoint.into_option().unwrap_or_default().try_into()?, deleted: r.deleted })
    }
}

impl From<EndpointUpdate> for pr::NetworkServiceEndpointResponse {
    fn from(u: EndpointUpdate) -> Self {
        pr::NetworkServiceEndpointResponse {
            network_service_endpoint: MessageField::some(u.endpoint.into()),
            deleted: u.deleted,
            ..Default::default()
        }
    }
}
