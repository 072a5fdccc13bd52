package provider

import (
	"bytes"
	"strings"
	"time"
)

// resourceKind are the things that belong to one account or project, by what their ids
// begin with.
type resourceKind struct {
	prefix string
	keep   time.Duration
}

// interactions is the collection of Gemini's stored conversations. Their ids stand
// alone in bodies; with the collection they cannot be taken for anything else's.
const interactions = "interactions/"

// maxResource is the longest id of a resource that is kept.
const maxResource = len("batchPredictionJobs/") + maxWord

// KeepResource tells for how long it is to be remembered whose the resource with
// this id is; 0 is for ids of other things, and for what cannot be learned.
func KeepResource(id string) time.Duration {
	for _, kind := range builtin().kinds {
		if strings.HasPrefix(id, kind.prefix) {
			return kind.keep
		}
	}
	if isUUID([]byte(id)) {
		return keepYear // Mistral's files, batches and libraries
	}
	return keepNot
}

// isResource tells whether a text is the id of an account-bound resource.
func isResource(id []byte) bool {
	if !isWord(id) {
		return false
	}
	for _, kind := range builtin().kinds {
		if bytes.HasPrefix(id, []byte(kind.prefix)) {
			return true
		}
	}
	return isUUID(id)
}

// isUUID tells whether id is a UUID with its hyphens.
func isUUID(id []byte) bool {
	if len(id) != 36 {
		return false
	}
	for i, c := range id {
		if hyphen := i == 8 || i == 13 || i == 18 || i == 23; hyphen != (c == '-') || !hyphen && unhex(c) > 15 {
			return false
		}
	}
	return true
}

// googleResource finds the last `collection/id` in a name or URI of Google's:
// files/x, projects/p/locations/l/cachedContents/1, https://host/v1beta/files/x. It
// returns nil when there is none.
func googleResource(name []byte) []byte {
	end := len(name)
	for end > 0 {
		i := bytes.LastIndexByte(name[:end], '/')
		if i < 0 {
			return nil
		}
		begin := bytes.LastIndexByte(name[:i], '/') + 1
		id, _, _ := bytes.Cut(name[i+1:end], []byte{':'}) // files/x:download
		if isCollection(name[begin:i+1]) && len(id) > 0 && len(id) <= maxWord && isWord(id) {
			return name[begin : i+1+len(id)]
		}
		end = i
	}
	return nil
}

// isCollection tells whether a path's segment with its slash is one of Google's
// collections.
func isCollection(segment []byte) bool {
	for _, kind := range builtin().kinds {
		if string(segment) == kind.prefix {
			return bytes.HasSuffix(segment, []byte{'/'})
		}
	}
	return false
}

// pins adds the resources that a path names.
func (p *plainPath) pins(pins *Pins, f Family) {
	var name [maxResource]byte
	for i, segment := range p.segments[:p.count] {
		if f == Gemini {
			if i > 0 && len(p.segments[i-1])+1+len(segment) <= maxResource {
				pair := append(append(append(name[:0], p.segments[i-1]...), '/'), segment...)
				pins.addGoogle(pair)
			}
		} else if isResource(segment) {
			pins.add(segment)
		}
	}
}

// addGoogle adds the resource that a name or URI of Google's names.
func (p *Pins) addGoogle(name []byte) {
	if bytes.HasPrefix(name, []byte("gs://")) {
		return // a bucket's path
	}
	if id := googleResource(name); id != nil {
		p.addID(id)
	}
}
