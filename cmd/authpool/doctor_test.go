package main

import (
	"testing"

	"github.com/authpool/authpool/proxy/explain"
)

// What the doctor says of a program behind the proxy, by what was seen of it.
func TestJudge(t *testing.T) {
	const (
		provider = "CONNECT api.openai.com:443 HTTP/1.1"
		other    = "CONNECT docs.example.test:443 HTTP/1.1"
	)
	refused := explain.Request{Status: 403} // a CONNECT to another host
	served := explain.Request{Provider: "openai", Status: 200, Stream: true, End: "whole"}
	yes, no := true, false
	for name, tt := range map[string]struct {
		saw   seen
		trust *bool
		says  string
	}{
		"nothing":                   {seen{}, nil, "does not go through the proxy"},
		"another host alone":        {seen{[]string{other}, []explain.Request{refused}}, nil, "goes through the proxy, but asked for no provider's host; other hosts are refused here"},
		"a provider's, no request":  {seen{[]string{provider}, nil}, &no, "goes through the proxy, but does not trust authpool's certificate authority"},
		"both, the other refused":   {seen{[]string{other, provider}, []explain.Request{refused}}, &no, "goes through the proxy, but does not trust authpool's certificate authority"},
		"a provider's, and a turn":  {seen{[]string{provider}, []explain.Request{served}}, &yes, "goes through authpool, trusts its authority, streams (1 request): api.openai.com"},
		"a turn, and another's too": {seen{[]string{other, provider}, []explain.Request{refused, served}}, &yes, "goes through authpool, trusts its authority, streams (1 request): docs.example.test, api.openai.com"},
	} {
		d := &doctor{program: &program{}}
		v := d.judge(visit{Mode: modeProxy}, patient{name: "agent", own: true}, tt.saw, "", nil)
		if v.Says != tt.says || (v.TrustsCA == nil) != (tt.trust == nil) || v.TrustsCA != nil && *v.TrustsCA != *tt.trust {
			t.Errorf("%s: says %q, trusts %v", name, v.Says, v.TrustsCA)
		}
	}
}
