package main

import (
	"fmt"
	"strings"
)

// role can be played by somebody else. The forwarder's data plane is always ours.
type role string

var roles = []role{"client", "manager", "endpoint", "registry"}

// forgeries are refused by every policy.
var forgeries = []string{"audience", "expired", "key"}

// cell is one lab: who plays what, on how many nodes.
type cell struct {
	foreign map[role]bool
	nodes   int
	// special names a lab of identities.
	special string
}

func cells(given *setting) []cell {
	var all []cell
	for nodes := 1; nodes <= 2; nodes++ {
		for bits := 1; bits < 1<<len(roles); bits++ {
			one := cell{foreign: map[role]bool{}, nodes: nodes}
			possible, count := true, 0
			for at, role := range roles {
				if bits>>at&1 == 1 {
					one.foreign[role] = true
					count++
					possible = possible && given.foreign[role] != ""
				}
			}
			if possible && !(given.quick && nodes == 2 && count != 1 && count != len(roles)) {
				all = append(all, one)
			}
		}
	}
	return all
}

func (c cell) words() []string {
	if c.special != "" {
		return []string{"ours", "ours", "ours", "ours; identity Go: " + c.special}
	}
	var words []string
	for _, role := range roles {
		if c.foreign[role] {
			words = append(words, "Go")
		} else {
			words = append(words, "ours")
		}
	}
	return words
}

func (c cell) String() string {
	var words []string
	for at, role := range roles {
		words = append(words, fmt.Sprintf("%s %s", role, c.words()[at]))
	}
	return fmt.Sprintf("%d nodes: %s", c.nodes, strings.Join(words, ", "))
}

// name is that of the lab: i-, the first letters of foreign roles, and the number of nodes.
func (c cell) name() string {
	if c.special != "" {
		return "i-" + c.special
	}
	letters := ""
	for _, role := range roles {
		if c.foreign[role] {
			letters += string(role[0])
		}
	}
	return fmt.Sprintf("i-%s-%d", letters, c.nodes)
}

// part is the settings of one process: who plays it and its variables.
func (c cell) part(given *setting, one role, variables ...string) string {
	text := ""
	if c.foreign[one] {
		text = fmt.Sprintf("program: [%s], ", strings.Join(strings.Fields(given.foreign[one]), ", "))
		variables = append(variables, "INTEROP_POLICIES: '"+given.policies+"'", "NSM_UNREGISTER_ITSELF: 'true'", "NSM_EXPIRE_PERIOD: 1m")
	}
	return fmt.Sprintf("%senv: {%s}", text, strings.Join(variables, ", "))
}

// yaml is the lab. The two endpoints are told apart by the service, which prefers the first as long as it is there.
func (c cell) yaml(given *setting) string {
	if c.special != "" {
		return c.identityLab(given)
	}
	var text strings.Builder
	line := func(format string, values ...any) { fmt.Fprintf(&text, format+"\n", values...) }
	line(`apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: wire}
spec:
  payload: ETHERNET
  matches:
  - {fallthrough: true, routes: [{destination_selector: {app: first}}]}
  - {routes: [{destination_selector: {app: second}}]}
---
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: %s}
spec:
  registry: {%s}
  nodes:`, c.name(), c.part(given, "registry"))
	for node := 1; node <= c.nodes; node++ {
		line("  - {name: node-%d, manager: {%s}}", node, c.part(given, "manager"))
	}
	line("  endpoints:")
	for at, name := range []string{"first", "second"} {
		line("  - {name: %s, node: node-%d, services: [wire], payload: ETHERNET, labels: {app: %s}, cidr: [172.16.%d.0/24], %s}",
			name, c.nodes, name, at+1, c.part(given, "endpoint"))
	}
	line("  clients:")
	// Short lives, so that refresh and expiry can be watched.
	short := []string{"NSM_REQUEST_TIMEOUT: 2s", "NSM_DIAL_TIMEOUT: 1s"}
	if c.foreign["client"] {
		// A pod of a lab outlives its process and still answers echoes, by which upstream's client judges an endpoint.
		short = append(short, "NSM_LIVENESS_CHECK_ENABLED: 'false'")
	}
	for _, name := range []string{"steady", "polite", "victim"} {
		line("  - {name: %s, node: node-1, services: ['kernel://wire/nsm-1'], lifetime: 9s, %s}", name, c.part(given, "client", short...))
	}
	if given.forger != "" {
		for _, forgery := range forgeries {
			line("  - {name: forger-%s, node: node-1, services: ['kernel://wire/nsm-1'], expectRefusal: true, program: [%s], env: {INTEROP_FORGE: %s}}",
				forgery, strings.Join(strings.Fields(given.forger), ", "), forgery)
		}
	}
	c.checks(given, line)
	return text.String()
}

func (c cell) checks(given *setting, line func(string, ...any)) {
	path := "steady, node-1-manager, node-1-forwarder, first"
	if c.nodes == 2 {
		path = "steady, node-1-manager, node-1-forwarder, node-2-manager, node-2-forwarder, first"
	}
	line("  checks:")
	for _, check := range []string{
		// Request, packets, the way, and what monitors say of it.
		"ping: {from: steady, to: 172.16.1.0}",
		"ping: {from: first, to: 172.16.1.1}",
		"connections: {client: steady, path: [" + path + "]}",
		"ping: {from: victim, to: 172.16.1.4}",
		// Refresh: the tokens are new, the wire is the old one.
		"lasts: {client: steady, interface: nsm-1, for: 3s}",
		"close: {client: polite}",
		// Expiry.
		"kill: {client: victim}",
		"unchanged: {pods: [polite, victim]}",
	} {
		line("  - %s", check)
	}
	if given.forger != "" {
		for _, forgery := range forgeries {
			line("  - refusal: {client: forger-%s, contains: [PermissionDenied]}", forgery)
		}
	}
	node := fmt.Sprintf("node-%d", c.nodes)
	// Nobody notices that the registry was away, unless it forgets, the manager asks it for the forwarder each time, and the
	// client does not look at its packets before it gives up a wire.
	patience := ""
	if c.foreign["client"] && c.foreign["manager"] && c.foreign["registry"] {
		patience = ", within: 30s"
	}
	for _, check := range []string{
		"restart: {process: registry, signal: KILL}",
		"lasts: {client: steady, interface: nsm-1, for: 3s" + patience + "}",
		"restart: {process: node-1-manager, signal: KILL}",
		"connections: {client: steady, interface: nsm-1, endpoint: first, within: 30s}",
		"lasts: {client: steady, interface: nsm-1, for: 3s, within: 30s}",
		"restart: {process: " + node + "-manager, signal: TERM}",
		"connections: {client: steady, interface: nsm-1, endpoint: first, within: 30s}",
		// The endpoint leaves: the client is told and takes the other.
		"end: {process: first, signal: TERM}",
		"connections: {client: steady, interface: nsm-1, endpoint: second, within: 60s}",
		"lasts: {client: steady, interface: nsm-1, for: 3s, within: 30s}",
		"restart: {process: second, signal: TERM}",
		"connections: {client: steady, interface: nsm-1, endpoint: second, within: 60s}",
		"lasts: {client: steady, interface: nsm-1, for: 3s, within: 30s}",
		"close: {client: steady}",
		"unchanged: {pods: [steady]}",
	} {
		line("  - %s", check)
	}
}
