package transport

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Versions of the protocol that this node speaks. A node offers the highest.
const (
	protocolMin = 1
	protocolMax = 1
)

// The keys of the handshake. They are part of the wire format: see doc.go.
const (
	keyProtocol    = "decree-protocol"
	keyCluster     = "decree-cluster-bin"
	keyFrom        = "decree-from"
	keyTo          = "decree-to"
	keyIncarnation = "decree-incarnation"
	keyData        = "decree-data"
	keyAddress     = "decree-address"
	keyAccepted    = "decree-accepted"
)

// hello is how a sender introduces itself.
type hello struct {
	protocol    uint64
	cluster     string
	from, to    uint64
	incarnation uint64
	data        string
	address     string // may be empty
}

func (h hello) metadata() metadata.MD {
	return metadata.Pairs(
		keyProtocol, strconv.FormatUint(h.protocol, 10),
		keyCluster, h.cluster,
		keyFrom, strconv.FormatUint(h.from, 10),
		keyTo, strconv.FormatUint(h.to, 10),
		keyIncarnation, strconv.FormatUint(h.incarnation, 16),
		keyData, h.data,
		keyAddress, h.address,
	)
}

// readHello reads the sender's handshake. The error is a status. Of a protocol
// that this node does not speak only the version is read: the rest may have
// another form.
func readHello(ctx context.Context) (hello, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	var h hello
	var err error
	if h.protocol, err = helloNumber(md, keyProtocol, 10); err != nil {
		return h, err
	}
	if h.protocol < protocolMin || h.protocol > protocolMax {
		return h, status.Errorf(codes.FailedPrecondition,
			"unsupported protocol: the sender speaks version %d, this node speaks versions %d to %d", h.protocol, protocolMin, protocolMax)
	}
	if h.cluster, err = helloValue(md, keyCluster); err != nil {
		return h, err
	}
	if h.from, err = helloNumber(md, keyFrom, 10); err != nil {
		return h, err
	}
	if h.to, err = helloNumber(md, keyTo, 10); err != nil {
		return h, err
	}
	if h.incarnation, err = helloNumber(md, keyIncarnation, 16); err != nil {
		return h, err
	}
	if h.data, err = helloValue(md, keyData); err != nil {
		return h, err
	}
	if v := md.Get(keyAddress); len(v) == 1 && len(v[0]) <= maxAddress {
		h.address = v[0]
	}
	return h, nil
}

func helloValue(md metadata.MD, key string) (string, error) {
	if v := md.Get(key); len(v) == 1 {
		return v[0], nil
	}
	return "", status.Errorf(codes.InvalidArgument,
		"no Decree handshake: the request has %d values of %s, it must have one", len(md.Get(key)), key)
}

func helloNumber(md metadata.MD, key string, base int) (uint64, error) {
	s, err := helloValue(md, key)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(s, base, 64)
	if err != nil {
		return 0, status.Errorf(codes.InvalidArgument, "no Decree handshake: %s is %q, which is not a number", key, clip(s))
	}
	return n, nil
}

// checkHello refuses a sender that is not meant for this node, in a sentence that
// an operator can act on. The error is a status. Whether the sender is a peer is
// for accept to see, as that changes while the node runs.
func (t *Transport) checkHello(h hello) error {
	switch {
	case h.cluster != t.cfg.Cluster:
		return wrongCluster(h.cluster, t.cfg.Cluster)
	case h.to != t.cfg.Node:
		return status.Errorf(codes.FailedPrecondition,
			"wrong node: the sender looks for node %d, this is node %d", h.to, t.cfg.Node)
	case h.from == t.cfg.Node:
		return status.Errorf(codes.FailedPrecondition,
			"wrong sender: it claims to be node %d, which is this node itself", h.from)
	}
	return nil
}

// allowed says whether a node may have streams and calls here. The error is a status.
func (t *Transport) allowed(id uint64) error {
	if t.cfg.Allow != nil {
		return t.cfg.allowed(id)
	}
	if table := *t.peers.Load(); table[id] == nil {
		return unknownSender(id, t.cfg.Node, table)
	}
	return nil
}

func (c Config) allowed(id uint64) error {
	if err := c.Allow(id); err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	return nil
}

func removed(id, node uint64) error {
	return status.Errorf(codes.FailedPrecondition, "removed: node %d is no peer of node %d any more", id, node)
}

// admit asks whether a peer's data is what it is known by. The error is a status.
func (t *Transport) admit(peer uint64, data string) error {
	if t.cfg.Admit == nil {
		return nil
	}
	if err := t.cfg.Admit(peer, data); err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	return nil
}

func wrongCluster(theirs, ours string) error {
	return status.Errorf(codes.FailedPrecondition,
		"wrong cluster: the sender belongs to cluster %q, this node to cluster %q", clip(theirs), ours)
}

func unknownSender[P any](from, node uint64, table map[uint64]P) error {
	const most = 16
	ids := make([]uint64, 0, len(table))
	for id := range table {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	known := strings.Trim(fmt.Sprint(ids[:min(len(ids), most)]), "[]")
	if len(ids) > most {
		known += fmt.Sprintf(" and %d more", len(ids)-most)
	}
	return status.Errorf(codes.FailedPrecondition,
		"unknown sender: node %d is not a peer of node %d, whose peers are: %s", from, node, known)
}

// clip keeps what a stranger sent from filling the log.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
