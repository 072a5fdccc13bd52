package main

import (
	"strings"
	"testing"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool/credential"
)

// TestCheckAcceptsTheRedisThatServeOpens: the config's rules and those of the package
// that connects are written twice, and are the same.
func TestCheckAcceptsTheRedisThatServeOpens(t *testing.T) {
	var urls []string
	for _, scheme := range []string{"redis://", "rediss://", "unix://", "http://", ""} {
		for _, authority := range []string{
			"", "a", "a:1", "a:1,b", "a:1,b:2,[::1]:3", "[::1]", "::1", "a:x", ":1", "a:", "a:1,", "user@a", "us%zer@a", "/run/redis.sock",
		} {
			for _, path := range []string{"", "/", "/0", "/3", "/x", "/0/1"} {
				for _, query := range []string{
					"", "?master=m", "?mode=cluster", "?mode=sentinel", "?mode=single", "?mode=embedded", "?mode=x",
					"?master=m&mode=cluster", "?master=m&sentinel_username=u", "?sentinel_username=u", "?master=m&master=n", "?db=1", "?%zz",
				} {
					urls = append(urls, scheme+authority+path+query)
				}
			}
		}
	}
	accepted := 0
	for _, section := range []config.Redis{
		{},
		{Mode: "single"},
		{Mode: "sentinel"},
		{Mode: "cluster"},
		{Mode: "sentinel", Master: "m"},
		{Master: "m"},
		{Master: "n"},
		{Addresses: []string{"a:1"}},
		{Addresses: []string{"a:1", "b:1"}, Mode: "single"},
		{Username: "u"},
	} {
		for _, url := range append(urls, "", "embedded") {
			c := config.Default()
			prefix, listen := c.Redis.Prefix, c.Redis.Listen
			c.Redis = section
			c.Redis.URL, c.Redis.Prefix, c.Redis.Listen = url, prefix, listen
			opts := redisOptions(c.Redis)
			opts.URL = credential.NewSecret(url)
			checked, opens := c.Validate(), opts.Check()
			if (checked == nil) != (opens == nil) {
				t.Errorf("%+v:\n\tcheck: %v\n\tserve: %v", c.Redis, checked, opens)
			}
			if checked == nil {
				accepted++
			} else if !strings.Contains(checked.Error(), "redis.") {
				t.Fatalf("%+v: %v is about something else", c.Redis, checked)
			}
		}
	}
	if accepted < 100 {
		t.Errorf("only %d sections are accepted", accepted)
	}
}
