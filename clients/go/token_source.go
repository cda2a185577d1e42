// Package p8broker keeps a fresh App Store Connect token at hand.
//
// One goroutine asks for tokens: the first at once, each next one before half of its life is over, one at a time for all
// callers. Another hears the broker's watch, and drops what is revoked.
package p8broker

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "example.com/p8broker/p8brokerpb"
)

// TokenSource keeps one token. It is safe for concurrent use.
type TokenSource struct {
	broker Broker
	ask    *pb.IssueTokenRequest
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	wake   chan struct{} // for the keeper: the token was dropped or reported

	mu      sync.Mutex // guards what follows
	held    *token
	err     error         // why the last request brought none
	news    uint64        // counts what was heard: an answer asked for before may hold a revoked token
	from    uint64        // the revision that the next watch starts at
	changed chan struct{} // closed, and replaced, when a request has ended
}

type token struct {
	jwt, id         string
	refresh, expiry time.Time // on the monotonic clock: a wrong wall clock does no harm
}

// NewTokenSource starts to keep a token. A broker that is away is no error; a file that can't be used is.
func NewTokenSource(broker Broker, ask *pb.IssueTokenRequest) (*TokenSource, error) {
	conn, err := broker.connect() // sends nothing yet
	if err != nil {
		return nil, err
	}
	conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	s := &TokenSource{broker: broker, ask: ask, cancel: cancel, wake: make(chan struct{}, 1), changed: make(chan struct{})}
	s.tasks.Go(func() { s.keep(ctx) })
	s.tasks.Go(func() { s.listen(ctx) })
	return s, nil
}

// Close ends the source.
func (s *TokenSource) Close() { s.cancel(); s.tasks.Wait() }

// Token is a valid JWT: at once where there is one, else as soon as there is one, or the broker refuses, or ctx ends.
func (s *TokenSource) Token(ctx context.Context) (string, error) {
	for {
		s.mu.Lock()
		held, err, changed := s.held, s.err, s.changed
		s.mu.Unlock()
		if held != nil && time.Now().Before(held.expiry) {
			return held.jwt, nil
		}
		if refused(err) {
			return "", err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err == nil {
				err = ctx.Err()
			}
			return "", fmt.Errorf("no token is valid, and there is no other yet: %w", err)
		}
	}
}

// Unauthorized says that Apple answered 401 to this token: a new one is asked for, once for each token.
func (s *TokenSource) Unauthorized(jwt string) {
	s.mu.Lock()
	if s.held != nil && s.held.jwt == jwt {
		s.held.refresh = time.Time{}
	}
	s.mu.Unlock()
	s.rouse()
}

// drop forgets the token if it is meant, and has the keeper ask anew.
func (s *TokenSource) drop(meant func(id string) bool) {
	s.mu.Lock()
	s.news++
	if s.held != nil && meant(s.held.id) {
		s.held = nil
	}
	s.mu.Unlock()
	s.rouse()
}

func (s *TokenSource) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *TokenSource) keep(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		s.mu.Lock()
		var due time.Duration
		if s.held != nil {
			due = time.Until(s.held.refresh)
		}
		s.mu.Unlock()
		if due > 0 {
			select {
			case <-time.After(due):
			case <-s.wake:
			case <-ctx.Done():
			}
		} else if err := s.issue(ctx); err != nil {
			slog.WarnContext(ctx, "no new token", "error", err)
			sleep(ctx, s.broker.pause(err, failures))
			failures++
		} else {
			failures = 0
		}
	}
}

// issue asks once.
func (s *TokenSource) issue(ctx context.Context) error {
	s.mu.Lock()
	// Fresh, as the broker hands out the last one again until half of its life is over.
	news, fresh := s.news, s.held != nil
	s.mu.Unlock()
	asked := time.Now() // before it is asked for: a slow network only shortens a life
	answer, err := s.broker.issue(ctx, &pb.IssueTokenRequest{
		AppGroup: s.ask.AppGroup, Role: s.ask.Role, Ttl: s.ask.Ttl, Scope: s.ask.Scope, Fresh: fresh,
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.news != news {
		return status.Error(codes.Aborted, "something was revoked while the token was on its way")
	}
	if s.err = err; err == nil {
		life := answer.ExpiresIn.AsDuration()
		s.held = &token{
			jwt: answer.Token, id: answer.TokenId,
			refresh: asked.Add(time.Duration(float64(life) * (0.40 + 0.08*rand.Float64()))),
			expiry:  asked.Add(life - min(5*time.Second, life/10)), // so that what is sent with it arrives in time
		}
		if s.from == 0 {
			s.from = answer.Revision
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return err
}

// listen keeps a watch open, from the revision of the first token on.
func (s *TokenSource) listen(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		s.mu.Lock()
		from, changed := s.from, s.changed
		s.mu.Unlock()
		if from == 0 {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		opened := time.Now()
		err := s.broker.watch(ctx, from, s.heard)
		if reason(err) == "CLIENT_REVOKED" {
			s.drop(func(string) bool { return true })
		}
		if time.Since(opened) > longestPause {
			failures = 0 // a watch that stood for a while is no failure like those before it
		}
		sleep(ctx, s.broker.pause(err, failures))
		failures++
	}
}

// heard takes in what the watch says. An event of a later version of the broker is a sign of life.
func (s *TokenSource) heard(message *pb.WatchResponse) {
	switch event := message.Event.(type) {
	case *pb.WatchResponse_Revoked:
		s.drop(func(id string) bool { return slices.Contains(event.Revoked.TokenIds, id) })
	case *pb.WatchResponse_Resynchronise: // something may be missing
		s.drop(func(string) bool { return true })
	case *pb.WatchResponse_Heartbeat: // all up to here has been told
		s.mu.Lock()
		s.from = message.Revision
		s.mu.Unlock()
	}
}
