package provider

import (
	"bytes"

	"github.com/authpool/authpool/proxy/meter"
)

// bedrockMethods are what ends the paths of Bedrock's models (Bedrock Runtime's
// API reference).
var bedrockMethods = map[string]*Endpoint{
	"invoke":                      {Name: "invoke", Action: Inject, API: meter.BedrockInvoke, Conversation: true},
	"invoke-with-response-stream": {Name: "invoke-with-response-stream", Action: Inject, API: meter.BedrockInvoke, Conversation: true, Streams: true},
	"converse":                    {Name: "converse", Action: Inject, API: meter.BedrockConverse, Conversation: true},
	"converse-stream":             {Name: "converse-stream", Action: Inject, API: meter.BedrockConverse, Conversation: true, Streams: true},
	"count-tokens":                {Name: "count-tokens", Action: Free},
}

// bedrockEndpoint finds the row of `model/MODEL/METHOD` at segment i. The model
// may be an ARN, whose slash parts it in the decoded path.
func (p *plainPath) bedrockEndpoint(i int) (e *Endpoint, model []byte) {
	last := p.count - 1
	if last < i+2 || !foldedEqual(p.segments[i], "model") {
		return nil, nil
	}
	var name [maxName]byte
	e = bedrockMethods[string(foldName(&name, p.segments[last]))]
	if e == nil {
		return nil, nil
	}
	if last == i+2 {
		return e, p.segments[i+1]
	}
	arn, resource := p.segments[i+1], p.segments[i+2:last]
	// These two kinds of ARN name a model that has an id of its own, under which
	// its price is known.
	if bytes.HasSuffix(arn, []byte(":foundation-model")) || bytes.HasSuffix(arn, []byte(":inference-profile")) {
		return e, bytes.Join(resource, []byte{'/'})
	}
	return e, bytes.Join(p.segments[i+1:last], []byte{'/'})
}
