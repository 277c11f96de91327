package main

import (
	"context"
	"fmt"
	"log"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"nsm.example/interop/pb/connection"
	"nsm.example/interop/pb/connectioncontext"
	"nsm.example/interop/pb/networkservice"
	"nsm.example/interop/wire"
)

const (
	ownNetns   = "/proc/self/ns/net"
	retryPause = 200 * time.Millisecond
	// strictLimit is how many refusals in a row a strict client bears.
	strictLimit = 2
)

// wish is one connection that a client keeps.
type wish struct {
	*Setting
	to, interfaceName string
	timeout           time.Duration
	// refresh is how long an answer is good for; 0 for a fifth of what its tokens live.
	refresh time.Duration
	// strict ends the process when a connection that was up is refused more than strictLimit times in a row. Once can happen
	// to anybody: between the handshake of a transport and the answer on it, the server's identity is renewed, and the token
	// in the answer is not of the key that the handshake showed.
	strict     bool
	refused    int
	current    *connection.Connection
	preference *connection.Mechanism
}

func client(ctx context.Context, setting *Setting) error {
	var group sync.WaitGroup
	for number, wanted := range list("NSM_NETWORK_SERVICES") {
		one, err := newWish(setting, number, wanted)
		if err != nil {
			return err
		}
		group.Go(func() { one.keep(ctx) })
	}
	group.Wait()
	return nil
}

func newWish(setting *Setting, number int, wanted string) (*wish, error) {
	parsed, err := url.Parse(wanted)
	if err != nil || parsed.Scheme != "kernel" {
		return nil, fmt.Errorf("network service %q: %v; write kernel://service/interface", wanted, err)
	}
	inode, err := wire.InodeURL(ownNetns)
	if err != nil {
		return nil, err
	}
	name := strings.TrimPrefix(parsed.Path, "/")
	id := fmt.Sprintf("%s-%d", setting.name, number)
	marks := labels("NSM_LABELS")
	for key, values := range parsed.Query() {
		marks[key] = values[0]
	}
	preference := &connection.Mechanism{Cls: "LOCAL", Type: "KERNEL", Parameters: map[string]string{"inodeURL": inode, "name": name}}
	first := &connection.Connection{
		Id: id, NetworkService: parsed.Host, Labels: marks,
		Context: &connectioncontext.ConnectionContext{IpContext: &connectioncontext.IPContext{}},
		Path:    &connection.Path{PathSegments: []*connection.PathSegment{{Name: setting.name, Id: id}}},
	}
	return &wish{Setting: setting, to: text("NSM_CONNECT_TO", ""), interfaceName: name, timeout: duration("NSM_REQUEST_TIMEOUT", 15*time.Second),
		refresh: duration("INTEROP_REFRESH", 0), strict: text("INTEROP_STRICT", "") == "true", current: first, preference: preference}, nil
}

// keep asks until it is answered, asks again before the answer expires and when the other side reports a loss, and
// closes at the end.
func (w *wish) keep(ctx context.Context) {
	for ctx.Err() == nil {
		way, err := w.request(ctx)
		if err != nil {
			w.refused++
			if w.strict && w.current.Mechanism != nil && w.refused > strictLimit && ctx.Err() == nil {
				log.Fatalf("%s is refused again and again though it was up: %v", w.current.Id, err)
			}
			log.Printf("%s is refused: %v", w.current.Id, err)
			if w.current.Mechanism != nil {
				w.look(ctx)
			}
			pause(ctx, retryPause)
			continue
		}
		w.refused = 0
		log.Printf("%s is up: endpoint %s, state %s", w.current.Id, w.current.NetworkServiceEndpointName, w.current.State)
		w.watch(ctx, way)
		_ = way.Close()
	}
	w.close()
}

// request asks on a transport of its own and returns that.
func (w *wish) request(ctx context.Context) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	way, err := w.identity.Dial(w.to)
	if err != nil {
		return nil, err
	}
	call := &wire.Call{Files: []string{ownNetns}}
	request := &networkservice.NetworkServiceRequest{Connection: w.current, MechanismPreferences: []*connection.Mechanism{w.preference}}
	answer, err := networkservice.NewNetworkServiceClient(way).Request(wire.WithCall(ctx, call), request)
	if err == nil {
		err = w.judge(ctx, answer, call.Info)
	}
	if err != nil {
		_ = way.Close()
		return nil, err
	}
	w.current = answer
	return way, nil
}

