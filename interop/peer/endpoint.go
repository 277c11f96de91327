package main

import (
	"context"
	"fmt"
	"log"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"nsm.example/interop/pb/connection"
	"nsm.example/interop/pb/connectioncontext"
	"nsm.example/interop/pb/networkservice"
	"nsm.example/interop/wire"
)

// responder is an endpoint that gives addresses and answers echoes by its kernel.
type responder struct {
	networkservice.UnimplementedNetworkServiceServer
	*Setting
	pool     netip.Prefix
	monitors *monitors
	lock     sync.Mutex
	held     map[string]*held
}

// held is one connection at this endpoint.
type held struct {
	connection *connection.Connection
	pair       netip.Addr
	end        *time.Timer
}

func endpoint(ctx context.Context, setting *Setting) error {
	pool, err := netip.ParsePrefix(text("NSM_CIDR_PREFIX", "169.254.0.0/16"))
	if err != nil {
		return err
	}
	server := setting.identity.NewServer()
	one := &responder{Setting: setting, pool: pool.Masked(), monitors: newMonitors(ctx), held: map[string]*held{}}
	networkservice.RegisterNetworkServiceServer(server, one)
	connection.RegisterMonitorConnectionServer(server, one.monitors)
	dir, err := os.MkdirTemp(text("NSM_BASE_DIR", "."), "nse")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	// It serves until nobody can find it any more.
	serving, stop := context.WithCancel(context.Background())
	go func() {
		defer stop()
		register(ctx, setting, "unix://"+socket)
	}()
	return serve(serving, server, "unix://"+socket)
}

// Request gives a pair of addresses and names our namespace.
func (r *responder) Request(ctx context.Context, request *networkservice.NetworkServiceRequest) (*connection.Connection, error) {
	one := request.GetConnection()
	leave, err := wire.Enter(one, r.name)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := r.admit(ctx, one); err != nil {
		return nil, err
	}
	if one.Mechanism == nil {
		for _, offered := range request.MechanismPreferences {
			if offered.Type == "KERNEL" {
				one.Mechanism = offered
				break
			}
		}
	}
	if one.Mechanism.GetType() != "KERNEL" {
		return nil, fmt.Errorf("cannot support any of the requested mechanisms")
	}
	pair, err := r.pairFor(one.Id)
	if err != nil {
		return nil, err
	}
	fill(one, pair)
	if err := r.complete(ctx, one); err != nil {
		return nil, err
	}
	one.Path.PathSegments = one.Path.PathSegments[:one.Path.Index+1]
	one.NetworkServiceEndpointName, one.State = r.name, connection.State_UP
	r.commit(ctx, one)
	answer := proto.Clone(one).(*connection.Connection)
	leave(answer)
	return answer, nil
}

// admit signs and judges.
func (s *Setting) admit(ctx context.Context, one *connection.Connection) error {
	if err := s.identity.Sign(ctx, one.Path); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	err := s.policies.Server(ctx, one.Path)
	if err != nil {
		log.Printf("%s is refused: %v", one.Id, err)
	}
	return err
}

// pairFor is the lower address of the two that a connection has; the same for as long as it lives.
func (r *responder) pairFor(id string) (netip.Addr, error) {
	r.lock.Lock()
	defer r.lock.Unlock()
	if known := r.held[id]; known != nil {
		return known.pair, nil
	}
	taken := map[netip.Addr]bool{}
	for _, other := range r.held {
		taken[other.pair] = true
	}
	for at := r.pool.Addr(); r.pool.Contains(at); at = at.Next().Next() {
		if !taken[at] {
			r.held[id] = &held{pair: at, end: time.AfterFunc(time.Hour, func() {})}
			return at, nil
		}
	}
	return netip.Addr{}, status.Errorf(codes.ResourceExhausted, "%s has no free pair", r.pool)
}

func fill(one *connection.Connection, pair netip.Addr) {
	if one.Context == nil {
		one.Context = &connectioncontext.ConnectionContext{}
	}
	if one.Context.IpContext == nil {
		one.Context.IpContext = &connectioncontext.IPContext{}
	}
	ip := one.Context.IpContext
	dst, src := netip.PrefixFrom(pair, pair.BitLen()).String(), netip.PrefixFrom(pair.Next(), pair.BitLen()).String()
	ip.DstIpAddrs, ip.SrcIpAddrs = []string{dst}, []string{src}
	ip.SrcRoutes = []*connectioncontext.Route{{Prefix: dst}}
	ip.DstRoutes = []*connectioncontext.Route{{Prefix: src}}
}

// complete fills in the mechanism: our namespace, whose descriptor goes along, and the interface's name in it.
func (r *responder) complete(ctx context.Context, one *connection.Connection) error {
	inode, err := wire.InodeURL(ownNetns)
	if err != nil {
		return err
	}
	if one.Mechanism.Parameters == nil {
		one.Mechanism.Parameters = map[string]string{}
	}
	one.Mechanism.Parameters["inodeURL"] = inode
	if one.Mechanism.Parameters["name"] == "" {
		one.Mechanism.Parameters["name"] = fmt.Sprintf("%.10s-%.4s", one.NetworkService, wire.NewID())
	}
	return wire.Caller(ctx).Files.Queue(ownNetns)
}

// commit remembers it until the token of the hop before ends.
func (r *responder) commit(ctx context.Context, one *connection.Connection) {
	r.lock.Lock()
	defer r.lock.Unlock()
	known := r.held[one.Id]
	known.end.Stop()
	known.connection = one
	id := one.Id
	known.end = time.AfterFunc(life(ctx, one), func() {
		log.Printf("%s has expired", id)
		r.forget(id)
	})
	r.monitors.update(connection.ConnectionEventType_UPDATE, one)
	log.Printf("%s is up for %s", id, one.Path.PathSegments[0].Name)
}

// life is how long a connection may stay without being asked for again.
func life(ctx context.Context, one *connection.Connection) time.Duration {
	left := time.Until(one.Path.PathSegments[one.Path.Index-1].Expires.AsTime())
	if end, ok := ctx.Deadline(); ok {
		left -= time.Until(end)
	}
	return left
}

func (r *responder) forget(id string) {
	r.lock.Lock()
	defer r.lock.Unlock()
	if known := r.held[id]; known != nil {
		known.end.Stop()
		delete(r.held, id)
		if known.connection != nil {
			r.monitors.update(connection.ConnectionEventType_DELETE, known.connection)
		}
	}
}

// Close forgets; an unknown connection is as good as closed.
func (r *responder) Close(ctx context.Context, one *connection.Connection) (*emptypb.Empty, error) {
	if _, err := wire.Enter(one, r.name); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := r.admit(ctx, one); err != nil {
		return nil, err
	}
	log.Printf("%s is closed", one.Id)
	r.forget(one.Id)
	return &emptypb.Empty{}, nil
}
