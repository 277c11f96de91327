package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"nsm.example/interop/pb/connection"
	"nsm.example/interop/pb/connectioncontext"
	"nsm.example/interop/pb/networkservice"
	"nsm.example/interop/pb/registry"
	"nsm.example/interop/wire"
)

const forwarderService = "forwarder"

// local is an endpoint whose socket came to us as a descriptor.
type local struct {
	file *os.File
	// asked is the URL it gave us.
	asked string
}

func (l *local) url() string { return "unix://" + l.path() }
func (l *local) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), l.file.Fd())
}

// book is what a manager knows of the endpoints of its node, and its way to the registry.
type book struct {
	*Setting
	lock sync.Mutex
	here map[string]*local
	// own is the URL by which the registry knows this node.
	own string
	up  *grpc.ClientConn
}

func (b *book) get(name string) *local {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.here[name]
}

// relay is the connections that pass a manager.
type relay struct {
	networkservice.UnimplementedNetworkServiceServer
	*book
	monitors *monitors
	lock     sync.Mutex
	passing  map[string]*passing
}

// passing is one connection that passes.
type passing struct {
	lock sync.Mutex
	// sent is what the next hop was asked last, for the end.
	sent  *connection.Connection
	shown *connection.Connection
	to    string
	netns *os.File
	inode string
	end   *time.Timer
	stop  context.CancelFunc
}

type bookServices struct {
	registry.UnimplementedNetworkServiceRegistryServer
	*book
}

type bookEndpoints struct {
	registry.UnimplementedNetworkServiceEndpointRegistryServer
	*book
}

func manager(ctx context.Context, setting *Setting) error {
	urls := strings.Split(os.Getenv("NSM_LISTEN_ON"), ",")
	up, err := setting.identity.Dial(os.Getenv("NSM_REGISTRY_URL"))
	if err != nil {
		return err
	}
	known := &book{Setting: setting, here: map[string]*local{}, up: up}
	for _, url := range urls {
		if strings.HasPrefix(url, "tcp://") {
			known.own = url
		}
	}
	server := setting.identity.NewServer()
	one := &relay{book: known, monitors: newMonitors(ctx), passing: map[string]*passing{}}
	networkservice.RegisterNetworkServiceServer(server, one)
	connection.RegisterMonitorConnectionServer(server, one.monitors)
	registry.RegisterNetworkServiceRegistryServer(server, &bookServices{book: known})
	registry.RegisterNetworkServiceEndpointRegistryServer(server, &bookEndpoints{book: known})
	return serve(ctx, server, urls...)
}

// onward passes a registration on and takes over the path that comes back.
func onward[T proto.Message, A any](ctx context.Context, path *wire.RegistryPath, one T, call func(context.Context, T, ...grpc.CallOption) (A, error)) (A, error) {
	header := metadata.MD{}
	next, option := wire.OutgoingRegistry(ctx, *path, &header)
	answer, err := call(next, one, option)
	if err == nil {
		index := path.Index
		if back, wrong := wire.AnsweredRegistry(header); wrong == nil {
			*path = back
			path.Index = index
		}
	}
	return answer, err
}

func (s *bookServices) Register(ctx context.Context, one *registry.NetworkService) (*registry.NetworkService, error) {
	path, ids, err := s.enter(ctx, one.Name, one.PathIds, nil)
	if err != nil {
		return nil, err
	}
	one.PathIds = ids
	answer, err := onward(ctx, &path, one, registry.NewNetworkServiceRegistryClient(s.up).Register)
	if err != nil {
		return nil, err
	}
	return answer, wire.AnswerRegistry(ctx, path)
}

func (s *bookServices) Unregister(ctx context.Context, one *registry.NetworkService) (*emptypb.Empty, error) {
	path, ids, err := s.enter(ctx, one.Name, one.PathIds, nil)
	if err != nil {
		return nil, err
	}
	one.PathIds = ids
	answer, err := onward(ctx, &path, one, registry.NewNetworkServiceRegistryClient(s.up).Unregister)
	if err != nil {
		return nil, err
	}
	return answer, wire.AnswerRegistry(ctx, path)
}

func (s *bookServices) Find(query *registry.NetworkServiceQuery, stream grpc.ServerStreamingServer[registry.NetworkServiceResponse]) error {
	from, err := registry.NewNetworkServiceRegistryClient(s.up).Find(stream.Context(), query)
	for err == nil {
		var one *registry.NetworkServiceResponse
		if one, err = from.Recv(); err == nil {
			err = stream.Send(one)
		}
	}
	return nil
}

