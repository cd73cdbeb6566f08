package access

import "fmt"

// Role is what somebody may do. A higher one contains the lower ones.
type Role uint8

// The roles. None is what somebody has of whom nothing is known, and what a call needs that is everybody's.
const (
	None Role = iota
	Read
	Write
	Admin
)

var roleNames = [...]string{"none", "read", "write", "admin"}

// String returns the role's name: none, read, write, admin.
func (r Role) String() string {
	if int(r) < len(roleNames) {
		return roleNames[r]
	}
	return fmt.Sprintf("role %d", r)
}

// ParseRole returns the role of a name: read, write or admin.
func ParseRole(name string) (Role, error) {
	for r := Read; r <= Admin; r++ {
		if name == roleNames[r] {
			return r, nil
		}
	}
	return None, fmt.Errorf("%q is no role: read, write or admin", clip(name))
}

// clip shortens what comes from outside, for errors.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
