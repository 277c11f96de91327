package wire

import (
	"context"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"nsm.example/interop/pb/connection"
)

// Policies are the default policies, evaluated by the Open Policy Agent.
type Policies struct {
	named map[string]rego.PreparedEvalQuery
}

// NewPolicies reads the files of a directory, each with `valid` in package nsm. An empty directory name loads none.
func NewPolicies(ctx context.Context, dir string) (*Policies, error) {
	all := &Policies{named: map[string]rego.PreparedEvalQuery{}}
	if dir == "" {
		return all, nil
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.rego"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("directory %s has no policies: %v", dir, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		query, err := rego.New(rego.SetRegoVersion(ast.RegoV0), rego.Query("data.nsm.valid"), rego.Module(file, string(text))).PrepareForEval(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all.named[filepath.Base(file)] = query
	}
	return all, nil
}

// check asks the policies of these names; all must say yes.
func (p *Policies) check(ctx context.Context, input map[string]any, names ...string) error {
	for _, name := range names {
		query, known := p.named[name]
		if !known {
			if len(p.named) == 0 {
				return nil
			}
			return status.Errorf(codes.Internal, "policy %s was not loaded", name)
		}
		result, err := query.Eval(ctx, rego.EvalInput(input))
		if err != nil {
			return status.Errorf(codes.Internal, "policy %s: %v", name, err)
		}
		if !result.Allowed() {
			return status.Errorf(codes.PermissionDenied, "policy %s: no sufficient privileges", name)
		}
	}
	return nil
}

func authInfo(info Info) map[string]any {
	leaf := info.Leaf()
	if leaf == nil {
		return map[string]any{}
	}
	return map[string]any{"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}))}
}

func pathInput(path *connection.Path, info Info) map[string]any {
	segments := []any{}
	for _, segment := range path.PathSegments {
		segments = append(segments, map[string]any{"name": segment.Name, "id": segment.Id, "token": segment.Token})
	}
	return map[string]any{"index": path.Index, "path_segments": segments, "auth_info": authInfo(info)}
}

// Server judges an incoming Request or Close, already signed.
func (p *Policies) Server(ctx context.Context, path *connection.Path) error {
	input := pathInput(Left(path), Caller(ctx))
	return p.check(ctx, input, "tokens_valid.rego", "tokens_expired.rego", "tokens_chained.rego", "prev_token_signed.rego")
}

// Client judges an answer.
func (p *Policies) Client(ctx context.Context, path *connection.Path, server Info) error {
	input := pathInput(path, server)
	return p.check(ctx, input, "tokens_valid.rego", "tokens_expired.rego", "tokens_chained.rego", "next_token_signed.rego")
}

func registryInput(path RegistryPath, name string, owners map[string][]string, info Info) map[string]any {
	segments := []any{}
	for _, segment := range path.PathSegments {
		segments = append(segments, map[string]any{"token": segment.Token})
	}
	known := map[string]any{}
	for name, ids := range owners {
		list := []any{}
		for _, id := range ids {
			list = append(list, id)
		}
		known[name] = list
	}
	id := ""
	if len(path.PathSegments) > 0 {
		id = Subject(path.PathSegments[0].Token)
	}
	return map[string]any{"resource_id": id, "resource_name": name, "resource_path_ids_map": known, "path_segments": segments,
		"index": path.Index, "auth_info": authInfo(info)}
}

var registryPolicies = []string{"tokens_valid.rego", "tokens_expired.rego", "tokens_chained.rego", "client_allowed.rego"}

// RegistryServer judges an incoming registration of name; owners are the path_ids of all names.
func (p *Policies) RegistryServer(ctx context.Context, path RegistryPath, name string, owners map[string][]string) error {
	left := RegistryPath{Index: path.Index, PathSegments: path.PathSegments[:path.Index+1]}
	return p.check(ctx, registryInput(left, name, owners, Caller(ctx)), append([]string{"prev_token_signed.rego"}, registryPolicies...)...)
}

// RegistryClient judges the path that a registry answered with.
func (p *Policies) RegistryClient(ctx context.Context, path RegistryPath, name string, server Info) error {
	return p.check(ctx, registryInput(path, name, nil, server), append([]string{"next_token_signed.rego"}, registryPolicies...)...)
}