func (e *bookEndpoints) Register(ctx context.Context, one *registry.NetworkServiceEndpoint) (*registry.NetworkServiceEndpoint, error) {
	path, ids, err := e.enter(ctx, one.Name, one.PathIds, nil)
	if err != nil {
		return nil, err
	}
	asked := one.Url
	if !strings.HasPrefix(asked, "inode://") {
		return nil, status.Errorf(codes.InvalidArgument, "URL %q of an endpoint is no inode", asked)
	}
	file, err := wire.Caller(ctx).Files.Wait(ctx, asked)
	if err != nil {
		return nil, err
	}
	one.PathIds, one.Url = ids, e.own
	e.book.lock.Lock()
	e.here[one.Name] = &local{file: file, asked: asked}
	e.book.lock.Unlock()
	answer, err := onward(ctx, &path, one, registry.NewNetworkServiceEndpointRegistryClient(e.up).Register)
	if err != nil {
		return nil, err
	}
	answer.Url = asked
	log.Printf("registered %s", answer.Name)
	return answer, wire.AnswerRegistry(ctx, path)
}

func (e *bookEndpoints) Unregister(ctx context.Context, one *registry.NetworkServiceEndpoint) (*emptypb.Empty, error) {
	path, ids, err := e.enter(ctx, one.Name, one.PathIds, nil)
	if err != nil {
		return nil, err
	}
	one.PathIds, one.Url = ids, e.own
	if e.get(one.Name) != nil {
		if _, err := onward(ctx, &path, one, registry.NewNetworkServiceEndpointRegistryClient(e.up).Unregister); err != nil {
			return nil, err
		}
		e.book.lock.Lock()
		delete(e.here, one.Name)
		e.book.lock.Unlock()
	}
	return &emptypb.Empty{}, wire.AnswerRegistry(ctx, path)
}

// bypass turns the URL of an endpoint of this node into its socket; false for one that this node does not have.
func (b *book) bypass(one *registry.NetworkServiceEndpointResponse) (*local, bool) {
	known := b.get(one.NetworkServiceEndpoint.Name)
	return known, known != nil || one.NetworkServiceEndpoint.Url != b.own || one.Deleted
}

