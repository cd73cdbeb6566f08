package book

// The kinds of event. An item of a command carries the same encoding as the
// event that it becomes, so that Decide hands the client's bytes on instead of writing them again.
const (
	kindAccount byte = 1 // an account was opened
	kindEntry   byte = 2 // an entry was recorded: posted, reserved, or a reservation resolved
	kindExpiry  byte = 3 // a pending entry expired
	kindBurnt   byte = 4 // the id of an entry became unusable
)

// Bits of the byte that says which optional fields follow. An absent field is zero; a present one is not.
const (
	hasCode      = 1 << 0
	hasUserData  = 1 << 1
	hasName      = 1 << 2 // accounts
	hasPendingID = 1 << 2 // entries, from here on
	hasTimeout   = 1 << 3
	hasDate      = 1 << 4
	hasMemo      = 1 << 5
	hasReference = 1 << 6 // in format version 2, and there always

	accountFields = hasCode | hasUserData | hasName
	entryFields   = hasCode | hasUserData | hasPendingID | hasTimeout | hasDate | hasMemo
)

// Bits of the byte before a leg's amount; the low five are the amount's length.
const (
	legCredit  = 1 << 7
	legClosing = 1 << 6
	legLength  = 1<<5 - 1
)

// appendAccount appends the encoding of a.
//
//	0   1  kind 1
//	1   1  version 1
//	2   1  flags; bit 7 is "linked"
//	3  16  id
//	19  1  scale
//	20  1  length of the asset code, then the code
//	    1  which of these follow: 0 code, 1 user data, 2 name
//	    2  code
//	   16  user data
//	    2  length of the name, then the name
func appendAccount(b []byte, a *Account) []byte {
	flags, fields := a.Flags, byte(0)
	if a.Linked {
		flags |= accountLinked
	}
	if a.Code != 0 {
		fields |= hasCode
	}
	if !a.UserData.IsZero() {
		fields |= hasUserData
	}
	if a.Name != "" {
		fields |= hasName
	}
	b = append(b, kindAccount, formatVersion, byte(flags))
	b = append(b, a.ID[:]...)
	b = append(b, a.Scale, byte(len(a.Asset)))
	b = append(b, a.Asset...)
	b = append(b, fields)
	if fields&hasCode != 0 {
		b = appendU16(b, a.Code)
	}
	if fields&hasUserData != 0 {
		b = append(b, a.UserData[:]...)
	}
	if fields&hasName != 0 {
		b = appendU16(b, uint16(len(a.Name)))
		b = append(b, a.Name...)
	}
	return b
}

func (r *reader) account(a *Account) {
	r.header(kindAccount)
	flags := AccountFlags(r.u8())
	*a = Account{ID: r.id(), Flags: flags &^ accountLinked, Linked: flags&accountLinked != 0}
	a.Scale = r.u8()
	a.Asset = string(r.take(int(r.u8())))
	fields := r.fields(accountFields)
	if fields&hasCode != 0 {
		a.Code = r.u16()
		r.mustNotBeZero("code", a.Code == 0)
	}
	if fields&hasUserData != 0 {
		a.UserData = r.id()
		r.mustNotBeZero("user data", a.UserData.IsZero())
	}
	if fields&hasName != 0 {
		a.Name = string(r.take(int(r.u16())))
		r.mustNotBeZero("name", a.Name == "")
	}
}

// formatReference is the version in the second byte of an entry that has a reference. All others keep version 1, which the
// program before references reads, and their bytes.
const formatReference = 2

// appendEntry appends the encoding of e.
//
//	0   1  kind 2
//	1   1  version: 2 if there is a reference, 1 if not
//	2   2  flags
//	4  16  id
//	20  1  number of legs, then each:
//	   16    account
//	    1    bit 7: credit; bit 6: closing; bits 0 to 4: length of the amount
//	    n    amount, big endian, without leading zeros
//	    1  which of these follow: 0 code, 1 user data, 2 pending id, 3 timeout, 4 date, 5 memo, 6 reference
//	    2  code
//	   16  user data
//	   16  pending id
//	    4  timeout
//	    4  date
//	    2  length of the memo, then the memo
//	    2  length of the reference, then the reference
func appendEntry(b []byte, e *Entry) []byte {
	version := byte(formatVersion)
	if e.Reference != "" {
		version = formatReference
	}
	b = append(b, kindEntry, version)
	b = appendU16(b, uint16(e.Flags))
	b = append(b, e.ID[:]...)
	b = append(b, byte(len(e.Legs)))
	for i := range e.Legs {
		b = appendLeg(b, &e.Legs[i])
	}
	fields := e.fields()
	b = append(b, fields)
	if fields&hasCode != 0 {
		b = appendU16(b, e.Code)
	}
	if fields&hasUserData != 0 {
		b = append(b, e.UserData[:]...)
	}
	if fields&hasPendingID != 0 {
		b = append(b, e.PendingID[:]...)
	}
	if fields&hasTimeout != 0 {
		b = appendU32(b, e.Timeout)
	}
	if fields&hasDate != 0 {
		b = appendU32(b, uint32(e.Date))
	}
	if fields&hasMemo != 0 {
		b = appendU16(b, uint16(len(e.Memo)))
		b = append(b, e.Memo...)
	}
	if fields&hasReference != 0 {
		b = appendU16(b, uint16(len(e.Reference)))
		b = append(b, e.Reference...)
	}
	return b
}

