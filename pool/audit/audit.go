// Package audit writes down who did what to a serve, so that nobody can change it
// afterwards without its being seen: what operators did, which session used which
// credential, who was refused, and what the pool told of limits and breakers. It
// holds names, never a secret and nothing of a request's content.
//
// Start at Log, which writes, and at Verify, which finds what was changed. line.go
// has the format, which is:
//
//   - One JSON object a line: seq (from 1, without gaps over all files), time, kind,
//     actor, fields, hash. It is ASCII, so that no line can do anything to a terminal.
//   - hash is the SHA-256 of the hash of the line before (of 32 zero bytes at the
//     first) and of the line's own bytes up to the comma before "hash".
//   - A line of the kind audit.signed holds the Ed25519 signature of the hash of the
//     line before it, behind signContext.
//   - Files are named by the seq of their first line, which is of the kind audit.file
//     and repeats the hash of the line before, so that a file can be read alone.
//   - head.json holds the seq and hash of the last line that was written, signed, so
//     that lines which are missing at the end are missed.
//   - key is the private key (PKCS #8, PEM), key.pub the public one (base64).
//
// The key lies beside the log: it proves the log to those who know the public key
// from elsewhere, and against who can write the files but not read the key. Who can
// do both can write another log, but not one that verifies with the former key and
// keeps what a copy of head.json elsewhere says.
package audit

import "time"

// Kind is what a line tells, as a dotted name. Those of package event are kinds, too.
type Kind string

// The kinds beside those of package event.
const (
	ServeStarted         Kind = "serve.started"
	ServeStopped         Kind = "serve.stopped"
	ConfigLoaded         Kind = "config.loaded"         // read again, with what came of it
	SubscriptionsEnable  Kind = "subscriptions.enable"  // an operator asked for it
	SubscriptionsDisable Kind = "subscriptions.disable" // likewise, as the next four
	SubscriptionsDrain   Kind = "subscriptions.drain"
	SubscriptionsAdd     Kind = "subscriptions.add"
	SubscriptionsRotate  Kind = "subscriptions.rotate"
	SubscriptionsRemove  Kind = "subscriptions.remove"  // it takes no new sessions
	SubscriptionsRemoved Kind = "subscriptions.removed" // and is gone: by the process that found it without sessions
	SessionsMove         Kind = "sessions.move"         // an operator asked for it
	SessionsRelease      Kind = "sessions.release"      // likewise
	SessionsRebalance    Kind = "sessions.rebalance"    // likewise
	AgentsCreate         Kind = "agents.create"         // likewise
	AgentsLimit          Kind = "agents.limit"          // likewise
	AgentsRevoke         Kind = "agents.revoke"         // likewise
	KeysRotate           Kind = "keys.rotate"           // likewise
	NotificationsSend    Kind = "notifications.send"    // an operator asked for a test
	CredentialUsed       Kind = "credential.used"       //nolint:gosec // names none: by a session, once a day
	CredentialEchoed     Kind = "credential.echoed"     //nolint:gosec // names none: a provider repeated it where it cannot be masked, and the answer was cut
	TunnelEnded          Kind = "tunnel.ended"          // to a host that is no provider's, with its bytes and why
	RequestRefused       Kind = "request.refused"       // by authpool itself; count of them since the line before

	fileBegun Kind = "audit.file"      // the first line of each file
	signed    Kind = "audit.signed"    // signature of all lines before
	dropped   Kind = "audit.dropped"   // entries that found no room while nothing could be written
	removed   Kind = "audit.removed"   // the oldest file, to keep within the room
	cut       Kind = "audit.cut"       // half a line, at the end, was left by a crash
	unsigned  Kind = "audit.unsigned"  // lines that no signature covered were found at the end after a crash
	damaged   Kind = "audit.damaged"   // a file that does not verify was found at the start
	diverged  Kind = "audit.diverged"  // its copy in Redis has another line than the files
	shortened Kind = "audit.shortened" // lines that head.json tells of were gone at the start
)

// Actors that are no agent's id.
const (
	Operator = "operator" // who holds the admin token, or the process' own user
	Itself   = "authpool"
	Stranger = "stranger" // who showed no agent's token
)

// Entry is what is to be written down.
type Entry struct {
	Time   time.Time // zero: now
	Kind   Kind
	Actor  string            // an agent's id, or one of the constants
	Fields map[string]string // not kept by the sender; values longer than maxValue are cut
}
