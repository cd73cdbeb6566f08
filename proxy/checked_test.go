package proxy_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
)

// codeOf is the code of how a call ended; none if it did well.
func codeOf(err error) core.Code {
	switch e, no := core.Verdict(err); {
	case err == nil:
		return ""
	case no != nil:
		return core.Code("rejected: " + no.Code)
	case e == nil:
		return core.Code("not of the library: " + err.Error())
	default:
		return e.Code
	}
}

// onStream sends one call on a stream of its own, and returns how that ends, or the stream.
func onStream(t *testing.T, conn *grpc.ClientConn, call *decreev1.Call) error {
	t.Helper()
	st, err := conn.NewStream(within(t), &decreev1.DecreeService_ServiceDesc.Streams[0], decreev1.DecreeService_Connect_FullMethodName, grpc.ForceCodecV2(codec.Codec{}))
	if err != nil {
		return wire.FromStatus(err)
	}
	_ = st.SendMsg(&codec.Frame{Data: marshal(&decreev1.ConnectRequest{Calls: []*decreev1.Call{call}})}) // it may have been refused already
	_ = st.CloseSend()                                                                                   // likewise
	var got codec.Frame
	if err := st.RecvMsg(&got); err != nil {
		return wire.FromStatus(err)
	}
	var end error
	answers := 0
	if err := wire.ParseAnswers(got.Data, func(a *wire.ReceivedAnswer) { answers, end = answers+1, a.Err }); err != nil || answers != 1 {
		t.Errorf("%d answers, %v", answers, err)
	}
	return end
}

