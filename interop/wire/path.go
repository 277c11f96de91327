package wire

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"time"

	"github.com/golang-jwt/jwt/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/timestamppb"

	"nsm.example/interop/pb/connection"
)

// Dial connects to url; every call on it carries tokens.
func (i *Identity) Dial(url string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx, url) }),
		grpc.WithTransportCredentials(i.ClientCredentials()),
		grpc.WithPerRPCCredentials(outgoing{i}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
}

// NewServer serves with mutual TLS.
func (i *Identity) NewServer() *grpc.Server {
	return grpc.NewServer(grpc.Creds(i.ServerCredentials()), grpc.InTapHandle(recordCall))
}

// Caller is the other side of an incoming call.
func Caller(ctx context.Context) Info {
	if known, ok := peer.FromContext(ctx); ok {
		info, _ := known.AuthInfo.(Info)
		return info
	}
	return Info{}
}

// incoming is the token that the caller made for us.
func incoming(ctx context.Context) (string, time.Time, error) {
	values, _ := metadata.FromIncomingContext(ctx)
	tokens, ends := values.Get(tokenKey), values.Get(expiresKey)
	if len(tokens) != 1 || len(ends) != 1 {
		return "", time.Time{}, fmt.Errorf("the call carries %d tokens and %d expiries, must carry one of each", len(tokens), len(ends))
	}
	expires, err := time.Parse(time.RFC3339Nano, ends[0])
	return tokens[0], expires, err
}

// NewID is a random UUID.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Enter makes name the hop at which a connection is. The returned function turns an answer into the caller's.
func Enter(c *connection.Connection, name string) (leave func(*connection.Connection), err error) {
	if c.Path == nil {
		c.Path = &connection.Path{}
	}
	path := c.Path
	back := path.Index
	at := int(path.Index)
	switch {
	case len(path.PathSegments) == 0:
		if c.Id == "" {
			c.Id = NewID()
		}
		path.Index, back = 0, 0
		path.PathSegments = []*connection.PathSegment{{Name: name, Id: c.Id}}
	case at < len(path.PathSegments) && path.PathSegments[at].Name == name:
		c.Id = path.PathSegments[at].Id
	case at >= len(path.PathSegments):
		return nil, fmt.Errorf("path index %d of %d segments", at, len(path.PathSegments))
	case path.PathSegments[at].Id != c.Id:
		return nil, fmt.Errorf("connection %q is segment %q of its path", c.Id, path.PathSegments[at].Id)
	default:
		next := at + 1
		if next == len(path.PathSegments) {
			path.PathSegments = append(path.PathSegments, &connection.PathSegment{Name: name, Id: NewID()})
		} else if path.PathSegments[next].Name != name {
			path.PathSegments[next].Name, path.PathSegments[next].Id = name, NewID()
		}
		path.Index = uint32(next)
		c.Id = path.PathSegments[next].Id
	}
	return func(answer *connection.Connection) {
		answer.Path.Index = back
		answer.Id = answer.Path.PathSegments[back].Id
	}, nil
}

// Sign writes the caller's token and our own into the path of an incoming call.
func (i *Identity) Sign(ctx context.Context, path *connection.Path) error {
	token, expires, err := incoming(ctx)
	if err != nil {
		return err
	}
	if path.Index == 0 {
		return fmt.Errorf("the caller has no segment in the path")
	}
	before, own := path.PathSegments[path.Index-1], path.PathSegments[path.Index]
	before.Token, before.Expires = token, timestamppb.New(expires)
	token, expires, err = i.Token(Caller(ctx).Peer())
	own.Token, own.Expires = token, timestamppb.New(expires)
	return err
}

// Left is the part of a path up to and with its index: what a server judges.
func Left(path *connection.Path) *connection.Path {
	return &connection.Path{Index: path.Index, PathSegments: path.PathSegments[:path.Index+1]}
}

// RegistryPath is the way of a call between registries, as its metadata carries it.
type RegistryPath struct {
	Index        int
	PathSegments []*RegistrySegment
}

// RegistrySegment is one hop of it.
type RegistrySegment struct {
	Token string `json:"token"`
}

// Subject is the unverified subject of a token.
func Subject(token string) string {
	claims := jwt.RegisteredClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil {
		return ""
	}
	return claims.Subject
}

// OutgoingRegistry attaches a registry path to a call. The answer's is read with AnsweredRegistry.
func OutgoingRegistry(ctx context.Context, path RegistryPath, header *metadata.MD) (context.Context, grpc.CallOption) {
	text, _ := json.Marshal(path)
	return metadata.AppendToOutgoingContext(ctx, pathKey, string(text)), grpc.Header(header)
}

// AnsweredRegistry is the path that a registry returned.
func AnsweredRegistry(header metadata.MD) (RegistryPath, error) { return readRegistry(header) }

func readRegistry(values metadata.MD) (path RegistryPath, err error) {
	texts := values.Get(pathKey)
	if len(texts) == 0 {
		return path, fmt.Errorf("no path in the metadata")
	}
	err = json.Unmarshal([]byte(texts[len(texts)-1]), &path)
	return path, err
}

// EnterRegistry takes an incoming call to a registry: its path with both tokens, and the path_ids they make.
func (i *Identity) EnterRegistry(ctx context.Context, ids []string) (RegistryPath, []string, error) {
	values, _ := metadata.FromIncomingContext(ctx)
	path, err := readRegistry(values)
	if err != nil {
		return path, nil, err
	}
	theirs, _, err := incoming(ctx)
	if err != nil {
		return path, nil, err
	}
	ours, _, err := i.Token(Caller(ctx).Peer())
	if err != nil {
		return path, nil, err
	}
	if len(path.PathSegments) == 0 {
		path.PathSegments = []*RegistrySegment{{theirs}, {ours}}
	} else {
		if path.Index >= len(path.PathSegments) {
			return path, nil, fmt.Errorf("path index %d of %d segments", path.Index, len(path.PathSegments))
		}
		path.PathSegments[path.Index].Token = theirs
		if path.Index+1 == len(path.PathSegments) {
			path.PathSegments = append(path.PathSegments, &RegistrySegment{})
		}
		path.PathSegments[path.Index+1].Token = ours
	}
	path.Index++
	ids = put(ids, path.Index-1, Subject(theirs))
	return path, put(ids, path.Index, Subject(ours)), nil
}

func put(ids []string, at int, id string) []string {
	if at < len(ids) {
		ids[at] = id
		return ids
	}
	return append(ids, id)
}

// AnswerRegistry sends the path back in the first headers.
func AnswerRegistry(ctx context.Context, path RegistryPath) error {
	path.Index--
	text, _ := json.Marshal(path)
	return grpc.SendHeader(ctx, metadata.Pairs(pathKey, string(text)))
}
