package provider

import (
	"bytes"

	"github.com/authpool/authpool/proxy/jsonscan"
	"github.com/authpool/authpool/proxy/meter"
)

// azureKnowsUsage is the first api-version of Azure's paths by deployment that
// takes stream_options; those before refuse a request that has them
// (azure-rest-api-specs, inference 2024-09-01-preview).
const azureKnowsUsage = "2024-09-01"

// asksUsage tells whether the provider may be asked for the usage of a stream.
// byDeployment says that the path names the model, as at Azure a deployment.
func (r *Request) asksUsage(e *Endpoint, byDeployment bool) bool {
	switch {
	case !r.Provider.AskUsage, e.tells:
		return false
	case r.Provider.Family != Azure || !byDeployment:
		return e.API == meter.OpenAIChat || e.API == meter.OpenAICompletions
	}
	for rest := r.Query; len(rest) > 0; {
		var piece []byte
		piece, rest = cutParameter(rest)
		var buf [maxName]byte
		if string(parameterName(&buf, piece)) == "api-version" {
			_, version, _ := bytes.Cut(piece, []byte{'='})
			return string(version) >= azureKnowsUsage // dates, and words such as preview
		}
	}
	return false
}

// askUsage returns the change that makes a chat or completions stream end with
// its usage (`stream_options.include_usage`, OpenAI's reference of chat completions), or an empty one
// when the agent has asked itself.
func (s *bodyScan) askUsage() Patch {
	switch {
	case s.streamOptions == 0:
		// The object has a member, stream, so that a comma is right.
		return insert(s.rootEnd-1, `,"stream_options":{"include_usage":true}`)
	case s.optionsKind == jsonscan.Null:
		return replace(s.options, `{"include_usage":true}`)
	case s.optionsKind != jsonscan.ObjectBegin:
		return Patch{} // the provider will refuse it
	case s.includes == 0 && s.option:
		return insert(s.options.end-1, `,"include_usage":true`)
	case s.includes == 0:
		return insert(s.options.end-1, `"include_usage":true`)
	case s.includeKind == jsonscan.False || s.includeKind == jsonscan.Null:
		return replace(s.include, `true`)
	}
	return Patch{}
}

func insert(at int64, text string) Patch { return Patch{At: int(at), Insert: text} }

func replace(what span, text string) Patch {
	return Patch{At: int(what.start), Delete: int(what.end - what.start), Insert: text}
}
