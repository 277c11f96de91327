// Command matrix runs labs in which each role but the forwarder is played by our program or by somebody else's, on one
// node and on two, and prints what held. Exit code 0 only when all did. `../run` builds what it needs and starts it.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// labBound is how long one lab may take.
const labBound = 5 * time.Minute

// maxLeft is how many things left behind are shown.
const maxLeft = 3

// setting is what the command line says.
type setting struct {
	nsm, policies string
	// forger is a client that can forge tokens, workload a Workload API server.
	forger, workload string
	foreign          map[role]string
	keep             bool
	parallel         int
	filter           string
	quick            bool
}

// result is the end of one lab, as `nsm lab run --json` prints it.
type result struct {
	Ok       bool      `json:"ok"`
	Examples []example `json:"examples"`
}

type example struct {
	Name      string   `json:"name"`
	Ok        bool     `json:"ok"`
	Seconds   float64  `json:"seconds"`
	Checks    []check  `json:"checks"`
	Leftovers []string `json:"leftovers"`
}

type check struct {
	Check    string `json:"check"`
	Expected string `json:"expected"`
	Seen     string `json:"seen"`
	Ok       bool   `json:"ok"`
}

func main() {
	given := setting{foreign: map[role]string{}}
	flag.StringVar(&given.nsm, "nsm", "nsm", "our program")
	flag.StringVar(&given.policies, "policies", "", "directory of the default policies as Rego, for our Go peers")
	flag.StringVar(&given.forger, "forger", "", "a client that can forge tokens; none is refused without it")
	flag.StringVar(&given.workload, "workload", "", "a SPIFFE Workload API server")
	flag.StringVar(&given.filter, "filter", "", "only labs whose name contains this")
	flag.BoolVar(&given.keep, "keep", false, "keep logs")
	flag.BoolVar(&given.quick, "quick", false, "two nodes only where one role is foreign, or all")
	flag.IntVar(&given.parallel, "parallel", 2, "labs at the same time")
	for _, one := range roles {
		flag.Func(string(one), "program and arguments of the foreign "+string(one), func(text string) error {
			given.foreign[one] = text
			return nil
		})
	}
	flag.Parse()
	held, err := run(&given)
	if err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
	}
	if err != nil || !held {
		os.Exit(1)
	}
}

func run(given *setting) (bool, error) {
	dir, err := os.MkdirTemp("", "interop")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	var all []cell
	for _, one := range append(identities(given), cells(given)...) {
		if strings.Contains(one.name(), given.filter) {
			all = append(all, one)
		}
	}
	results := make([]example, len(all))
	free := make(chan struct{}, given.parallel)
	var group sync.WaitGroup
	for at, one := range all {
		group.Go(func() {
			free <- struct{}{}
			results[at] = lab(given, dir, one)
			<-free
			show(one, results[at])
		})
	}
	group.Wait()
	return table(all, results), nil
}

// lab runs one cell.
func lab(given *setting, dir string, one cell) example {
	path := filepath.Join(dir, one.name()+".yaml")
	failed := func(err error) example {
		return example{Name: one.name(), Checks: []check{{Check: "lab", Expected: "runs", Seen: err.Error()}}}
	}
	if err := os.WriteFile(path, []byte(one.yaml(given)), 0o600); err != nil {
		return failed(err)
	}
	arguments := []string{"lab", "run", "--json", path}
	if given.keep {
		arguments = append(arguments, "--keep")
	}
	command := exec.Command(given.nsm, arguments...)
	var output, errors bytes.Buffer
	command.Stdout, command.Stderr = &output, &errors
	if err := command.Start(); err != nil {
		return failed(err)
	}
	timer := time.AfterFunc(labBound, func() { _ = command.Process.Signal(os.Interrupt) })
	defer timer.Stop()
	_ = command.Wait()
	lines := strings.Split(strings.TrimSpace(output.String()), "\n")
	var answer result
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &answer); err != nil || len(answer.Examples) != 1 {
		return failed(fmt.Errorf("%v: %s", err, errors.String()))
	}
	return answer.Examples[0]
}

func show(one cell, seen example) {
	mark := "✓"
	if !seen.Ok {
		mark = "✗"
	}
	fmt.Printf("%s %-10s %s  %d checks, %.1f s\n", mark, one.name(), one, len(seen.Checks), seen.Seconds)
	for _, check := range seen.Checks {
		if !check.Ok {
			fmt.Printf("    ✗ %s: expected %s, seen %.300s\n", check.Check, check.Expected, check.Seen)
		}
	}
	for at, left := range seen.Leftovers {
		if at == maxLeft {
			fmt.Printf("    ✗ and %d more\n", len(seen.Leftovers)-at)
			break
		}
		fmt.Printf("    ✗ left behind: %s\n", left)
	}
}

// table prints all cells and says whether all held.
func table(all []cell, results []example) bool {
	fmt.Printf("\n| nodes | client | manager | endpoint | registry | checks | held |\n|---|---|---|---|---|---|---|\n")
	good := len(all) > 0
	passed, failed := 0, 0
	for at, one := range all {
		held := 0
		for _, check := range results[at].Checks {
			if check.Ok {
				held++
			}
		}
		passed += held
		failed += len(results[at].Checks) - held + len(results[at].Leftovers)
		mark := "yes"
		if !results[at].Ok {
			mark, good = fmt.Sprintf("**%d of %d**", held, len(results[at].Checks)), false
		}
		fmt.Printf("| %d | %s | %d | %s |\n", one.nodes, strings.Join(one.words(), " | "), len(results[at].Checks), mark)
	}
	fmt.Printf("\ninterop: %d passed, %d failed\n", passed, failed)
	return good
}
