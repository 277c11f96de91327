package main

import (
	"context"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"nsm.example/interop/pb/registry"
	"nsm.example/interop/wire"
)

// expirePeriod is the longest life of an endpoint that is not registered again.
const expirePeriod = time.Minute

// table holds objects of one kind by name and tells watchers what changes.
type table[T proto.Message] struct {
	lock     sync.Mutex
	all      map[string]T
	owners   map[string][]string
	ends     map[string]*time.Timer
	watchers map[chan change[T]]func(T) bool
}

type change[T proto.Message] struct {
	object  T
	deleted bool
}

func newTable[T proto.Message]() *table[T] {
	return &table[T]{all: map[string]T{}, owners: map[string][]string{}, ends: map[string]*time.Timer{}, watchers: map[chan change[T]]func(T) bool{}}
}

func (t *table[T]) tell(object T, deleted bool) {
	for watcher, wanted := range t.watchers {
		if wanted(object) {
			select {
			case watcher <- change[T]{object, deleted}:
			default:
				log.Printf("a watcher is too slow for a change")
			}
		}
	}
}

func (t *table[T]) put(name string, object T, ids []string, life time.Duration) {
	t.lock.Lock()
	defer t.lock.Unlock()
	t.all[name], t.owners[name] = object, ids
	if known := t.ends[name]; known != nil {
		known.Stop()
	}
	if life > 0 {
		t.ends[name] = time.AfterFunc(life, func() {
			log.Printf("%s has expired", name)
			t.remove(name)
		})
	}
	t.tell(object, false)
}

func (t *table[T]) remove(name string) {
	t.lock.Lock()
	defer t.lock.Unlock()
	if known := t.ends[name]; known != nil {
		known.Stop()
	}
	if object, known := t.all[name]; known {
		delete(t.all, name)
		delete(t.owners, name)
		t.tell(object, true)
	}
}

func (t *table[T]) ownersNow() map[string][]string {
	t.lock.Lock()
	defer t.lock.Unlock()
	all := map[string][]string{}
	for name, ids := range t.owners {
		all[name] = ids
	}
	return all
}

