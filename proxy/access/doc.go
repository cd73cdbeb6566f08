// Package access says who may do what at a port: TLS and mutual TLS whose files may be replaced while the port is open, tokens
// with roles, and a safe default for what may be listened on at all. The proxy, what a node offers on its own port, the admin service and
// the HTTP ports of programs use it in the same way: files of tokens and certificates are opened ([OpenTokens], [ServerTLS]), a [Policy] says who has
// which role, [Listen] refuses what everybody could reach, and [Policy.Unary], [Policy.Stream] or [Policy.HTTP] check every call. A client connects with
// [DialOptions], from [ClientTLS] and [TokenFile]. The examples of the package show both sides.
//
// # Roles
//
// A role contains the ones before it: read < write < admin. What a call needs is the service's to say; a call of a method that
// nobody has thought of needs admin.
//
// # Tokens
//
// A token is 32 random bytes, as text: "decree_" and 43 characters. The file of a port holds no tokens, but their SHA-256, so
// that whoever reads it gets in nowhere; since a token cannot be guessed, no salt and no slow hash is needed. A line of the file:
//
//	name role sha256 [expires]
//
//	name     1 to 64 letters, digits and .-_@: who it is, for logs and limits. Several tokens may have the same: to replace one,
//	         add the new line, hand out the new token, take the old line away
//	role     read, write or admin
//	sha256   of the token's text, 64 hexadecimal digits
//	expires  as in 2027-01-31T00:00:00Z (RFC 3339); without it, never
//
// Empty lines and those that begin with # mean nothing. The file has at most 1 MiB, and 10,000 tokens. It is looked at once a
// second while calls come in: a token that is taken out is refused a second later, and a stream that it opened ends with
// the stream's next message. A file that cannot be read, or has a mistake, is logged, and what was read last stays in use.
//
// A wrong token is refused like none at all, and costs one hash. There is no lock-out: 2^256 tokens are not tried out, and
// whoever could lock out a host could lock out everybody who comes from it, as all clients of a proxy do.
//
// Tokens are not sent in plain text, unless it is to the same machine (package access's credentials refuse), and are in no error
// and no log.
//
// # Certificates
//
// With authorities for clients (the third file of ServerTLS), nobody gets as far as a call without a certificate of theirs. That
// alone gives no role where the port asks for one: the authorities of a cluster usually sign the certificates of all its nodes
// and programs, and a program that may read is not meant to remove members. Policy.Certs gives roles by the certificate's name,
// Policy.CertRole to everyone who has one. A call that carries a token has the token's role, whatever the certificate.
//
// TLS is version 1.3. Certificates that have expired are refused by both sides when a connection is made; a connection that
// stands is closed when the certificates end that the other side has shown, where its credentials are ClientTLS's, or its server is
// one of Decree's; with other servers, Policy refuses its calls from then on. Sessions are not resumed with tickets.
//
// # Goroutines
//
// The package has none. Everything is safe for concurrent use.
package access
