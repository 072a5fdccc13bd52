package store

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed agent_put.lua
	agentPutSource string
	agentPutScript = redis.NewScript(agentPutSource)

	//go:embed agent_remove.lua
	agentRemoveSource string
	agentRemoveScript = redis.NewScript(agentRemoveSource)

	//go:embed agents.lua
	agentsSource string
	agentsScript = redis.NewScript(agentsSource)
)

// Errors of PutAgent and RemoveAgent.
var (
	ErrAgentVersion = errors.New("the agent has another version")
	ErrNoAgent      = errors.New("there is no such agent")
	ErrAgentsFull   = errors.New("there is no room for one more agent")
)

// maxAgents bounds what every process keeps in memory.
const maxAgents = 10_000

// AgentRecord is what is kept of an agent; Text is of package agents alone.
type AgentRecord struct {
	ID      string
	Version int64 // from 1, one more with every change
	Text    string
}

// PutAgent writes the record over that of the version before; Version 1 is for an
// agent that there is not. The errors are ErrAgentVersion and ErrAgentsFull. It
// survives authpool when it returns nil, and may be repeated after any error.
func (s *Store) PutAgent(ctx context.Context, r AgentRecord) error {
	done, err := agentPutScript.Run(ctx, s.durable, []string{s.agentsKey()},
		r.ID, r.Version-1, strconv.FormatInt(r.Version, 10)+" "+r.Text, maxAgents, s.channel()).Int64()
	switch {
	case err == nil && done == 0:
		err = ErrAgentVersion
	case err == nil && done < 0:
		err = ErrAgentsFull
	}
	if err != nil {
		return fmt.Errorf("cannot write agent %q: %w", r.ID, err)
	}
	return nil
}

// RemoveAgent removes an agent that has the version, 0 for any. The errors are
// ErrAgentVersion and ErrNoAgent; the latter may also mean that an earlier call,
// whose answer was lost, has removed it.
func (s *Store) RemoveAgent(ctx context.Context, id string, version int64) error {
	done, err := agentRemoveScript.Run(ctx, s.durable, []string{s.agentsKey()}, id, version, s.channel()).Int64()
	switch {
	case err == nil && done == 0:
		err = ErrAgentVersion
	case err == nil && done < 0:
		err = ErrNoAgent
	}
	if err != nil {
		return fmt.Errorf("cannot remove agent %q: %w", id, err)
	}
	return nil
}

// Agents returns all records, in no order, and the state that they are in. Where that
// is known, there is nothing to read: changed is false.
func (s *Store) Agents(ctx context.Context, known string) (list []AgentRecord, state string, changed bool, err error) {
	reply, err := agentsScript.Run(ctx, s.client, []string{s.agentsKey()}, known).StringSlice()
	if err == nil && len(reply)%2 != 1 {
		err = fmt.Errorf("%w: %d values", errReply, len(reply))
	}
	if err != nil {
		return nil, known, false, fmt.Errorf("cannot read the agents: %w", err)
	}
	if reply[0] == known {
		return nil, known, false, nil
	}
	for i := 1; i < len(reply); i += 2 {
		digits, text, _ := strings.Cut(reply[i+1], " ")
		version, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			return nil, known, false, fmt.Errorf("cannot read the agents: the record of %q has no version", reply[i])
		}
		list = append(list, AgentRecord{ID: reply[i], Version: version, Text: text})
	}
	return list, reply[0], true, nil
}

func (s *Store) agentsKey() string { return s.prefix + ":agents" }
