package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"slices"
	"text/tabwriter"
	"time"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/rsm"
)

// changeReport is what a command that changes something writes with -o json, one for each shard.
type changeReport struct {
	Shard uint64 `json:"shard"`
	Node  uint64 `json:"node"`
	// Changed is false if it was so already, or does not concern the shard.
	Changed bool   `json:"changed"`
	Result  string `json:"result"` // for people
}

// everyShard does something about a node in the shards that are meant, one after the other, and writes what became of each.
// What was done stays done if a later one fails: the command can be run again. Shards that the node is not in are passed over,
// but not all of them: a node that is nowhere is a mistake.
func (s *session) everyShard(ctx context.Context, node uint64, do func(ctx context.Context, shard uint64) (changed bool, result string, err error)) error {
	shards, err := s.cluster.shards(s.opts.shard)
	if err != nil {
		return err
	}
	reports := []changeReport{}
	var failed, nowhere error
	began, concerned := false, false
	for _, shard := range shards {
		changed, result, err := do(ctx, shard)
		began = began || changed
		var none *noMemberError
		if errors.As(err, &none) {
			nowhere, result, err = none.Unwrap(), none.Error(), nil
		} else {
			concerned = true
		}
		if err != nil {
			failed = partly(began, fmt.Errorf("shard %d: %w", shard, err))
			break
		}
		reports = append(reports, changeReport{shard, node, changed, result})
	}
	if !concerned {
		failed = nowhere
	}
	return errors.Join(failed, s.print(reports, func(w *tabwriter.Writer) {
		for _, r := range reports {
			fmt.Fprintf(w, "shard %d: %s\n", r.Shard, r.Result)
		}
	}))
}

// noMemberError: the node is none of a shard's. It is refused, unless other shards have it.
type noMemberError struct{ node uint64 }

func (e *noMemberError) Error() string { return fmt.Sprintf("node %d is no member", e.node) }
func (e *noMemberError) Unwrap() error { return notProposed(rsm.CodeChangeRefused, "%s", e.Error()) }

// partError: something was done before it failed, whatever is known of the rest.
type partError struct{ err error }

func (e *partError) Error() string { return e.err.Error() + "; what came before it is done" }
func (e *partError) Unwrap() error { return e.err }

// partly is err, which says no more that nothing happened once something did.
func partly(began bool, err error) error {
	if began {
		return &partError{err}
	}
	return err
}

// members asks the leader of a shard who takes part in it; if it is not reached, another replica.
func (c *cluster) members(ctx context.Context, shard uint64) (*adminv1.MembersResponse, error) {
	var best *adminv1.MembersResponse
	var last error
	hosts := c.hosting(shard)
	for asked := 0; asked < len(hosts) && asked < maxAsks; asked++ {
		n := hosts[asked]
		m, err := n.members(ctx, shard)
		if err != nil {
			last = readError(n, err)
			continue
		}
		leader := m.GetLeader()
		if leader == n.id {
			return m, nil
		}
		if best == nil || m.GetApplied() > best.GetApplied() {
			best = m
		}
		address := ""
		if to := memberOf(m, leader); to != nil {
			address = to.GetAddress()
		}
		if leader != 0 {
			if next, err := c.reach(ctx, leader, address); err == nil && !slices.Contains(hosts, next) {
				hosts = append(hosts, next)
			}
		}
	}
	switch {
	case best != nil:
		return best, nil
	case last != nil:
		return nil, last
	}
	return nil, unreachable("no node that answers hosts shard %d", shard)
}

func memberOf(m *adminv1.MembersResponse, id uint64) *adminv1.Member {
	for _, m := range m.GetMembers() {
		if m.GetNode() == id {
			return m
		}
	}
	return nil
}

// is reports whether a member has the role.
func is(m *adminv1.Member, role rsm.Role) bool { return m != nil && rsm.Role(m.GetRole()) == role }

// checkAddress refuses what cannot be meant, before anything is asked for.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || port == "" {
		return badUsage("the address is %q: it has the form host:port", address)
	}
	return nil
}

