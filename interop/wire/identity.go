// Package wire is the protocol of a mesh as a peer in Go speaks it: identity, tokens, paths, descriptors, policies.
//
// It is written from the protocol's description and shares no code with any implementation of a mesh. Not here: what a
// role does with it (package peer).
package wire

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"github.com/golang-jwt/jwt/v4"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/credentials"
)

// Keys of the metadata that every call carries.
const (
	tokenKey   = "nsm-client-token"
	expiresKey = "nsm-client-token-expires"
	pathKey    = "path"
)

// Identity is the current identity of this process, and what it signs.
type Identity struct {
	source *workloadapi.X509Source
	life   time.Duration
	// Forge makes tokens that nobody may accept: for another audience, expired, or signed by another key.
	Forge Forgery
}

// Forgery is what is wrong with the tokens of a dishonest peer.
type Forgery string

// All that a peer may do wrong.
const (
	Honest     Forgery = ""
	Audience   Forgery = "audience"
	Expired    Forgery = "expired"
	StrangeKey Forgery = "key"
)

// NewIdentity waits for an identity from the Workload API that SPIFFE_ENDPOINT_SOCKET names. Its tokens live at most life.
func NewIdentity(ctx context.Context, life time.Duration) (*Identity, error) {
	source, err := workloadapi.NewX509Source(ctx)
	return &Identity{source: source, life: life}, err
}

// ID is the SPIFFE ID of this process.
func (i *Identity) ID() string {
	svid, err := i.source.GetX509SVID()
	if err != nil {
		return ""
	}
	return svid.ID.String()
}

// Token signs a token for a peer; audience is empty where the transport has no peer.
func (i *Identity) Token(audience string) (string, time.Time, error) {
	svid, err := i.source.GetX509SVID()
	if err != nil {
		return "", time.Time{}, err
	}
	expires := time.Now().Add(i.life)
	if end := svid.Certificates[0].NotAfter; end.Before(expires) {
		expires = end
	}
	claims := jwt.RegisteredClaims{Subject: svid.ID.String(), ExpiresAt: jwt.NewNumericDate(expires)}
	if audience != "" {
		claims.Audience = jwt.ClaimStrings{audience}
	}
	key, err := i.forge(&claims, svid.PrivateKey)
	if err != nil {
		return "", time.Time{}, err
	}
	text, err := jwt.NewWithClaims(jwt.SigningMethodES256, claims).SignedString(key)
	return text, expires, err
}

// forge spoils the claims or the key, for a peer that is not honest.
func (i *Identity) forge(claims *jwt.RegisteredClaims, key crypto.Signer) (crypto.Signer, error) {
	switch i.Forge {
	case Honest:
		return key, nil
	case Audience:
		claims.Audience = jwt.ClaimStrings{"spiffe://elsewhere/nobody"}
		return key, nil
	case Expired:
		claims.ExpiresAt = jwt.NewNumericDate(time.Now().Add(-time.Minute))
		return key, nil
	case StrangeKey:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, fmt.Errorf("forgery %q is not known", i.Forge)
}

// Info is what is known of the other side of a transport.
type Info struct {
	credentials.TLSInfo
	// Files is nil on transports that carry none.
	Files *Conn
}

// Leaf is the peer's certificate, nil when there is none.
func (i Info) Leaf() *x509.Certificate {
	if len(i.State.PeerCertificates) == 0 {
		return nil
	}
	return i.State.PeerCertificates[0]
}

// Peer is the peer's SPIFFE ID.
func (i Info) Peer() string {
	if leaf := i.Leaf(); leaf != nil && len(leaf.URIs) > 0 {
		return leaf.URIs[0].String()
	}
	return ""
}

// transport is mutual TLS above a connection that may carry files.
type transport struct {
	credentials.TransportCredentials
}

func (t transport) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, raw)
	return conn, withFiles(info, raw), err
}

func (t transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(raw)
	return conn, withFiles(info, raw), err
}

func (t transport) Clone() credentials.TransportCredentials {
	return transport{t.TransportCredentials.Clone()}
}

func withFiles(info credentials.AuthInfo, raw net.Conn) credentials.AuthInfo {
	known, ok := info.(credentials.TLSInfo)
	if !ok {
		return info
	}
	files, _ := raw.(*Conn)
	return Info{TLSInfo: known, Files: files}
}

// ClientCredentials are for dialling: any SPIFFE ID of a known trust domain may answer.
func (i *Identity) ClientCredentials() credentials.TransportCredentials {
	config := tlsconfig.MTLSClientConfig(i.source, i.source, tlsconfig.AuthorizeAny())
	config.MinVersion = tls.VersionTLS12
	return transport{credentials.NewTLS(config)}
}

// ServerCredentials are for serving: a certificate is mandatory, any SPIFFE ID may call.
func (i *Identity) ServerCredentials() credentials.TransportCredentials {
	config := tlsconfig.MTLSServerConfig(i.source, i.source, tlsconfig.AuthorizeAny())
	config.MinVersion = tls.VersionTLS12
	return transport{credentials.NewTLS(config)}
}

// outgoing puts a token for this very server into each call, and the call's files into its transport.
type outgoing struct{ identity *Identity }

type callKey struct{}

// Call is what one outgoing call takes along and learns.
type Call struct {
	// Files are paths whose descriptors go along.
	Files []string
	// Info is the server, known once the call is under way.
	Info Info
}

// WithCall attaches c to an outgoing call.
func WithCall(ctx context.Context, c *Call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

func (o outgoing) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	request, _ := credentials.RequestInfoFromContext(ctx)
	info, ok := request.AuthInfo.(Info)
	if !ok {
		return nil, fmt.Errorf("this transport has no TLS")
	}
	if call, ok := ctx.Value(callKey{}).(*Call); ok {
		call.Info = info
		for _, path := range call.Files {
			if err := info.Files.Queue(path); err != nil {
				return nil, err
			}
		}
	}
	token, expires, err := o.identity.Token(info.Peer())
	if err != nil {
		return nil, err
	}
	return map[string]string{tokenKey: token, expiresKey: expires.UTC().Format(time.RFC3339Nano)}, nil
}

func (outgoing) RequireTransportSecurity() bool { return true }
