package p8broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "example.com/p8broker/p8brokerpb"
)

var games = &pb.IssueTokenRequest{AppGroup: "games", Role: pb.Role_ROLE_APP_MANAGER}

func keep(t *testing.T, broker Broker, ask *pb.IssueTokenRequest) *TokenSource {
	t.Helper()
	source, err := NewTokenSource(broker, ask)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Close)
	return source
}

func tokenOf(t *testing.T, source *TokenSource) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	jwt, err := source.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return jwt
}

// failure is the error of a source, whose text must have all of these.
func failure(t *testing.T, source *TokenSource, patience time.Duration, texts ...string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	jwt, err := source.Token(ctx)
	if err == nil {
		t.Fatalf("there is a token of %d bytes", len(jwt))
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("no %q in: %v", text, err)
		}
	}
	return err
}

// idOf is a token's id: a digest of header and payload.
func idOf(jwt string) string {
	sum := sha256.Sum256([]byte(jwt[:strings.LastIndex(jwt, ".")]))
	return hex.EncodeToString(sum[:])
}

func TestManyCallersShareOneRequestAndItsToken(t *testing.T) {
	t.Parallel()
	p := start(t)
	source := keep(t, p.broker("client"), games)
	first := tokenOf(t, source)
	var callers sync.WaitGroup
	for range 50 {
		callers.Go(func() {
			if jwt, err := source.Token(t.Context()); err != nil || jwt != first {
				t.Errorf("another token, or %v", err)
			}
		})
	}
	callers.Wait()
	if signed, reused := p.audited("SIGNED"), p.audited("REUSED"); signed != 1 || reused != 0 {
		t.Errorf("signed %d, reused %d", signed, reused)
	}
	if other := tokenOf(t, keep(t, p.broker("client"), games)); other != first {
		t.Error("the broker did not hand out the same token to a second process")
	}
}

func TestATokenIsReplacedBeforeHalfOfItsLifeIsOver(t *testing.T) {
	t.Parallel()
	p := start(t)
	started := time.Now()
	source := keep(t, p.broker("client"), &pb.IssueTokenRequest{
		AppGroup: "games", Role: pb.Role_ROLE_APP_MANAGER, Ttl: durationpb.New(30 * time.Second),
	})
	first := tokenOf(t, source)
	eventually(t, "there is another token", func() bool { return tokenOf(t, source) != first })
	if age := time.Since(started); age < 12*time.Second {
		t.Errorf("replaced after %v of 30 s", age)
	}
}

func TestARevokedTokenIsDroppedAndReplaced(t *testing.T) {
	t.Parallel()
	p := start(t)
	source := keep(t, p.broker("client"), games)
	first := tokenOf(t, source)
	p.run("operator", "revoke", "token", idOf(first), "--reason", "test", "--yes")
	eventually(t, "there is another token", func() bool { return tokenOf(t, source) != first })
}

func TestATokenThatAppleRefusesIsReplacedOnce(t *testing.T) {
	t.Parallel()
	p := start(t)
	source := keep(t, p.broker("client"), games)
	first := tokenOf(t, source)
	for range 100 {
		source.Unauthorized(first)
	}
	eventually(t, "there is another token", func() bool { return tokenOf(t, source) != first })
	for range 100 {
		source.Unauthorized(first)
	}
	tokenOf(t, source)
	if signed := p.audited("SIGNED"); signed != 2 {
		t.Errorf("signed %d", signed)
	}
}

func TestARevokedClientHasNoTokenUntilItIsReinstated(t *testing.T) {
	t.Parallel()
	p := start(t)
	source := keep(t, p.broker("client"), games)
	first := tokenOf(t, source)
	p.run("operator", "revoke", "client", client, "--reason", "test", "--yes")
	eventually(t, "the source says so", func() bool {
		_, err := source.Token(t.Context())
		return reason(err) == "CLIENT_REVOKED"
	})
	p.run("operator", "reinstate", "client", client, "--reason", "test")
	eventually(t, "there is a token again", func() bool {
		jwt, err := source.Token(t.Context())
		return err == nil && jwt != first
	})
}