const everyShardFlag = "only this `shard`; otherwise every shard that it concerns, one after the other"

func addCommand() *command {
	return &command{
		name: "add", args: "NODE ADDRESS", min: 2, max: 2, shard: everyShardFlag,
		summary: "add a node as a learner",
		help: `Makes a node a learner: it gets a copy of everything and has no vote, so that nothing is at risk while it catches up. Start
the node before or afterwards, with an id that was never used, with Join set for its shards, and with ADDRESS as the
address at which the other nodes reach it. A learner may stay one, as a replica to read from; promote makes it a voter.
With -promote that is waited for.

To put a node in another's place use replace, which keeps the number of voters.

Examples:
  decree add 4 10.0.0.4:7000
  decree add -promote 4 10.0.0.4:7000
`,
		bind: func(f *flag.FlagSet) action {
			promote := f.Bool("promote", false, "wait until it has caught up, and make it a voter")
			return func(ctx context.Context, s *session, args []string) error {
				id, err := nodeArgument(args[0])
				if err != nil {
					return err
				}
				if err := checkAddress(args[1]); err != nil {
					return err
				}
				return s.everyShard(ctx, id, func(ctx context.Context, shard uint64) (bool, string, error) {
					added, result, err := s.add(ctx, shard, id, args[1])
					if err != nil || !*promote {
						return added, result, err
					}
					promoted, result, err := s.promote(ctx, shard, id)
					return added || promoted, result, err
				})
			}
		},
	}
}

func (s *session) add(ctx context.Context, shard, id uint64, address string) (bool, string, error) {
	m, err := s.cluster.members(ctx, shard)
	if err != nil {
		return false, "", err
	}
	if there := memberOf(m, id); there != nil {
		if there.GetAddress() != address {
			return false, "", notProposed(rsm.CodeChangeRefused, "node %d is a member already (%s), at %s: use set-address to change that", id, there.GetRole(), dash(there.GetAddress()))
		}
		return false, fmt.Sprintf("node %d was a %s already", id, there.GetRole()), nil
	}
	err = s.cluster.change(ctx, shard, passing, func(ctx context.Context, n *node) error {
		_, err := n.admin.AddLearner(ctx, &adminv1.AddLearnerRequest{Shard: shard, Node: id, Address: address})
		return err
	})
	return err == nil, fmt.Sprintf("node %d is a learner at %s", id, address), err
}

// ofNode does to a node what f does in one shard, in all of them or in the one that a flag names.
func ofNode(f func(s *session, ctx context.Context, shard, id uint64) (bool, string, error)) func(*flag.FlagSet) action {
	return func(*flag.FlagSet) action {
		return func(ctx context.Context, s *session, args []string) error {
			id, err := nodeArgument(args[0])
			if err != nil {
				return err
			}
			return s.everyShard(ctx, id, func(ctx context.Context, shard uint64) (bool, string, error) { return f(s, ctx, shard, id) })
		}
	}
}

func promoteCommand() *command {
	return &command{
		name: "promote", args: "NODE", min: 1, max: 1, shard: everyShardFlag,
		summary: "make a learner a voter, once it has caught up",
		help: `Makes a learner a voter. It waits until the learner lacks no more than a little, and shows how far it has come: a voter that
lags would count for the majority and not be part of it. It can be interrupted and run again.

Use it after add. An even number of voters survives no more failures than one fewer.

Example:
  decree promote 4
`,
		bind: ofNode((*session).promote),
	}
}

func (s *session) promote(ctx context.Context, shard, id uint64) (bool, string, error) {
	m, err := s.cluster.members(ctx, shard)
	if err != nil {
		return false, "", err
	}
	switch member := memberOf(m, id); {
	case member == nil:
		return false, "", &noMemberError{id}
	case is(member, rsm.RoleVoter):
		return false, fmt.Sprintf("node %d was a voter already", id), nil
	}
	err = s.whenCaughtUp(ctx, shard, id, func(ctx context.Context, n *node) error {
		_, err := n.admin.Promote(ctx, &adminv1.PromoteRequest{Shard: shard, Node: id})
		return err
	})
	return err == nil, fmt.Sprintf("node %d is a voter", id), err
}

