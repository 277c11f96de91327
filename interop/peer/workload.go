package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log"
	"math/big"
	"net/url"
	"strings"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"nsm.example/interop/wire"
)

// authorityLife is how long a trust domain lasts.
const authorityLife = 24 * time.Hour

// authority signs the identities of one trust domain.
type authority struct {
	domain string
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
}

// workloads serves the SPIFFE Workload API, one socket a process, with identities that are renewed again and again.
type workloads struct {
	pb.UnimplementedSpiffeWorkloadAPIServer
	ctx       context.Context
	own       *authority
	all       []*authority
	name      string
	life      time.Duration
	rotations time.Duration
}

// workload reads NSM_WORKLOAD (name=path,...), NSM_TRUST_DOMAIN, INTEROP_ROTATION, and INTEROP_FEDERATED: names of
// processes that belong to another trust domain, which this one federates with.
func workload(ctx context.Context) error {
	home, err := newAuthority(text("NSM_TRUST_DOMAIN", "interop.nsm"))
	if err != nil {
		return err
	}
	far, err := newAuthority("federated.nsm")
	if err != nil {
		return err
	}
	foreign := map[string]bool{}
	for _, name := range list("INTEROP_FEDERATED") {
		foreign[name] = true
	}
	failed := make(chan error)
	pairs := list("NSM_WORKLOAD")
	for _, pair := range pairs {
		name, socket, _ := strings.Cut(pair, "=")
		one := &workloads{ctx: ctx, own: home, all: []*authority{home, far}, name: name, rotations: duration("INTEROP_ROTATION", time.Hour)}
		one.life = 3 * one.rotations
		if foreign[name] {
			one.own = far
		}
		listener, err := wire.Listen("unix://" + socket)
		if err != nil {
			return err
		}
		server := grpc.NewServer()
		pb.RegisterSpiffeWorkloadAPIServer(server, one)
		go func() { failed <- server.Serve(listener) }()
		go func() {
			<-ctx.Done()
			server.Stop()
		}()
	}
	for range pairs {
		err = <-failed
	}
	return err
}

func newAuthority(domain string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: domain}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(authorityLife), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: domain}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{domain, key, cert}, err
}

// issue makes a new key and certificate for a process.
func (a *authority) issue(name string, life time.Duration) (*pb.X509SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	id := &url.URL{Scheme: "spiffe", Host: a.domain, Path: "/" + name}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life), URIs: []*url.URL{id},
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	return &pb.X509SVID{SpiffeId: id.String(), X509Svid: der, X509SvidKey: private, Bundle: a.cert.Raw}, err
}

func isWorkload(ctx context.Context) error {
	values, _ := metadata.FromIncomingContext(ctx)
	if header := values.Get("workload.spiffe.io"); len(header) != 1 || header[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	return nil
}

// until sends again after each rotation.
func (w *workloads) until(ctx context.Context, send func() error) error {
	if err := isWorkload(ctx); err != nil {
		return err
	}
	for {
		if err := send(); err != nil {
			return err
		}
		select {
		case <-time.After(w.rotations):
		case <-ctx.Done():
			return ctx.Err()
		case <-w.ctx.Done():
			return nil
		}
	}
}

// FetchX509SVID answers with a new identity, and again after each rotation.
func (w *workloads) FetchX509SVID(_ *pb.X509SVIDRequest, stream grpc.ServerStreamingServer[pb.X509SVIDResponse]) error {
	return w.until(stream.Context(), func() error {
		svid, err := w.own.issue(w.name, w.life)
		if err != nil {
			return err
		}
		federated := map[string][]byte{}
		for _, other := range w.all {
			if other != w.own {
				federated[fmt.Sprintf("spiffe://%s", other.domain)] = other.cert.Raw
			}
		}
		log.Printf("a new identity for %s", svid.SpiffeId)
		return stream.Send(&pb.X509SVIDResponse{Svids: []*pb.X509SVID{svid}, FederatedBundles: federated})
	})
}

// FetchX509Bundles answers with all trust domains.
func (w *workloads) FetchX509Bundles(_ *pb.X509BundlesRequest, stream grpc.ServerStreamingServer[pb.X509BundlesResponse]) error {
	return w.until(stream.Context(), func() error {
		bundles := map[string][]byte{}
		for _, one := range w.all {
			bundles[fmt.Sprintf("spiffe://%s", one.domain)] = one.cert.Raw
		}
		return stream.Send(&pb.X509BundlesResponse{Bundles: bundles})
	})
}
