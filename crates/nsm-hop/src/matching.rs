//! Which endpoints a service offers to a client, and which forwarders may carry it. Pure functions over labels.

use crate::template;
use nsm_api::{Destination, Labels, Match, NetworkService, NetworkServiceEndpoint};

/// An endpoint that a client may get, with the share of its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<E> {
    /// The endpoint.
    pub endpoint: E,
    /// Which destination of the deciding match it came from.
    pub destination: usize,
    /// That destination's weight, 0 when unsaid.
    pub weight: u32,
}

/// What matching decided, and why, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection<E> {
    /// Who may serve, in order.
    pub candidates: Vec<Candidate<E>>,
    /// One sentence for each match that was looked at.
    pub reasons: Vec<String>,
}

impl<E> Default for Selection<E> {
    fn default() -> Selection<E> {
        Selection { candidates: Vec::new(), reasons: Vec::new() }
    }
}

/// A match that applies to a client, its templates rendered for that client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// One for each destination; the candidates are the union.
    pub wants: Vec<Want>,
    /// The next match is looked at when this one yields nobody.
    pub goes_on: bool,
    /// What it is and wants, for people.
    says: String,
}

/// One destination of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Labels that the endpoint must have for the service; of several sets the first that anybody has.
    pub selectors: Vec<Labels>,
    destination: usize,
    weight: u32,
}

impl Rule {
    /// The sentence for so many candidates.
    pub fn reason(&self, found: usize) -> String {
        format!("{}: {found} found", self.says)
    }
}

impl Want {
    /// An endpoint that it yields.
    pub fn candidate<E>(&self, endpoint: E) -> Candidate<E> {
        Candidate { endpoint, destination: self.destination, weight: self.weight }
    }

    fn anybody() -> Want {
        Want { selectors: vec![Labels::new()], destination: 0, weight: 0 }
    }
}

/// Whether `have` contains all pairs of `want`. Values of `want` may be templates over `labels`.
///
/// An absent label equals an empty value, provided there are at least as many labels as pairs wanted.
pub fn contains(have: &Labels, want: &Labels, labels: &Labels) -> bool {
    have.len() >= want.len()
        && want.iter().all(|(key, value)| {
            let actual = have.get(key).map_or("", String::as_str);
            actual == value || (value.contains("{{") && template::render(value, labels).is_some_and(|text| text == actual))
        })
}

/// Whether the endpoint has these labels for the service. An absent label equals an empty value, as in [`contains`].
pub fn selects(service: &NetworkService, selector: &Labels, endpoint: &NetworkServiceEndpoint) -> bool {
    let have = endpoint.network_service_labels.get(&service.name);
    have.map_or(0, Labels::len) >= selector.len()
        && selector.iter().all(|(key, value)| have.and_then(|have| have.get(key)).map_or("", String::as_str) == value)
}

/// The matches of `service` in their order: what each that applies to a client with `labels` wants, or why it does not apply.
///
/// The first that applies decides, even when it yields nobody, with two exceptions that go on: `fallthrough`, and a
/// match whose destinations are all chosen by templates over the client's labels ("one on your node") when there is
/// none such. Nothing is rendered before it is needed, and each template once.
pub fn plan(service: &NetworkService, labels: &Labels) -> impl Iterator<Item = Result<Rule, String>> {
    let everybody = service.matches.is_empty().then(|| {
        let says = "the service has no matches, so all of its endpoints may serve".to_owned();
        Ok(Rule { wants: vec![Want::anybody()], goes_on: false, says })
    });
    let rules = service.matches.iter().zip(1..).map(|(rule, number)| {
        if contains(labels, &rule.source_selector, labels) {
            Ok(applied(number, rule, labels))
        } else {
            Err(format!("match {number} wants a client with {}", shown(&rule.source_selector)))
        }
    });
    everybody.into_iter().chain(rules)
}

