package provider

import (
	"bytes"

	"github.com/authpool/authpool/proxy/jsonscan"
)

// source is a place where a session's id can stand.
type source uint8

// The places, in the order in which they are believed (what the
// agents named here send was measured in November 2026).
const (
	fromAuthpool        source = iota // said on purpose
	fromClaudeCode                    // Claude Code
	fromCodexThread                   // Codex; a sub-agent's thread has an id of its own
	fromCodexSession                  // Codex, opencode with OpenAI
	fromCodexOldSession               // Codex before May 2026
	fromCodexOldThread                // Codex, older still
	fromOpencode                      // opencode, OpenRouter's clients
	fromOpencodeSticky                // opencode
	fromUserID                        // Claude Code and SDKs that copy it
	fromPromptCacheKey                // OpenAI: whatever shares a prompt cache
	fromConversation                  // OpenAI: a conversation kept at the provider
	fromProxyUser                     // any agent behind HTTP(S)_PROXY: the user name in it
	fromToken                         // any agent: behind its token and a dot
	fromHash                          // nothing names it: how it began
	sources
)

// sourceNames are the headers and body fields of the sources, as Session.Source
// tells them. Up to fromOpencodeSticky they are headers.
var sourceNames = [sources]string{
	"x-authpool-session",
	"x-claude-code-session-id",
	"thread-id",
	"session-id",
	"session_id",
	"conversation_id",
	"x-session-id",
	"x-session-affinity",
	"metadata.user_id",
	"prompt_cache_key",
	"conversation",
	"proxy-authorization",
	"token",
	"hash",
}

// headerSource returns the source that a header is; its name in lower case.
func headerSource(name []byte) (source, bool) {
	for s := fromAuthpool; s <= fromOpencodeSticky; s++ {
		if sourceNames[s] == string(name) {
			return s, true
		}
	}
	return 0, false
}

// identity gathers what a request says about whose conversation it is.
type identity struct {
	found  [sources][]byte
	parent []byte // as a header names it
	// Of Claude Code: sub-agents send their session's id and their own.
	claudeAgent, claudeParent []byte
}

// session decides.
func (id *identity) session() Session {
	for s := range fromHash {
		value := id.found[s]
		if len(value) == 0 {
			continue
		}
		session := Session{ID: CleanSession(value), Source: sourceNames[s]}
		parent := id.parent
		if s == fromClaudeCode && len(id.claudeAgent) > 0 && !bytes.Equal(id.claudeAgent, value) {
			session.ID = CleanSession(join(value, id.claudeAgent))
			parent = value
			if len(id.claudeParent) > 0 && !bytes.Equal(id.claudeParent, value) {
				parent = join(value, id.claudeParent)
			}
		}
		if p := CleanSession(parent); p != session.ID {
			session.Parent = p
		}
		return session
	}
	return Session{}
}

// join makes the id of a Claude Code sub-agent, which is unique only within
// its session.
func join(session, agent []byte) []byte {
	id := make([]byte, 0, len(session)+1+len(agent))
	id = append(id, session...)
	id = append(id, '.')
	return append(id, agent...)
}

// userIDPaths find the session in the JSON text that newer versions of Claude
// Code send as metadata.user_id.
var userIDPaths = jsonscan.MustCompile("session_id")

// sessionOfUserID finds the session in the text of metadata.user_id: the field
// of a JSON object, or what stands behind `_session_` in the older form
// user_HASH_account_UUID_session_UUID. A plain user id names no session.
func sessionOfUserID(userID []byte) []byte {
	if len(userID) > 0 && userID[0] == '{' {
		var field fieldText
		var s jsonscan.Scanner
		s.Reset(userIDPaths, &field)
		s.Write(userID)
		if !s.Close() {
			return nil
		}
		return field.text
	}
	const mark = "_session_"
	if i := bytes.LastIndex(userID, []byte(mark)); i >= 0 && bytes.HasPrefix(userID, []byte("user_")) {
		return userID[i+len(mark):]
	}
	return nil
}

// fieldText keeps the last string that a scanner finds.
type fieldText struct{ text []byte }

// Found implements jsonscan.Handler.
func (f *fieldText) Found(v *jsonscan.Value) {
	if v.Kind == jsonscan.String && !v.Truncated {
		f.text = jsonscan.Unquote(nil, v.Raw)
	}
}
