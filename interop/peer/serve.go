package main

import (
	"context"
	"log"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"nsm.example/interop/pb/connection"
	"nsm.example/interop/wire"
)

// stopBound is how long calls under way may take at the end.
const stopBound = time.Second

// serve answers on all of urls until ctx ends. Streams end as the server's, never as cancelled.
func serve(ctx context.Context, server *grpc.Server, urls ...string) error {
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	failed := make(chan error, len(urls))
	for _, url := range urls {
		listener, err := wire.Listen(url)
		if err != nil {
			return err
		}
		go func() { failed <- server.Serve(listener) }()
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		time.AfterFunc(stopBound, server.Stop)
		server.GracefulStop()
		return nil
	}
}

// monitors tell every watcher what changes.
type monitors struct {
	connection.UnimplementedMonitorConnectionServer
	ctx      context.Context
	lock     sync.Mutex
	all      map[string]*connection.Connection
	watchers map[chan *connection.ConnectionEvent]*connection.MonitorScopeSelector
}

func newMonitors(ctx context.Context) *monitors {
	return &monitors{ctx: ctx, all: map[string]*connection.Connection{}, watchers: map[chan *connection.ConnectionEvent]*connection.MonitorScopeSelector{}}
}

// update tells a change; DELETE forgets.
func (m *monitors) update(kind connection.ConnectionEventType, one *connection.Connection) {
	m.lock.Lock()
	defer m.lock.Unlock()
	one = proto.Clone(one).(*connection.Connection)
	if kind == connection.ConnectionEventType_DELETE {
		delete(m.all, one.Id)
	} else {
		m.all[one.Id] = one
	}
	event := &connection.ConnectionEvent{Type: kind, Connections: map[string]*connection.Connection{one.Id: one}}
	for watcher, selector := range m.watchers {
		if !selects(selector, one) {
			continue
		}
		select {
		case watcher <- event:
		default:
			log.Printf("a watcher is too slow for an event")
		}
	}
}

func selects(selector *connection.MonitorScopeSelector, one *connection.Connection) bool {
	wanted, have := selector.PathSegments, one.Path.PathSegments
	matches := func(from int) bool {
		for at, segment := range wanted {
			if segment.Id != "" && segment.Id != have[from+at].Id || segment.Name != "" && segment.Name != have[from+at].Name {
				return false
			}
		}
		return true
	}
	for from := 0; from+len(wanted) <= len(have); from++ {
		if matches(from) {
			return true
		}
	}
	return false
}

// MonitorConnections sends what there is, then what changes.
func (m *monitors) MonitorConnections(selector *connection.MonitorScopeSelector, stream grpc.ServerStreamingServer[connection.ConnectionEvent]) error {
	events := make(chan *connection.ConnectionEvent, 100)
	first := &connection.ConnectionEvent{Type: connection.ConnectionEventType_INITIAL_STATE_TRANSFER, Connections: map[string]*connection.Connection{}}
	m.lock.Lock()
	for id, one := range m.all {
		if selects(selector, one) {
			first.Connections[id] = one
		}
	}
	m.watchers[events] = selector
	m.lock.Unlock()
	defer func() {
		m.lock.Lock()
		delete(m.watchers, events)
		m.lock.Unlock()
	}()
	if err := stream.Send(first); err != nil {
		return err
	}
	for {
		select {
		case event := <-events:
			if err := stream.Send(event); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-m.ctx.Done():
			return nil
		}
	}
}
