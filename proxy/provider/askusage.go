package provider

import "github.com/authpool/authpool/proxy/jsonscan"

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
