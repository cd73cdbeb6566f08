package book

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/rsm"
)

// AccountFromProto reads an account of a request.
func AccountFromProto(m *ledgerv1.Account) (a Account, err error) {
	if m.GetBalances() != nil || m.GetRows() != 0 || m.GetTime() != 0 {
		return a, fmt.Errorf("account %q: balances, rows and time are assigned by the ledger", m.GetId())
	}
	if m.GetScale() > 255 || m.GetCode() > 65535 {
		return a, fmt.Errorf("account %q: scale or code is out of range", m.GetId())
	}
	a = Account{Name: m.GetName(), Asset: m.GetAsset(), Scale: uint8(m.GetScale()), Code: uint16(m.GetCode())}
	if a.ID, err = ParseID(m.GetId()); err != nil {
		return a, err
	}
	if a.UserData, err = ParseID(m.GetUserData()); err != nil {
		return a, fmt.Errorf("user data: %w", err)
	}
	a.Flags = flagIf(m.GetDebitsMustNotExceedCredits(), DebitsMustNotExceedCredits) |
		flagIf(m.GetCreditsMustNotExceedDebits(), CreditsMustNotExceedDebits) | flagIf(m.GetClosed(), Closed)
	return a, nil
}

// Proto returns the account as a request holds it.
func (a *Account) Proto() *ledgerv1.Account {
	return &ledgerv1.Account{
		Id: a.ID.String(), Name: a.Name, Asset: a.Asset, Scale: uint32(a.Scale),
		DebitsMustNotExceedCredits: a.Flags&DebitsMustNotExceedCredits != 0,
		CreditsMustNotExceedDebits: a.Flags&CreditsMustNotExceedDebits != 0,
		Closed:                     a.Flags&Closed != 0,
		Code:                       uint32(a.Code),
		UserData:                   a.UserData.orEmpty(),
	}
}

// Proto returns the account as the public API shows it.
func (a *AccountState) Proto() *ledgerv1.Account {
	m := a.Account.Proto()
	m.Balances = &ledgerv1.Balances{
		DebitsPending: a.DebitsPending.String(), DebitsPosted: a.DebitsPosted.String(),
		CreditsPending: a.CreditsPending.String(), CreditsPosted: a.CreditsPosted.String(),
	}
	m.Rows, m.Time = a.Rows, int64(a.Time)
	return m
}

// AccountStateFromProto is the inverse of AccountState.Proto, for clients.
func AccountStateFromProto(m *ledgerv1.Account) (s AccountState, err error) {
	opened := proto.CloneOf(m)
	opened.Balances, opened.Rows, opened.Time = nil, 0, 0
	if s.Account, err = AccountFromProto(opened); err != nil {
		return s, err
	}
	b := m.GetBalances()
	for _, t := range []struct {
		to   *Uint128
		text string
	}{
		{&s.DebitsPending, b.GetDebitsPending()}, {&s.DebitsPosted, b.GetDebitsPosted()},
		{&s.CreditsPending, b.GetCreditsPending()}, {&s.CreditsPosted, b.GetCreditsPosted()},
	} {
		if *t.to, err = ParseUint128(t.text); err != nil {
			return s, err
		}
	}
	s.Rows, s.Time = m.GetRows(), rsm.Timestamp(m.GetTime())
	return s, nil
}