func TestABrokerThatIsAwayTakesNoTokenAwayAndIsFoundAgain(t *testing.T) {
	t.Parallel()
	p := start(t)
	source := keep(t, p.broker("client"), games)
	first := tokenOf(t, source)
	p.down()
	source.Unauthorized(first)
	if tokenOf(t, source) != first {
		t.Error("another token from nowhere")
	}
	other := keep(t, p.broker("client"), games)
	err := failure(t, other, time.Second, "no answer from the broker at "+p.addr, "connection refused")
	if refused(err) {
		t.Error("a broker that is away is no refusal")
	}
	p.up()
	tokenOf(t, other)
	eventually(t, "the first one has another token", func() bool { return tokenOf(t, source) != first })
	// Its next refresh is minutes away: only a watch that stands again can tell.
	last := tokenOf(t, source)
	p.run("operator", "revoke", "token", idOf(last), "--reason", "test", "--yes")
	eventually(t, "its watch stands again", func() bool { return tokenOf(t, source) != last })
}

func TestWithoutAPolicyTheRefusalNamesTheDecision(t *testing.T) {
	t.Parallel()
	p := start(t)
	err := failure(t, keep(t, p.broker("stranger"), games), 20*time.Second, "NO_POLICY", "decision_id")
	if reason(err) != "NO_POLICY" || !refused(err) {
		t.Error(err)
	}
}

func TestABadCertificateIsNamed(t *testing.T) {
	t.Parallel()
	p, foreign := start(t), start(t)
	broker := p.broker("client")
	broker.Cert, broker.Key = foreign.broker("client").Cert, foreign.broker("client").Key
	// What the transport saw is a race in TLS 1.3: an alert, or a connection that is gone.
	failure(t, keep(t, broker, games), time.Second, "does it take this certificate?", broker.Addr)
	broker = p.broker("client")
	broker.CACert = foreign.broker("client").CACert
	failure(t, keep(t, broker, games), time.Second, "no answer from the broker", "certificate signed by unknown authority")
	broker.Key = filepath.Join(p.dir, "nothing.pem")
	if _, err := NewTokenSource(broker, games); err == nil || !strings.Contains(err.Error(), "nothing.pem") {
		t.Error(err)
	}
}

func TestAJobsTokenNamesTheCallerAndAQuotaSaysWhenToComeBack(t *testing.T) {
	t.Parallel()
	p := start(t)
	broker := p.broker("client")
	broker.Cert, broker.Key, broker.BearerFile = "", "", os.Getenv("P8BROKER_TEST_JWT")
	source := keep(t, broker, games)
	first := tokenOf(t, source)
	// The policy has one token an hour: a second one is refused, with when its hour ends.
	_, err := broker.issue(t.Context(), &pb.IssueTokenRequest{AppGroup: "games", Role: games.Role, Fresh: true})
	if reason(err) != "QUOTA_EXCEEDED" {
		t.Fatal(err)
	}
	if wait := broker.pause(err, 0); wait < time.Second || wait > longestTold+longestPause {
		t.Errorf("waits %v", wait)
	}
	if tokenOf(t, source) != first {
		t.Error("another token")
	}
	broker.BearerFile = filepath.Join(p.dir, "bad.jwt")
	os.WriteFile(broker.BearerFile, []byte("no token"), 0o600)
	failure(t, keep(t, broker, games), 20*time.Second, "BEARER_")
}

func TestPausesDoubleAndAreRandom(t *testing.T) {
	away := status.Error(codes.Unavailable, "away")
	for failures, most := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000} {
		most *= time.Millisecond
		var low, high bool
		for range 500 {
			wait := Broker{}.pause(away, failures)
			low, high = low || wait < most/4, high || wait > most*3/4
			if wait > most {
				t.Fatalf("%v after %d failures", wait, failures)
			}
		}
		if !low || !high {
			t.Errorf("no jitter after %d failures", failures)
		}
	}
	if wait := (Broker{}).pause(status.Error(codes.PermissionDenied, "no"), 0); wait < refusedPause/2 {
		t.Errorf("%v after a refusal", wait)
	}
}
