// Package transport carries opaque frames between the nodes of a cluster, and lets
// a node ask another for something ([Transport.Call]). It knows nothing of raft: the engine marshals its messages straight into the
// frame that is open for a peer ([Transport.Append]), and at the end of a pass
// lets the frames go ([Transport.Flush]). So one frame per peer and pass holds
// the messages of all shards, and a message is copied once on its way out.
//
// Every pair of nodes has two connections for frames, one for each direction, and
// each carries one gRPC stream. A direction fails and comes back on its own. Calls
// have connections of their own, made when they are needed: a reply may have
// megabytes, and no heartbeat should wait behind it.
//
// Peers come and go while the node runs (SetPeer, RemovePeer, UpdatePeers). Those
// are the nodes that this one dials; who may dial this one is up to Config.Allow,
// and without it the same nodes.
//
// # What it promises
//
// Frames arrive whole, unchanged, and in the order in which they were appended,
// or not at all. Whatever is queued or under way when a stream breaks is lost,
// and so is what does not fit in the queue; each loss of a kind that can be
// noticed is reported by Config.Unreachable. The receiver learns by Config.Gap that a
// stream is another one, and not what did not fit in the queue of one that goes on.
// Nothing is ever sent twice. Receive is never called twice at once for the same sender.
//
// A call is served once or not at all, and its reply is what Serve returned, or
// there is an error that says of which kind it is: certainly not served
// (ErrRefused, ErrBusy), served with an error (ErrRemote), or not known
// (ErrUnreachable, and a context that ended). Calls have no order, neither among
// themselves nor with frames.
//
// # Limits
//
//	queue of a peer          MaxQueueBytes of payload; what comes next is refused
//	frame that is sent       cut at 4 MiB, or one item if that is larger
//	frame that is received   MaxFrameBytes; the stream is closed before it is read
//	in gRPC's hands          one frame and 64 KiB on the sending side; a window
//	                         of 4 MiB and one frame per stream on the receiving one
//	request of a call        MaxCallRequestBytes, 1 MiB
//	reply of a call          MaxCallReplyBytes, 16 MiB and 64 KiB
//	text of a call's error   4 KiB; the rest is cut off
//	calls served at once     4 of one peer and 16 in all; the next is refused, and does not wait
//	message to a service     MaxServiceBytes, 16 MiB
//	streams of a connection  16 at once, of whatever kind; a call is one until its reply is on the socket
//	unfinished handshakes    128 connections, 5 s each; a newcomer displaces the oldest
//	connections              1024; those without a stream or call are closed after 30 s
//	log lines                one per reason and minute, with the number left out
//
// gRPC knows one limit for the messages of all methods. It is the largest of those
// that this node has use for, and the smaller ones are checked once a message is in
// memory: a frame that exceeds MaxFrameBytes, but not what Serve or Services may be
// sent, has been read when its stream is closed.
//
// # The wire
//
// A node calls /decree.peer.v1.Peer/Frames, a stream whose messages are raw
// bytes, and introduces itself in the request's metadata, which is where gRPC
// lets a server refuse a call before it has read any of it:
//
//	decree-protocol     version of this protocol, decimal: 1
//	decree-cluster-bin  name of the sender's cluster
//	decree-from         id of the sender, decimal
//	decree-to           id of the node that the sender looks for, decimal
//	decree-incarnation  random number of the sender's process, hexadecimal
//	decree-data         name of the sender's data, may be empty
//	decree-address      where the sender is found (host:port), may be absent or empty
//
// The other side answers with response headers that carry decree-accepted (its
// own incarnation) and decree-data, or with a status whose message says in a sentence what it
// found and what it expected. After that only the sender speaks; each message is
// one frame:
//
//	offset  size  content
//	0       3     magic "DPF"
//	3       1     version of the frame format: 1
//	4       4     length of the payload, little endian, at least 1
//	8       4     CRC-32C of bytes 0 to 7 and of the payload, little endian
//	12      n     payload
//
// A frame that is anything else ends the stream with a status that says why.
// The newest accepted stream of a sender wins: an older one is what a sender
// left behind that lost its connection without being able to say so.
//
// A call is /decree.peer.v1.Peer/Call, with the same metadata and the same response
// headers, for which the caller waits before it sends anything. Then it sends one
// message and ends its side, and gets one message and the status OK, or no message
// and a status: RESOURCE_EXHAUSTED where the node serves too many calls,
// FAILED_PRECONDITION or INVALID_ARGUMENT where it refuses, each with the reason in
// a sentence. The caller's deadline is in grpc-timeout. The messages:
//
//	offset  size  content
//	0       3     magic "DPC"
//	3       1     version of the format of calls: 1
//	4       1     kind: 1 request, 2 reply, 3 error of Serve, whose text is the payload
//	5       1     method; an answer has that of its request
//	6       2     0
//	8       4     length of the payload, little endian, may be 0
//	12      4     CRC-32C of bytes 0 to 11 and of the payload, little endian
//	16      n     payload
//
// A node of a version that does not know calls answers UNIMPLEMENTED, which the
// caller takes for a refusal.
//
// What Config.Services registers speaks ordinary gRPC on the same port, without any
// of this. With TLS it is asked for a certificate like everyone; without, whoever
// reaches the port reaches the services.
//
// # Goroutines
//
//	goroutine              how many            owns                            ends
//	peer.run               one per peer        the outgoing stream, backoff    Close, or the peer is removed
//	peer.watch             one per stream out  nothing; reads the status       its stream ends
//	inbound.read           one per stream in   the incoming stream; Receive    its stream ends
//	callConn (gRPC's)      some per peer       the connection for calls        Close, the peer is removed or moves, 30 s idle
//	Transport.answerCall   one per call in     the call's place; Serve         Serve returned; its ctx ends as Config.Serve says
//	Services (gRPC's)      one per call in     what is theirs                  they return; their ctx ends with Close at the latest
//	Transport.frames       one per stream in   the stream's verdict (gRPC's)   refused, replaced, removed, read ended
//	notifier.run           one                 the calls of Unreachable        Close
//	those of the guard     one per connection  see package guard               Close
//	                       that has to begin
//	Transport.serve        one                 the gRPC server                 Close
//	memoryLink.run         one per link        frames under way in memory      Close, or the peer is removed
//	memoryLink.call        one per call        Serve, in memory                Serve returned; its ctx ends with the caller's
//
// Append and Flush run on the callers' goroutines and hold one short lock, that
// of the peer's queue. Call waits on its caller's goroutine and holds none; nor is
// one held while a callback of Config runs.
package transport
