// Command peer plays one role of a mesh, in Go: `peer client|endpoint|registry|manager|workload`.
//
// It is told by the NSM_* variables that a command of the role gets in a cluster. See ../../docs/interop.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"nsm.example/interop/wire"
)

// Setting is what every role needs.
type Setting struct {
	name     string
	identity *wire.Identity
	policies *wire.Policies
}

const defaultLife = 10 * time.Minute

var roles = map[string]func(context.Context, *Setting) error{
	"client":   client,
	"endpoint": endpoint,
	"registry": registryRole,
	"manager":  manager,
}

func main() {
	log.SetFlags(log.Lmicroseconds)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == "workload" {
		return workload(ctx)
	}
	if len(args) != 1 || roles[args[0]] == nil {
		return errors.New("usage: peer client|endpoint|registry|manager|workload")
	}
	identity, err := wire.NewIdentity(ctx, duration("NSM_MAX_TOKEN_LIFETIME", defaultLife))
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	identity.Forge = wire.Forgery(os.Getenv("INTEROP_FORGE"))
	policies, err := wire.NewPolicies(ctx, os.Getenv("INTEROP_POLICIES"))
	if err != nil {
		return err
	}
	return roles[args[0]](ctx, &Setting{name: text("NSM_NAME", args[0]), identity: identity, policies: policies})
}

func text(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func duration(name string, otherwise time.Duration) time.Duration {
	if value, err := time.ParseDuration(os.Getenv(name)); err == nil {
		return value
	}
	return otherwise
}

func list(name string) []string {
	value := os.Getenv(name)
	if value == "" {
		return nil
	}
	return strings.Split(value, ",")
}

func labels(name string) map[string]string {
	all := map[string]string{}
	for _, pair := range list(name) {
		key, value, _ := strings.Cut(pair, ":")
		all[key] = value
	}
	return all
}

// pause waits, but not longer than ctx lives.
func pause(ctx context.Context, span time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(span):
	}
}
