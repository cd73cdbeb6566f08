package access

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/decree-raft/decree/internal/reload"
)

const (
	// MaxTokenFileBytes and MaxTokens bound a file of tokens.
	MaxTokenFileBytes = 1 << 20
	MaxTokens         = 10_000
	// MaxNameBytes bounds the name of a token.
	MaxNameBytes = 64

	tokenPrefix = "decree_"
	// maxToken bounds what is hashed for a stranger; ours have 50 bytes.
	maxToken = 256
	// tokenLook is how often the file is looked at, and so how long a token that was taken out may still be used.
	tokenLook = time.Second
)

// ErrTokens is wrapped by the errors of files of tokens.
var ErrTokens = errors.New("file of tokens")

// Tokens are who may use a port, mostly read from a file and read again when that changes. Safe for concurrent use.
type Tokens struct{ current func() tokenTable }

type tokenTable map[[sha256.Size]byte]token

type token struct {
	name    string
	role    Role
	expires time.Time // zero: never
}

// OpenTokens reads a file of tokens (the package's text has its form), and again when it has changed. A change that cannot be
// read is logged to log, which may be nil, and what was read last stays in use. The error wraps ErrTokens and says which line
// is wrong, or is that of opening the file.
func OpenTokens(path string, log *slog.Logger) (*Tokens, error) {
	return openTokens(path, log, tokenLook)
}

func openTokens(path string, log *slog.Logger, every time.Duration) (*Tokens, error) {
	files, err := reload.Open("file of tokens", []string{path}, every, log, func() (tokenTable, error) { return readTokens(path) })
	if err != nil {
		return nil, err
	}
	return &Tokens{files.Current}, nil
}

func readTokens(path string) (tokenTable, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTokens, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxTokenFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTokens, err)
	}
	return parseTokens(path, data)
}

// CheckTokens says whether data is a file of tokens that OpenTokens would take. path is for the error, which wraps ErrTokens.
func CheckTokens(path string, data []byte) error {
	_, err := parseTokens(path, data)
	return err
}

func parseTokens(path string, data []byte) (tokenTable, error) {
	if len(data) > MaxTokenFileBytes {
		return nil, fmt.Errorf("%w: %s has more than %d bytes, which is the limit", ErrTokens, path, MaxTokenFileBytes)
	}
	table, lines := tokenTable{}, map[[sha256.Size]byte]int{}
	number := 0
	for line := range bytes.Lines(data) {
		number++
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		hash, t, err := parseToken(text)
		if err == nil && lines[hash] != 0 {
			err = fmt.Errorf("line %d has the same hash: a token has one line", lines[hash])
		}
		if err == nil && len(table) == MaxTokens {
			err = fmt.Errorf("it is the token after %d, which is the limit", MaxTokens)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s, line %d: %w", ErrTokens, path, number, err)
		}
		table[hash], lines[hash] = t, number
	}
	return table, nil
}

// parseToken reads a line. Its errors do not repeat what may be a token that somebody put there by mistake.
func parseToken(text string) (hash [sha256.Size]byte, t token, err error) {
	fields := strings.Fields(text)
	if len(fields) < 3 || len(fields) > 4 {
		return hash, t, fmt.Errorf("it has %d words: name, role, SHA-256 of the token, and perhaps when it expires", len(fields))
	}
	for _, f := range fields {
		if strings.HasPrefix(f, tokenPrefix) {
			return hash, t, errors.New("it holds a token itself: replace that by its SHA-256 (decree token new writes such lines), and do not use the token any more")
		}
	}
	if t.name = fields[0]; !validName(t.name) {
		return hash, t, fmt.Errorf("the name is %q: 1 to %d letters, digits and .-_@", clip(t.name), MaxNameBytes)
	}
	if t.role, err = ParseRole(fields[1]); err != nil {
		return hash, t, err
	}
	if n, err := hex.Decode(hash[:], clipTo(fields[2], 2*sha256.Size)); err != nil || n != len(hash) || len(fields[2]) != 2*sha256.Size {
		return hash, t, fmt.Errorf("the third word has %d characters and is no SHA-256: %d hexadecimal digits", len(fields[2]), 2*sha256.Size)
	}
	if len(fields) == 4 {
		if t.expires, err = time.Parse(time.RFC3339, fields[3]); err != nil {
			return hash, t, fmt.Errorf("it expires at %q: a time looks like 2027-01-31T00:00:00Z", clip(fields[3]))
		}
	}
	return hash, t, nil
}

func clipTo(s string, n int) []byte { return []byte(s[:min(len(s), n)]) }

func validName(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte(".-_@", c) >= 0:
		default:
			return false
		}
	}
	return s != "" && len(s) <= MaxNameBytes
}

// NewToken makes a token, and the line of the port's file that goes with it, without its end. The token is for whoever is called
// name, and is nowhere else. expires zero: never.
func NewToken(name string, role Role, expires time.Time) (secret, line string, err error) {
	if !validName(name) {
		return "", "", fmt.Errorf("the name is %q: 1 to %d letters, digits and .-_@", clip(name), MaxNameBytes)
	}
	if role < Read || role > Admin {
		return "", "", fmt.Errorf("a token has the role read, write or admin, not %v", role)
	}
	var b [32]byte
	rand.Read(b[:]) // never fails: the program would have ended
	secret = tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	hash := sha256.Sum256([]byte(secret))
	line = fmt.Sprintf("%s %v %x", name, role, hash)
	if !expires.IsZero() {
		line += " " + expires.UTC().Format(time.RFC3339)
	}
	return secret, line, nil
}

// OwnToken makes a token that is in no file: for a port on which a program calls itself, and nobody else.
func OwnToken(name string, role Role) (secret string, t *Tokens, err error) {
	secret, line, err := NewToken(name, role, time.Time{})
	if err != nil {
		return "", nil, err
	}
	hash, own, err := parseToken(line)
	if err != nil {
		return "", nil, err
	}
	table := tokenTable{hash: own}
	return secret, &Tokens{func() tokenTable { return table }}, nil
}

// find returns whose token it is. What is looked up is its hash: how long that takes says nothing about tokens.
func (t *Tokens) find(secret string) (token, bool) {
	if len(secret) > maxToken {
		return token{}, false
	}
	found, ok := t.current()[sha256.Sum256([]byte(secret))]
	return found, ok
}