const (
	// catchUpLook is how often it is looked how far a learner has come.
	catchUpLook = 200 * time.Millisecond
	// nearEnough is how many entries a learner may lack before the leader, who knows better, is asked to take it.
	nearEnough = 1000
)

// whenCaughtUp waits until a learner has caught up, and then has the leader make it a voter.
func (s *session) whenCaughtUp(ctx context.Context, shard, id uint64, change func(context.Context, *node) error) error {
	for {
		m, err := s.cluster.members(ctx, shard)
		if err != nil {
			return err
		}
		member := memberOf(m, id)
		if member == nil {
			return notProposed(rsm.CodeChangeRefused, "node %d is no member any more", id)
		}
		text, near := catchingUp(m, member)
		s.progress.show("shard %d: %s", shard, text)
		if near {
			err := s.cluster.change(ctx, shard, passing, change)
			if !errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeNotCaughtUp}) {
				return err
			}
		}
		if !wait(ctx, catchUpLook) {
			return fmt.Errorf("%s; nothing was decided yet: run the same command again to go on: %w", text, ctx.Err())
		}
	}
}

// catchingUp says how far a learner has come, and whether it is near the end.
func catchingUp(m *adminv1.MembersResponse, member *adminv1.Member) (text string, near bool) {
	id := member.GetNode()
	switch {
	case m.GetAsked() != m.GetLeader():
		return "waiting for a leader, who knows how far node " + fmt.Sprint(id) + " has come", false
	case member.GetSnapshotTotal() > 0:
		return fmt.Sprintf("node %d receives a snapshot: %s of %s (%d %%)", id, size(member.GetSnapshotBytes()), size(member.GetSnapshotTotal()),
			100*member.GetSnapshotBytes()/member.GetSnapshotTotal()), false
	case member.GetMatch() == 0:
		return fmt.Sprintf("nothing was heard from node %d yet: it must run, with Join for this shard, and be reached at %s", id, member.GetAddress()), false
	}
	behind := m.GetApplied() - min(m.GetApplied(), member.GetMatch())
	return fmt.Sprintf("node %d has entries up to %d of %d", id, member.GetMatch(), m.GetApplied()), behind <= nearEnough
}

func removeCommand() *command {
	return &command{
		name: "remove", args: "NODE", min: 1, max: 1, shard: everyShardFlag, limit: true,
		summary: "remove a node for ever",
		help: `Removes a node from its shards, for ever: its id can never be used again, and the node stops its replicas when it learns of it.
A leader that is removed hands over first. Fewer voters survive fewer failures: to put another node in its place use replace.

Use it for learners that are not needed any more, and to make a cluster smaller. A node that was removed can be switched off
when the command has ended.

Example:
  decree remove 3
`,
		bind: ofNode((*session).remove),
	}
}

func (s *session) remove(ctx context.Context, shard, id uint64) (bool, string, error) {
	m, err := s.cluster.members(ctx, shard)
	if err != nil {
		return false, "", err
	}
	switch there := memberOf(m, id) != nil; {
	case !there && slices.Contains(m.GetRemoved(), id):
		return false, fmt.Sprintf("node %d was removed already", id), nil
	case !there:
		return false, "", &noMemberError{id}
	}
	err = s.cluster.change(ctx, shard, passing, func(ctx context.Context, n *node) error {
		_, err := n.admin.Remove(ctx, &adminv1.RemoveRequest{Shard: shard, Node: id})
		return err
	})
	return err == nil, fmt.Sprintf("node %d is removed for ever", id), err
}

