// Package admit says which requests a proxy takes to work on, and which it refuses at once.
//
// A server that takes everything answers nobody in time: its queue grows until every answer comes after its deadline.
// A Controller keeps the queue short instead. It bounds what is at work by count and by bytes, per client and per
// shard; how much a shard gets follows the latency of its answers. A refusal is an *rsm.Error of kind
// ErrNotProposed and code "overloaded": it names the limit, and says when to come back. Nothing waits in here.
//
// The package does no I/O, reads no clock, has no goroutines and draws no random numbers. All methods may be called by any
// goroutine. Times are handed in as nanoseconds; see Controller for which clock.
//
// # What is refused
//
// A request is checked against these, in this order:
//
//	too large       it would not be taken were it alone; its code is "command_too_large", as retrying does not help
//	client bounds   ClientCount and ClientBytes, over all shards; the last eighth is for requests that make room
//	shard's limit   the adaptive limit L of the shard, in requests; see below
//	shard's bytes   the same rules, with L = 2/3 of ShardBytes, which does not adapt
//
// The shard's check counts everything that is at work on the shard, whoever sent it, and compares it with a ceiling. Which
// ceiling depends on who asks. With one step = L/8, at least 1:
//
//	L - step     a client at more than one and a half times its fair share
//	L            a client over its fair share
//	L + 2 steps  a client within its fair share
//	L + 4 steps  a request that makes room, of a client within its share of the reserve
//
// The fair share is L / active clients; a client, known by its name, is active on a shard for one to two seconds after it asked for something. A
// client that has nothing at work there is within its share whatever its size. So one client alone gets all of L. With
// others around, a flood stops a step short of L, so that those who ask for less find it open, their bursts included; and if
// the flood was there first, they overcommit by two steps while it drains. Max-min fairness comes out of it, but for bursts: nobody is
// cut below min(demand, L / active). Clients are told apart by the name that the caller gives, so the name has to be one that
// cannot be made up: an authenticated identity, or an address.
//
// The reserve is the last two steps, which ordinary requests never reach. The share of it is 2 steps / clients that make room of late, at
// least one request, and only what makes room counts for it: under the worst flood, also of one's own, space is still freed. Beyond
// its share what makes room is treated like anything else, so that it makes no better flood. The last ceiling
// bounds all of it. L is at most 2/3 of ShardCount, so that L + 4 steps is within ShardCount: the hard bounds hold for
// requests that make room as well.
//
// # How the limit adapts
//
// By Little's law, requests at work = rate x latency. Below the knee of a service, more at work gives more rate at the
// same latency; above it, more latency at the same rate. So L aims at a latency: Target times that of the service without a
// queue, the base. Each window of answers (20 ms or 4 times the base, 16 answers) moves L half the way to
//
//	L x Target x base / latency
//
// This is the gradient of Netflix' concurrency-limits (GradientLimit, Gradient2Limit;
// "Performance Under Load", 2018), and TCP Vegas' idea (Brakmo and Peterson, 1995): latency over the base is one's
// own queue. When all of L is in use, it is also BBR's window of gain x rate x base (Cardwell et al., 2016), since rate = L / latency.
// A window counts only requests that began after L last changed. An L that was not reached in the window does not grow: nothing
// was learned about it (as in Zeebe and in concurrency-limits).
//
// All of these stand and fall with the base. A minimum that is kept (Vegas) is wrong for ever once the disk gets slower: an
// fsync that takes 15 ms today and took 0.3 ms yesterday looks like a queue 50 long, the limit collapses to its minimum,
// and the latency stays as it is. A long average (Gradient2) follows the queue that it should measure: under lasting
// overload its limit climbs to the maximum. So the base is measured, as in BBR's ProbeRTT: for some 100 ms L is lowered to L / (2 x Target),
// half of what fills the service, and once all older requests are done, their latency is the base, be it lower or higher than
// before: the root mean square, so that a service that varies (an fsync of 15 ms among fifty of 0.3) is allowed a queue to
// work on afterwards. That happens
//
//   - every 10 s (ProbeEvery), if L was reached meanwhile. It costs half the rate for 1 % of the time. Where the base is long, a probe takes three or
//     four of it, or more where so few may be at work that its answers come in many rounds; so it comes 32 of it after the last one at the earliest, every third time at least;
//   - within 0.5 s (ProbeEvery/20), when L wants to fall by more than 30 % since it last was right: is it a queue, or did the
//     service get slower? If the latency does not fall with L, it was the service, and L stays;
//   - again within 0.5 s when a probe changed the base by half: it may have seen a hiccup of the disk, or a queue so long
//     that a fifth of it still was one;
//   - every 2 s (ProbeEvery/5) for a slow shard with a floor, see below, and again within 0.5 s when a probe raised its base by a
//     fifth: few are at work there, so a stall holds up most of a probe.
//
// Between probes the base follows lower latencies and never higher ones. The first one is measured as soon as L is reached.
//
// Where the service batches, and processors are short, latency says little of a queue, and less at work makes everything slower. So a shard that is fast keeps a limit of Floor
// at least, whatever its latency: one that does 10,000 per second or more. Of a slower one that falls with the cube of its part, MinLimit at least; so what waits there is
// short in time as well, 3 ms with 1,700 per second and a Floor of 1024. How much a shard does is measured while its limit is reached, a second at a time; the best of the last four counts, and
// until there are two, the shard passes for fast. A limit of more than four times the square of that part may be the queue of a shard that became slow, so that a fifth of it still is one: a probe goes down to
// that square at once then, and ends as soon as it has found that this is as slow: the service is, without a queue. It is due at once where the last one found as much at work, before the shard was known to be slow. Other probes go below it, down to the cube: more of a slow shard may be a queue, and the latency of that would be taken for the base.
//
// Several proxies before one shard see each other's queues, and cannot tell them from a slow service, unless they probe together; on their
// own they would drive each other's base, and the queue, up for ever. Probes begin at multiples of
// ProbeEvery or of ProbeEvery/20 of the clock that is handed in: where clocks agree to some 20 ms, they probe together.
//
// What says nothing about load (Ignored: a request waited for a leader) is no sample. A refusal for overload from behind (Dropped) lowers L by a tenth, once per latency, whatever the latency; until the next probe L then
// grows slowly once it is near to where that was.
//
// # Bounds
//
// At most Config.Clients clients are told apart; those beyond share one record, and thereby one client's bounds. A record goes when its last
// connection is released and its last request done. At most Config.Shards shards are kept. A new one takes the place of one that has
// nothing at work, first of those that never answered; if there is none, it shares a record. Those that never answered hold half of the places at
// most once all are taken, so garbage from outside pushes out garbage.
package admit
