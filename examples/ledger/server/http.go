package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/rsm"
)

// MaxBodyBytes bounds a request: room for 4096 entries of two legs over gRPC. Fewer fit in over HTTP, as JSON is longer.
const MaxBodyBytes = 1 << 20

// maxParsing is how many bodies are parsed at once.
const maxParsing = 16

// HTTP returns the service as HTTP/JSON. The bodies are the messages of the
// gRPC service in their JSON mapping, with the names of the .proto file.
//
//	POST /v1/accounts                       CreateAccountsRequest
//	GET  /v1/accounts?prefix=&page_size=&page_token=
//	GET  /v1/accounts/{id}
//	GET  /v1/accounts/{id}/statement?after=&page_size=
//	POST /v1/entries                        PostEntriesRequest
//	GET  /v1/entries/{id}
//	GET  /v1/audit, /v1/status              of this node
//
// Every GET takes consistency=stale. A proxy has no audit and no status (501).
func (s *Server) HTTP() http.Handler {
	mux := http.NewServeMux()
	s.handle(mux, "POST /v1/accounts", func(r *http.Request) (proto.Message, error) {
		m := new(ledgerv1.CreateAccountsRequest)
		if err := s.body(r, m); err != nil {
			return nil, err
		}
		return s.CreateAccounts(r.Context(), m)
	})
	s.handle(mux, "POST /v1/entries", func(r *http.Request) (proto.Message, error) {
		m := new(ledgerv1.PostEntriesRequest)
		if err := s.body(r, m); err != nil {
			return nil, err
		}
		return s.PostEntries(r.Context(), m)
	})
	s.handle(mux, "GET /v1/accounts", s.listAccounts)
	s.handle(mux, "GET /v1/accounts/{id}", s.getAccount)
	s.handle(mux, "GET /v1/accounts/{id}/statement", s.getStatement)
	s.handle(mux, "GET /v1/entries/{id}", s.getEntry)
	s.handle(mux, "GET /v1/audit", func(r *http.Request) (proto.Message, error) {
		return s.Audit(r.Context(), new(ledgerv1.AuditRequest))
	})
	s.handle(mux, "GET /v1/status", func(r *http.Request) (proto.Message, error) {
		return s.GetStatus(r.Context(), new(ledgerv1.GetStatusRequest))
	})
	return mux
}

var jsonOut = protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}

// handle serves one pattern: f's message, or its error.
func (s *Server) handle(mux *http.ServeMux, pattern string, f func(*http.Request) (proto.Message, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, MaxBodyBytes)
		m, err := f(r.WithContext(withHost(r)))
		if err != nil {
			s.fail(w, err)
			return
		}
		s.write(w, http.StatusOK, m)
	})
}

func (s *Server) write(w http.ResponseWriter, code int, m proto.Message) {
	data, err := jsonOut.Marshal(m)
	var body bytes.Buffer
	if err == nil {
		err = json.Compact(&body, data) // protojson varies its spaces from build to build
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	body.WriteByte('\n')
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if _, err := w.Write(body.Bytes()); err != nil {
		s.cfg.Logger.Debug("the client went away", "reason", err)
	}
}

// fail writes an error as the gRPC service would.
func (s *Server) fail(w http.ResponseWriter, err error) {
	d := detailOf(err)
	code := httpCode(status.Code(err))
	if rsm.Code(d.GetCode()) == rsm.CodeCommandTooLarge {
		code = http.StatusRequestEntityTooLarge
	}
	if ms := d.GetRetryAfterMs(); ms > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt((int64(ms)+999)/1000, 10)) // it counts whole seconds
	}
	s.write(w, code, d)
}

func detailOf(err error) *ledgerv1.ErrorDetail {
	for _, d := range status.Convert(err).Details() {
		if d, ok := d.(*ledgerv1.ErrorDetail); ok {
			return d
		}
	}
	return &ledgerv1.ErrorDetail{Kind: KindUnknown, Message: err.Error()}
}

func httpCode(c codes.Code) int {
	switch c {
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.NotFound:
		return http.StatusNotFound
	case codes.FailedPrecondition:
		return http.StatusConflict
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	case codes.Unimplemented:
		return http.StatusNotImplemented
	}
	return http.StatusInternalServerError
}

