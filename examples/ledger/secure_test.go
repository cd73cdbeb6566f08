package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/flags"
	"github.com/decree-raft/decree/rsm"
)

// secrets are files of tokens, of the token of each role, of one that is not among them, and of one whose time is over.
type secrets struct{ tokens, reader, writer, admin, wrong, expired string }

func newSecrets(t *testing.T) secrets {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var lines []string
	token := func(name string, role access.Role, expires time.Time) string {
		secret, line, err := access.NewToken(name, role, expires)
		if err != nil {
			t.Fatal(err)
		}
		if name != "wrong" {
			lines = append(lines, line)
		}
		return write(name, secret)
	}
	never := time.Time{}
	s := secrets{reader: token("reader", access.Read, never), writer: token("writer", access.Write, never), admin: token("admin", access.Admin, never),
		wrong: token("wrong", access.Admin, never), expired: token("expired", access.Admin, time.Now().Add(-time.Hour))}
	s.tokens = write("tokens", strings.Join(lines, "\n"))
	return s
}

// All ports of a node and of a proxy are TLS and ask for tokens: the commands, and whoever uses HTTP, get in with the flags for that, and nobody else does.
func TestTLSAndTokens(t *testing.T) {
	files := testkit.NewAuthority(t).Write(t, t.TempDir(), testkit.Subject{})
	s := newSecrets(t)
	port := flags.Port{Cert: files.Cert, Key: files.Key, Tokens: s.tokens}
	nodes := flags.Nodes{Cert: files.Cert, Key: files.Key, CA: files.CA, Token: s.writer}
	c := startTestCluster(t, func(cfg *serveConfig) { cfg.Port, cfg.Nodes = port, nodes })
	p := runTestProxy(t, proxyConfig{nodes: []string{c.config.Peers[1]}, Port: port, Nodes: nodes})
	ca, api := "-ca="+files.CA, "-api="+p.server.Addr()
	for name, args := range map[string][]string{
		"no token":         {"import", api, ca, "testdata/sample.csv"},
		"a wrong token":    {"import", api, ca, "-token-file=" + s.wrong, "testdata/sample.csv"},
		"one of yesterday": {"import", api, ca, "-token-file=" + s.expired, "testdata/sample.csv"},
		"a reader's token": {"import", api, ca, "-token-file=" + s.reader, "testdata/sample.csv"},
	} {
		if code, out, errs := ledgerCommand(t, "", args...); code != 1 || !strings.Contains(errs, "unauthenticated") && !strings.Contains(errs, "forbidden") {
			t.Errorf("%s: %d %s%s", name, code, out, errs)
		}
	}
	if code, out, errs := ledgerCommand(t, "", "import", api, ca, "-token-file="+s.writer, "testdata/sample.csv"); code != 0 {
		t.Errorf("import: %d %s%s", code, out, errs)
	}
	if code, out, errs := ledgerCommand(t, "", "balances", "-api="+c.config.API[2], ca, "-token-file="+s.reader, "-O", "csv"); code != 0 || out != string(sampleBalances) {
		t.Errorf("balances: %d %s%s", code, out, errs)
	}
	all := "-api=" + c.config.API[1] + "," + c.config.API[2] + "," + c.config.API[3]
	if code, out, errs := ledgerCommand(t, "", "verify", all, ca, "-token-file="+s.reader); code != 0 {
		t.Errorf("verify: %d %s%s", code, out, errs)
	}
	pem, err := os.ReadFile(files.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer web.CloseIdleConnections()
	ask := func(method, address, path, tokenFile, origin string) int {
		r, err := http.NewRequestWithContext(t.Context(), method, "https://"+address+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if tokenFile != "" {
			token, err := os.ReadFile(tokenFile)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		}
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		a, err := web.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		_, _ = io.Copy(io.Discard, a.Body) // what it says is not looked at
		return a.StatusCode
	}
	for _, address := range []string{c.config.HTTP[1], p.listener.Addr().String()} {
		for _, tt := range []struct {
			method, path, token, origin string
			want                        int
		}{
			{"GET", "/v1/accounts", "", "", 401},
			{"GET", "/v1/accounts", s.wrong, "", 401},
			{"GET", "/v1/accounts", s.expired, "", 401},
			{"POST", "/v1/entries", s.expired, "", 401},
			{"GET", "/v1/accounts", s.reader, "", 200},
			{"POST", "/v1/entries", s.reader, "", 403},
			{"POST", "/v1/entries", s.writer, "", 400}, // it lacks everything else
			{"POST", "/v1/entries", s.writer, "https://elsewhere.example", 403},
			{"GET", "/healthz", "", "", 200},
			{"GET", "/metrics", "", "", 401},
			{"GET", "/metrics", s.reader, "", 200},
			{"GET", "/debug/pprof/", s.writer, "", 403},
			{"GET", "/debug/pprof/", s.admin, "", 404}, // without -pprof
		} {
			if got := ask(tt.method, address, tt.path, tt.token, tt.origin); got != tt.want {
				t.Errorf("%s %s with %q from %q: %d, not %d", tt.method, tt.path, tt.token, tt.origin, got, tt.want)
			}
		}
	}
	// In plain text nobody gets anything.
	if r, err := http.Get("http://" + c.config.HTTP[1] + "/v1/accounts"); err == nil && r.StatusCode != http.StatusBadRequest {
		t.Errorf("in plain text: %d", r.StatusCode)
	}
}

// Ports that other machines reach are not opened in plain text unless that is asked for, none of them.
func TestRefusesOpenPorts(t *testing.T) {
	cfg := defaultServeConfig()
	cfg.Peers, cfg.API, cfg.HTTP = freePorts(t), freePorts(t), freePorts(t)
	cfg.Node, cfg.Dir = 1, t.TempDir()
	everywhere := func(a addresses) addresses { return addresses{1: ":0", 2: a[2], 3: a[3]} }
	for name, change := range map[string]func(*serveConfig){
		"-peers": func(c *serveConfig) { c.Peers = everywhere(c.Peers) },
		"-api":   func(c *serveConfig) { c.API = everywhere(c.API) },
		"-http":  func(c *serveConfig) { c.HTTP = everywhere(c.HTTP) },
	} {
		c := cfg
		change(&c)
		if _, err := startNode(c, slog.New(slog.DiscardHandler)); !errors.Is(err, rsm.ErrInsecure) || !strings.Contains(err.Error(), "-insecure") {
			t.Errorf("%s: %v", name, err)
		}
		c.Insecure = true
		n, err := startNode(c, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatalf("%s, with -insecure: %v", name, err)
		}
		if err := errors.Join(n.front.stop(), n.node.Close()); err != nil {
			t.Error(err)
		}
	}
	if _, err := startProxy(proxyConfig{nodes: []string{"127.0.0.1:1"}, api: ":0", http: "127.0.0.1:0"}, slog.New(slog.DiscardHandler)); !errors.Is(err, access.ErrInsecure) {
		t.Errorf("proxy: %v", err)
	}
	for text, args := range map[string][]string{
		"-node-token-file": {"-node=1", "-tokens=tokens"},
		"go together":      {"-node=1", "-tls-cert=x"},
		"show each other":  {"-node=1", "-node-cert=x"},
	} {
		code, _, errs := ledgerCommand(t, "", append([]string{"serve"}, args...)...)
		if code != 2 || !strings.Contains(errs, text) {
			t.Errorf("%s: %d %s", args, code, errs)
		}
	}
}
