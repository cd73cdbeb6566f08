package access

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestNewToken(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		secret, line, err := NewToken("rita", Write, time.Time{})
		if err != nil || len(secret) != len(tokenPrefix)+43 || seen[secret] || strings.Contains(line, secret) {
			t.Fatalf("%q, %q, %v", secret, line, err)
		}
		seen[secret] = true
	}
	ends := time.Date(2030, 1, 2, 3, 4, 5, 600, time.UTC)
	_, line, err := NewToken("rita", Write, ends)
	if err != nil || !strings.HasSuffix(line, " 2030-01-02T03:04:05Z") || CheckTokens("t", []byte(line)) != nil {
		t.Errorf("%q, %v", line, err)
	}
	for _, name := range []string{"", "two words", "naïve", "#", strings.Repeat("x", 65)} {
		if _, _, err := NewToken(name, Read, time.Time{}); err == nil {
			t.Errorf("the name %q was taken", name)
		}
	}
	for _, role := range []Role{None, Admin + 1} {
		if _, _, err := NewToken("x", role, time.Time{}); err == nil {
			t.Errorf("the role %v was taken", role)
		}
	}
}

func TestTokenFile(t *testing.T) {
	hash := strings.Repeat("0123456789abcdef", 4)
	good := "# who may what\n\n  rita read " + hash + "\r\nwalt\twrite\t" + strings.ToUpper(strings.Replace(hash, "0", "1", 1)) + " 2030-01-02T03:04:05+01:00"
	table, err := parseTokens("tokens", []byte(good))
	if err != nil || len(table) != 2 {
		t.Errorf("%v, %v", table, err)
	}
	for name, c := range map[string]struct{ content, sentence string }{
		"few words":    {"# x\nrita read\n", "tokens, line 2: it has 2 words"},
		"many words":   {"rita read " + hash + " 2030-01-02T03:04:05Z 1", "line 1: it has 5 words"},
		"name":         {"ri/ta read " + hash, `the name is "ri/ta"`},
		"role":         {"rita king " + hash, `"king" is no role: read, write or admin`},
		"role none":    {"rita none " + hash, `"none" is no role`},
		"short hash":   {"rita read " + hash[1:], "has 63 characters"},
		"long hash":    {"rita read " + hash + "00", "has 66 characters"},
		"no hash":      {"rita read " + strings.Repeat("x", 64), "no SHA-256"},
		"time":         {"rita read " + hash + " tomorrow", `expires at "tomorrow"`},
		"twice":        {"rita read " + hash + "\nwalt read " + hash, "line 2: line 1 has the same hash"},
		"token itself": {"rita read decree_SECRETSECRET", "it holds a token itself"},
		"long":         {strings.Repeat("#\n", MaxTokenFileBytes/2+1), "more than 1048576 bytes"},
	} {
		_, err := parseTokens("tokens", []byte(c.content))
		if !errors.Is(err, ErrTokens) || !strings.Contains(err.Error(), c.sentence) || !strings.Contains(err.Error(), "tokens") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), hash[1:])) {
			t.Errorf("%s: it says too much: %v", name, err)
		}
	}
	var many bytes.Buffer
	for i := range MaxTokens + 1 {
		fmt.Fprintf(&many, "n read %064x\n", i)
	}
	if err := CheckTokens("tokens", many.Bytes()); !errors.Is(err, ErrTokens) || !strings.Contains(err.Error(), "line 10001: it is the token after 10000") {
		t.Error(err)
	}
	path := t.TempDir() + "/tokens"
	if _, err := OpenTokens(path, nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte{'\n'}, MaxTokenFileBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTokens(path, nil); !errors.Is(err, ErrTokens) {
		t.Error(err)
	}
}

// Whatever is in the file: it is refused with its line, or everything in it can be written down again and means the same.
func FuzzTokens(f *testing.F) {
	_, line, err := NewToken("rita", Write, time.Now().Add(time.Hour))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(line + "\n# x\n\n"))
	f.Add([]byte("rita read " + strings.Repeat("00", 32) + "\r\n"))
	f.Add([]byte("rita read decree_abc"))
	f.Add([]byte("a admin " + strings.Repeat("f", 64) + " 2030-01-02T03:04:05.5+01:00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := parseTokens("tokens", data)
		if err != nil {
			if !errors.Is(err, ErrTokens) || table != nil || len(err.Error()) > 1000 {
				t.Fatalf("%v, %v", table, err)
			}
			return
		}
		var again bytes.Buffer
		for hash, entry := range table {
			if !validName(entry.name) || entry.role < Read || entry.role > Admin {
				t.Fatalf("%+v", entry)
			}
			fmt.Fprintf(&again, "%s %v %x", entry.name, entry.role, hash)
			if !entry.expires.IsZero() {
				fmt.Fprintf(&again, " %s", entry.expires.UTC().Format(time.RFC3339Nano))
			}
			again.WriteByte('\n')
		}
		second, err := parseTokens("tokens", again.Bytes())
		if err != nil || len(second) != len(table) {
			t.Fatalf("%q: %v", again.String(), err)
		}
		for hash, entry := range table {
			if s := second[hash]; s.name != entry.name || s.role != entry.role || !s.expires.Equal(entry.expires) {
				t.Fatalf("%+v, then %+v", entry, s)
			}
		}
	})
}
