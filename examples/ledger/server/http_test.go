package server

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/rsm"
)

// call makes a request and returns the status and the body.
func call(t *testing.T, s *Server, method, target, body string) (int, string, http.Header) {
	t.Helper()
	w := httptest.NewRecorder()
	s.HTTP().ServeHTTP(w, httptest.NewRequest(method, target, strings.NewReader(body)))
	r := w.Result()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(data), r.Header
}

func get[M proto.Message](t *testing.T, s *Server, target string, m M) M {
	t.Helper()
	code, body, header := call(t, s, "GET", target, "")
	if code != http.StatusOK || header.Get("Content-Type") != "application/json" {
		t.Fatalf("GET %s: %d %s", target, code, body)
	}
	if err := protojson.Unmarshal([]byte(body), m); err != nil {
		t.Fatalf("GET %s: %v", target, err)
	}
	return m
}

func TestHTTP(t *testing.T) {
	s, r := newServer(t)
	r.version = book.VersionReferences
	code, body, _ := call(t, s, "POST", "/v1/accounts",
		`{"items": [{"account": {"id": "1", "name": "Cash", "asset": "EUR", "scale": 2}}, {"account": {"id": "2", "name": "Cash 2", "asset": "EUR", "scale": 2}}]}`)
	if code != 200 || strings.Count(body, `"created"`) != 2 {
		t.Fatalf("%d %s", code, body)
	}
	for _, id := range []string{"a1", "a2", "a3"} {
		code, body, _ = call(t, s, "POST", "/v1/entries",
			`{"entries": [{"id": "`+id+`", "legs": [{"account": "1", "debit": "1050"}, {"account": "2", "credit": "1050"}], "memo": "Käse", "reference": "No. 5"}]}`)
		if code != 200 || !strings.Contains(body, `"created"`) {
			t.Fatalf("%d %s", code, body)
		}
	}
	if e := get(t, s, "/v1/entries/a1", new(ledgerv1.Entry)); e.Memo != "Käse" || e.Reference != "No. 5" || e.Legs[1].Credit != "1050" {
		t.Errorf("entry %v", e)
	}
	if a := get(t, s, "/v1/accounts/1?consistency=stale", new(ledgerv1.Account)); a.Balances.DebitsPosted != "3150" {
		t.Errorf("account %v", a)
	}
	rows := 0
	for after := uint64(0); ; {
		m := get(t, s, "/v1/accounts/1/statement?page_size=2&after="+strconv.FormatUint(after, 10), new(ledgerv1.GetStatementResponse))
		rows += len(m.Rows)
		if m.Rows[0].Reference != "No. 5" {
			t.Errorf("row %v", m.Rows[0])
		}
		if after = m.NextAfter; after == 0 {
			break
		}
	}
	if rows != 3 {
		t.Errorf("%d rows", rows)
	}
	// The token goes into the address as it stands in the answer.
	list := get(t, s, "/v1/accounts?prefix=Cash&page_size=1", new(ledgerv1.ListAccountsResponse))
	_, body, _ = call(t, s, "GET", "/v1/accounts?prefix=Cash&page_size=1", "")
	_, token, _ := strings.Cut(body, `"next_page_token":`)
	token = strings.Split(token, `"`)[1]
	for _, token := range []string{token, url.QueryEscape(token)} {
		more := get(t, s, "/v1/accounts?prefix=Cash&page_size=1&page_token="+token, new(ledgerv1.ListAccountsResponse))
		if list.Accounts[0].Name != "Cash" || len(more.Accounts) != 1 || more.Accounts[0].Name != "Cash 2" {
			t.Errorf("pages %v and %v", list, more)
		}
	}
	if m := get(t, s, "/v1/audit", new(ledgerv1.AuditResponse)); m.Entries != 3 {
		t.Errorf("audit %v", m)
	}
	if m := get(t, s, "/v1/status", new(ledgerv1.GetStatusResponse)); m.Node != 1 || m.MachineVersion != 2 {
		t.Errorf("status %v", m)
	}
}