func (e *bookEndpoints) Find(query *registry.NetworkServiceEndpointQuery, stream grpc.ServerStreamingServer[registry.NetworkServiceEndpointResponse]) error {
	from, err := registry.NewNetworkServiceEndpointRegistryClient(e.up).Find(stream.Context(), query)
	files := wire.Caller(stream.Context()).Files
	for err == nil {
		var one *registry.NetworkServiceEndpointResponse
		if one, err = from.Recv(); err != nil {
			break
		}
		known, ours := e.bypass(one)
		if !ours {
			continue
		}
		if known != nil && files != nil {
			one.NetworkServiceEndpoint.Url, err = wire.InodeURL(known.path())
			if err == nil {
				err = files.Queue(known.path())
			}
		}
		if err == nil {
			err = stream.Send(one)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		log.Printf("a question to the registry ended: %v", err)
	}
	return nil
}

// forwarder is the socket of the forwarder of this node.
func (r *relay) forwarder(ctx context.Context) (*local, error) {
	query := &registry.NetworkServiceEndpointQuery{NetworkServiceEndpoint: &registry.NetworkServiceEndpoint{
		NetworkServiceNames: []string{forwarderService}, Url: r.own}}
	stream, err := registry.NewNetworkServiceEndpointRegistryClient(r.up).Find(ctx, query)
	for err == nil {
		var one *registry.NetworkServiceEndpointResponse
		if one, err = stream.Recv(); err == nil {
			if known := r.get(one.NetworkServiceEndpoint.Name); known != nil {
				return known, nil
			}
		}
	}
	return nil, status.Errorf(codes.Unavailable, "no forwarder: %v", err)
}

func (r *relay) at(id string) *passing {
	r.lock.Lock()
	defer r.lock.Unlock()
	if r.passing[id] == nil {
		r.passing[id] = &passing{end: time.AfterFunc(time.Hour, func() {}), stop: func() {}}
	}
	return r.passing[id]
}

// Request goes on to the forwarder with the client's namespace.
func (r *relay) Request(ctx context.Context, request *networkservice.NetworkServiceRequest) (*connection.Connection, error) {
	one := request.GetConnection()
	leave, err := wire.Enter(one, r.name)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := r.admit(ctx, one); err != nil {
		return nil, err
	}
	if one.Context == nil {
		one.Context = &connectioncontext.ConnectionContext{}
	}
	if one.Context.IpContext == nil {
		one.Context.IpContext = &connectioncontext.IPContext{}
	}
	state := r.at(one.Id)
	state.lock.Lock()
	defer state.lock.Unlock()
	if err := r.take(ctx, state, request); err != nil {
		return nil, err
	}
	forwarder, err := r.forwarder(ctx)
	if err != nil {
		return nil, err
	}
	way, err := r.identity.Dial(forwarder.url())
	if err != nil {
		return nil, err
	}
	answer, err := networkservice.NewNetworkServiceClient(way).Request(state.withFile(ctx), request)
	if err != nil {
		_ = way.Close()
		return nil, err
	}
	state.sent, state.to = proto.Clone(answer).(*connection.Connection), forwarder.url()
	r.commit(ctx, state, way, answer)
	leave(answer)
	return answer, nil
}

// take waits for the client's namespace, once.
func (r *relay) take(ctx context.Context, state *passing, request *networkservice.NetworkServiceRequest) error {
	files := wire.Caller(ctx).Files
	mechanisms := append([]*connection.Mechanism{request.Connection.Mechanism}, request.MechanismPreferences...)
	for _, mechanism := range mechanisms {
		inode := mechanism.GetParameters()["inodeURL"]
		if files == nil || !strings.HasPrefix(inode, "inode://") || inode == state.inode {
			continue
		}
		file, err := files.Wait(ctx, inode)
		if err != nil {
			return err
		}
		state.netns, state.inode = file, inode
	}
	return nil
}

func (r *relay) commit(ctx context.Context, state *passing, way *grpc.ClientConn, answer *connection.Connection) {
	state.shown = proto.Clone(answer).(*connection.Connection)
	state.end.Stop()
	state.stop()
	state.end = time.AfterFunc(life(ctx, answer), func() {
		log.Printf("%s has expired", answer.Id)
		ctx, cancel := context.WithTimeout(context.Background(), registerTimeout)
		defer cancel()
		if err := r.finish(ctx, state.shown.Id); err != nil {
			log.Printf("closing %s: %v", state.shown.Id, err)
		}
	})
	watching, stop := context.WithCancel(r.monitors.ctx)
	state.stop = func() {
		stop()
		_ = way.Close()
	}
	go r.follow(watching, way, state.shown)
	r.monitors.update(connection.ConnectionEventType_UPDATE, state.shown)
}

// follow republishes what the next hop says of a connection.
func (r *relay) follow(ctx context.Context, way *grpc.ClientConn, shown *connection.Connection) {
	own := shown.Path.Index
	selector := &connection.MonitorScopeSelector{PathSegments: []*connection.PathSegment{{Name: r.name, Id: shown.Id}}}
	stream, err := connection.NewMonitorConnectionClient(way).MonitorConnections(ctx, selector)
	for err == nil {
		var event *connection.ConnectionEvent
		if event, err = stream.Recv(); err != nil {
			break
		}
		for _, one := range event.Connections {
			segments := one.GetPath().GetPathSegments()
			if len(segments) <= int(own) || segments[own].Id != shown.Id || one.Path.Index != own+1 {
				continue
			}
			if event.Type == connection.ConnectionEventType_DELETE || one.State == connection.State_DOWN {
				r.down(shown)
			}
		}
	}
	if ctx.Err() == nil {
		log.Printf("the next hop's stream ended: %v", err)
		r.down(shown)
	}
}

func (r *relay) down(shown *connection.Connection) {
	dead := proto.Clone(shown).(*connection.Connection)
	dead.State = connection.State_DOWN
	r.monitors.update(connection.ConnectionEventType_UPDATE, dead)
}

// finish closes onward and forgets.
func (r *relay) finish(ctx context.Context, id string) error {
	r.lock.Lock()
	state := r.passing[id]
	delete(r.passing, id)
	r.lock.Unlock()
	if state == nil || state.sent == nil {
		return nil
	}
	state.lock.Lock()
	defer state.lock.Unlock()
	state.end.Stop()
	state.stop()
	r.monitors.update(connection.ConnectionEventType_DELETE, state.shown)
	if state.netns != nil {
		defer state.netns.Close()
	}
	way, err := r.identity.Dial(state.to)
	if err != nil {
		return err
	}
	defer way.Close()
	_, err = networkservice.NewNetworkServiceClient(way).Close(state.withFile(ctx), state.sent)
	return err
}

// withFile is a call that brings the client's namespace along.
func (p *passing) withFile(ctx context.Context) context.Context {
	call := &wire.Call{}
	if p.netns != nil {
		call.Files = []string{fmt.Sprintf("/proc/self/fd/%d", p.netns.Fd())}
	}
	return wire.WithCall(ctx, call)
}

// Close is passed on as the connection was last; an unknown one is as good as closed.
func (r *relay) Close(ctx context.Context, one *connection.Connection) (*emptypb.Empty, error) {
	if _, err := wire.Enter(one, r.name); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := r.admit(ctx, one); err != nil {
		return nil, err
	}
	r.lock.Lock()
	state := r.passing[one.Id]
	r.lock.Unlock()
	if state != nil && state.sent != nil {
		state.lock.Lock()
		// The tokens of the hops before are those of this very call.
		copy(state.sent.Path.PathSegments, one.Path.PathSegments[:one.Path.Index+1])
		state.lock.Unlock()
	}
	return &emptypb.Empty{}, r.finish(ctx, one.Id)
}
