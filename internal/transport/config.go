package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"time"

	"google.golang.org/grpc"
)

const (
	// DefaultQueueBytes is the limit of a peer's queue where Config says nothing.
	DefaultQueueBytes = 64 << 20
	// DefaultFrameBytes is the largest payload of a frame where Config says nothing.
	DefaultFrameBytes = 64 << 20

	// maxFrameLimit keeps a frame with its header within gRPC's 31-bit lengths.
	maxFrameLimit = 1 << 30
	// softFrameBytes is where a frame is cut and the next one begun: large enough
	// that the cost per frame vanishes, small enough that a frame does not hold up
	// the heartbeats behind it for long (4 MiB are 4 ms at 10 Gbit/s).
	softFrameBytes = 4 << 20

	// MaxServiceBytes is the largest message that a service of Config.Services takes, as usual with gRPC.
	MaxServiceBytes = 16 << 20

	maxClusterName   = 256
	maxAddress       = 256
	handshakeTimeout = 5 * time.Second
	// closeTimeout bounds Close, should a callback not return.
	closeTimeout = 5 * time.Second
)

// ErrConfig is wrapped by every error of a Config that cannot be used.
var ErrConfig = errors.New("transport: invalid configuration")

// Config says who a node is, who its peers are, and what it is told. The
// callbacks may call everything but Close; Admit and Allow change no peers.
type Config struct {
	// Cluster is the cluster's name, 1 to 256 bytes. A node of another cluster is refused.
	Cluster string
	// Node is this node's id. Not 0.
	Node uint64
	// Listen is the host:port to listen on. Ignored where Listener is given.
	Listen string
	// Listener is used instead of Listen. Start takes it over if it succeeds.
	Listener net.Listener
	// Peers holds the address (host:port) of every node by id. This node's own entry is ignored.
	Peers map[uint64]string
	// Data names this node's data directory, up to 64 bytes: it stays the same over restarts, and is
	// new when the data is. Peers are told it. Optional.
	Data string
	// Admit is asked, with what a peer calls its data, before anything is exchanged with it in
	// either direction; an error refuses the peer. It may be called on any goroutine. Optional.
	Admit func(peer uint64, data string) error
	// Allow says whether a node may have streams and calls here: an error refuses it in those words, which
	// reach its log and its Stats. It is asked for each stream and call, on any goroutine, and for a
	// peer that is removed. A node may be allowed before it is a peer: one that joins and whose
	// address is not known yet. Nil: the peers are allowed, at any time exactly those.
	Allow func(id uint64) error
	// Address is where this node says that it is found. Optional.
	Address string
	// Met is told, when a stream begins, where its sender says that it is found, if it does. In memory: when a frame comes from
	// one that is no peer. It may call SetPeer. Optional.
	Met func(id uint64, address string)
	// TLS makes both directions mutual TLS. Zero: plain text, and a port that other machines cannot reach, unless Insecure is set.
	TLS *TLS
	// Insecure allows plain text at an address that other machines reach.
	Insecure bool

	// MaxQueueBytes limits the payload that waits for one peer. Zero: 64 MiB.
	MaxQueueBytes int
	// MaxFrameBytes limits the payload of one frame, and so of one item. A received
	// frame that is larger ends its stream. At most MaxQueueBytes, so that every
	// item that may be sent fits in an empty queue. Zero: 64 MiB, or MaxQueueBytes
	// if that is less. The same on all nodes.
	MaxFrameBytes int

	// Logger gets refusals and failures as warnings. Zero: nothing is logged.
	Logger *slog.Logger

	// Receive gets each frame that arrived whole, on the goroutine that reads the
	// sender's stream: in order and one at a time per sender, at once for different
	// senders. The callee owns frame. While it blocks, the sender's queue fills up.
	// Required.
	Receive func(from uint64, frame []byte)
	// Gap is told that frames of a sender may be missing between those that were received and the next, which follows at once, as Receive is
	// called: its stream is another one, or frames were thrown away by Block. In memory also where the sender was told that it could not queue something. Optional.
	Gap func(from uint64)
	// Services registers further gRPC services on the same port, with the same TLS, before it is served.
	// Whoever reaches the port may call them: with TLS that is everyone with a certificate of the authorities.
	// A message to them may have MaxServiceBytes. Close cancels their calls and waits for them.
	// Ignored in memory. Optional.
	Services func(grpc.ServiceRegistrar)

	// Serve answers a peer's Call, on a goroutine of its own, at once for different calls: at most
	// MaxCallsPerPeer of one peer and MaxCalls in all. ctx ends when the caller no longer waits (its
	// deadline is known here), when it is removed, and with Close; Serve must then return soon. The
	// callee owns request, and gives reply away. An error reaches the caller as its text, up to 4 KiB.
	// Nil: calls are refused.
	Serve func(ctx context.Context, from uint64, method uint8, request []byte) (reply []byte, err error)
	// Unreachable reports that items for a peer were dropped or that its stream
	// broke, about once in 50 ms per peer, on a goroutine of its own. Optional.
	Unreachable func(peer uint64)
	// Connected reports that the peer accepted a stream, before anything is sent on
	// it, on the goroutine that sends. Optional.
	Connected func(peer uint64)

	// handshakeTimeout is for tests. Zero: 5 s.
	handshakeTimeout time.Duration
	// maxConns is for tests. Zero: guard.DefaultMaxConns.
	maxConns int
	// maxIdle is for tests. Zero: 30 s.
	maxIdle time.Duration
}

