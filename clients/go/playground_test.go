package p8broker

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const client = "spiffe://acme.internal/ns/ci/sa/release-bot"

// playground is a real broker on loopback, ended by its own process.
type playground struct {
	t         *testing.T
	dir, addr string
	process   *exec.Cmd
}

func start(t *testing.T) *playground {
	p := &playground{t: t, dir: t.TempDir(), addr: "127.0.0.1:0"}
	p.up()
	t.Cleanup(p.down)
	p.run("operator", "apply", "-f", os.Getenv("P8BROKER_TEST_DOCUMENT"))
	return p
}

func (p *playground) up() {
	ready := filepath.Join(p.dir, "ready.json")
	os.Remove(ready)
	p.process = exec.Command(os.Getenv("P8BROKER_TEST_BIN"), "dev", "--dir", p.dir, "--grpc", p.addr)
	if err := p.process.Start(); err != nil {
		p.t.Fatal(err)
	}
	var said struct {
		Addr string `json:"grpc_addr"`
	}
	eventually(p.t, "the playground is ready", func() bool {
		text, err := os.ReadFile(ready)
		return err == nil && json.Unmarshal(text, &said) == nil
	})
	p.addr = said.Addr
}

func (p *playground) down() {
	p.process.Process.Kill()
	p.process.Wait()
}

// broker is where it is, for somebody with a certificate.
func (p *playground) broker(who string) Broker {
	file := func(name string) string { return filepath.Join(p.dir, name) }
	return Broker{
		Addr: p.addr, CACert: file("ca.pem"), Cert: file(who + ".pem"), Key: file(who + "-key.pem"),
		Refused: 200 * time.Millisecond,
	}
}

// run runs the command line as somebody.
func (p *playground) run(who string, arguments ...string) []byte {
	p.t.Helper()
	b := p.broker(who)
	connection := []string{"--addr", b.Addr, "--cacert", b.CACert, "--cert", b.Cert, "--key", b.Key, "--output", "json"}
	output, err := exec.Command(os.Getenv("P8BROKER_TEST_BIN"), append(connection, arguments...)...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("%v: %v: %s", arguments, err, output)
	}
	return output
}

// audited counts the rows of the audit with this outcome for the client.
func (p *playground) audited(outcome string) int {
	rows := string(p.run("operator", "audit", "list", "--client", client))
	return strings.Count(rows, `"outcome":"`+outcome+`"`)
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for range 2500 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never happened: %s", what)
}