func replaceCommand() *command {
	return &command{
		name: "replace", args: "OLD NEW ADDRESS", min: 3, max: 3, shard: everyShardFlag,
		summary: "put a new node in the place of an old one",
		help: `Puts node NEW in the place of the voter OLD, which need not run: adds NEW as a learner, waits until it has caught up, and then
changes both in one step, so that at no time there are fewer voters or one more. OLD is removed for ever. Start NEW before or
meanwhile, with an id that was never used, and with Join set for its shards.

It can be interrupted at any time and run again: it looks how far it had come and goes on from there. A NEW that is a member
already must be at ADDRESS, and OLD must be a voter: a slip is refused before anything is removed.

Use it for a machine that is lost or is to be retired.

Example:
  decree replace 3 4 10.0.0.4:7000
`,
		bind: func(*flag.FlagSet) action {
			return func(ctx context.Context, s *session, args []string) error {
				old, err := nodeArgument(args[0])
				if err != nil {
					return err
				}
				id, err := nodeArgument(args[1])
				if err != nil {
					return err
				}
				if old == id {
					return badUsage("OLD and NEW are both %d: a node that lost its data comes back under a new id", id)
				}
				if err := checkAddress(args[2]); err != nil {
					return err
				}
				return s.everyShard(ctx, id, func(ctx context.Context, shard uint64) (bool, string, error) {
					return s.replace(ctx, shard, old, id, args[2])
				})
			}
		},
	}
}

// replace goes on from wherever an earlier run, or another operator, has come.
func (s *session) replace(ctx context.Context, shard, old, id uint64, address string) (bool, string, error) {
	m, err := s.cluster.members(ctx, shard)
	if err != nil {
		return false, "", err
	}
	out, in := memberOf(m, old), memberOf(m, id)
	done := fmt.Sprintf("node %d is a voter in the place of node %d", id, old)
	began := false
	switch {
	case is(in, rsm.RoleIncoming), is(out, rsm.RoleOutgoing): // decided; any leader completes it
		err := s.settle(ctx, shard, old, id)
		return err == nil, done, err
	// The address is what tells a slip of the hand from a second run: what follows removes a node for ever.
	case in != nil && in.GetAddress() != address:
		return false, "", notProposed(rsm.CodeChangeRefused, "node %d is a %s at %s, not at %s: use set-address if it has moved", id, in.GetRole(), dash(in.GetAddress()), address)
	case out == nil && is(in, rsm.RoleVoter) && slices.Contains(m.GetRemoved(), old):
		return false, done + " already", nil
	case out == nil && in == nil:
		return false, "", &noMemberError{old}
	case out == nil:
		return false, "", notProposed(rsm.CodeChangeRefused, "node %d is no member: add and promote a node that takes nobody's place", old)
	case !is(out, rsm.RoleVoter):
		return false, "", notProposed(rsm.CodeChangeRefused, "node %d is a %s: only a voter has a place to take", old, out.GetRole())
	case is(in, rsm.RoleVoter):
		_, result, err := s.remove(ctx, shard, old)
		return err == nil, result + fmt.Sprintf("; node %d was a voter already", id), err
	case in == nil:
		added, result, err := s.add(ctx, shard, id, address)
		if err != nil {
			return false, "", err
		}
		began = added
		s.progress.say("shard %d: %s", shard, result)
	}
	err = s.whenCaughtUp(ctx, shard, id, func(ctx context.Context, n *node) error {
		_, err := n.admin.Replace(ctx, &adminv1.ReplaceRequest{Shard: shard, Old: old, Learner: id})
		return err
	})
	if errors.Is(err, rsm.ErrUnknown) && ctx.Err() == nil {
		s.progress.say("shard %d: %v; looking what became of it", shard, err)
		err = s.settle(ctx, shard, old, id)
	}
	return began || err == nil, done, err
}

// settlePatience is how long a change whose outcome is unknown may take to show.
const settlePatience = 30 * time.Second

