package wal

import "errors"

// Read returns what the log in dir holds, as Inspect does, for whom a directory without a log is nothing special: it is Fresh.
func Read(dir string) (*Recovered, error) {
	rec, _, err := Inspect(dir)
	if errors.Is(err, errNoLog) {
		return &Recovered{Shards: map[uint64]*ShardLog{}, Fresh: true}, nil
	}
	return rec, err
}
