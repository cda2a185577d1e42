package p8broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "example.com/p8broker/p8brokerpb"
)

const (
	requestTimeout = 10 * time.Second
	silence        = 40 * time.Second // the longest of a watch; the broker says something every 15 s
	firstPause     = 100 * time.Millisecond
	longestPause   = 10 * time.Second
	longestTold    = 5 * time.Minute // a broker's mistake must not silence a client for a day
	refusedPause   = 30 * time.Second
)

// Broker says where the broker is, and who asks. Each request and each watch has a connection of its own, for which the
// files are read anew: replaced certificates and moved replicas are found without more ado.
type Broker struct {
	Addr       string        // host:port; the name may stand for many replicas
	CACert     string        // the CA of the broker's certificate, PEM
	Cert, Key  string        // this client's certificate and key, PEM; or
	BearerFile string        // a trusted issuer's JWT
	Refused    time.Duration // the longest pause after a refusal; 30 s where 0
}

func (b Broker) connect() (*grpc.ClientConn, error) {
	pem, err := os.ReadFile(b.CACert)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", b.CACert)
	}
	if b.Cert != "" {
		pair, err := tls.LoadX509KeyPair(b.Cert, b.Key)
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %w", b.Cert, b.Key, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return grpc.NewClient("dns:///"+b.Addr,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}`),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}))
}

// call connects, adds the bearer token where there is one, and says of a failure what a person can act on.
func (b Broker) call(ctx context.Context, do func(context.Context, pb.TokenServiceClient) error) error {
	conn, err := b.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	if b.BearerFile != "" {
		jwt, err := os.ReadFile(b.BearerFile)
		if err != nil {
			return err
		}
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(jwt)))
	}
	err = do(ctx, pb.NewTokenServiceClient(conn))
	switch info := detail[*errdetails.ErrorInfo](err); {
	case err == nil:
		return nil
	case info != nil:
		return fmt.Errorf("the broker at %s says %s %v: %w", b.Addr, info.Reason, info.Metadata, err)
	default:
		return fmt.Errorf("no answer from the broker at %s (is it there, and does it take this certificate?): %w", b.Addr, err)
	}
}

func (b Broker) issue(ctx context.Context, request *pb.IssueTokenRequest) (answer *pb.IssueTokenResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err = b.call(ctx, func(ctx context.Context, client pb.TokenServiceClient) error {
		answer, err = client.IssueToken(ctx, request)
		return err
	})
	return answer, err
}

// watch hears one stream to its end.
func (b Broker) watch(ctx context.Context, from uint64, heard func(*pb.WatchResponse)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	alarm := time.AfterFunc(silence, cancel)
	defer alarm.Stop()
	return b.call(ctx, func(ctx context.Context, client pb.TokenServiceClient) error {
		stream, err := client.Watch(ctx, &pb.WatchRequest{FromRevision: from})
		for err == nil {
			var message *pb.WatchResponse
			if message, err = stream.Recv(); err == nil {
				alarm.Reset(silence)
				heard(message)
			}
		}
		return err
	})
}

// pause is how long to wait before the next try: exponential with full jitter, longer where waiting is idle, and never
// shorter than the broker says.
func (b Broker) pause(err error, failures int) time.Duration {
	var told time.Duration
	info := detail[*errdetails.RetryInfo](err)
	if info != nil {
		told = min(info.RetryDelay.AsDuration(), longestTold)
	}
	code := status.Code(err)
	// A certificate may have been replaced since: the first time, the next connection is made at once.
	if refused(err) && (code != codes.Unauthenticated || failures > 0) || code == codes.ResourceExhausted && info == nil {
		longest := b.Refused
		if longest == 0 {
			longest = refusedPause
		}
		return longest/2 + rand.N(longest/2)
	}
	return told + rand.N(min(firstPause<<min(failures, 10), longestPause))
}

// refused says whether trying again soon would not help.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.InvalidArgument, codes.NotFound, codes.Unimplemented, codes.Unauthenticated:
		return true
	}
	return false
}

// reason is the broker's stable name of what is wrong, such as NO_POLICY.
func reason(err error) string {
	return detail[*errdetails.ErrorInfo](err).GetReason()
}

// detail finds one kind of detail of a status.
func detail[T any](err error) (found T) {
	of, _ := status.FromError(err)
	for _, any := range of.Details() {
		if detail, ok := any.(T); ok {
			return detail
		}
	}
	return found
}

func sleep(ctx context.Context, wait time.Duration) {
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
}
