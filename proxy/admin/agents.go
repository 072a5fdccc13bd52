package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// AgentsPath answers with an AgentList, and makes an agent of what is posted to it.
// Below it is each agent by its name (AgentPath).
const AgentsPath = "/api/v1/agents"

// AgentPath is the path of one agent.
func AgentPath(name string) string { return AgentsPath + "/" + url.PathEscape(name) }

// Agent is one who may use the proxy, and what it may use; of providers, models and
// subscriptions none named means all.
type Agent struct {
	Name          string             `json:"name"`
	Version       int64              `json:"version"` // one more with every change
	Created       time.Time          `json:"created"`
	Expires       *time.Time         `json:"expires"` // null: never
	Token         bool               `json:"token"`   // false: it is known by the token of a state folder, or by none
	Providers     []string           `json:"providers"`
	Models        []string           `json:"models"`        // globs
	Subscriptions []string           `json:"subscriptions"` // ids or labels
	Budgets       []AgentBudgetState `json:"budgets"`
	AgentRates
	Last   *time.Time `json:"last"`   // its last request to the sidecar that was asked; null: there was none
	Broken bool       `json:"broken"` // its record cannot be read: it is refused
}

// RecordVersion implements Versioned.
func (a Agent) RecordVersion() int64 { return a.Version }

// AgentRates are how much of each sidecar an agent may have at a time; 0: no limit.
type AgentRates struct {
	RequestsPerMinute int `json:"requests_per_minute"`
	Concurrent        int `json:"concurrent"`
	Connections       int `json:"connections"`
}

// AgentBudget is what an agent may use within a window; what is 0 or left out is not
// limited.
type AgentBudget struct {
	Window   string  `json:"window"` // day, week or month
	CostUSD  NanoUSD `json:"cost_usd,omitempty"`
	Tokens   int64   `json:"tokens,omitempty"`
	Requests int64   `json:"requests,omitempty"`
}

// AgentBudgetState is a budget, and what is used of it by all sidecars.
type AgentBudgetState struct {
	AgentBudget
	SpentUSD     NanoUSD   `json:"spent_usd"`
	UsedTokens   int64     `json:"used_tokens"`
	UsedRequests int64     `json:"used_requests"`
	Resets       time.Time `json:"resets"`
}

// AgentChange says what is to be changed of an agent: what is left out stays as it is.
type AgentChange struct {
	Expires       *string        `json:"expires,omitempty"`       // RFC 3339, or "never"
	Providers     *[]string      `json:"providers,omitempty"`     // empty: all
	Models        *[]string      `json:"models,omitempty"`        // globs; empty: all
	Subscriptions *[]string      `json:"subscriptions,omitempty"` // ids or labels; empty: all
	Budgets       *[]AgentBudget `json:"budgets,omitempty"`       // one for each window; empty: none

	RequestsPerMinute *int `json:"requests_per_minute,omitempty"` // at each sidecar, as the next two; 0: no limit
	Concurrent        *int `json:"concurrent,omitempty"`
	Connections       *int `json:"connections,omitempty"`
}

// NewAgent is what is posted to have an agent made.
type NewAgent struct {
	Name string `json:"name"`
	AgentChange
}

// AgentCreated tells the token of a new agent, which nobody can tell again.
type AgentCreated struct {
	Name  string `json:"name"`
	Token string `json:"token"`
}

// AgentRevoked names an agent that there is no more.
type AgentRevoked struct {
	Name string `json:"name"`
}

// RecordVersion implements Versioned: what there is no more has none, but had one that
// If-Match may name.
func (AgentRevoked) RecordVersion() int64 { return 0 }

// AgentList is all agents that have a record, by name.
type AgentList struct {
	Agents []Agent `json:"agents"`
	Whole  bool    `json:"whole"` // false: Redis is away, they are as last known
}

// Agents knows and changes agents. It must be safe for concurrent use. version is the
// one that the agent must have, or AnyVersion. Errors that are a RefusedError are the
// operator's own; any other means that Redis did not answer.
type Agents interface {
	Agents(ctx context.Context) (AgentList, error)
	Agent(ctx context.Context, name string) (Agent, error)
	CreateAgent(ctx context.Context, agent NewAgent) (AgentCreated, error)
	LimitAgent(ctx context.Context, name string, version int64, change AgentChange) (Agent, error)
	RevokeAgent(ctx context.Context, name string, version int64) (AgentRevoked, error)
}

func (s *Server) agentRoutes() []route {
	const one = AgentsPath + "/{name}"
	return []route{
		{"GET", AgentsPath, Viewer, "List the agents and what they have used", nil, AgentList{}, s.serveAgents},
		{"POST", AgentsPath, Operator, "Make an agent and its token, which is told this once", NewAgent{}, AgentCreated{}, s.createAgent},
		{"GET", one, Viewer, "Tell of one agent", nil, Agent{}, s.serveAgent},
		{"PATCH", one, Operator, "Change what an agent may use", AgentChange{}, Agent{}, s.limitAgent},
		{"DELETE", one, Operator, "End an agent and its token", nil, AgentRevoked{}, s.revokeAgent},
	}
}

func (s *Server) serveAgents(w http.ResponseWriter, r *http.Request) {
	carry(s, w, r, "cannot list the agents", func(ctx context.Context) (AgentList, error) {
		list, err := s.agents.Agents(ctx)
		if list.Agents == nil {
			list.Agents = []Agent{}
		}
		return list, err
	})
}

func (s *Server) serveAgent(w http.ResponseWriter, r *http.Request) {
	carry(s, w, r, "cannot tell of the agent", func(ctx context.Context) (Agent, error) {
		return s.agents.Agent(ctx, r.PathValue("name"))
	})
}

func (s *Server) createAgent(w http.ResponseWriter, r *http.Request) {
	var body NewAgent
	if !decode(w, r, &body) {
		return
	}
	carry(s, w, r, "it is not known whether the agent was made", func(ctx context.Context) (AgentCreated, error) {
		return s.agents.CreateAgent(ctx, body)
	})
}

func (s *Server) limitAgent(w http.ResponseWriter, r *http.Request) {
	var body AgentChange
	version, ok := ifMatch(w, r)
	if !ok || !decode(w, r, &body) {
		return
	}
	carry(s, w, r, "it is not known whether the agent was changed", func(ctx context.Context) (Agent, error) {
		return s.agents.LimitAgent(ctx, r.PathValue("name"), version, body)
	})
}

func (s *Server) revokeAgent(w http.ResponseWriter, r *http.Request) {
	version, ok := ifMatch(w, r)
	if !ok {
		return
	}
	carry(s, w, r, "it is not known whether the agent was revoked", func(ctx context.Context) (AgentRevoked, error) {
		return s.agents.RevokeAgent(ctx, r.PathValue("name"), version)
	})
}
