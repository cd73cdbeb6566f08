// Package proxy stands between clients and the nodes of a cluster, so that nobody notices a change of leader.
//
// A [Proxy] learns from any node what shards there are and who leads them, takes that as a hint, and sends every call to who can answer
// it. Calls wait through an election, up to their deadlines, and are sent again if they certainly did not happen, or if they carry a
// session number, under which they happen once. A client sees latency, and no command runs twice [G12]. Proxies have no state that matters:
// run any number of them, stop one, and its clients go on with another under the same sessions.
//
// The same Proxy runs in a process of its own (the command decree proxy), or within a node, for a small cluster: then it asks that node
// directly.
//
// [Register] offers the protocol (api/decree/v1) on a node's own port, for proxies; it answers for that node's replicas only.
// With [Config].Tracer, and those of clients and nodes, a call is one OpenTelemetry trace from its caller to the leader's log.
//
// [Config], [ServerConfig] with its [Limits] and [Admission], and the protocol have limits: docs/limits.md has them all. Calls through a proxy have 8 MiB at most.
//
// Package [github.com/decree-raft/decree/proxy/client] has the client.
package proxy
