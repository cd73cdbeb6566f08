package wal

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
)

// scanned is a log that has been read through and is whole.
type scanned struct {
	base    uint64
	last    uint64 // physical index of the last entry
	mark    uint64 // physical index of the newest mark
	tail    *segmentScan
	tracker *tracker
}

// recoverDir recovers the log in dir.
func recoverDir(dir string, lg *slog.Logger) (*scanned, *Recovered, error) {
	return recoverLog(dirFiles(dir), lg)
}

// recoverLog verifies every record of a log's segments, repairs a torn end and removes
// what a crash left over. It writes only when everything has been found good.
func recoverLog(in files, lg *slog.Logger) (*scanned, *Recovered, error) {
	segments, err := in.list()
	if err != nil {
		return nil, nil, err
	}
	plan, err := judgeLast(in, segments[len(segments)-1])
	if err != nil {
		return nil, nil, err
	}
	base, err := findBase(in, segments, plan)
	if err != nil {
		return nil, nil, err
	}
	segments, released, err := dropReleased(segments, base)
	if err != nil {
		return nil, nil, err
	}
	found, rec, err := replay(in, segments, base, plan)
	if err != nil {
		return nil, nil, err
	}
	if rec.Repaired, err = plan.run(in, lg); err != nil {
		return nil, nil, err
	}
	// Whoever wrote the newest frame may have died before its sync had returned, or of its failure, and then only the kernel's memory may
	// have it: a power cut would take what is acknowledged by it from now on, or leave an older base, whose segments are gone. All frames
	// before it were synced before it was written. It is written once more, because after a failed sync the kernel takes it for written.
	if err := in.confirm(found.tail.path, found.tail.newest, found.tail.end); err != nil {
		return nil, nil, err
	}
	for _, f := range released {
		if err := in.remove(f.path); err != nil {
			return nil, nil, fmt.Errorf("wal: %w", err)
		}
	}
	return found, rec, in.tidy()
}

// judgeLast looks at the end of the log, and plans its repair if it was torn by a crash.
func judgeLast(in files, file segmentFile) (repairPlan, error) {
	s, err := scanSegment(in, file, nil, func(payload, int64) error { return nil })
	if err != nil {
		return repairPlan{}, err
	}
	if !s.hasHeader() {
		// A cut makes the header durable before the segment can be seen. Whether there were entries behind it cannot be told any more.
		return repairPlan{}, corrupt(file.path, s.end, "%s", cmp.Or(s.damage, "the segment has no header"))
	}
	plan := repairPlan{file: file, offset: s.end, last: s}
	if s.damage == "" {
		return plan, nil
	}
	rest, err := readFrom(in, file.path, s.end)
	if err != nil {
		return repairPlan{}, err
	}
	v := judgeTail(rest, s.end, s.last)
	if !v.torn {
		return repairPlan{}, corrupt(file.path, s.end+v.offset, "%s (%s)", s.damage, v.reason)
	}
	plan.reason = v.reason
	return plan, nil
}

// findBase returns the oldest segment that the newest entry needs.
func findBase(in files, files []segmentFile, plan repairPlan) (uint64, error) {
	if plan.last.entries > 0 {
		return plan.last.base, nil
	}
	if len(files) == 1 {
		return 0, nil
	}
	// A segment is cut behind an entry.
	file := files[len(files)-2]
	s, err := scanSegment(in, file, nil, func(payload, int64) error { return nil })
	if err != nil {
		return 0, err
	}
	if s.damage != "" || s.entries == 0 {
		return 0, corrupt(file.path, s.end, "%s (and it is not the last segment)", cmp.Or(s.damage, "no entries"))
	}
	return s.base, nil
}

// dropReleased takes out the segments below base, of which a crash may have brought any
// back, and demands all the others.
func dropReleased(files []segmentFile, base uint64) (keep, released []segmentFile, err error) {
	for len(files) > 0 && files[0].seq < base {
		released, files = append(released, files[0]), files[1:]
	}
	for i, f := range files {
		if want := base + uint64(i); f.seq != want {
			return nil, nil, corrupt(f.path, 0, "segment %d is missing: the oldest needed is %d, and this is %d", want, base, f.seq)
		}
	}
	if len(files) == 0 {
		return nil, nil, corrupt(released[len(released)-1].path, 0, "segment %d is missing, the oldest needed", base)
	}
	return files, released, nil
}

// replay reads the segments in order and rebuilds what they hold of every shard.
func replay(in files, files []segmentFile, base uint64, plan repairPlan) (*scanned, *Recovered, error) {
	found := &scanned{base: base}
	rec := &Recovered{Shards: map[uint64]*ShardLog{}}
	hasMark := false
	var prev *segmentScan
	for _, file := range files {
		if prev == nil {
			found.tracker = newTracker(segment{seq: file.seq, first: file.first})
		} else {
			found.tracker.cutTo(segment{seq: file.seq, first: file.first}, prev.end)
		}
		s, err := scanSegment(in, file, prev, func(p payload, size int64) error {
			return found.apply(rec, p, size)
		})
		if err != nil {
			return nil, nil, wrapInvalid(err, file)
		}
		if s.damage != "" && (s.seq != plan.file.seq || s.end != plan.offset) {
			return nil, nil, corrupt(s.path, s.end, "%s (and it is not the last segment)", s.damage)
		}
		if s.marked {
			found.mark, hasMark = file.first, true
		}
		found.last, found.tail, prev = s.last, s, s
	}
	if !hasMark {
		return nil, nil, corrupt(files[0].path, 0, "no segment has a mark to start from")
	}
	return found, rec, nil
}

// apply takes a payload into what is recovered.
func (s *scanned) apply(rec *Recovered, p payload, size int64) error {
	if err := s.tracker.validate(p.records); err != nil {
		return err
	}
	s.tracker.add(p.records, size)
	for i := range p.records {
		rec.apply(&p.records[i])
	}
	return nil
}

// apply takes a record that is valid behind those before it.
func (rec *Recovered) apply(r *Record) {
	if r.Forget {
		delete(rec.Shards, r.Shard)
	}
	if r.RestartAfter == 0 && r.HardState.IsZero() && len(r.Entries) == 0 {
		return
	}
	l := rec.Shards[r.Shard]
	if l == nil {
		l = &ShardLog{}
		rec.Shards[r.Shard] = l
	}
	if r.RestartAfter != 0 {
		l.RestartAfter, l.Entries = r.RestartAfter, nil
	}
	if !r.HardState.IsZero() {
		l.HardState = r.HardState
	}
	if len(r.Entries) > 0 {
		l.replace(r.Entries)
	}
}

// replace puts entries at their indexes and drops what stood there and above.
func (l *ShardLog) replace(entries []Entry) {
	first := entries[0].Index
	if len(l.Entries) == 0 || first <= l.Entries[0].Index {
		l.Entries = append(l.Entries[:0], entries...)
		return
	}
	l.Entries = append(l.Entries[:first-l.Entries[0].Index], entries...)
}

// wrapInvalid makes a broken rule of the records a corruption: what was written was valid.
func wrapInvalid(err error, file segmentFile) error {
	if errors.Is(err, ErrInvalid) || errors.Is(err, ErrTooLarge) {
		return corrupt(file.path, 0, "%v", err)
	}
	return err
}
