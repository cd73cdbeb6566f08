package book

import "fmt"

// decoded is an event. Exactly one field is set.
type decoded struct {
	Account *Account // was opened
	Entry   *Entry   // was recorded
	Expired *ID      // of a pending entry whose timeout passed
	Burnt   *burnt
}

// burnt is an id that a passing failure made unusable.
type burnt struct {
	ID  ID
	Why Code
}

// parseEvent decodes an event of the machine. The result shares no memory with data.
func parseEvent(data []byte) (decoded, error) {
	r := reader{b: data}
	var e decoded
	if len(data) == 0 {
		r.fail("it is empty")
		return e, r.err
	}
	switch data[0] {
	case kindAccount:
		e.Account = new(Account)
		r.account(e.Account)
	case kindEntry:
		e.Entry = new(Entry)
		r.entry(e.Entry)
	case kindExpiry:
		r.header(kindExpiry)
		id := r.id()
		e.Expired = &id
	case kindBurnt:
		r.header(kindBurnt)
		e.Burnt = &burnt{ID: r.id(), Why: Code(r.u8())}
	default:
		return e, fmt.Errorf("%w: event of kind %d", ErrEncoding, data[0])
	}
	if err := r.end(); err != nil {
		return decoded{}, err
	}
	return e, nil
}

// parseCode returns the code of a name.
func parseCode(name string) (Code, bool) {
	for c, n := range codeNames {
		if n == name {
			return Code(c), true
		}
	}
	return 0, false
}
