package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http/httputil"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/proxy/explain"
	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/tap"
	"github.com/authpool/authpool/ratelimit"
)

// maxRawAnswer bounds the answer that explain-response reads, maxErrorText the text
// of it that the classifier looks at, which is what serve gives it.
const (
	maxRawAnswer = 16 << 20
	maxErrorText = 64 << 10
)

// explained is what `authpool explain-response --json` prints.
type explained struct {
	Signal string           `json:"signal"`
	Reason ratelimit.Reason `json:"reason"`
	Scope  string           `json:"scope"`
	Wait   *explain.Seconds `json:"wait_s"` // null: the answer states no end
	Row    string           `json:"row"`
}

func newExplainResponseCommand(p *program) *cobra.Command {
	var (
		name   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "explain-response --provider P [FILE]",
		Short: "Tell what a provider's answer means for the subscription that got it",
		Long: `Reads a raw HTTP/1.1 answer (status line, headers, a blank line, the body) from
FILE or from standard input, and tells what authpool takes it for: the signal,
why, how far it reaches, how long, and the row of the table that decided. No
other part of authpool is asked, so that anyone can check a case.

Lines may end in LF or CRLF. What "curl -i" prints will do, compressed or not.
An error that comes as an event of a stream with a good status is found, too.
Stated times count from the answer's Date where it has one, else from now.

The signals: ok, limited, quota, overloaded, auth, client_error, server_error.
The scopes: request (nothing is remembered), model (on the subscriptions that
share the limit), subscription, domain (all subscriptions that share the limit),
provider_model and provider (no subscription's fault).`,
		Example: "  curl -si https://api.anthropic.com/v1/messages | authpool explain-response --provider anthropic\n  authpool explain-response --provider openai --json answer.http",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return wrongf("%q takes one file, got %q; see %q", cmd.CommandPath(), args, cmd.CommandPath()+" --help")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			answer, err := answerOf(name)
			if err != nil {
				return err
			}
			from, raw, err := p.readAnswer(args)
			if err != nil {
				return err
			}
			if err := parseAnswer(&answer, raw); err != nil {
				return wrongf("%s is no HTTP answer: %w", from, err)
			}
			v := provider.Classify(answer, time.Now())
			if asJSON {
				return p.printJSON(explainVerdict(v))
			}
			return p.printf("%s", explainText(v))
		},
	}
	cmd.Flags().StringVar(&name, "provider", "", "who answered: "+strings.Join(config.BuiltinProviders(), ", "))
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// answerOf begins the answer of a provider.
func answerOf(name string) (provider.Answer, error) {
	if name == "" {
		return provider.Answer{}, wrongf("say by --provider who answered: %s", strings.Join(config.BuiltinProviders(), ", "))
	}
	conf, ok := new(config.Config).ProviderByName(name)
	if !ok {
		return provider.Answer{}, wrongf("--provider %q is none that authpool knows: name one of %s", name, strings.Join(config.BuiltinProviders(), ", "))
	}
	family, err := provider.ParseFamily(conf.Type)
	if err != nil {
		return provider.Answer{}, fmt.Errorf("cannot use provider %q: %w", name, err)
	}
	return provider.Answer{Provider: name, Family: family}, nil
}

// readAnswer reads the file that args name, else standard input.
func (p *program) readAnswer(args []string) (from string, raw []byte, err error) {
	from, in := "standard input", p.In
	if len(args) == 1 && args[0] != "-" {
		from = args[0]
		file, err := os.Open(from)
		if err != nil {
			return "", nil, wrongf("cannot read the answer: %w", err)
		}
		defer func() { _ = file.Close() }() // only read
		in = file
	}
	raw, err = io.ReadAll(io.LimitReader(in, maxRawAnswer+1))
	if err != nil {
		return "", nil, fmt.Errorf("cannot read %s: %w", from, err)
	}
	if len(raw) > maxRawAnswer {
		return "", nil, wrongf("%s is longer than %d bytes", from, maxRawAnswer)
	}
	return from, raw, nil
}

// parseAnswer reads a raw answer into a.
func parseAnswer(a *provider.Answer, raw []byte) error {
	in := textproto.NewReader(bufio.NewReader(bytes.NewReader(raw)))
	var (
		head textproto.MIMEHeader
		err  error
	)
	// 100 Continue and 103 Early Hints come before the answer, and what a proxy says to CONNECT.
	for a.Status < 200 || connected(a.Status, head, in.R) {
		if a.Status, err = readStatus(in); err != nil {
			return err
		}
		if head, err = in.ReadMIMEHeader(); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("its head cannot be read: %w", err)
		}
	}
	body, err := io.ReadAll(in.R)
	if err != nil {
		return fmt.Errorf("its body cannot be read: %w", err)
	}
	a.Headers = func(yield func(name, value []byte) bool) {
		for name, values := range head {
			for _, value := range values {
				if !yield([]byte(name), []byte(value)) {
					return
				}
			}
		}
	}
	body = decodedBody(head, body)
	a.Body = body[:min(len(body), maxErrorText)]
	if a.Status < 300 && streams(head.Get("Content-Type"), body) {
		a.Failure = failureIn(head.Get("Content-Type"), body)
	}
	return nil
}