// Every call of decree.v1 on a node's own port takes its role, as on a proxy's: whoever reaches the port without a proxy gets no more. What is refused has not
// happened. So with tokens in plain text, and where the certificates that the node has verified give the roles, with tokens beside them and without.
//
// Mutation with which it was seen to fail: r instead of p.Registrar(r, RoleOf) in Checked.
func TestAccessToANode(t *testing.T) {
	const (
		unknown   = core.CodeUnauthenticated
		forbidden = core.CodeForbidden
		closed    = core.CodeUnreachable // the connection is not made
	)
	secrets, file := map[string]string{}, ""
	for name, c := range map[string]struct {
		role    access.Role
		expires time.Time
	}{"reader": {role: access.Read}, "writer": {role: access.Write}, "admin": {role: access.Admin}, "wrong": {role: access.Admin},
		"expired": {access.Admin, time.Now().Add(-time.Hour)}, "for-an-hour": {access.Write, time.Now().Add(time.Hour)}} {
		secret, line, err := access.NewToken(name, c.role, c.expires)
		if err != nil {
			t.Fatal(err)
		}
		secrets[name] = secret
		if name != "wrong" {
			file += line + "\n"
		}
	}
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := access.OpenTokens(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	authority := testkit.NewAuthority(t)
	certs := map[string]testkit.TLSPaths{}
	for name, s := range map[string]testkit.Subject{"node": {Name: "node"}, "reader": {Name: "reader"}, "writer": {Name: "writer"}, "nobody": {Name: "nobody"},
		"expired writer": {Name: "writer", Ends: time.Now().Add(-time.Minute)}} {
		certs[name] = authority.Write(t, t.TempDir(), s)
	}
	byName := map[string]access.Role{"reader": access.Read, "writer": access.Write}

	type caller struct {
		cert, token string
		write, read core.Code // what becomes of its commands and its reads
	}
	for name, port := range map[string]struct {
		policy  *access.Policy
		tls     bool
		callers []caller
	}{
		"tokens": {&access.Policy{Tokens: tokens}, false, []caller{
			{"", "", unknown, unknown}, {"", "wrong", unknown, unknown}, {"", "expired", unknown, unknown},
			{"", "reader", forbidden, ""}, {"", "writer", "", ""}, {"", "for-an-hour", "", ""}, {"", "admin", "", ""},
		}},
		"certificates": {&access.Policy{Certs: byName}, true, []caller{
			{"nobody", "", forbidden, forbidden}, {"nobody", "writer", forbidden, forbidden}, // tokens are not looked at
			{"reader", "", forbidden, ""}, {"writer", "", "", ""}, {"expired writer", "", closed, closed},
		}},
		"both": {&access.Policy{Tokens: tokens, Certs: byName}, true, []caller{
			{"nobody", "", unknown, unknown}, {"nobody", "wrong", unknown, unknown}, {"nobody", "reader", forbidden, ""}, {"nobody", "writer", "", ""},
			{"reader", "", forbidden, ""}, {"reader", "writer", "", ""}, {"writer", "", "", ""},
			{"writer", "reader", forbidden, ""}, {"writer", "expired", unknown, unknown}, // a token that is shown counts
			{"expired writer", "", closed, closed}, {"expired writer", "writer", closed, closed},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := rsm.StartCluster(rsm.ClusterConfig{Dir: t.TempDir(), Nodes: 1, Shards: []rsm.ShardConfig{{ID: 1, Machine: counters{}}},
				Configure: func(cfg *rsm.Config) {
					cfg.DiskWatermark, cfg.Services = -1, proxy.Checked(port.policy)
					if port.tls {
						if cfg.TLS, err = rsm.TLSFiles(certs["node"].Cert, certs["node"].Key, certs["node"].CA, nil); err != nil {
							t.Fatal(err)
						}
					}
				}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			node, err := c.Leader(within(t), 1)
			if err != nil {
				t.Fatal(err)
			}
			for _, who := range port.callers {
				creds := access.Plain()
				if who.cert != "" {
					files := certs[who.cert]
					if creds, err = access.ClientTLS(files.CA, files.Cert, files.Key, "", nil); err != nil {
						t.Fatal(err)
					}
				}
				var token credentials.PerRPCCredentials
				if who.token != "" {
					token = access.Token(secrets[who.token])
				}
				conn, err := grpc.NewClient(node.Addr(), access.DialOptions(creds, token)...)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				unary, key := decreev1.NewDecreeServiceClient(conn), []byte(who.cert+"/"+who.token)
				submit := &decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{key}}
				read := &decreev1.ReadRequest{Shard: 1, Level: decreev1.Level_LEVEL_LINEARIZABLE, Query: key}
				for _, call := range []struct {
					name string
					want core.Code
					do   func() error
				}{
					{"Submit", who.write, func() error { _, err := unary.Submit(within(t), submit); return wire.FromStatus(err) }},
					{"OpenSession", who.write, func() error {
						_, err := unary.OpenSession(within(t), &decreev1.OpenSessionRequest{Shard: 1})
						return wire.FromStatus(err)
					}},
					{"Read", who.read, func() error { _, err := unary.Read(within(t), read); return wire.FromStatus(err) }},
					{"GetTopology", who.read, func() error {
						_, err := unary.GetTopology(within(t), &decreev1.GetTopologyRequest{})
						return wire.FromStatus(err)
					}},
					{"a command on a stream", who.write, func() error {
						return onStream(t, conn, &decreev1.Call{Id: 1, Call: &decreev1.Call_Submit{Submit: submit}})
					}},
					{"a read on a stream", who.read, func() error { return onStream(t, conn, &decreev1.Call{Id: 1, Call: &decreev1.Call_Read{Read: read}}) }},
				} {
					if got := codeOf(call.do()); got != call.want {
						t.Errorf("certificate %q, token %q, %s: %q; wanted %q", who.cert, who.token, call.name, got, call.want)
					}
				}
				commands := uint64(0)
				if who.write == "" {
					commands = 2
				}
				answer, err := node.Shard(1).Read(within(t), rsm.Linearizable, key)
				if got := sum(t, answer, err); got != commands {
					t.Errorf("certificate %q, token %q: %d commands have happened, not %d", who.cert, who.token, got, commands)
				}
			}
		})
	}
}
