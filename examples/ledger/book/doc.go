// Package book is double-entry accounting as a replicated state machine.
//
// Machine has the three functions that the library runs; Append* and Parse*
// make its commands and read its replies and events; the Lookup functions, Statement
// and Audit read its state. Nothing here does I/O, knows of a network, reads a clock or a random source, or starts a
// goroutine. What an item of a command must satisfy, and in which order it is
// checked, is written down in the README beside this package's directory.
//
// # How an entry travels
//
//	command --Decide--> draft: the view, and over it what the items before have done
//	                      |  each item: created, or the first of its checks that fails
//	                      v
//	        events: the item's own bytes --Apply--> accounts, the entry, marks in statements
//
// Decide does the arithmetic once to find out whether the entry can be booked; Apply does it
// again on every replica, out of the same four movements of an account (state.go),
// and panics where Decide would have refused.
//
// # State
//
// Numbers are big endian, so that keys sort like what they hold.
//
//	key                              value                             written
//	'a' account id                   balances, flags, asset, rows      by every entry
//	'i' account id                   time (8), account event           once
//	'n' name 0 asset 0 account id    nothing                           once
//	'c' asset                        version, scale                    once
//	'e' entry id                     time (8), entry or burnt event,   once
//	                                 what it did to its accounts
//	'm' account id, n (8)            entry of row 64n of a statement   once
//	'p' entry id                     status of a pending entry         twice at most
//	'x' expiry (8), entry id         nothing                           once, then deleted
//
// A two-leg entry writes three values: two accounts and the entry, whose record is two rows of statements as well
// (statement.go). The balances of an account stand
// apart from its name and other constants, which would have to be written again with every entry.
//
// # Formats
//
// Every command, event, reply and value begins with a kind or a version; the byte tables stand at the functions
// that write them (event.go, command.go, state.go). Each thing has exactly one
// encoding: numbers without leading zeros, absent fields for zeros, no trailing bytes. Decoders refuse all
// else, and are fuzzed. Checksums are the library's: it hashes every change of the state and covers every entry of the log.
//
// Events live for ever: testdata/events-v1.txt and events-v2.txt hold those of each version of the machine, and a test applies them
// under every program that must.
//
// # Versions
//
// Version 2 of the machine (VersionReferences) brought Entry.Reference. It changed one thing: an entry that has a reference is booked,
// as an event of a format that the program before cannot read. So that nobody writes such an event while somebody could not apply it,
// Decide takes references only when the version is active, which is when all replicas can run it (rsm.Versioned).
// All else is decided and written to the byte as before.
package book
