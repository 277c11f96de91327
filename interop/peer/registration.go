package main

import (
	"context"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"nsm.example/interop/pb/registry"
	"nsm.example/interop/wire"
)

const registerTimeout = 5 * time.Second

// register keeps this process registered with its manager and takes it away at the end.
func register(ctx context.Context, setting *Setting, url string) {
	services, payload := list("NSM_SERVICE_NAMES"), text("NSM_PAYLOAD", "ETHERNET")
	own := &registry.NetworkServiceEndpoint{Name: setting.name, NetworkServiceNames: services, Url: url,
		NetworkServiceLabels: map[string]*registry.NetworkServiceLabels{}}
	for _, service := range services {
		own.NetworkServiceLabels[service] = &registry.NetworkServiceLabels{Labels: labels("NSM_LABELS")}
	}
	for ctx.Err() == nil {
		way, err := setting.identity.Dial(os.Getenv("NSM_CONNECT_TO"))
		if err == nil && os.Getenv("NSM_REGISTER_SERVICE") != "false" {
			for _, service := range services {
				err = registerService(ctx, setting, way, &registry.NetworkService{Name: service, Payload: payload})
			}
		}
		var answer *registry.NetworkServiceEndpoint
		if err == nil {
			answer, err = registerEndpoint(ctx, setting, way, own)
		}
		if err != nil {
			log.Printf("registration: %v", err)
			pause(ctx, retryPause)
			continue
		}
		log.Printf("registered as %s until %s", answer.Name, answer.ExpirationTime.AsTime())
		whileRegistered(ctx, way, answer)
		if ctx.Err() != nil {
			unregister(way, own)
		}
		_ = way.Close()
	}
}

// whileRegistered returns when it is time to register again: two thirds of the time have passed, or the registry is lost.
func whileRegistered(ctx context.Context, way *grpc.ClientConn, answer *registry.NetworkServiceEndpoint) {
	ctx, cancel := context.WithTimeout(ctx, time.Until(answer.ExpirationTime.AsTime())*2/3)
	defer cancel()
	query := &registry.NetworkServiceEndpointQuery{NetworkServiceEndpoint: &registry.NetworkServiceEndpoint{Name: answer.Name}, Watch: true}
	stream, err := registry.NewNetworkServiceEndpointRegistryClient(way).Find(ctx, query)
	for err == nil {
		var update *registry.NetworkServiceEndpointResponse
		if update, err = stream.Recv(); err == nil && update.Deleted {
			log.Printf("the registry forgot this endpoint")
			return
		}
	}
	if ctx.Err() == nil {
		log.Printf("the registry's stream ended: %v", err)
		pause(ctx, retryPause)
	}
}

func registerService(ctx context.Context, setting *Setting, way *grpc.ClientConn, service *registry.NetworkService) error {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	header, call := metadata.MD{}, &wire.Call{}
	ctx, option := wire.OutgoingRegistry(wire.WithCall(ctx, call), wire.RegistryPath{}, &header)
	answer, err := registry.NewNetworkServiceRegistryClient(way).Register(ctx, service, option)
	if err != nil {
		return err
	}
	return judgeRegistration(ctx, setting, header, answer.Name, call.Info)
}

// inodeCall is a call whose URL names a socket of ours, sent along on a unix transport.
func inodeCall(one *registry.NetworkServiceEndpoint) (*registry.NetworkServiceEndpoint, *wire.Call, error) {
	one = proto.Clone(one).(*registry.NetworkServiceEndpoint)
	socket := strings.TrimPrefix(one.Url, "unix://")
	inode, err := wire.InodeURL(socket)
	one.Url = inode
	return one, &wire.Call{Files: []string{socket}}, err
}

func registerEndpoint(ctx context.Context, setting *Setting, way *grpc.ClientConn, own *registry.NetworkServiceEndpoint) (*registry.NetworkServiceEndpoint, error) {
	one, call, err := inodeCall(own)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	header := metadata.MD{}
	ctx, option := wire.OutgoingRegistry(wire.WithCall(ctx, call), wire.RegistryPath{}, &header)
	answer, err := registry.NewNetworkServiceEndpointRegistryClient(way).Register(ctx, one, option)
	if err == nil {
		err = judgeRegistration(ctx, setting, header, answer.Name, call.Info)
	}
	return answer, err
}

// judgeRegistration holds what every answer of a registry must be.
func judgeRegistration(ctx context.Context, setting *Setting, header metadata.MD, name string, server wire.Info) error {
	wire.Record("registry.Register.answer", header)
	path, err := wire.AnsweredRegistry(header)
	if err != nil {
		return err
	}
	return setting.policies.RegistryClient(ctx, path, name, server)
}

func unregister(way *grpc.ClientConn, own *registry.NetworkServiceEndpoint) {
	one, call, err := inodeCall(own)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopBound)
	defer cancel()
	header := metadata.MD{}
	ctx, option := wire.OutgoingRegistry(wire.WithCall(ctx, call), wire.RegistryPath{}, &header)
	if _, err := registry.NewNetworkServiceEndpointRegistryClient(way).Unregister(ctx, one, option); err != nil {
		log.Printf("unregistration: %v", err)
		return
	}
	log.Printf("unregistered")
}
