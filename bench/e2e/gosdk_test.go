package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"

	"github.com/authpool/authpool/bench/simulator"
)

// outcome is what a client saw of one turn.
type outcome struct {
	text string
	// spent is what the client was told that it used; nil when it is not told.
	spent *counts
}

// turn is one turn of a client in this process.
type turn struct {
	name string
	run  func(ctx context.Context, base, key string, client *http.Client) (outcome, error)
}

func goTurns() []turn {
	return []turn{
		{"anthropic json", anthropicTurn(func(ctx context.Context, c anthropic.Client, p anthropic.MessageNewParams) (*anthropic.Message, error) {
			return c.Messages.New(ctx, p)
		})},
		{"anthropic stream", anthropicTurn(func(ctx context.Context, c anthropic.Client, p anthropic.MessageNewParams) (*anthropic.Message, error) {
			var m anthropic.Message
			s := c.Messages.NewStreaming(ctx, p)
			defer s.Close()
			for s.Next() {
				if err := m.Accumulate(s.Current()); err != nil {
					return nil, err
				}
			}
			return &m, s.Err()
		})},
		{"openai chat json", openaiTurn(func(ctx context.Context, c openai.Client) (outcome, error) {
			r, err := c.Chat.Completions.New(ctx, chatParams(false))
			if err != nil {
				return outcome{}, err
			}
			return outcome{r.Choices[0].Message.Content, chatSpent(r.Usage)}, nil
		})},
		{"openai chat stream that asks for usage", openaiTurn(func(ctx context.Context, c openai.Client) (outcome, error) {
			o, usage, err := chatStream(ctx, c, chatParams(true))
			o.spent = chatSpent(usage)
			return o, err
		})},
		{"openai chat stream that does not ask", openaiTurn(func(ctx context.Context, c openai.Client) (outcome, error) {
			o, usage, err := chatStream(ctx, c, chatParams(false))
			if usage.TotalTokens != 0 {
				err = errors.Join(err, errors.New("the client was told a usage that it did not ask for"))
			}
			return o, err
		})},
		{"openai responses json", openaiTurn(func(ctx context.Context, c openai.Client) (outcome, error) {
			r, err := c.Responses.New(ctx, responsesParams())
			if err != nil {
				return outcome{}, err
			}
			return outcome{r.OutputText(), responsesSpent(r.Usage)}, nil
		})},
		{"openai responses stream", openaiTurn(func(ctx context.Context, c openai.Client) (o outcome, err error) {
			s := c.Responses.NewStreaming(ctx, responsesParams())
			defer s.Close()
			whole := false
			for s.Next() {
				switch e := s.Current(); e.Type {
				case "response.output_text.delta":
					o.text += e.Delta
				case "response.completed":
					o.spent, whole = responsesSpent(e.Response.Usage), true
				}
			}
			if err := s.Err(); err != nil || whole {
				return o, err
			}
			return o, errors.New("the stream has not completed") // the SDK leaves an error event to its user
		})},
		{"openai embeddings", openaiTurn(func(ctx context.Context, c openai.Client) (outcome, error) {
			r, err := c.Embeddings.New(ctx, openai.EmbeddingNewParams{
				Model: openai.EmbeddingModelTextEmbedding3Small,
				Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String("a text to embed")},
			})
			if err != nil {
				return outcome{}, err
			}
			return outcome{fmt.Sprint(r.Data[0].Embedding), &counts{Requests: 1, Input: r.Usage.PromptTokens}}, nil
		})},
	}
}

func anthropicTurn(send func(context.Context, anthropic.Client, anthropic.MessageNewParams) (*anthropic.Message, error)) func(context.Context, string, string, *http.Client) (outcome, error) {
	return func(ctx context.Context, base, key string, client *http.Client) (outcome, error) {
		c := anthropic.NewClient(anthropicoption.WithoutEnvironmentDefaults(), anthropicoption.WithBaseURL(base), anthropicoption.WithAPIKey(key),
			anthropicoption.WithHTTPClient(client), anthropicoption.WithMaxRetries(0))
		m, err := send(ctx, c, anthropic.MessageNewParams{
			Model: "claude-haiku-4-5", MaxTokens: 1000,
			System: []anthropic.TextBlockParam{{Text: strings.Repeat("Answer in verse. ", 20), CacheControl: anthropic.NewCacheControlEphemeralParam()}},
			Messages: []anthropic.MessageParam{
				anthropic.NewUserMessage(anthropic.NewTextBlock("What is a pool?")),
			},
		})
		if err != nil {
			return outcome{}, err
		}
		text := ""
		for _, b := range m.Content {
			text += b.Text
		}
		u := m.Usage
		return outcome{text, &counts{
			Requests: 1, Input: u.InputTokens, Output: u.OutputTokens, CacheRead: u.CacheReadInputTokens,
			Write5m: u.CacheCreationInputTokens - u.CacheCreation.Ephemeral1hInputTokens, Write1h: u.CacheCreation.Ephemeral1hInputTokens,
		}}, nil
	}
}

