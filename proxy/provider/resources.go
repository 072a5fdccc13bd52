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
	if plainUUID([]byte(id)) != nil {
		return keepYear // Mistral's files, batches and libraries
	}
	return keepNot
}

// isResource tells whether a text is the id of an account-bound resource.
func isResource(id []byte) bool {
	if isWord(id) {
		for _, kind := range builtin().kinds {
			if bytes.HasPrefix(id, []byte(kind.prefix)) {
				return true
			}
		}
	}
	return plainUUID(id) != nil
}

// plainID is the one way in which an id is kept and looked for, of those in which
// servers take it.
func plainID(id []byte) []byte {
	if plain := plainUUID(id); plain != nil {
		return plain
	}
	return id
}

const (
	uuidDigits = 32
	maxUUID    = len("urn:uuid:") + uuidDigits + 4
)

// plainUUID writes a UUID in lower case and with its hyphens; nil for what is none.
// Providers write it so; but servers that read it as one (Python's uuid, pydantic) also
// take capitals, braces, urn:uuid: in front, and do without the hyphens.
func plainUUID(id []byte) []byte {
	if len(id) < uuidDigits || len(id) > maxUUID {
		return nil
	}
	id = bytes.Trim(bytes.TrimPrefix(id, []byte("urn:uuid:")), "{}")
	digits := 0
	for _, c := range id {
		if c == '-' {
			continue
		}
		if digits++; unhex(c) > 15 {
			return nil
		}
	}
	if digits != uuidDigits {
		return nil
	}
	plain := make([]byte, 0, uuidDigits+4)
	for _, c := range id {
		if n := len(plain); n == 8 || n == 13 || n == 18 || n == 23 {
			plain = append(plain, '-')
		}
		if c != '-' {
			plain = append(plain, lower(c))
		}
	}
	return plain
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
		id := name[i+1 : end]
		if behind := bytes.IndexAny(id, ":?#"); behind >= 0 {
			id = id[:behind] // files/x:download, files/x?alt=media
		}
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