fn applied(number: usize, rule: &Match, labels: &Labels) -> Rule {
    let wants: Vec<Want> = if rule.routes.is_empty() && rule.metadata.is_some() {
        vec![Want::anybody()]
    } else {
        rule.routes.iter().enumerate().map(|(destination, route)| want(destination, route, labels)).collect()
    };
    let wanted: Vec<String> = wants.iter().filter_map(|want| want.selectors.first()).map(shown).collect();
    let says = format!("match {number} applies and wants an endpoint with {}", wanted.join(" or "));
    Rule { wants, goes_on: rule.fallthrough || by_template_only(rule), says }
}

/// An endpoint may also be labelled with a template's own text.
fn want(destination: usize, route: &Destination, labels: &Labels) -> Want {
    let (raw, rendered) = (&route.destination_selector, rendered(&route.destination_selector, labels));
    let selectors = if rendered == *raw { vec![rendered] } else { vec![rendered, raw.clone()] };
    Want { selectors, destination, weight: route.weight }
}

/// The endpoints of `service` for a client with `labels`, of these.
pub fn endpoints<'a>(
    service: &NetworkService,
    labels: &Labels,
    all: &'a [NetworkServiceEndpoint],
) -> Selection<&'a NetworkServiceEndpoint> {
    let mut selection = Selection::default();
    for rule in plan(service, labels) {
        let rule = match rule {
            Ok(rule) => rule,
            Err(reason) => {
                selection.reasons.push(reason);
                continue;
            }
        };
        for want in &rule.wants {
            let with = |selector: &Labels| all.iter().filter(|endpoint| selects(service, selector, endpoint)).collect::<Vec<_>>();
            let found = want.selectors.iter().map(with).find(|found| !found.is_empty()).unwrap_or_default();
            selection.candidates.extend(found.into_iter().map(|endpoint| want.candidate(endpoint)));
        }
        selection.reasons.push(rule.reason(selection.candidates.len()));
        if !selection.candidates.is_empty() || !rule.goes_on {
            break;
        }
    }
    selection
}

/// The forwarders that may carry a connection with `labels` to `service`, of those registered as `kind`.
pub fn forwarders<'a>(
    service: &NetworkService,
    kind: &nsm_api::ServiceName,
    labels: &Labels,
    all: &'a [NetworkServiceEndpoint],
) -> Vec<&'a NetworkServiceEndpoint> {
    if service.matches.is_empty() {
        return all.iter().collect();
    }
    let point_to_point = Labels::from([("p2p".to_owned(), "true".to_owned())]);
    for rule in &service.matches {
        if !contains(labels, &rule.source_selector, labels) {
            continue;
        }
        let wanted = rule.metadata.as_ref().filter(|wanted| !wanted.is_empty()).unwrap_or(&point_to_point);
        let able = |endpoint: &&NetworkServiceEndpoint| {
            endpoint.network_service_labels.get(kind).is_some_and(|have| contains(have, wanted, labels))
        };
        let found: Vec<_> = all.iter().filter(able).collect();
        if !found.is_empty() || !rule.fallthrough {
            return found;
        }
    }
    Vec::new()
}

fn rendered(selector: &Labels, labels: &Labels) -> Labels {
    let value = |value: &String| template::render(value, labels).unwrap_or_else(|| value.clone());
    selector.iter().map(|(key, text)| (key.clone(), value(text))).collect()
}

fn by_template_only(rule: &Match) -> bool {
    let templated = |selector: &Labels| selector.values().any(|value| template::is_template(value));
    !rule.routes.is_empty() && rule.routes.iter().all(|route| templated(&route.destination_selector))
}