// connected tells whether a head was that of a proxy's answer to CONNECT, which curl -i prints,
// too: it describes no body, and the head of another answer follows.
func connected(status int, head textproto.MIMEHeader, rest *bufio.Reader) bool {
	for _, name := range []string{"Content-Type", "Content-Length", "Transfer-Encoding"} {
		if head.Get(name) != "" {
			return false
		}
	}
	next, err := rest.Peek(len("HTTP/"))
	return status < 300 && err == nil && string(next) == "HTTP/"
}

// readStatus reads a status line. HTTP/2 has none, but curl prints one.
func readStatus(in *textproto.Reader) (int, error) {
	line, err := in.ReadLine()
	if err != nil {
		return 0, errors.New("it is empty")
	}
	version, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if !strings.HasPrefix(version, "HTTP/") || err != nil || status < 100 || status > 599 {
		return 0, errors.New("it does not begin with a status line such as \"HTTP/1.1 429 Too Many Requests\"")
	}
	return status, nil
}

// decodedBody undoes the codings that the head names. What was saved by a client
// often is decoded already: then it is taken as it is.
func decodedBody(head textproto.MIMEHeader, body []byte) []byte {
	if strings.EqualFold(head.Get("Transfer-Encoding"), "chunked") {
		if whole, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(body))); err == nil {
			body = whole
		}
	}
	var text decodedText
	decoder := tap.New(tap.Options{Encoding: strings.Join(head.Values("Content-Encoding"), ","), Sink: &text})
	defer decoder.Close()
	// Both errors are of masks, which there are none of.
	_, _ = decoder.Pass(bytes.Clone(body))
	_, _ = decoder.Finish()
	if text.blind && text.Len() == 0 {
		return body
	}
	return text.Bytes()
}

// decodedText keeps the text that a tap.Tap decodes.
type decodedText struct {
	bytes.Buffer
	blind bool
}

// Write implements tap.Sink.
func (t *decodedText) Write(p []byte) {
	if t.Len() < maxRawAnswer {
		t.Buffer.Write(p)
	}
}

// Blind implements tap.Sink.
func (t *decodedText) Blind() { t.blind = true }

// Close implements tap.Sink.
func (t *decodedText) Close() {}

// streams tells whether a good answer is a stream, in which an error can come
// late: a JSON object is not, unless it is one of many.
func streams(contentType string, body []byte) bool {
	body = bytes.TrimLeft(body, " \t\r\n")
	return len(body) > 0 && body[0] != '{' || strings.Contains(contentType, "ndjson") || strings.Contains(contentType, "jsonl")
}

// streamDialects are those whose streams tell errors in ways of their own. The
// answer does not say which it is in, and providers speak each other's.
var streamDialects = [...]meter.API{
	meter.AnthropicMessages, meter.OpenAIResponses, meter.OpenAIChat, meter.GeminiStream, meter.BedrockConverse,
	meter.BedrockInvoke, meter.CohereChat, meter.OllamaChat, meter.MistralConversation, meter.OpenAIImages,
}

// failureIn finds the error that a stream ends in, as serve does; nil when there
// is none.
func failureIn(contentType string, body []byte) *provider.Failure {
	for _, api := range streamDialects {
		m := meter.New(api, meter.Options{ContentType: []byte(contentType)})
		m.Write(body)
		f, failed := m.Failure()
		m.Close()
		if failed {
			return &f
		}
	}
	return nil
}

// explainVerdict puts a verdict in the contract's form.
func explainVerdict(v ratelimit.Verdict) explained {
	e := explained{Signal: v.Signal.String(), Reason: v.Reason, Scope: v.Scope.String(), Row: v.Row}
	if v.Signal != ratelimit.OK && v.Wait >= 0 {
		seconds := explain.Seconds(v.Wait)
		e.Wait = &seconds
	}
	return e
}

// explainText puts a verdict in words.
func explainText(v ratelimit.Verdict) string {
	if v.Signal == ratelimit.OK {
		return "ok: nothing is closed\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", v.Signal, v.Reason)
	fmt.Fprintf(&b, "scope   %s\n", v.Scope)
	wait := "no end is stated"
	if v.Wait >= 0 {
		wait = took(explain.Seconds(v.Wait))
	}
	fmt.Fprintf(&b, "wait    %s\n", wait)
	fmt.Fprintf(&b, "row     %s\n", v.Row)
	for _, row := range provider.Rows() {
		if row.Name == v.Row {
			fmt.Fprintf(&b, "sign    %s\nsource  %s\nserve   %s\n", row.Sign, row.Source, row.Action())
		}
	}
	return b.String()
}
