package price

import "strings"

// otherName returns the one other name of model that the provider documents, or
// "". Each is an exact rewriting of a name's form; none drops a date, a version or
// a region, as these may change the price:
//
//   - Bedrock: a foundation model or a system-defined inference profile by its ARN
//     (arn:aws:bedrock:REGION:[ACCOUNT]:foundation-model/ID and inference-profile/ID).
//     An application's profile, a provisioned and an imported model have ARNs too,
//     but say nothing of the model, and have no price here. A profile's region
//     (us., eu., global.) is a part of its ID and of the map's names.
//   - Gemini: the resource name, models/ID.
//   - Vertex: Claude answers with Anthropic's own ID, NAME-YYYYMMDD, while Vertex and
//     the map write NAME@YYYYMMDD.
func otherName(provider, model string) string {
	switch provider {
	case "bedrock":
		// arn:PARTITION:bedrock:REGION:ACCOUNT:KIND/ID, where ID may have colons.
		parts := strings.SplitN(model, ":", 6)
		if len(parts) == 6 && parts[0] == "arn" && parts[2] == "bedrock" {
			kind, id, _ := strings.Cut(parts[5], "/")
			if kind == "foundation-model" || kind == "inference-profile" {
				return id
			}
		}
	case "gemini":
		if id, ok := strings.CutPrefix(model, "models/"); ok {
			return id
		}
	case "vertex":
		const date = len("-20060102")
		if i := len(model) - date; i > 0 && strings.HasPrefix(model, "claude-") && model[i] == '-' && strings.Trim(model[i+1:], "0123456789") == "" {
			return model[:i] + "@" + model[i+1:]
		}
	}
	return ""
}
