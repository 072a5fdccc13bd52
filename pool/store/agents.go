package store

import "context"

// AgentRecord is what is kept of an agent; Text is of package agents alone.
type AgentRecord = Record

// Errors of PutAgent and RemoveAgent.
var (
	ErrAgentVersion = ErrVersion
	ErrNoAgent      = ErrNoRecord
	ErrAgentsFull   = ErrFull
)

// PutAgent is Records.Put.
func (s *Store) PutAgent(ctx context.Context, r AgentRecord) (version int64, err error) {
	return s.AgentRecords().Put(ctx, r)
}

// RemoveAgent is Records.Remove.
func (s *Store) RemoveAgent(ctx context.Context, id string, version int64) error {
	return s.AgentRecords().Remove(ctx, id, version)
}

// Agents is Records.List.
func (s *Store) Agents(ctx context.Context, known string) (list []AgentRecord, state string, changed bool, err error) {
	return s.AgentRecords().List(ctx, known)
}
