package provider

import (
	"bytes"

	"github.com/authpool/authpool/proxy/meter"
)

// googleMethods are what stands behind the colon of Gemini's and Vertex' paths,
// in lower case (@google/genai, Vertex AI's API reference).
var googleMethods = map[string]*Endpoint{
	"generatecontent":       {Name: "generateContent", Action: Inject, API: meter.GeminiGenerate, Conversation: true},
	"streamgeneratecontent": {Name: "streamGenerateContent", Action: Inject, API: meter.GeminiStream, Conversation: true, Streams: true},
	"counttokens":           {Name: "countTokens", Action: Free, Conversation: true},
	"computetokens":         {Name: "computeTokens", Action: Free},
	"embedcontent":          {Name: "embedContent", Action: Inject, API: meter.GeminiEmbed},
	"batchembedcontents":    {Name: "batchEmbedContents", Action: Inject, API: meter.GeminiEmbed},
	// The results of Gemini's batches are nowhere read, so that what they cost
	// is unknown, not nothing.
	"batchgeneratecontent":   {Name: "batchGenerateContent", Action: Bound, API: meter.OpenAIOther, Creates: true},
	"asyncbatchembedcontent": {Name: "asyncBatchEmbedContent", Action: Bound, API: meter.OpenAIOther, Creates: true},
	"predict":                {Name: "predict", Action: Inject, API: meter.VertexPredict},
	"predictlongrunning":     {Name: "predictLongRunning", Action: Bound, API: meter.OpenAIOther, Creates: true},
	"fetchpredictoperation":  {Name: "fetchPredictOperation", Action: Free},
	"serverstreamingpredict": {Name: "serverStreamingPredict", Action: Inject, API: meter.OpenAIOther, Streams: true},
	"rawpredict":             {Name: "rawPredict", Action: Inject, API: meter.OpenAIChat, Conversation: true, tells: true},
	"streamrawpredict":       {Name: "streamRawPredict", Action: Inject, API: meter.OpenAIChat, Conversation: true, Streams: true, tells: true},
}

// Vertex hands the bodies of rawPredict on to the model's publisher: Mistral's,
// AI21's and others' are OpenAI's chat, Anthropic's are Messages.
var (
	anthropicPredict       = Endpoint{Name: "rawPredict", Action: Inject, API: meter.AnthropicMessages, Conversation: true}
	anthropicStreamPredict = Endpoint{Name: "streamRawPredict", Action: Inject, API: meter.AnthropicMessages, Conversation: true, Streams: true}
	anthropicCount         = Endpoint{Name: "rawPredict/count-tokens", Action: Free, Conversation: true, anthropic: true}
)

// googleEndpoint finds the row of a path that ends in MODEL:METHOD and begins at
// segment i:
//
//	models/MODEL:METHOD, tunedModels/MODEL:METHOD, dynamic/MODEL:METHOD
//	publishers/PUBLISHER/models/MODEL:METHOD
//	projects/PROJECT/locations/LOCATION/publishers/PUBLISHER/models/MODEL:METHOD
//	projects/PROJECT/locations/LOCATION/endpoints/ENDPOINT:METHOD
//	v1internal:METHOD, Code Assist's, whose model is in the body
func (p *plainPath) googleEndpoint(i int) (e *Endpoint, model []byte) {
	path := p.segments[i:p.count]
	if len(path) == 1 {
		if version, method, ok := cutLast(path[0], ':'); ok && foldedEqual(version, "v1internal") {
			var name [maxName]byte
			return googleMethods[string(foldName(&name, method))], nil // or one of its own, such as a login's
		}
	}
	if len(path) > 4 && foldedEqual(path[0], "projects") && foldedEqual(path[2], "locations") {
		path = path[4:]
	}
	var publisher []byte
	if len(path) == 4 && foldedEqual(path[0], "publishers") {
		publisher, path = path[1], path[2:]
	}
	if len(path) != 2 {
		return nil, nil
	}
	var name [maxName]byte
	switch string(foldName(&name, path[0])) {
	case "models", "tunedmodels", "dynamic", "endpoints":
	default:
		return nil, nil
	}
	model, method, ok := cutLast(path[1], ':')
	if !ok {
		return nil, nil
	}
	e = googleMethods[string(foldName(&name, method))]
	if e == nil {
		return &otherEndpoint, model
	}
	if foldedEqual(publisher, "anthropic") {
		switch {
		case e.Name == anthropicPredict.Name && foldedEqual(model, "count-tokens"):
			return &anthropicCount, nil // the model counted for is in the body
		case e.Name == anthropicPredict.Name:
			e = &anthropicPredict
		case e.Name == anthropicStreamPredict.Name:
			e = &anthropicStreamPredict
		}
	}
	return e, model
}

// cutLast cuts b at the last sep.
func cutLast(b []byte, sep byte) (before, after []byte, ok bool) {
	if i := bytes.LastIndexByte(b, sep); i >= 0 {
		return b[:i], b[i+1:], true
	}
	return b, nil, false
}