func TestHTTPErrors(t *testing.T) {
	s, r := newServer(t)
	for _, c := range []struct {
		method, target, body string
		code                 int
		contains             string
	}{
		{"POST", "/v1/entries", "{", 400, "bad_request"},
		{"POST", "/v1/entries", `{"nonsense": 1}`, 400, "nonsense"},
		{"POST", "/v1/accounts", "", 400, "bad_request"},
		{"POST", "/v1/entries", `{"entries": []}`, 400, "a request holds 1 to"},
		{"POST", "/v1/entries", strings.Repeat(" ", MaxBodyBytes+1), 413, "the body is over"},
		{"GET", "/v1/entries/b", "", 404, "entry_not_found"},
		{"GET", "/v1/accounts/b", "", 404, "account_not_found"},
		{"GET", "/v1/accounts/b/statement", "", 404, "account_not_found"},
		{"GET", "/v1/accounts/xyz", "", 400, "not hexadecimal"},
		{"GET", "/v1/accounts/1/statement?after=-1", "", 400, "after"},
		{"GET", "/v1/accounts?page_size=1001", "", 400, "at most 1000"},
		{"GET", "/v1/accounts?page_token=!", "", 400, "page_token"},
		{"GET", "/v1/accounts?consistency=maybe", "", 400, "consistency"},
		{"GET", "/v1/entries/1?consistency=maybe", "", 400, "consistency"},
		{"GET", "/v1/accounts/1?consistency=maybe", "", 400, "consistency"},
		{"GET", "/v1/nothing", "", 404, "not found"},
		{"PUT", "/v1/entries", "", 405, "Method Not Allowed"},
	} {
		code, body, _ := call(t, s, c.method, c.target, c.body)
		if code != c.code || !strings.Contains(body, c.contains) {
			t.Errorf("%s %s: %d %s, want %d and %q", c.method, c.target, code, body, c.code, c.contains)
		}
	}
	for _, c := range []struct {
		err  error
		code int
	}{
		{&rsm.Error{Kind: rsm.ErrNotProposed, Code: "overloaded"}, 503},
		{&rsm.Error{Kind: rsm.ErrUnknown, Code: "leadership_lost"}, 500},
		{&rsm.Error{Kind: rsm.ErrNotProposed, Code: "command_too_large"}, 413},
		{rsm.Reject("session_expired", "m"), 409},
	} {
		r.err = c.err
		if code, body, _ := call(t, s, "GET", "/v1/accounts/1", ""); code != c.code {
			t.Errorf("%v: %d %s, want %d", c.err, code, body, c.code)
		}
	}
}

// A proxy answers everything but what is about one node.
func TestWithoutAReplica(t *testing.T) {
	_, r := newServer(t)
	s := New(Config{Shard: r})
	for target, want := range map[string]int{"/v1/audit": 501, "/v1/status": 501, "/v1/accounts": 200, "/v1/accounts?consistency=stale": 200} {
		if code, body, _ := call(t, s, "GET", target, ""); code != want || want == 501 && !strings.Contains(body, `"code":"no_replica","message":"this is a proxy, without a replica of its own: ask a node`) {
			t.Errorf("GET %s: %d %s", target, code, body)
		}
	}
}

// What is refused for a while says when to come back, in whole seconds, as HTTP has it.
//
// Mutation with which it was seen to fail: there is no such header.
func TestRetryAfter(t *testing.T) {
	s, r := newServer(t)
	for wait, want := range map[time.Duration]string{0: "", 50 * time.Millisecond: "1", time.Second: "1", 1001 * time.Millisecond: "2"} {
		r.err = &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeOverloaded, RetryAfter: wait}
		w := httptest.NewRecorder()
		s.HTTP().ServeHTTP(w, httptest.NewRequest("GET", "/v1/accounts/1", nil))
		if got := w.Header().Get("Retry-After"); w.Code != 503 || got != want {
			t.Errorf("after %v: %d, Retry-After %q, want %q", wait, w.Code, got, want)
		}
	}
}
