// Package wire is the protocol of api/decree/v1 in Go: what goes over a stream of calls, encoded without reflection, and the errors of the
// library as they travel.
//
// The bytes are those that generated code makes of the same messages: a test holds one against the other. By hand, because a call
// would otherwise be made into five objects on each of its three ways, and into none of its own bytes.
package wire