// orEmpty is the id for an optional field.
func (id ID) orEmpty() string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// EntryFromProto reads an entry of a request.
func EntryFromProto(m *ledgerv1.Entry) (e Entry, err error) {
	if m.GetTime() != 0 || m.GetState() != "" || m.GetResolvedBy() != "" || m.GetExpiresAt() != 0 {
		return e, fmt.Errorf("entry %q: time, state, resolved_by and expires_at are assigned by the ledger", m.GetId())
	}
	if m.GetCode() > 65535 {
		return e, fmt.Errorf("entry %q: code is out of range", m.GetId())
	}
	e = Entry{Timeout: m.GetTimeoutSeconds(), Code: uint16(m.GetCode()), Memo: m.GetMemo(), Reference: m.GetReference()}
	if e.ID, err = ParseID(m.GetId()); err != nil {
		return e, err
	}
	if e.PendingID, err = ParseID(m.GetPendingId()); err != nil {
		return e, fmt.Errorf("pending id: %w", err)
	}
	if e.UserData, err = ParseID(m.GetUserData()); err != nil {
		return e, fmt.Errorf("user data: %w", err)
	}
	if e.Date, err = ParseDate(m.GetDate()); err != nil {
		return e, err
	}
	e.Flags = flagIf(m.GetLinked(), Linked) | flagIf(m.GetPending(), Pending) |
		flagIf(m.GetPostPending(), PostPending) | flagIf(m.GetVoidPending(), VoidPending)
	e.Legs = make([]Leg, len(m.GetLegs()))
	for i, l := range m.GetLegs() {
		if e.Legs[i], err = legFromProto(l); err != nil {
			return e, fmt.Errorf("leg %d: %w", i+1, err)
		}
	}
	return e, nil
}

func flagIf[F AccountFlags | EntryFlags](set bool, f F) F {
	if set {
		return f
	}
	return 0
}

func legFromProto(m *ledgerv1.Leg) (l Leg, err error) {
	amount := m.GetDebit()
	switch {
	case amount != "" && m.GetCredit() != "" || amount == "" && m.GetCredit() == "":
		return l, fmt.Errorf("give either debit or credit")
	case m.GetCredit() != "":
		amount, l.Side = m.GetCredit(), Credit
	}
	if l.Amount, err = ParseUint128(amount); err != nil {
		return l, err
	}
	l.Closing = m.GetClosing()
	l.Account, err = ParseID(m.GetAccount())
	return l, err
}

// Proto returns the entry as a request holds it.
func (e *Entry) Proto() *ledgerv1.Entry {
	m := &ledgerv1.Entry{
		Id: e.ID.String(), Legs: make([]*ledgerv1.Leg, len(e.Legs)),
		Linked: e.Flags&Linked != 0, Pending: e.Flags&Pending != 0,
		PostPending: e.Flags&PostPending != 0, VoidPending: e.Flags&VoidPending != 0,
		PendingId: e.PendingID.orEmpty(), TimeoutSeconds: e.Timeout,
		Code: uint32(e.Code), UserData: e.UserData.orEmpty(), Date: e.Date.String(), Memo: e.Memo,
		Reference: e.Reference,
	}
	for i := range e.Legs {
		l := &e.Legs[i]
		m.Legs[i] = &ledgerv1.Leg{Account: l.Account.String(), Closing: l.Closing}
		if l.Side == Debit {
			m.Legs[i].Debit = l.Amount.String()
		} else {
			m.Legs[i].Credit = l.Amount.String()
		}
	}
	return m
}

// Proto returns the entry as the public API shows it.
func (e *RecordedEntry) Proto() *ledgerv1.Entry {
	m := e.Entry.Proto()
	m.Time, m.State = int64(e.Time), e.Status.String()
	m.ResolvedBy, m.ExpiresAt = e.ResolvedBy.orEmpty(), int64(e.ExpiresAt)
	return m
}

// Proto returns the row as the public API shows it.
func (w *Row) Proto() *ledgerv1.StatementRow {
	m := &ledgerv1.StatementRow{
		Row: w.Number, Entry: w.Entry.String(), Leg: uint32(w.Leg),
		DebitsPosted: w.DebitsPosted.String(), CreditsPosted: w.CreditsPosted.String(),
		Time: int64(w.Time), Date: w.Date.String(), Memo: w.Memo, Reference: w.Reference,
	}
	if w.Side == Debit {
		m.Debit = w.Amount.String()
	} else {
		m.Credit = w.Amount.String()
	}
	return m
}

// ResultsProto returns the outcomes of a reply as the public API shows them.
func (r Reply) ResultsProto() []*ledgerv1.Result {
	results := make([]*ledgerv1.Result, len(r.Outcomes))
	for i, o := range r.Outcomes {
		results[i] = &ledgerv1.Result{Code: o.Code.String(), Leg: uint32(o.Leg)}
	}
	return results
}
