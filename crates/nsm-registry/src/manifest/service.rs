//! NetworkService documents.

use super::{
    node::{Document, Key, Node, Shape},
    reader::{KeyNames, Object, Reader},
    write,
};
use nsm_api::{Destination, Labels, Match, NetworkService, Payload, Result, ServiceName, limits::MAX_MATCHES};

const SPEC: &[KeyNames] = &[("name", &[]), ("payload", &[]), ("matches", &[]), ("selector", &[]), ("path_ids", &["pathIds"])];
const MATCH: &[KeyNames] = &[("source_selector", &["sourceSelector"]), ("routes", &["route"]), ("fallthrough", &[]), ("metadata", &[])];
const ROUTE: &[KeyNames] = &[("destination_selector", &["destinationSelector"]), ("weight", &[])];
const METADATA: &[KeyNames] = &[("labels", &[])];

/// What old forms wrapped around the keys of an object, or put on a line of its own above them.
const MATCH_WRAPPER: &str = "match";
const ROUTE_WRAPPER: &str = "destination";

impl Reader<'_> {
    pub(super) fn service(&mut self, document: &Document<'_>) -> Result<NetworkService> {
        let ((line, name), spec) = self.frame(document, SPEC)?;
        let name = self.located(line, ServiceName::new(name))?;
        let mut service = NetworkService::new(name, self.payload(spec.get("payload"))?);
        for node in self.list(spec.get("matches"), "matches", MAX_MATCHES)? {
            service.matches.push(self.rule(node)?);
        }
        if let Some(selector) = spec.get("selector") {
            service.matches.push(self.selector(selector, &service.matches)?);
        }
        if let Some(ids) = spec.get("path_ids") {
            self.warn(ids.line, "path_ids is said by the registry, and not read from a file", "");
        }
        Ok(service)
    }

    /// Compared case by case in the mesh, so that a slip of case would be a payload nobody has.
    fn payload(&mut self, node: Option<&Node>) -> Result<Payload> {
        let Some(node) = node else { return Ok(Payload::Unset) };
        let text = self.text(node, "payload")?;
        let upper = text.trim().to_ascii_uppercase();
        let payload = Payload::from(upper.as_str());
        match payload {
            Payload::Other(_) => {
                self.warn(
                    node.line,
                    format!("payload {text:?} is neither IP nor ETHERNET, and kept as it is"),
                    "payload: IP or payload: ETHERNET",
                );
                Ok(Payload::Other(text))
            }
            Payload::Unset | Payload::Ip | Payload::Ethernet => {
                if text != upper {
                    self.warn(node.line, format!("payload {text:?} is not spelled as the mesh compares it"), format!("payload: {upper}"));
                }
                Ok(payload)
            }
        }
    }

    /// One match, in any form. However many slips it has, it gets one warning that shows the whole of it.
    fn rule(&mut self, node: &Node) -> Result<Match> {
        let mut old = Vec::new();
        let entries = self.unwrapped(node, MATCH_WRAPPER, &mut old)?;
        let object = self.known(entries, "a match", MATCH)?;
        old.extend(&object.old);
        let (source_selector, inner_routes) = self.source_selector(&object, &mut old)?;
        let mut routes = Vec::new();
        for route in self.list(object.get("routes").or(inner_routes), "routes", MAX_MATCHES)? {
            routes.push(self.route(route, &mut old)?);
        }
        let fallthrough = object.get("fallthrough").map(|node| self.boolean(node, "fallthrough")).transpose()?.unwrap_or_default();
        let metadata = match object.get("metadata") {
            Some(node) => {
                let labels = self.object(node, "metadata of a match", METADATA)?.get("labels");
                Some(self.labels(labels, "labels of a match")?)
            }
            None => None,
        };
        let rule = Match { source_selector, routes, fallthrough, metadata, ..Match::default() };
        if let Some(first) = old.first() {
            let keys = old.iter().map(|key| format!("{:?}", key.text)).collect::<std::collections::BTreeSet<_>>();
            let keys = keys.into_iter().collect::<Vec<_>>().join(", ");
            self.warn(first.line, format!("{keys} belongs to an old or mistaken form of a match"), write::match_to_yaml(&rule));
        }
        Ok(rule)
    }

    /// The labels of the client. Routes that slipped inside are a list, which no label is, and are handed back.
    fn source_selector<'n>(&mut self, rule: &Object<'n>, old: &mut Vec<&'n Key>) -> Result<(Labels, Option<&'n Node>)> {
        let Some(node) = rule.get("source_selector") else { return Ok((Labels::new(), None)) };
        let entries = self.entries(node, "source_selector")?;
        let slipped =
            entries.iter().find(|(key, value)| matches!(key.text.as_str(), "routes" | "route") && matches!(value.shape, Shape::List(_)));
        let Some((key, routes)) = slipped else { return Ok((self.labels(Some(node), "source_selector")?, None)) };
        if rule.get("routes").is_some() {
            return self.error(
                key.line,
                format!("key {:?}", key.text),
                "stands inside and beside source_selector",
                "remove the one inside",
            );
        }
        old.push(key);
        let others = entries.iter().filter(|(other, _)| other != key);
        let labels = others.map(|(key, value)| Ok((key.text.clone(), self.label(key, value)?))).collect::<Result<Labels>>()?;
        Ok((labels, Some(routes)))
    }

    fn route<'n>(&mut self, node: &'n Node, old: &mut Vec<&'n Key>) -> Result<Destination> {
        let entries = self.unwrapped(node, ROUTE_WRAPPER, old)?;
        let object = self.known(entries, "a route", ROUTE)?;
        old.extend(&object.old);
        let destination_selector = self.labels(object.get("destination_selector"), "destination_selector")?;
        let weight = match object.get("weight") {
            None => 0,
            Some(node) => {
                let text = self.text(node, "weight")?;
                text.parse()
                    .or_else(|_| self.error(node.line, format!("weight {text:?}"), "is not a whole number from 0 on", "write weight: 1"))?
            }
        };
        Ok(Destination { destination_selector, weight, ..Destination::default() })
    }

    /// The entries of an object whose keys stand in it, in an object under `wrapper`, or below an empty `wrapper:`.
    fn unwrapped<'n>(&self, node: &'n Node, wrapper: &str, old: &mut Vec<&'n Key>) -> Result<Vec<&'n (Key, Node)>> {
        let (wrapping, mut entries): (Vec<_>, Vec<_>) =
            self.entries(node, &format!("a {wrapper}"))?.into_iter().partition(|(key, _)| key.text == wrapper);
        for (key, inner) in wrapping {
            old.push(key);
            entries.extend(self.entries(inner, wrapper)?);
        }
        Ok(entries)
    }

    /// The oldest form: a service is whoever has these labels.
    fn selector(&mut self, node: &Node, matches: &[Match]) -> Result<Match> {
        if !matches.is_empty() {
            return self.error(node.line, "key \"selector\"", "stands beside matches, which say the same in the present form", "remove it");
        }
        let destination_selector = self.labels(Some(node), "selector")?;
        let rule = Match { routes: vec![Destination { destination_selector, ..Destination::default() }], ..Match::default() };
        self.warn(node.line, "\"selector\" is an old form", format!("matches:\n{}", write::match_to_yaml(&rule)));
        Ok(rule)
    }

    fn boolean(&self, node: &Node, what: &str) -> Result<bool> {
        match self.text(node, what)?.to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            text => self.error(node.line, format!("{what} {text:?}"), "is neither true nor false", format!("write {what}: true")),
        }
    }
}
