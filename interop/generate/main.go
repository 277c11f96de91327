// Command generate writes the Go messages of ../proto into pb/. It needs no protoc: `go run ./generate` in interop/.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/pluginpb"
)

const (
	source = "../proto"
	target = "pb"
	module = "nsm.example/interop/pb"
)

var (
	files   = []string{"connectioncontext.proto", "connection.proto", "networkservice.proto", "registry.proto"}
	plugins = []string{"google.golang.org/protobuf/cmd/protoc-gen-go", "google.golang.org/grpc/cmd/protoc-gen-go-grpc"}
)

func main() {
	if err := generate(); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func generate() error {
	compiler := protocompile.Compiler{Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{source}})}
	compiled, err := compiler.Compile(context.Background(), files...)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	request := &pluginpb.CodeGeneratorRequest{FileToGenerate: files}
	for _, file := range compiled {
		collect(file, seen, request)
	}
	parameters := []string{"module=" + module}
	for _, file := range files {
		parameters = append(parameters, fmt.Sprintf("M%s=%s/%s", file, module, strings.TrimSuffix(file, ".proto")))
	}
	request.Parameter = proto.String(strings.Join(parameters, ","))
	for _, plugin := range plugins {
		if err := run(plugin, request); err != nil {
			return fmt.Errorf("%s: %w", plugin, err)
		}
	}
	return nil
}

// collect adds a file after all that it imports.
func collect(file protoreflect.FileDescriptor, seen map[string]bool, request *pluginpb.CodeGeneratorRequest) {
	if seen[file.Path()] {
		return
	}
	seen[file.Path()] = true
	for i := 0; i < file.Imports().Len(); i++ {
		collect(file.Imports().Get(i).FileDescriptor, seen, request)
	}
	request.ProtoFile = append(request.ProtoFile, protodesc.ToFileDescriptorProto(file))
}

func run(plugin string, request *pluginpb.CodeGeneratorRequest) error {
	input, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	command := exec.Command("go", "run", plugin)
	command.Stdin, command.Stderr = bytes.NewReader(input), os.Stderr
	output, err := command.Output()
	if err != nil {
		return err
	}
	response := &pluginpb.CodeGeneratorResponse{}
	if err := proto.Unmarshal(output, response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, file := range response.File {
		path := filepath.Join(target, file.GetName())
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(file.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
