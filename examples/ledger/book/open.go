package book

import (
	"unicode/utf8"
)

// openAccount decides one account of a command. The checks stand in the order of their precedence.
func (d *draft) openAccount(a *Account, event []byte) Outcome {
	if code := d.checkAccount(a); code != Created {
		return Outcome{Code: code}
	}
	if d.opened == nil {
		d.opened, d.scales = make(map[ID]Account), make(map[string]uint8)
	}
	d.opened[a.ID] = *a
	d.undo = append(d.undo, undo{kind: undoOpened, id: a.ID})
	if _, ok := d.scales[a.Asset]; !ok {
		d.scales[a.Asset] = a.Scale
		d.undo = append(d.undo, undo{kind: undoScale, asset: a.Asset})
	}
	d.events = append(d.events, event)
	return Outcome{}
}

func (d *draft) checkAccount(a *Account) Code {
	switch {
	case a.Flags&^accountFlagsKnown != 0:
		return ReservedFlag
	case a.ID.IsZero():
		return IDMustNotBeZero
	case a.ID == MaxID:
		return IDMustNotBeIntMax
	}
	if existing, ok := d.openedAccount(a.ID); ok {
		return compareAccounts(a, &existing)
	}
	const limits = DebitsMustNotExceedCredits | CreditsMustNotExceedDebits
	switch {
	case a.Flags&limits == limits:
		return FlagsAreMutuallyExclusive
	case a.Asset == "":
		return AssetMustNotBeEmpty
	case len(a.Asset) > MaxAssetLen:
		return AssetTooLong
	case !utf8.ValidString(a.Asset):
		return AssetMustBeUTF8
	case a.Scale > MaxScale:
		return ScaleTooLarge
	case len(a.Name) > MaxNameBytes:
		return NameTooLong
	case !utf8.ValidString(a.Name):
		return NameMustBeUTF8
	}
	if scale, ok := d.scaleOf(a.Asset); ok && scale != a.Scale {
		return AssetHasDifferentScale
	}
	return Created
}

// openedAccount returns the account as it was opened: a retry compares with
// that, and succeeds also when the account has been closed since.
func (d *draft) openedAccount(id ID) (Account, bool) {
	if a, ok := d.opened[id]; ok {
		return a, true
	}
	value, ok := d.view.Get(d.keys.id(keyInfo, id))
	if !ok {
		return Account{}, false
	}
	return must(decodeInfo(value)).Account, true
}

func (d *draft) scaleOf(asset string) (uint8, bool) {
	if scale, ok := d.scales[asset]; ok {
		return scale, true
	}
	value, ok := d.view.Get(assetKey(asset))
	if !ok {
		return 0, false
	}
	return must(decodeScale(value)), true
}

func compareAccounts(a, existing *Account) Code {
	switch {
	case a.Flags != existing.Flags || a.Linked != existing.Linked:
		return ExistsWithDifferentFlags
	case a.UserData != existing.UserData:
		return ExistsWithDifferentUserData
	case a.Asset != existing.Asset:
		return ExistsWithDifferentAsset
	case a.Scale != existing.Scale:
		return ExistsWithDifferentScale
	case a.Code != existing.Code:
		return ExistsWithDifferentCode
	case a.Name != existing.Name:
		return ExistsWithDifferentName
	}
	return Exists
}
