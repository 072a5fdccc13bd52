package proxy

import (
	"net"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/pool/audit"
	"github.com/authpool/authpool/proxy/provider"
)

// isAudited tells whether the audit log is to hear of a refusal: those that say who
// may do what, not those of limits or of broken requests.
func isAudited(code string) bool {
	switch code {
	case codeUnauthorized, codeForbidden, codeBrake, codeAgentBudget, codeNotAllowed, codeGuessing, provider.CodeForbiddenPath, provider.CodeBadPath:
		return true
	}
	return false
}

// auditUse notes whose credential is about to be sent.
func (ex *exchange) auditUse() {
	ex.s.deps.Audit.Used(ex.agent, ex.provider.Name, ex.info.Session.ID, ex.lease.Subscription().ID)
}

// auditEcho notes that an answer was cut for the credential that it repeats.
func (ex *exchange) auditEcho() {
	ex.s.deps.Audit.Add(audit.Entry{Kind: audit.CredentialEchoed, Actor: ex.agent, Fields: map[string]string{
		"provider": ex.provider.Name, "subscription": ex.lease.Subscription().ID, "request": ex.id,
	}})
}

// auditRefusal notes r if that is due.
func (ex *exchange) auditRefusal(r *refusal) {
	if !isAudited(r.code) {
		return
	}
	note := audit.Refusal{Code: r.code, Agent: ex.agent, Session: ex.info.Session.ID, Request: ex.id}
	if ex.provider != nil {
		note.Provider = ex.provider.Name
	}
	if ex.conn != nil {
		note.Remote = host(ex.conn.RemoteAddr())
	}
	ex.s.deps.Audit.Refused(note)
}

// auditBroken notes the refusal of a request that was never read.
func (s *Server) auditBroken(ctx *fasthttp.RequestCtx, id string, r *refusal) {
	if isAudited(r.code) {
		s.deps.Audit.Refused(audit.Refusal{Code: r.code, Remote: host(ctx.RemoteAddr()), Request: id})
	}
}

// host is the address without the port, "" for a unix socket.
func host(a net.Addr) string {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.IP.String()
	}
	return ""
}