// judge holds what every answer to a client must be.
func (w *wish) judge(ctx context.Context, answer *connection.Connection, server wire.Info) error {
	segments := answer.GetPath().GetPathSegments()
	switch {
	case answer.Id != w.current.Id || answer.Path.GetIndex() != 0:
		return fmt.Errorf("WRONG ANSWER: id %s index %d, must be the caller's own", answer.Id, answer.Path.GetIndex())
	case len(segments) < 2 || segments[0].Name != w.name:
		return fmt.Errorf("WRONG ANSWER: a path of %d segments", len(segments))
	case answer.State != connection.State_UP:
		return fmt.Errorf("WRONG ANSWER: state %s", answer.State)
	case answer.Mechanism.GetParameters()["inodeURL"] != w.preference.Parameters["inodeURL"]:
		return fmt.Errorf("WRONG ANSWER: another namespace %q", answer.Mechanism.GetParameters()["inodeURL"])
	}
	for _, segment := range segments {
		if segment.Token == "" || segment.Expires.AsTime().Before(time.Now()) {
			return fmt.Errorf("WRONG ANSWER: segment %s has no token that lives", segment.Name)
		}
	}
	if err := w.policies.Client(ctx, answer.Path, server); err != nil {
		return fmt.Errorf("WRONG ANSWER: %w", err)
	}
	return nil
}

// watch returns when it is time to ask again.
func (w *wish) watch(ctx context.Context, way *grpc.ClientConn) {
	left := time.Until(w.current.Path.PathSegments[0].Expires.AsTime())
	for _, segment := range w.current.Path.PathSegments {
		left = min(left, time.Until(segment.Expires.AsTime()))
	}
	left /= 5
	if w.refresh > 0 {
		left = w.refresh
	}
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	stream, err := w.monitor(ctx, way)
	for err == nil {
		var event *connection.ConnectionEvent
		if event, err = stream.Recv(); err == nil && w.lost(event) {
			log.Printf("%s is reported as lost: %s", w.current.Id, event.Type)
			w.reselect()
			return
		}
	}
	if ctx.Err() == nil {
		log.Printf("the monitor stream of %s ended: %v", w.current.Id, status.Code(err))
		if status.Code(err) == codes.Canceled {
			log.Printf("WRONG END: no server may end a stream as cancelled; nobody would heal")
			<-ctx.Done()
		}
	}
}

// look asks once how the other side has a connection that was up and is refused now: while a refresh fails upstream's
// client goes on watching, and a loss that came between two streams is in the first event of the next.
func (w *wish) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	way, err := w.identity.Dial(w.to)
	if err != nil {
		return
	}
	defer way.Close()
	stream, err := w.monitor(ctx, way)
	if err != nil {
		return
	}
	if event, err := stream.Recv(); err == nil && w.lost(event) {
		log.Printf("%s is known as lost", w.current.Id)
		w.reselect()
	}
}

// monitor opens a stream of what the other side says of this connection.
func (w *wish) monitor(ctx context.Context, way *grpc.ClientConn) (grpc.ServerStreamingClient[connection.ConnectionEvent], error) {
	selector := &connection.MonitorScopeSelector{PathSegments: []*connection.PathSegment{{Name: w.name, Id: w.current.Id}}}
	return connection.NewMonitorConnectionClient(way).MonitorConnections(ctx, selector)
}

// lost says whether an event tells that this very connection is gone.
func (w *wish) lost(event *connection.ConnectionEvent) bool {
	for _, one := range event.Connections {
		path := one.GetPath()
		if path.GetIndex() == 1 && len(path.PathSegments) > 0 && path.PathSegments[0].Id == w.current.Id {
			return event.Type == connection.ConnectionEventType_DELETE || one.State == connection.State_DOWN
		}
	}
	return false
}

// reselect makes the next Request choose anew.
func (w *wish) reselect() {
	w.current = proto.Clone(w.current).(*connection.Connection)
	w.current.State, w.current.NetworkServiceEndpointName, w.current.Mechanism = connection.State_RESELECT_REQUESTED, "", nil
}

func (w *wish) close() {
	ctx, cancel := context.WithTimeout(context.Background(), w.timeout)
	defer cancel()
	way, err := w.identity.Dial(w.to)
	if err != nil {
		return
	}
	defer way.Close()
	if _, err := networkservice.NewNetworkServiceClient(way).Close(wire.WithCall(ctx, &wire.Call{Files: []string{ownNetns}}), w.current); err != nil {
		log.Printf("closing %s: %v", w.current.Id, err)
	}
}