fn shown(labels: &Labels) -> String {
    if labels.is_empty() {
        return "any labels".to_owned();
    }
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nsm_api::Payload;

    fn labels(text: &str) -> Labels {
        text.split(',')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }
    fn endpoint(name: &str, text: &str) -> NetworkServiceEndpoint {
        let mut endpoint = NetworkServiceEndpoint::new(name.parse().unwrap(), vec!["svc".parse().unwrap()], "tcp://a:1");
        endpoint.network_service_labels.insert("svc".parse().unwrap(), labels(text));
        endpoint
    }
    /// `source>destination|destination`, a trailing `!` is fallthrough.
    fn service(rules: &[&str]) -> NetworkService {
        let mut service = NetworkService::new("svc".parse().unwrap(), Payload::Ip);
        service.matches = rules
            .iter()
            .map(|rule| {
                let fallthrough = rule.ends_with('!');
                let (source, routes) = rule.trim_end_matches('!').split_once('>').unwrap();
                let routes = routes.split('|').map(|route| Destination { destination_selector: labels(route), ..Destination::default() });
                Match { source_selector: labels(source), routes: routes.collect(), fallthrough, ..Match::default() }
            })
            .collect();
        service
    }
    fn chosen(rules: &[&str], client: &str, all: &[NetworkServiceEndpoint]) -> String {
        let selection = endpoints(&service(rules), &labels(client), all);
        selection.candidates.iter().map(|candidate| candidate.endpoint.name.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rules_m01_to_m08() {
        let all = [endpoint("a", "app=a,nodeName=n1"), endpoint("b", "app=b,nodeName=n2"), endpoint("s", "supplier=true")];
        for (why, rules, client, expected) in [
            ("M-01 no matches: everybody", &[][..], "", "a b s"),
            ("M-02 source selector contained in the client's labels", &["app=x,v=1>app=a", ">app=b"], "app=x,v=1,z=9", "a"),
            ("M-02 not contained: next match", &["app=x,v=1>app=a", ">app=b"], "app=x", "b"),
            ("M-03 destination selector contained in the endpoint's labels", &[">nodeName=n2"], "", "b"),
            ("M-03 an absent label equals an empty value", &[">zone="], "", "a b s"),
            ("M-04 the first match decides, even with nobody", &[">app=zzz", ">app=b"], "", ""),
            ("M-05 fallthrough goes on", &[">app=zzz!", ">app=b"], "", "b"),
            ("M-06 templates only: goes on when there is none", &[">nodeName={{ .nodeName }}", ">supplier=true"], "nodeName=n9", "s"),
            ("M-06 templates only: decides when there is one", &[">nodeName={{ .nodeName }}", ">supplier=true"], "nodeName=n1", "a"),
            ("M-07 several routes are a union", &[">app=b|app=a"], "", "b a"),
            ("M-08 the raw text matches too", &[">app={{"], "", ""),
            ("no match applies", &["app=q>app=a"], "", ""),
        ] {
            assert_eq!(chosen(rules, client, &all), expected, "{why}");
        }
        let literal = [endpoint("t", "app={{ .x }}")];
        assert_eq!(chosen(&[">app={{ .x }}"], "x=1", &literal), "t", "M-08 an endpoint labelled with the template's own text");
    }

    /// M-09
    #[test]
    fn source_selectors_may_be_templates() {
        let all = [endpoint("a", "")];
        let mut service = service(&["zone={{ .region }}>"]);
        service.matches[0].routes = vec![Destination::default()];
        let count = |client: &str| endpoints(&service, &labels(client), &all).candidates.len();
        assert_eq!(count("zone=eu,region=eu"), 1);
        assert_eq!(count("zone=eu,region=us"), 0);
    }

    /// M-11
    #[test]
    fn forwarders_by_metadata() {
        let kind = "forwarder".parse().unwrap();
        let forwarder = |name: &str, text: &str| {
            let mut endpoint = endpoint(name, "");
            endpoint.network_service_labels.insert("forwarder".parse().unwrap(), labels(text));
            endpoint
        };
        let all = [forwarder("plain", "p2p=true"), forwarder("special", "fast=true")];
        let names = |service: &NetworkService| {
            forwarders(service, &kind, &labels(""), &all).iter().map(|f| f.name.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&service(&[])), "plain special");
        assert_eq!(names(&service(&[">app=a"])), "plain");
        let mut by_label = service(&[">app=a"]);
        by_label.matches[0].metadata = Some(labels("fast=true"));
        assert_eq!(names(&by_label), "special");
    }

    #[test]
    fn a_refusal_can_be_explained() {
        let all = [endpoint("a", "app=a")];
        let selection = endpoints(&service(&["app=x>app=a", ">app=q"]), &labels("app=y"), &all);
        assert_eq!(selection.reasons, ["match 1 wants a client with app=x", "match 2 applies and wants an endpoint with app=q: 0 found"]);
    }
}
