package meter

import "github.com/authpool/authpool/ratelimit/usage"

// normalOpenAI brings OpenAI's way of telling usage to the normal form: the
// cache's tokens are a part of the input, reasoning is a part of the output.
//
// Where a provider's parts exceed the whole (Grok on Azure reads more from the
// cache than the prompt has; OpenRouter counts the same tokens as written and
// as read), the whole counts, and reads go before writes.
//
// xAI's chat API tells reasoning beside the output. The total shows it: it is
// then the sum of all three. Perplexity's deep research counts neither the texts
// that it found nor its reasoning in the others, nor in the total; what has no
// count of such texts (SGLang) tells by the same name a part of the output.
func normalOpenAI(c *counts) usage.Tokens {
	all := c.at(input)
	read := min(max(c.read(), 0), all)
	write := min(c.at(cacheWrite), all-read)
	t := usage.Tokens{
		Input:        all - read - write,
		Output:       c.at(output),
		CacheRead:    read,
		CacheWrite5m: write,
		Reasoning:    c.at(reasoning),
	}
	t.Input += c.at(toolInput)
	if c[reasoning] < 0 {
		t.Reasoning = c.at(reasoningElse)
		if c[toolInput] >= 0 {
			t.Output += t.Reasoning
		}
	}
	if t.Reasoning > 0 && c[total] == all+t.Output+t.Reasoning {
		t.Output += t.Reasoning
	}
	t.Reasoning = min(t.Reasoning, t.Output)
	return t
}

// takeAnswer takes over a complete JSON answer that tells its usage in one
// object.
func takeAnswer(m *Meter, e *event) {
	m.takeModel(e)
	m.replaceUsage(e)
	m.images = e.images
	if e.failed {
		m.failWith(e)
	}
}

// failWith takes over an error that may come with the usage of what was done
// before it, which is paid for.
func (m *Meter) failWith(e *event) {
	m.final = m.final || e.told && m.dialect.normal(&e.counts) != (usage.Tokens{})
	m.fail(e)
}