func (s *Server) body(r *http.Request, m proto.Message) error {
	done, err := s.bodies.take(clientOf(r.Context()), r.ContentLength)
	if err != nil {
		return s.status(err)
	}
	defer done()
	data, err := io.ReadAll(r.Body)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return s.status(&rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeCommandTooLarge, Message: fmt.Sprintf("the body is over %d bytes", MaxBodyBytes)})
	case err != nil:
		return s.status(badRequest("the body cannot be read: %v", err))
	}
	s.parse <- struct{}{}
	defer func() { <-s.parse }()
	if err := protojson.Unmarshal(data, m); err != nil {
		return s.status(badRequest("%v", err))
	}
	return nil
}

func (s *Server) listAccounts(r *http.Request) (proto.Message, error) {
	size, err1 := number(r, "page_size", 32)
	c, err2 := consistency(r)
	m := &ledgerv1.ListAccountsRequest{
		NamePrefix: r.FormValue("prefix"), PageSize: uint32(size), PageToken: []byte(r.FormValue("page_token")), Consistency: c,
	}
	if err := errors.Join(err1, err2, unbase64(&m.PageToken)); err != nil {
		return nil, s.status(badRequest("%v", err))
	}
	return s.ListAccounts(r.Context(), m)
}

func (s *Server) getAccount(r *http.Request) (proto.Message, error) {
	c, err := consistency(r)
	if err != nil {
		return nil, s.status(badRequest("%v", err))
	}
	m, err := s.GetAccounts(r.Context(), &ledgerv1.GetAccountsRequest{Ids: []string{r.PathValue("id")}, Consistency: c})
	if err != nil {
		return nil, err
	}
	if len(m.GetAccounts()) == 0 {
		return nil, s.notFound("account", r)
	}
	return m.Accounts[0], nil
}

func (s *Server) getEntry(r *http.Request) (proto.Message, error) {
	c, err := consistency(r)
	if err != nil {
		return nil, s.status(badRequest("%v", err))
	}
	m, err := s.GetEntries(r.Context(), &ledgerv1.GetEntriesRequest{Ids: []string{r.PathValue("id")}, Consistency: c})
	if err != nil {
		return nil, err
	}
	if len(m.GetEntries()) == 0 {
		return nil, s.notFound("entry", r)
	}
	return m.Entries[0], nil
}

func (s *Server) notFound(what string, r *http.Request) error {
	d := &ledgerv1.ErrorDetail{Kind: KindRejected, Code: what + "_not_found", Message: fmt.Sprintf("there is no %s %q", what, r.PathValue("id"))}
	st, err := status.New(codes.NotFound, d.Message).WithDetails(d)
	if err != nil {
		return status.Error(codes.NotFound, d.Message)
	}
	return st.Err()
}

func (s *Server) getStatement(r *http.Request) (proto.Message, error) {
	after, err1 := number(r, "after", 64)
	size, err2 := number(r, "page_size", 32)
	c, err3 := consistency(r)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, s.status(badRequest("%v", err))
	}
	return s.GetStatement(r.Context(), &ledgerv1.GetStatementRequest{
		Account: r.PathValue("id"), After: after, PageSize: uint32(size), Consistency: c,
	})
}

func number(r *http.Request, name string, bits int) (uint64, error) {
	v := r.FormValue(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(v, 10, bits)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a number", name, v)
	}
	return n, nil
}

func consistency(r *http.Request) (ledgerv1.Consistency, error) {
	switch v := r.FormValue("consistency"); v {
	case "", "linearizable":
		return ledgerv1.Consistency_CONSISTENCY_LINEARIZABLE, nil
	case "stale":
		return ledgerv1.Consistency_CONSISTENCY_STALE, nil
	default:
		return 0, fmt.Errorf("consistency: %q is neither linearizable nor stale", v)
	}
}

// unbase64 decodes a page token as JSON shows it; a plus sign that was not escaped has become a space.
func unbase64(token *[]byte) error {
	decoded, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(string(*token), " ", "+"))
	if err != nil {
		return fmt.Errorf("page_token: %w", err)
	}
	*token = decoded
	return nil
}