// Peer is what an engine needs of a transport: a *Transport between processes,
// a *MemoryNode within one. All methods may be called at any time from any
// goroutine.
type Peer interface {
	// Append adds an item of about size bytes to what waits for peer. encode must
	// append the item to buf and return the result, and must not keep it; it runs
	// on the caller's goroutine before Append returns, under the lock of the peer's
	// queue. Append never blocks on the network and wakes nobody: see Flush.
	// False: the item was not taken, certainly not sent, and Unreachable will be
	// called: the queue is full, the item is too large, the peer is unknown or cut
	// off, or the transport is closed. True promises nothing about delivery.
	Append(peer uint64, size int, encode func(buf []byte) []byte) bool
	// Flush lets go whatever has been appended. It never blocks.
	Flush()
	// Call asks a peer's Serve and waits for the answer, until ctx ends. The request, which is not
	// kept, may have MaxCallRequestBytes, the reply MaxCallReplyBytes; what method means is up to the
	// two sides. Calls neither wait for frames nor hold them up. The error is a *CallError, which says
	// of which kind it is. Nothing is ever tried twice.
	Call(ctx context.Context, to uint64, method uint8, request []byte) (reply []byte, err error)
	// SetPeer adds a peer, or changes its address. One that has moved loses its stream, its calls and
	// what is queued for it, which Unreachable reports; the address that it has already changes
	// nothing. This node itself, id 0 and an empty address are ignored, the latter two with a warning.
	// It does not wait for connections to come or go.
	SetPeer(id uint64, address string)
	// RemovePeer ends everything that goes on with a peer, in both directions, and forgets it. The
	// streams and calls of a node that is no peer but was allowed are ended as well. Its next
	// ones are up to Config.Allow. It waits for nothing: a Receive or Serve may still be running.
	RemovePeer(id uint64)
	// UpdatePeers replaces the peers: SetPeer and RemovePeer for all at once.
	UpdatePeers(peers map[uint64]string)
	// Addr is where this node can be reached.
	Addr() string
	// Stats returns a snapshot per peer. The entry under 0 counts what was appended
	// for nodes that are not peers.
	Stats() map[uint64]PeerStats
	// Close stops everything at once and waits until no callback runs any more, for
	// at most 5 s: an error says that one did not return. What is queued is lost.
	// Closing again does nothing.
	Close() error
}

var (
	_ Peer = (*Transport)(nil)
	_ Peer = (*MemoryNode)(nil)
)

// PeerStats counts the traffic with one peer since it became one.
type PeerStats struct {
	Connected bool   // the peer has accepted our stream
	Receiving bool   // we have accepted the peer's stream
	LastError string // why the last stream or attempt failed; empty while connected

	QueuedBytes                      int // payload that waits to be sent
	SentItems, SentFrames, SentBytes uint64
	DroppedItems, DroppedBytes       uint64 // not taken by Append, or lost with a stream
	ReceivedFrames, ReceivedBytes    uint64
	DroppedReceivedFrames, Connects  uint64 // received while blocked; streams that were accepted
}

// maxMessage is the largest message of any kind that gRPC is to take in: it knows
// one limit for all methods.
func (c Config) maxMessage() int {
	n := c.MaxFrameBytes + frameHeaderSize
	if c.Serve != nil {
		n = max(n, MaxCallRequestBytes+callHeaderSize)
	}
	if c.Services != nil {
		n = max(n, MaxServiceBytes)
	}
	return n
}

// resolve returns c with every zero value replaced, or says what is wrong with it.
func (c Config) resolve() (Config, error) {
	if err := c.check(); err != nil {
		return c, err
	}
	if c.MaxQueueBytes == 0 {
		c.MaxQueueBytes = DefaultQueueBytes
	}
	if c.MaxFrameBytes == 0 {
		c.MaxFrameBytes = min(DefaultFrameBytes, c.MaxQueueBytes)
	}
	if c.MaxFrameBytes > c.MaxQueueBytes {
		return c, fmt.Errorf("%w: MaxFrameBytes %d is more than MaxQueueBytes %d: the largest items could never be sent",
			ErrConfig, c.MaxFrameBytes, c.MaxQueueBytes)
	}
	if c.handshakeTimeout == 0 {
		c.handshakeTimeout = handshakeTimeout
	}
	if c.maxIdle == 0 {
		c.maxIdle = maxIdle
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Peers = maps.Clone(c.Peers)
	return c, nil
}

func (c Config) check() error {
	switch {
	case c.Cluster == "" || len(c.Cluster) > maxClusterName:
		return fmt.Errorf("%w: the name of the cluster has %d bytes, it must have 1 to %d", ErrConfig, len(c.Cluster), maxClusterName)
	case c.Node == 0:
		return fmt.Errorf("%w: node id 0 is reserved", ErrConfig)
	case c.Receive == nil:
		return fmt.Errorf("%w: Receive is required", ErrConfig)
	case c.MaxQueueBytes < 0 || c.MaxFrameBytes < 0 || c.MaxFrameBytes > maxFrameLimit:
		return fmt.Errorf("%w: MaxQueueBytes %d and MaxFrameBytes %d must not be negative, nor the latter more than %d",
			ErrConfig, c.MaxQueueBytes, c.MaxFrameBytes, maxFrameLimit)
	}
	for id, addr := range c.Peers {
		if id == c.Node {
			continue
		}
		if err := checkPeer(id, addr); err != nil {
			return err
		}
	}
	return nil
}

func checkPeer(id uint64, addr string) error {
	if id == 0 || addr == "" {
		return fmt.Errorf("%w: peer %d at %q needs an id other than 0 and an address", ErrConfig, id, addr)
	}
	return nil
}