func openaiTurn(send func(context.Context, openai.Client) (outcome, error)) func(context.Context, string, string, *http.Client) (outcome, error) {
	return func(ctx context.Context, base, key string, client *http.Client) (outcome, error) {
		return send(ctx, openai.NewClient(openaioption.WithBaseURL(base+"/v1/"), openaioption.WithAPIKey(key),
			openaioption.WithHTTPClient(client), openaioption.WithMaxRetries(0)))
	}
}

func chatParams(askUsage bool) openai.ChatCompletionNewParams {
	p := openai.ChatCompletionNewParams{
		Model:    "gpt-4.1",
		Messages: []openai.ChatCompletionMessageParamUnion{openai.SystemMessage("Answer in verse."), openai.UserMessage("What is a pool?")},
	}
	if askUsage {
		p.StreamOptions.IncludeUsage = openai.Bool(true)
	}
	return p
}

func chatStream(ctx context.Context, c openai.Client, p openai.ChatCompletionNewParams) (o outcome, usage openai.CompletionUsage, err error) {
	s := c.Chat.Completions.NewStreaming(ctx, p)
	defer s.Close()
	for s.Next() {
		chunk := s.Current()
		if len(chunk.Choices) == 0 {
			usage = chunk.Usage
			continue
		}
		o.text += chunk.Choices[0].Delta.Content
	}
	return o, usage, s.Err()
}

func chatSpent(u openai.CompletionUsage) *counts {
	cached := u.PromptTokensDetails.CachedTokens
	return &counts{Requests: 1, Input: u.PromptTokens - cached, Output: u.CompletionTokens, CacheRead: cached}
}

func responsesParams() responses.ResponseNewParams {
	return responses.ResponseNewParams{Model: "gpt-4.1", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("What is a pool?")}}
}

func responsesSpent(u responses.ResponseUsage) *counts {
	cached := u.InputTokensDetails.CachedTokens
	return &counts{Requests: 1, Input: u.InputTokens - cached, Output: u.OutputTokens, CacheRead: cached}
}

// httpClient is a client with connections of its own.
func httpClient(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func TestGoSDKs(t *testing.T) {
	t.Parallel()
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs), Watch: []string{"apa_"}})
	straight := startProvider(t, simulator.Options{}) // the same seed, so the same answers
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url})
	client := httpClient(t)
	for _, turn := range goTurns() {
		for range 2 { // the second reads from the cache
			want, err := turn.run(t.Context(), straight.url, "any", client)
			if err != nil {
				t.Fatalf("%s, without authpool: %v", turn.name, err)
			}
			got, err := turn.run(t.Context(), a.url, a.token, client)
			if err != nil {
				t.Errorf("%s: %v", turn.name, err)
				continue
			}
			if got.text != want.text || got.text == "" {
				t.Errorf("%s: the answer is %q, without authpool it is %q", turn.name, got.text, want.text)
			}
			ledger := p.Ledger()
			if last := billed(ledger[len(ledger)-1]); got.spent != nil && *got.spent != last {
				t.Errorf("%s: the client was told %+v, the provider billed %+v", turn.name, *got.spent, last)
			}
		}
	}
	a.expectLedger(t, p, pairs)
	front := a.front(t)
	for id, want := range p.ledger(pairs, all) {
		got, err := front.HGetAll(t.Context(), "authpool:{"+id+"}:now").Result()
		if err != nil {
			t.Fatal(err)
		}
		for field, n := range map[string]int64{
			"requests": want.Requests, "input": want.Input, "output": want.Output, "cache_read": want.CacheRead,
			"cache_write_5m": want.Write5m, "cache_write_1h": want.Write1h,
		} {
			if value := got[field]; value != fmt.Sprint(n) && (n != 0 || value != "") {
				t.Errorf("%s in Redis: %s is %q, the provider billed %d", id, field, value, n)
			}
		}
	}
}
