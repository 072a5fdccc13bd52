package provider

import "bytes"

// resourcePrefixes begin the ids of things that belong to one account or
// project, from the providers' API references.
var resourcePrefixes = []string{
	"file_", "file-", "msgbatch_", "skill_", "container_", "sesn_",
	"resp_", "conv_", "upload_", "batch_", "vs_", "vsfb_", "cntr_", "cfile_",
	"asst_", "thread_", "run_", "chatcmpl-", "ftjob-", "eval_", "video_", "pmpt_",
}

// isResource tells whether a text is the id of an account-bound resource.
func isResource(id []byte) bool {
	for _, prefix := range resourcePrefixes {
		if bytes.HasPrefix(id, []byte(prefix)) {
			return true
		}
	}
	return false
}

// pins adds the resources that a path names.
func (p *plainPath) pins(pins *Pins) {
	for _, segment := range p.segments[:p.count] {
		if isResource(segment) {
			pins.add(segment)
		}
	}
}