// find sends what there is and, to a watcher, what changes until it leaves.
func (t *table[T]) find(ctx context.Context, watch bool, wanted func(T) bool, send func(T, bool) error) error {
	changes := make(chan change[T], 1000)
	t.lock.Lock()
	for _, object := range t.all {
		if wanted(object) {
			changes <- change[T]{object, false}
		}
	}
	if watch {
		t.watchers[changes] = wanted
	} else {
		close(changes)
	}
	t.lock.Unlock()
	defer func() {
		t.lock.Lock()
		delete(t.watchers, changes)
		t.lock.Unlock()
	}()
	for {
		select {
		case one, open := <-changes:
			if !open {
				return nil
			}
			if err := send(one.object, one.deleted); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type services struct {
	registry.UnimplementedNetworkServiceRegistryServer
	*Setting
	*table[*registry.NetworkService]
}

type endpoints struct {
	registry.UnimplementedNetworkServiceEndpointRegistryServer
	*Setting
	*table[*registry.NetworkServiceEndpoint]
}

func registryRole(ctx context.Context, setting *Setting) error {
	server := setting.identity.NewServer()
	registry.RegisterNetworkServiceRegistryServer(server, &services{Setting: setting, table: newTable[*registry.NetworkService]()})
	registry.RegisterNetworkServiceEndpointRegistryServer(server, &endpoints{Setting: setting, table: newTable[*registry.NetworkServiceEndpoint]()})
	return serve(ctx, server, strings.Split(os.Getenv("NSM_LISTEN_ON"), ",")...)
}

// enter takes an incoming registration: its path, and the path_ids it has from now on.
func (s *Setting) enter(ctx context.Context, name string, ids []string, owners map[string][]string) (wire.RegistryPath, []string, error) {
	if name == "" {
		return wire.RegistryPath{}, nil, status.Error(codes.InvalidArgument, "an object needs a name")
	}
	path, ids, err := s.identity.EnterRegistry(ctx, ids)
	if err != nil {
		return path, ids, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.policies.RegistryServer(ctx, path, name, owners); err != nil {
		log.Printf("registration of %s is refused: %v", name, err)
		return path, ids, err
	}
	return path, ids, nil
}

func (s *services) Register(ctx context.Context, one *registry.NetworkService) (*registry.NetworkService, error) {
	path, ids, err := s.enter(ctx, one.Name, one.PathIds, s.ownersNow())
	if err != nil {
		return nil, err
	}
	if one.Payload == "" {
		one.Payload = "IP"
	}
	one.PathIds = ids
	s.put(one.Name, one, ids, 0)
	return one, wire.AnswerRegistry(ctx, path)
}

func (s *services) Unregister(ctx context.Context, one *registry.NetworkService) (*emptypb.Empty, error) {
	path, _, err := s.enter(ctx, one.Name, one.PathIds, s.ownersNow())
	if err != nil {
		return nil, err
	}
	s.remove(one.Name)
	return &emptypb.Empty{}, wire.AnswerRegistry(ctx, path)
}

func (s *services) Find(query *registry.NetworkServiceQuery, stream grpc.ServerStreamingServer[registry.NetworkServiceResponse]) error {
	wanted := func(one *registry.NetworkService) bool {
		like := query.GetNetworkService()
		return (like.GetName() == "" || like.Name == one.Name) && (like.GetPayload() == "" || like.Payload == one.Payload)
	}
	return s.find(stream.Context(), query.Watch, wanted, func(one *registry.NetworkService, deleted bool) error {
		return stream.Send(&registry.NetworkServiceResponse{NetworkService: one, Deleted: deleted})
	})
}

func (e *endpoints) Register(ctx context.Context, one *registry.NetworkServiceEndpoint) (*registry.NetworkServiceEndpoint, error) {
	path, ids, err := e.enter(ctx, one.Name, one.PathIds, e.ownersNow())
	if err != nil {
		return nil, err
	}
	one.PathIds = ids
	limit := time.Now().Add(expirePeriod)
	if one.ExpirationTime == nil || one.ExpirationTime.AsTime().After(limit) {
		one.ExpirationTime = timestamppb.New(limit)
	}
	if one.InitialRegistrationTime == nil {
		one.InitialRegistrationTime = timestamppb.Now()
	}
	e.put(one.Name, one, ids, time.Until(one.ExpirationTime.AsTime()))
	log.Printf("registered %s of %v at %s", one.Name, one.NetworkServiceNames, one.Url)
	return one, wire.AnswerRegistry(ctx, path)
}

func (e *endpoints) Unregister(ctx context.Context, one *registry.NetworkServiceEndpoint) (*emptypb.Empty, error) {
	path, _, err := e.enter(ctx, one.Name, one.PathIds, e.ownersNow())
	if err != nil {
		return nil, err
	}
	e.remove(one.Name)
	return &emptypb.Empty{}, wire.AnswerRegistry(ctx, path)
}

func (e *endpoints) Find(query *registry.NetworkServiceEndpointQuery, stream grpc.ServerStreamingServer[registry.NetworkServiceEndpointResponse]) error {
	wanted := func(one *registry.NetworkServiceEndpoint) bool { return like(one, query.GetNetworkServiceEndpoint()) }
	return e.find(stream.Context(), query.Watch, wanted, func(one *registry.NetworkServiceEndpoint, deleted bool) error {
		return stream.Send(&registry.NetworkServiceEndpointResponse{NetworkServiceEndpoint: one, Deleted: deleted})
	})
}

func like(one, wanted *registry.NetworkServiceEndpoint) bool {
	if wanted.GetName() != "" && wanted.Name != one.Name || !strings.Contains(one.Url, wanted.GetUrl()) {
		return false
	}
	have := map[string]bool{}
	for _, name := range one.NetworkServiceNames {
		have[name] = true
	}
	for _, name := range wanted.GetNetworkServiceNames() {
		if !have[name] {
			return false
		}
	}
	for service, marks := range wanted.GetNetworkServiceLabels() {
		for key, value := range marks.Labels {
			if one.NetworkServiceLabels[service].GetLabels()[key] != value {
				return false
			}
		}
	}
	return true
}
