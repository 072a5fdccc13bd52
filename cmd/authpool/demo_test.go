package main

import (
	"bytes"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// fasthttpSweeper wakes up every ten seconds, also to notice that its server has
// stopped.
var fasthttpSweeper = goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2")

// TestDemo is the demo without its pauses. It compares Redis with the ledger by
// itself; here it is enough that it comes to the end, and that what it shows is
// what it promises.
func TestDemo(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent(), fasthttpSweeper)
	var out, log bytes.Buffer
	p := &program{Stdio: Stdio{Out: &out, Err: &log}}
	if err := p.demo(t.Context(), 0); err != nil {
		t.Fatalf("%v\n%s%s", err, out.String(), log.String())
	}
	for _, want := range []string{
		"ada, turn 1  →  team-a", "ada, turn 3  →  team-a", "dan, turn 3  →  lab", "team-b served ",
		"HGETALL 'authpool:{team-a}:now'", "Equal to the token: 3 rows, ", "authpool audit usage --ledger",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, out.String())
		}
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", log.String())
	}
}

// TestDemoSeesADifference makes the ledger differ by one request that went past
// authpool: the demo must notice.
func TestDemoSeesADifference(t *testing.T) {
	var out bytes.Buffer
	s := startStage(t)
	d := &demo{program: &program{Stdio: Stdio{Out: &out}}, stage: s}
	ask := func(base, key string) {
		t.Helper()
		a := newDemoAgent(d, "eve", openAIDialect)
		if err := a.ask(t.Context(), base, key); err != nil {
			t.Fatal(err)
		}
	}
	ask("http://"+s.service.agentAddress(), s.service.dir.AgentToken())
	if err := d.compare(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask(s.simBase, s.keys["lab"].Key)
	if err := d.compare(t.Context()); err == nil || !strings.Contains(err.Error(), "differ in 1 of 1 row") {
		t.Errorf("got %v\n%s", err, out.String())
	}
}
