// Package transport carries opaque frames between the nodes of a cluster. It
// knows nothing of raft: the engine marshals its messages straight into the
// frame that is open for a peer ([Transport.Append]), and at the end of a pass
// lets the frames go ([Transport.Flush]). So one frame per peer and pass holds
// the messages of all shards, and a message is copied once on its way out.
//
// Every pair of nodes has two connections, one for each direction, and each
// carries one gRPC stream. A direction fails and comes back on its own.
//
// # What it promises
//
// Frames arrive whole, unchanged, and in the order in which they were appended,
// or not at all. Whatever is queued or under way when a stream breaks is lost,
// and so is what does not fit in the queue; each loss of a kind that can be
// noticed is reported by Config.Unreachable. Nothing is ever sent twice. Receive
// is never called twice at once for the same sender.
//
// # Limits
//
//	queue of a peer          MaxQueueBytes of payload; what comes next is refused
//	frame that is sent       cut at 4 MiB, or one item if that is larger
//	frame that is received   MaxFrameBytes; the stream is closed before it is read
//	in gRPC's hands          one frame and 64 KiB on the sending side; a window
//	                         of 4 MiB and one frame per stream on the receiving one
//	unfinished handshakes    128 connections, 5 s each; a newcomer displaces the oldest
//	connections              1024; those without a stream are closed after 30 s
//	log lines                one per reason and minute, with the number left out
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
// # Goroutines
//
//	goroutine              how many            owns                            ends
//	peer.run               one per peer        the outgoing stream, backoff    Close, or the peer is removed
//	peer.watch             one per stream out  nothing; reads the status       its stream ends
//	inbound.read           one per stream in   the incoming stream; Receive    its stream ends
//	Transport.frames       one per stream in   the stream's verdict (gRPC's)   refused, replaced, removed, read ended
//	notifier.run           one                 the calls of Unreachable        Close
//	guard.accept           one                 the listening socket            Close
//	guard.admit            one per connection  the connection's first bytes    handed to gRPC, or refused; 5 s
//	Transport.serve        one                 the gRPC server                 Close
//	memoryLink.run         one per link        frames under way in memory      Close, or the peer is removed
//
// Append and Flush run on the callers' goroutines and hold one short lock, that
// of the peer's queue.
package transport
