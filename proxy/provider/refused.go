package provider

// refusal is a row of the paths that get no credential: whoever reaches them
// with the operator's key could make keys, spend or administrate.
type refusal struct {
	pattern
	at families
}

func refuse(path string) refusal { return refuseAt(0, path) }

// refuseAt is for a path that is something else at other families.
func refuseAt(at families, path string) refusal { return refusal{parsePattern(path + "/**"), at} }

// refused are the paths without a credential, from the same sources.
var refused = []refusal{
	refuse("organizations"),
	refuse("organization"),
	refuseAt(notAt(Gemini, Azure), "projects"), // there: resources, not administration
	refuse("oauth"),
	refuse("oauth2"),
	refuse("user_profiles"),
	refuse("tunnels"),
	refuse("admin"),
	refuse("billing"),
	refuse("dashboard"),
	refuse("credits"),
	refuse("keys"),      // OpenRouter: makes keys
	refuse("auth/keys"), // OpenRouter: trades a code for a key
	refuse("auth_tokens"),
	refuse("chatkit/sessions"),
	refuse("realtime/sessions"),
	refuse("realtime/transcription_sessions"),
	refuseAt(at(Azure), "realtimeapi/sessions"),
	// Ollama: the server's models and account, which all agents share.
	refuseAt(at(Ollama), "api/pull"),
	refuseAt(at(Ollama), "api/push"),
	refuseAt(at(Ollama), "api/create"),
	refuseAt(at(Ollama), "api/copy"),
	refuseAt(at(Ollama), "api/delete"),
	refuseAt(at(Ollama), "api/blobs"),
	refuseAt(at(Ollama), "api/me"),
	refuseAt(at(Ollama), "api/signout"),
	refuseAt(at(Ollama), "api/user"),
}

// refusedWords are segments that no path with a credential may hold anywhere.
var refusedWords = []string{"client_secrets", "client_secret", "api_keys", "api-keys", "apikeys", "admin_api_keys"}

// refuses tells whether the manifest refuses a path at a provider of family f.
func (p *plainPath) refuses(f Family) bool {
	for i := range refused {
		if refused[i].at.has(f) && refused[i].matchAnywhere(p) {
			return true
		}
	}
	if f == Gemini && p.count > 0 {
		if _, method, ok := cutLast(p.segments[p.count-1], ':'); ok && foldedEqual(method, "setiampolicy") {
			return true // who may use a resource of the project
		}
	}
	for _, segment := range p.segments[:p.count] {
		for _, word := range refusedWords {
			if foldedEqual(segment, word) {
				return true
			}
		}
	}
	return false
}
