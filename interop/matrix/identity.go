package main

import (
	"fmt"
	"strings"
)

// identities are labs in which all roles are ours and their identities come from a Workload API in Go.
func identities(given *setting) []cell {
	if given.workload == "" {
		return nil
	}
	return []cell{{special: "rotation", nodes: 2}, {special: "federation", nodes: 1}, {special: "load", nodes: 1}}
}

// identityLab: identities are renewed every three seconds, and a manager starts anew meanwhile; or a client and an endpoint
// belong to another trust domain, which this one federates with, besides. No echo may be lost.
func (c cell) identityLab(given *setting) string {
	if c.special == "load" {
		return c.loadLab(given)
	}
	federated := ""
	if c.special == "federation" {
		federated = ", INTEROP_FEDERATED: 'steady,first'"
	}
	nodes := ""
	for node := 1; node <= c.nodes; node++ {
		nodes += fmt.Sprintf("  - {name: node-%d}\n", node)
	}
	return fmt.Sprintf(`apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: wire}
spec: {payload: ETHERNET}
---
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: %s}
spec:
  identity: {program: [%s], env: {INTEROP_ROTATION: 3s%s}}
  nodes:
%s  endpoints:
  - {name: first, node: node-%d, services: [wire], payload: ETHERNET, cidr: [172.16.1.0/24]}
  clients:
  - {name: steady, node: node-1, services: ['kernel://wire/nsm-1'], lifetime: 6s, env: {NSM_REQUEST_TIMEOUT: 1s}}
  - {name: other, node: node-1, services: ['kernel://wire/nsm-1'], lifetime: 5s, env: {NSM_REQUEST_TIMEOUT: 1s}}
  checks:
  - lasts: {client: steady, interface: nsm-1, for: 10s}
  - lasts: {client: other, interface: nsm-1, for: 3s}
  - restart: {process: node-1-manager, signal: KILL}
  - connections: {client: steady, interface: nsm-1, endpoint: first, within: 30s}
  - connections: {client: other, interface: nsm-1, endpoint: first, within: 30s}
  - lasts: {client: steady, interface: nsm-1, for: 3s}
  - close: {client: other}
  - close: {client: steady}
`, c.name(), strings.Join(strings.Fields(given.workload), ", "), federated, nodes, c.nodes)
}

// loadWires times 1000/loadPause is 50 Requests a second.
const (
	loadWires = 10
	loadPause = 200
)

// loadLab: a Go client asks again for ten connections five times a second each, while identities are renewed every five
// seconds. It ends with an error when one of them is refused three times in a row.
func (c cell) loadLab(given *setting) string {
	var wires []string
	for at := range loadWires {
		wires = append(wires, fmt.Sprintf("'kernel://wire/nsm-%d'", at))
	}
	return fmt.Sprintf(`apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: wire}
spec: {payload: ETHERNET}
---
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: %s}
spec:
  identity: {program: [%s], env: {INTEROP_ROTATION: 5s}}
  nodes: [{name: node-1}]
  endpoints:
  - {name: first, node: node-1, services: [wire], payload: ETHERNET, cidr: [172.16.1.0/24]}
  clients:
  - name: load
    node: node-1
    services: [%s]
    program: [%s]
    env: {INTEROP_REFRESH: %dms, INTEROP_STRICT: 'true', NSM_REQUEST_TIMEOUT: 5s, INTEROP_POLICIES: '%s'}
  checks:
  - lasts: {client: load, interface: nsm-0, for: 12s}
  - lasts: {client: load, interface: nsm-9, for: 3s}
  - connections: {node: node-1, count: %d}
  - close: {client: load}
`, c.name(), strings.Join(strings.Fields(given.workload), ", "), strings.Join(wires, ", "),
		strings.Join(strings.Fields(given.forger), ", "), loadPause, given.policies, loadWires)
}