func appendLeg(b []byte, l *Leg) []byte {
	b = append(b, l.Account[:]...)
	head := byte(amountLen(l.Amount))
	if l.Side == Credit {
		head |= legCredit
	}
	if l.Closing {
		head |= legClosing
	}
	return appendAmount(append(b, head), l.Amount)
}

func (e *Entry) fields() (fields byte) {
	if e.Code != 0 {
		fields |= hasCode
	}
	if !e.UserData.IsZero() {
		fields |= hasUserData
	}
	if !e.PendingID.IsZero() {
		fields |= hasPendingID
	}
	if e.Timeout != 0 {
		fields |= hasTimeout
	}
	if e.Date != 0 {
		fields |= hasDate
	}
	if e.Memo != "" {
		fields |= hasMemo
	}
	if e.Reference != "" {
		fields |= hasReference
	}
	return fields
}

// entry decodes into e and reuses the memory of its legs.
func (r *reader) entry(e *Entry) {
	known := byte(entryFields)
	version := r.headerUpTo(kindEntry, formatReference)
	if version == formatReference {
		known |= hasReference
	}
	*e = Entry{Flags: EntryFlags(r.u16()), ID: r.id(), Legs: e.Legs[:0]}
	for n := int(r.u8()); n > 0 && r.err == nil; n-- {
		e.Legs = append(e.Legs, r.leg())
	}
	fields := r.fields(known)
	if fields&hasReference == 0 && version == formatReference {
		r.fail("format version %d without a reference", version)
	}
	if fields&hasCode != 0 {
		e.Code = r.u16()
		r.mustNotBeZero("code", e.Code == 0)
	}
	if fields&hasUserData != 0 {
		e.UserData = r.id()
		r.mustNotBeZero("user data", e.UserData.IsZero())
	}
	if fields&hasPendingID != 0 {
		e.PendingID = r.id()
		r.mustNotBeZero("pending id", e.PendingID.IsZero())
	}
	if fields&hasTimeout != 0 {
		e.Timeout = r.u32()
		r.mustNotBeZero("timeout", e.Timeout == 0)
	}
	if fields&hasDate != 0 {
		e.Date = Date(r.u32())
		r.mustNotBeZero("date", e.Date == 0)
	}
	if fields&hasMemo != 0 {
		e.Memo = string(r.take(int(r.u16())))
		r.mustNotBeZero("memo", e.Memo == "")
	}
	if fields&hasReference != 0 {
		e.Reference = string(r.take(int(r.u16())))
		r.mustNotBeZero("reference", e.Reference == "")
	}
}

func (r *reader) leg() (l Leg) {
	l.Account = r.id()
	head := r.u8()
	if head&legCredit != 0 {
		l.Side = Credit
	}
	l.Closing = head&legClosing != 0
	if head&^(legCredit|legClosing|legLength) != 0 {
		r.fail("a reserved bit of a leg is set")
	}
	l.Amount = r.amount(int(head & legLength))
	return l
}

func (r *reader) fields(known byte) byte {
	fields := r.u8()
	if fields&^known != 0 {
		r.fail("an unknown field is present")
	}
	return fields
}

// mustNotBeZero keeps encodings unique: a zero field is one that is absent.
func (r *reader) mustNotBeZero(name string, zero bool) {
	if zero {
		r.fail("%s is present and zero", name)
	}
}

// appendExpiry appends the event that the pending entry id expired: kind 3, version 1, id.
func appendExpiry(b []byte, id ID) []byte {
	return append(append(b, kindExpiry, formatVersion), id[:]...)
}

// appendBurnt appends the event that id became unusable: kind 4, version 1, id, code that burnt it.
func appendBurnt(b []byte, id ID, why Code) []byte {
	return append(append(append(b, kindBurnt, formatVersion), id[:]...), byte(why))
}
