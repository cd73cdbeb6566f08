package sideport

import "github.com/decree-raft/decree/internal/guard"

// Open returns how many connections are open.
func (s *Server) Open() int { return s.listener.(*guard.Guard).Stats().Open }