// settle waits until a replacement that was decided stands.
func (s *session) settle(ctx context.Context, shard, old, id uint64) error {
	ctx, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	for {
		m, err := s.cluster.members(ctx, shard)
		if err == nil && is(memberOf(m, id), rsm.RoleVoter) && memberOf(m, old) == nil {
			return nil
		}
		s.progress.show("shard %d: waiting until node %d is out and node %d stands alone", shard, old, id)
		if !wait(ctx, catchUpLook) {
			return &rsm.Error{Kind: rsm.ErrUnknown, Code: rsm.CodeCancelled, Message: "the replacement does not show; look with decree members, and run the same command again", Cause: ctx.Err()}
		}
	}
}

func setAddressCommand() *command {
	return &command{
		name: "set-address", args: "NODE ADDRESS", min: 2, max: 2, shard: everyShardFlag, limit: true,
		summary: "tell all nodes where one of them is found from now on",
		help: `Tells the members of the shards under which address a node is found from now on. Nodes that are down learn it when they are back.

Use it when a machine gets another name or number: before it moves if it is to be found at once afterwards.

Example:
  decree set-address 2 10.0.1.2:7000
`,
		bind: func(*flag.FlagSet) action {
			return func(ctx context.Context, s *session, args []string) error {
				id, err := nodeArgument(args[0])
				if err != nil {
					return err
				}
				if err := checkAddress(args[1]); err != nil {
					return err
				}
				return s.everyShard(ctx, id, func(ctx context.Context, shard uint64) (bool, string, error) {
					return s.setAddress(ctx, shard, id, args[1])
				})
			}
		},
	}
}

func (s *session) setAddress(ctx context.Context, shard, id uint64, address string) (bool, string, error) {
	m, err := s.cluster.members(ctx, shard)
	if err != nil {
		return false, "", err
	}
	if memberOf(m, id) == nil {
		return false, "", &noMemberError{id}
	}
	// Done even if the leader knows the address already: it may know it from another shard, with other members.
	err = s.cluster.change(ctx, shard, passing, func(ctx context.Context, n *node) error {
		_, err := n.admin.SetAddress(ctx, &adminv1.SetAddressRequest{Shard: shard, Node: id, Address: address})
		return err
	})
	return err == nil, fmt.Sprintf("node %d is found at %s", id, address), err
}

func transferCommand() *command {
	return &command{
		name: "transfer", args: "NODE", min: 1, max: 1, shard: "the `shard`; it may be left out if there is one only", limit: true,
		summary: "hand the leadership of a shard to a node",
		help: `Has a shard's leader hand over to another voter, and returns when it leads no more. Commands that arrive meanwhile wait a
moment; none is lost. If the other does not take over in time, nothing changes.

Use it to even out load, or to move work away from a slow machine. To empty a node use drain.

Example:
  decree transfer -shard 2 3
`,
		bind: func(*flag.FlagSet) action {
			return func(ctx context.Context, s *session, args []string) error {
				id, err := nodeArgument(args[0])
				if err != nil {
					return err
				}
				shards, err := s.cluster.shards(s.opts.shard)
				if err != nil {
					return err
				}
				if len(shards) != 1 {
					return badUsage("there are %d shards: say which with -shard", len(shards))
				}
				s.opts.shard = shards[0]
				return s.everyShard(ctx, id, func(ctx context.Context, shard uint64) (bool, string, error) { return s.transfer(ctx, shard, id) })
			}
		},
	}
}

func (s *session) transfer(ctx context.Context, shard, id uint64) (bool, string, error) {
	already := false
	// A leader that is handing over, or to whom the other is no voter, is not asked again.
	err := s.cluster.change(ctx, shard, []rsm.Code{rsm.CodeNotLeader, rsm.CodeNoLeader}, func(ctx context.Context, n *node) error {
		if sh := n.shard(shard); n.id == id && sh.GetRole() == "leader" {
			already = true
			return nil
		}
		_, err := n.admin.Transfer(ctx, &adminv1.TransferRequest{Shard: shard, To: id})
		return err
	})
	if already {
		return false, fmt.Sprintf("node %d led already", id), nil
	}
	return err == nil, fmt.Sprintf("leadership is handed to node %d", id), err
}
