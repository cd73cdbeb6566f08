// Package ledgerv1 is ledger.v1 in Go, generated from ledger.proto: the public face of examples/ledger, double entry over gRPC, and over HTTP through the
// JSON mapping of the same messages. The conventions and the meaning of every field stand in that file, the codes of outcomes in examples/ledger/README.md.
//
// It is an example of an API in front of a replicated state machine: [Session] carries exactly-once to the caller, and [ErrorDetail] whether a call happened.
package ledgerv1
