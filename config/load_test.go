package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/config"
)

// faultsOf gives the faults of a text as lines.
func faultsOf(t *testing.T, text string) []string {
	t.Helper()
	_, err := config.Parse("a.yaml", []byte(text))
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[config.Faults](err); !ok {
		t.Fatalf("error is %T, want Faults: %v", err, err)
	}
	return strings.Split(err.Error(), "\n")
}

func TestFaultsCarryPlaceFieldAndAdvice(t *testing.T) {
	f := func(name, text string, want ...string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			got := faultsOf(t, text)
			if len(got) != len(want) {
				t.Fatalf("got %d faults, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
			}
			for i := range want {
				if !strings.HasPrefix(got[i], want[i]) || !strings.Contains(got[i], " → ") {
					t.Errorf("fault %d:\n got %s\nwant %s…", i, got[i], want[i])
				}
			}
		})
	}

	f("empty file is the default", "")
	f("written on Windows", "\ufefflog:\r\n  level: warn\r\nagents:\r\n  auth: none\r\n")
	f("written on Windows, with a fault", "log:\r\n  level: warn\r\nagents:\r\n  auth: non\r\n", "a.yaml:4:9: agents.auth:")
	f("comments alone too", "# nothing\n")
	f("sections without content", "admin:\nsubscriptions:\nproviders:\n")
	f("not YAML", "listen: [", "a.yaml:1:9: this is not YAML")
	f("a list", "- a\n", "a.yaml:1:1: is a list → a mapping with the keys listen, unix, tls,")
	f("two documents", "listen: a:1\n---\nlisten: b:1\n", "a.yaml:3:1: begins a second document → one document in a file")
	f("unknown key", "lisen: a:1\n", `a.yaml:1:1: lisen: is no key that authpool knows (did you mean "listen"?) → one of listen, unix, tls,`)
	f("unknown key that is close to none", "quux: 1\n", `a.yaml:1:1: quux: is no key that authpool knows → one of`)
	f("unknown nested key", "sessions:\n  idle_timout: 1m\n", `a.yaml:2:3: sessions.idle_timout: is no key that authpool knows (did you mean "idle_timeout"?)`)
	f("key twice", "log: {level: info}\nlog: {level: warn}\n", "a.yaml:2:1: log: stands here a second time → each key once")
	f("merge key", "log:\n  <<: {level: info}\n", "a.yaml:2:3: log: has a merge key")
	f("tag", "state_dir: !!str /x\n", "a.yaml:1:12: state_dir: has a YAML tag")
	f("missing alias", "log: *nowhere\n", "a.yaml:1:6: ")
	f("wrong kinds", "listen: {a: 1}\nadmin: []\nproviders: 3\nsubscriptions: {}\nstate_dir: 7\nintercept: {enabled: 1}\nfailover: {attempts: many}\n",
		"a.yaml:1:9: listen: is a mapping → a text or a list of texts",
		"a.yaml:2:8: admin: is a list → a mapping with the keys listen, token",
		"a.yaml:3:12: providers: is a number → a mapping of keys",
		"a.yaml:4:16: subscriptions: is a mapping → a list",
		"a.yaml:5:12: state_dir: is a number → a text, in quotes",
		"a.yaml:6:22: intercept.enabled: is a number → true or false",
		"a.yaml:7:22: failover.attempts: is a text → a whole number from 1 to 20",
	)
	f("paths", `providers:
  anthropic:
    paths:
      - {path: v1/skills, action: refuse}
      - {path: /v1/**/x, action: local}
      - {path: /v1/../x, action: local}
      - {path: "/v1/%61", action: local}
      - {path: /v1/a, methods: [get, POST, POST], action: inyect}
      - {action: free}
      - {path: /v1/b, methods: [GET], action: free}
      - {path: /V1/b, methods: [POST, GET], action: local}
      - {path: /v1/b, methods: [DELETE], action: local}
      - {path: /v1/c, actions: local}
`,
		`a.yaml:4:16: providers.anthropic.paths[0].path: "v1/skills" is no pattern of paths → / and plain segments`,
		`a.yaml:5:16: providers.anthropic.paths[1].path: "/v1/**/x" has ** before its end`,
		`a.yaml:6:16: providers.anthropic.paths[2].path: "/v1/../x" is no pattern of paths`,
		`a.yaml:7:16: providers.anthropic.paths[3].path: "/v1/%61" is no pattern of paths`,
		`a.yaml:8:33: providers.anthropic.paths[4].methods[0]: "get" is no method (did you mean "GET"?)`,
		`a.yaml:8:44: providers.anthropic.paths[4].methods[2]: "POST" stands here a second time`,
		`a.yaml:8:59: providers.anthropic.paths[4].action: "inyect" is not known here (did you mean "inject"?) → one of inject, free, bound, local, refuse`,
		`a.yaml:9:9: providers.anthropic.paths[5].path: is missing`,
		`a.yaml:11:16: providers.anthropic.paths[7].path: "/V1/b" is that of paths[6] too, which comes first`,
		`a.yaml:13:9: providers.anthropic.paths[9].action: is missing`,
		`a.yaml:13:23: providers.anthropic.paths[9].actions: is no key that authpool knows (did you mean "action"?)`,
	)
	f("no value", "state_dir:\nsessions: {strategy: }\n",
		"a.yaml:1:11: state_dir: has no value",
		"a.yaml:2:21: sessions.strategy: has no value → one of balanced, drain_soonest, priority, least_used, round_robin",
	)
	f("durations", "timeouts: {connect: 5, idle: -1s, first_byte: 0s, write_stall: soon}\n",
		`a.yaml:1:21: timeouts.connect: "5" is not a duration → a positive duration such as "500ms"`,
		`a.yaml:1:30: timeouts.idle: "-1s" is not positive`,
		`a.yaml:1:47: timeouts.first_byte: "0s" is not positive`,
		`a.yaml:1:64: timeouts.write_stall: "soon" is not a duration`,
	)
	f("sizes", "limits_http: {body: 64MB, header: 0}\nfailover: {replay_body: 99999999999GiB}\n",
		`a.yaml:1:21: limits_http.body: "64MB" is not a size → a positive size such as "32KiB"`,
		`a.yaml:1:35: limits_http.header: "0" is out of range`,
		`a.yaml:2:25: failover.replay_body: "99999999999GiB" is out of range`,
	)
	f("sizes that cannot work", "journal: {max: 63KiB}\nlimits_http: {header: 1KiB}\n",
		"a.yaml:1:16: journal.max: 63KiB is too small → at least 64KiB",
		"a.yaml:2:23: limits_http.header: 1KiB is too small → at least 4KiB",
	)
	f("audit stream in the process", "audit: {stream: true}\n", "a.yaml:1:17: audit.stream: copies nothing out of reach of who can change the files")
	f("journal", "journal: {sync: never}\n", `a.yaml:1:17: journal.sync: "never" is not a sync policy → a positive duration such as "500ms", "30s", "10m" or "720h", or always`)
	f("enums", "agents: {auth: tokn}\nlog: {level: loud, format: xml}\n",
		`a.yaml:1:16: agents.auth: "tokn" is not known here (did you mean "token"?) → one of token, none`,
		`a.yaml:2:14: log.level: "loud" is not known here → one of debug, info, warn, error`,
		`a.yaml:2:28: log.format: "xml" is not known here → one of text, json`,
	)

	f("listeners", "listen: [8787, nowhere, unix:relative, 127.0.0.1:99999, 127.0.0.1:1]\nadmin: {listen: 127.0.0.1:1}\n",
		"a.yaml:1:10: listen[0]: is a number → a text",
		`a.yaml:1:16: listen[1]: "nowhere" is no address → host:port`,
		`a.yaml:1:25: listen[2]: "unix:relative" names no absolute path → unix:/path`,
		`a.yaml:1:40: listen[3]: "127.0.0.1:99999" is no address`,
		`a.yaml:2:17: admin.listen: "127.0.0.1:1" is the address of listen[4] too`,
	)
	f("no listener", "listen: []\n", "a.yaml:1:9: listen: is empty")
	f("auth none in public", "listen: [127.0.0.1:1, 0.0.0.0:2]\nagents:\n  auth: none\n",
		`a.yaml:3:9: agents.auth: is none, but "0.0.0.0:2" can be reached from other machines → token, or listen only on loopback and unix sockets`)
	f("auth none on every address", "listen: :8787\nagents: {auth: none}\n", `a.yaml:2:16: agents.auth: is none, but ":8787"`)
	f("users of a socket", "listen: unix:/run/a\nunix: {access: group, agents: {0: root, 1000: alice}}\n")
	f("users that are none", "listen: unix:/run/a\nunix: {agents: {alice: a, 01: b, 1: B}}\n",
		`a.yaml:2:17: unix.agents.alice: "alice" is no user's number → a number such as 1000`, `a.yaml:2:27: unix.agents.01: "01" is no user's number`, `a.yaml:2:34: unix.agents.1: "B" is no agent's name`)
	f("who may connect", "unix: {access: 0660}\n", `a.yaml:1:16: unix.access: is a number → one of owner, group, all`)
	f("too few connections", "limits_http: {connections: 1}\n", `a.yaml:1:28: limits_http.connections: 1 is out of range → a whole number from 16 to 1000000`)
	f("auth none at home", "listen: ['127.0.0.1:1', '[::1]:1', 'localhost:2', 'unix:/run/a']\nagents: {auth: none}\n")
	f("half a certificate", "tls: {cert: file:a.pem}\n", "a.yaml:1:6: tls.key: is missing → tls.cert and tls.key together")
	f("certificate from the environment", "tls: {cert: env:A, key: file:b}\n", "a.yaml:1:13: tls.cert: is not a file → file:PATH")
	f("prices from the environment", "prices: env:A\n", "a.yaml:1:9: prices: is not a file → file:PATH")
	f("prices by a path alone", "prices: prices.yaml\n", "a.yaml:1:9: prices: is not a file → file:PATH")
	f("certificate by a path alone", "tls: {cert: a.pem, key: file:b}\n", "a.yaml:1:13: tls.cert: is not a file → file:PATH")
	f("prices in no file", "prices: 'file:'\n", "a.yaml:1:9: prices: file: is not followed by a path → file:PATH")

	f("redis password in the URL", "redis: {url: 'redis://:hunter2@r:6379'}\n", "a.yaml:1:14: redis.url: holds a password in the clear → redis.password: env:NAME")
	f("redis password in the query", "redis: {url: 'unix:///r?password=hunter2'}\n", "a.yaml:1:14: redis.url: holds a password in the clear")
	f("redis literal password", "redis: {url: 'redis://r:6379', password: hunter2}\n", "a.yaml:1:42: redis.password: a secret is written here in the clear → env:NAME, file:PATH or exec:/PROGRAM ARG…")
	f("redis shapes", "redis: {url: 'http://r', prefix: 'A:b', listen: here}\n",
		"a.yaml:1:14: redis.url: has another scheme than redis, rediss or unix",
		`a.yaml:1:34: redis.prefix: "A:b" is no prefix → letters a-z, digits, _ and -`,
		`a.yaml:1:49: redis.listen: "here" is no address`,
	)
	f("redis sentinel without master", "redis: {mode: sentinel, addresses: ['a:1', 'b:1']}\n", "a.yaml:1:8: redis.master: does not go with mode sentinel")
	f("redis single with several", "redis: {mode: single, addresses: ['a:1', 'b:1']}\n", "a.yaml:1:34: redis.addresses: holds several addresses")
	f("redis url and addresses", "redis: {url: 'redis://a', addresses: ['a:1']}\n", "a.yaml:1:38: redis.addresses: stands beside redis.url")
	f("password for the embedded one", "redis: {password: env:A}\n", "a.yaml:1:19: redis.password: has no meaning for the embedded Redis")
	f("redis forms that are fine", "redis: {url: env:REDIS_URL, listen: off, prefix: team_a-1}\n")
	f("redis cluster by URL", "redis: {url: 'redis://a:1,b,[::1]:3', password: env:A}\n")
	f("redis sentinels by URL", "redis: {url: 'rediss://a,b:2/1?master=main&sentinel_username=u'}\n")
	f("redis master later", "redis: {url: env:A, master: main}\n")
	f("redis hosts", "redis: {url: 'redis://a:1,b:x'}\n", "a.yaml:1:14: redis.url: has a host that is not host:port → redis://host:port[,host:port…]/db, with ?master=NAME")
	f("redis query", "redis: {url: 'redis://a?db=1'}\n", "a.yaml:1:14: redis.url: says after ? what is not understood")
	f("redis sentinel password", "redis: {url: 'redis://a?master=m&sentinel_password=hunter2'}\n", "a.yaml:1:14: redis.url: holds a password in the clear")
	f("redis mode twice", "redis: {mode: single, url: 'redis://a?mode=cluster'}\n", "a.yaml:1:15: redis.mode: differs from the mode in redis.url")
	f("redis master twice", "redis: {master: m, url: 'redis://a?master=n'}\n", "a.yaml:1:17: redis.master: differs from the master in redis.url")
	f("redis cluster with a database", "redis: {url: 'redis://a,b/1'}\n", "a.yaml:1:14: redis.url: names a database")
	f("empty redis texts are unset", "redis: {mode: single, url: 'redis://r:1/0', addresses: [], master: '', username: '', password: ''}\n")

	f("providers", `providers:
  v1: {type: openai, base_url: https://a}
  Bad.Name: {type: openai, base_url: https://a}
  mine: {base_url: https://a}
  yours: {type: openai}
  openai: {type: anthropic}
  antropic: {base_url: https://a}
`,
		"a.yaml:2:3: providers.v1: is a name that routes already",
		`a.yaml:3:3: providers.Bad.Name: "Bad.Name" is no name`,
		"a.yaml:4:3: providers.mine.type: is missing for a provider that is not built in → one of anthropic, openai, gemini,",
		"a.yaml:5:3: providers.yours.base_url: is missing for a provider that is not built in",
		"a.yaml:6:18: providers.openai.type: cannot be changed for a built-in provider",
		`a.yaml:7:3: providers.antropic.type: is missing for a provider that is not built in (did you mean "anthropic"?)`,
	)
	f("no host of their own", `providers:
  vertex: {base_url: https://europe-west1-aiplatform.googleapis.com}
subscriptions:
  - {id: a, provider: vertex, credential: {type: bearer, value: env:A}}
  - {id: b, provider: bedrock, credential: {value: env:A}}
  - {id: c, provider: azure, credential: {value: env:A}}
  - {id: d, provider: cohere, credential: {value: env:A}}
`,
		"a.yaml:5:23: subscriptions[1].provider: bedrock has another host for each region or resource → providers.bedrock.base_url",
		"a.yaml:6:23: subscriptions[2].provider: azure has another host for each region or resource → providers.azure.base_url with yours, such as https://RESOURCE.openai.azure.com",
	)
	f("base URLs", `providers:
  anthropic: {base_url: api.anthropic.com}
  openai: {base_url: 'https://u:p@h'}
  groq: {base_url: 'http://h'}
  xai: {base_url: 'https://h/a?b=c'}
  zai: {base_url: 'https://h/a/../b'}
  cohere: {base_url: 'https://h//'}
  mistral: {base_url: 'https://'}
  voyage: {base_url: 'https://h:99999'}
  together: {base_url: 'https://h/%2e%2e'}
`,
		"a.yaml:2:25: providers.anthropic.base_url: does not begin with https:// → https://host",
		"a.yaml:3:22: providers.openai.base_url: holds user information",
		"a.yaml:4:20: providers.groq.base_url: would send the credential unencrypted → https://, or allow_plaintext: true",
		"a.yaml:5:19: providers.xai.base_url: has a query or a fragment",
		`a.yaml:6:19: providers.zai.base_url: "/a/../b" is no path prefix`,
		`a.yaml:7:22: providers.cohere.base_url: "/" is no path prefix`,
		`a.yaml:8:23: providers.mistral.base_url: "" is no host`,
		`a.yaml:9:22: providers.voyage.base_url: "h:99999" is no host`,
		`a.yaml:10:24: providers.together.base_url: "/%2e%2e" is no path prefix`,
	)

	f("subscriptions", `subscriptions:
  - id: Team A
    provider: antropic
    credential: {value: env:A}
  - id: a
    provider: bedrock
    credential: {type: magic, value: env:A}
    priority: -1
    weight: 0
    domain: "a b"
    models: ["claude-[", ""]
    limits: {concurrent: 0, sessions: 1.5, requests_per_minute: -3}
  - id: a
    provider: openai
  - provider: openai
    credential: sk-live-hunter2
`,
		`a.yaml:2:9: subscriptions[0].id: "Team A" is no id → a-z, 0-9, _ and -`,
		`a.yaml:3:15: subscriptions[0].provider: "antropic" is no provider (did you mean "anthropic"?) → a built-in one (anthropic, azure,`,
		"a.yaml:6:15: subscriptions[1].provider: bedrock has another host for each region or resource → providers.bedrock.base_url with yours, such as https://bedrock-runtime.us-east-1.amazonaws.com",
		`a.yaml:7:24: subscriptions[1].credential.type: "magic" is not known here → one of api_key, bearer`,
		"a.yaml:8:15: subscriptions[1].priority: -1 is out of range → a whole number from 0 to 1000000",
		"a.yaml:9:13: subscriptions[1].weight: 0 is out of range → a whole number from 1 to 1000000",
		`a.yaml:10:13: subscriptions[1].domain: "a b" is no domain`,
		`a.yaml:11:14: subscriptions[1].models[0]: "claude-[" is no glob`,
		`a.yaml:11:26: subscriptions[1].models[1]: "" is no glob`,
		"a.yaml:12:26: subscriptions[1].limits.concurrent: 0 is out of range → a whole number from 1",
		"a.yaml:12:39: subscriptions[1].limits.sessions: is a number → a whole number from 1",
		"a.yaml:12:65: subscriptions[1].limits.requests_per_minute: -3 is out of range → a whole number, at least 1",
		"a.yaml:13:5: subscriptions[2].credential: is missing → a mapping of keys",
		`a.yaml:13:9: subscriptions[2].id: "a" is the id of subscriptions[1] too`,
		"a.yaml:15:5: subscriptions[3].id: is missing",
		"a.yaml:16:17: subscriptions[3].credential: is a text → a mapping with the keys type, value",
	)
	f("secrets in the clear", `subscriptions:
  - {id: a, provider: openai, credential: {value: sk-hunter2}}
  - {id: b, provider: openai, credential: {value: "sk:hunter2"}}
  - {id: c, provider: openai, credential: {value: "env:sk-hunter2"}}
  - {id: d, provider: openai, credential: {value: "exec:hunter2"}}
  - {id: e, provider: openai, credential: {value: "vault:hunter2"}}
  - {id: f, provider: openai, credential: {value: "sealed:hunter2"}}
  - {id: g, provider: openai, credential: {value: "file:"}}
  - {id: h, provider: openai, credential: {value: ""}}
`,
		"a.yaml:2:51: subscriptions[0].credential.value: a secret is written here in the clear → env:NAME, file:PATH or exec:/PROGRAM ARG…",
		"a.yaml:3:51: subscriptions[1].credential.value: this is no reference; a secret may be written here in the clear",
		"a.yaml:4:51: subscriptions[2].credential.value: env: is not followed by the name of a variable",
		"a.yaml:5:51: subscriptions[3].credential.value: exec: is not followed by the absolute path of a program",
		"a.yaml:6:51: subscriptions[4].credential.value: vault: references are not available in this version",
		"a.yaml:7:51: subscriptions[5].credential.value: sealed: references exist only in records",
		"a.yaml:8:51: subscriptions[6].credential.value: file: is not followed by a path",
		"a.yaml:9:51: subscriptions[7].credential.value: is empty",
	)
	f("budgets", `subscriptions:
  - id: a
    provider: openai
    credential: {value: env:A}
    budgets: [{window: year, cost_usd: 1}, {window: day, cost_usd: -1}, {window: day, cost_usd: 0.0000000001}, {window: week}]
`,
		`a.yaml:5:24: subscriptions[0].budgets[0].window: "year" is not known here → one of block, day, week, month`,
		`a.yaml:5:68: subscriptions[0].budgets[1].cost_usd: "-1" is not an amount`,
		`a.yaml:5:82: subscriptions[0].budgets[2].window: stands here a second time`,
		`a.yaml:5:97: subscriptions[0].budgets[2].cost_usd: "0.0000000001" is not an amount`,
		`a.yaml:5:112: subscriptions[0].budgets[3]: limits nothing → cost_usd, tokens or requests`,
	)
	f("notifications", "notifications:\n  - {url: 'http://example.com/x', secret: hunter2, events: ['a b']}\n  - {url: 'https://u:p@h/', events: []}\n",
		"a.yaml:2:11: notifications[0].url: would be sent unencrypted",
		"a.yaml:2:43: notifications[0].secret: a secret is written here in the clear",
		`a.yaml:2:61: notifications[0].events[0]: "a b" is no event → names or globs of: subscription.limited, `,
		"a.yaml:3:11: notifications[1].url: holds user information",
		"a.yaml:3:37: notifications[1].events: is empty",
	)
	f("where notifications go", `notifications:
  - {url: 'https://10.0.0.1/', events: ['*'], format: xml, pin_sha256: abc}
  - {url: 'https://169.254.169.254/', events: [budget.81, 'nothing.*', 'budget.[', 'bud*80'], allow_private: true}
  - {url: 'https://[::ffff:192.168.0.1]/', events: ['*']}
  - {url: 'https://h.example.com/x', events: ['*']}
  - {url: 'https://h.example.com/x', events: [redis.lost]}
`,
		"a.yaml:2:11: notifications[0].url: is at a private address → allow_private: true",
		`a.yaml:2:55: notifications[0].format: "xml" is not known here → one of json, slack`,
		"a.yaml:2:72: notifications[0].pin_sha256: is no SHA-256 in base64",
		"a.yaml:3:11: notifications[1].url: is at an address that notifications are never sent to",
		`a.yaml:3:48: notifications[1].events[0]: "budget.81" is no event`,
		`a.yaml:3:59: notifications[1].events[1]: "nothing.*" is no event`,
		`a.yaml:3:72: notifications[1].events[2]: "budget.[" is no event`,
		"a.yaml:4:11: notifications[2].url: is at a private address",
		"a.yaml:6:11: notifications[4].url: stands here a second time",
	)
	f("other hosts", "intercept: {other_hosts: allow}\n", `a.yaml:1:26: intercept.other_hosts: "allow" is not a policy → deny, tunnel, or a list of host globs`)
	f("other hosts' globs", "intercept: {other_hosts: ['*.example.com', 'a/b', 'example.com:0', 'bücher.example:443', '127.1', '[2001:db8::1]:22', '10.0.0.0/8']}\n",
		`a.yaml:1:44: intercept.other_hosts[1]: "a/b" is no host glob`,
		`a.yaml:1:51: intercept.other_hosts[2]: "example.com:0" is no host glob: its port is no number from 1 to 65535`,
		`a.yaml:1:90: intercept.other_hosts[4]: "127.1" is no host glob: it is a number`,
		`a.yaml:1:119: intercept.other_hosts[6]: "10.0.0.0/8" is no host glob`)
	f("private networks", "intercept: {other_hosts: tunnel, allow_private: [10.0.0.0/8, 'fd00::/8', 127.0.0.1, 10.0.0.1/8, 10.0.0.0/33, 'fe80::1%eth0', '::ffff:10.0.0.1', gitlab.internal], tunnel_idle: 0s}\n",
		`a.yaml:1:85: intercept.allow_private[3]: "10.0.0.1/8" has more bits than its length → 10.0.0.0/8, or the address alone`,
		`a.yaml:1:97: intercept.allow_private[4]: "10.0.0.0/33" is no network → an address or a network such as 10.1.0.0/16`,
		`a.yaml:1:110: intercept.allow_private[5]: "fe80::1%eth0" has a zone`,
		`a.yaml:1:126: intercept.allow_private[6]: "::ffff:10.0.0.1" is IPv4 in the form of IPv6`,
		`a.yaml:1:145: intercept.allow_private[7]: "gitlab.internal" is no network`,
		`a.yaml:1:176: intercept.tunnel_idle: "0s" is not positive`)
	f("constants of health", "sessions: {health: {probing_percent: 0, nearly_percent: 101, reset_soon: 25h, slow_percent: 99, session_percent: half}}\n",
		"a.yaml:1:38: sessions.health.probing_percent: 0 is out of range → a whole number from 1 to 100",
		"a.yaml:1:57: sessions.health.nearly_percent: 101 is out of range → a whole number from 50 to 100",
		"a.yaml:1:74: sessions.health.reset_soon: 25h0m0s is not soon → at most 24h0m0s",
		"a.yaml:1:93: sessions.health.slow_percent: 99 is out of range → a whole number from 100 to 10000",
		"a.yaml:1:114: sessions.health.session_percent: is a text → a whole number from 1 to 100",
	)
	f("egress", "egress: {proxy: 'socks5://p:1', username: 'a:b', no_proxy: [ok.example.com, 10.0.0.0/8, 'a b', 'http://x']}\n",
		"a.yaml:1:17: egress.proxy: is not a URL",
		"a.yaml:1:43: egress.username: holds a colon",
		`a.yaml:1:89: egress.no_proxy[2]: "a b" is no host`,
		`a.yaml:1:96: egress.no_proxy[3]: "http://x" is no host`,
	)
	f("egress without a proxy", "egress: {password: env:P}\n", "a.yaml:1:20: egress.password: is for a proxy, and there is none → egress.proxy beside it")
	f("egress with a path", "egress: {proxy: 'http://p:1/x'}\n", "a.yaml:1:17: egress.proxy: has a path → http://HOST:PORT or https://HOST:PORT")
}

func TestNoFaultRepeatsASecret(t *testing.T) {
	const canary = "hunter2"
	for _, text := range []string{
		"subscriptions: [{id: a, provider: openai, credential: {value: sk-hunter2}}]",
		"subscriptions: [{id: a, provider: openai, credential: sk-hunter2}]",
		"subscriptions: [{id: a, provider: openai, credential: [sk-hunter2]}]",
		"subscriptions: [{id: a, provider: openai, credential: {value: {x: sk-hunter2}}}]",
		"subscriptions: [sk-hunter2]",
		"admin: {token: apo_hunter2}",
		"admin: {token: 'env:apo-hunter2'}",
		"redis: {url: 'redis://u:hunter2@h'}",
		"redis: {url: 'redis://u:hunter2@h:port'}",
		"redis: {url: 'hunter2'}",
		"redis: {url: 'env:hunter-2 hunter2'}",
		"redis: {url: 'redis://h?password=hunter2'}",
		"redis: {url: 'redis://h', password: hunter2}",
		"providers: {openai: {base_url: 'https://u:hunter2@h'}}",
		"providers: {openai: {base_url: 'ftp://u:hunter2@h'}}",
		"providers: {openai: {base_url: 'https://u:hunter2@h:x'}}",
		"notifications: [{url: 'https://h:x/hunter2', events: [a]}]",
		"notifications: [{url: 'https://u:hunter2@h/', secret: hunter2, events: [a]}]",
		"egress: {proxy: 'http://u:hunter2@p'}",
		"subscriptions:\n  - credential: {value: \"sk-hunter2}\n",
		"subscriptions: [{id: a, credential: {value: sk-hunter2",
	} {
		lines := faultsOf(t, text)
		if len(lines) == 0 {
			t.Errorf("no fault: %s", text)
		}
		if all := strings.Join(lines, "\n"); strings.Contains(all, canary) {
			t.Errorf("the secret shows in\n%s", all)
		}
	}
}

func TestLoadReadsEveryForm(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "authpool.yaml")
	text := `
listen: 127.0.0.1:1
admin: {token: file:secrets/admin}
redis: {addresses: ["a:1", "b:2"], master: m, password: env:PW}
state_dir: state
providers:
  anthropic: {base_url: "https://proxy.example/anthropic/", paths: [{path: /api/x*/**, methods: [GET], action: local}, {path: /**, action: free}]}
  local-vllm: {type: openai, base_url: "http://127.0.0.1:8000", allow_plaintext: true, stream_usage: never}
subscriptions:
  - &first
    id: team-a
    provider: anthropic
    credential: &key {type: bearer, value: file:/run/key}
    models: &models ["claude-*"]
    limits: {concurrent: 20}
    budgets: [{window: day, cost_usd: 12.50}, {window: month, cost_usd: "500", tokens: 7, requests: 8}, {window: week, requests: 9}]
  - {id: team-b, provider: local-vllm, credential: *key, models: *models, priority: 0, weight: 3}
agents: {brake: {requests_per_hour: 1}}
sessions: {brake: {tokens_per_hour: 2, cost_usd_per_hour: 0.5}}
journal: {sync: always}
limits_http: {body: 1024}
prices: file:prices.yaml
intercept: {other_hosts: ["*.example.com"]}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.Listen = config.Addresses{"127.0.0.1:1"}
	want.Admin.Token = config.Ref("file:" + dir + "/secrets/admin")
	want.Redis.Addresses, want.Redis.Master, want.Redis.Password = []string{"a:1", "b:2"}, "m", "env:PW"
	want.StateDir = filepath.Join(dir, "state")
	want.Providers = map[string]config.Provider{
		"anthropic": {BaseURL: "https://proxy.example/anthropic", StreamUsage: "ask", Paths: []config.PathRule{
			{Path: "/api/x*/**", Methods: []string{"GET"}, Action: "local"}, {Path: "/**", Action: "free"},
		}},
		"local-vllm": {Type: "openai", BaseURL: "http://127.0.0.1:8000", AllowPlaintext: true, StreamUsage: "never"},
	}
	key := config.Credential{Type: "bearer", Value: "file:/run/key"}
	want.Subscriptions = []config.Subscription{
		{
			ID: "team-a", Provider: "anthropic", Credential: key, Priority: 1, Weight: 1, Models: []string{"claude-*"},
			Limits:  config.Limits{Concurrent: 20},
			Budgets: []config.Budget{{Window: "day", CostUSD: 12_500_000_000}, {Window: "month", CostUSD: 500_000_000_000, Tokens: 7, Requests: 8}, {Window: "week", Requests: 9}},
		},
		{ID: "team-b", Provider: "local-vllm", Credential: key, Priority: 0, Weight: 3, Models: []string{"claude-*"}},
	}
	want.Agents.Brake = config.Brake{RequestsPerHour: 1}
	want.Sessions.Brake = config.Brake{TokensPerHour: 2, CostUSDPerHour: 500_000_000}
	want.Journal.Sync = config.SyncPolicy{Always: true}
	want.LimitsHTTP.Body = 1024
	want.Prices = config.FileRef("file:" + dir + "/prices.yaml")
	want.Intercept.OtherHosts = config.HostPolicy{Mode: "list", Hosts: []string{"*.example.com"}}
	if diff := cmp.Diff(want, c, cmp.FilterPath(unexported, cmp.Ignore())); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := c.Redis.Topology(); got != config.RedisSentinel {
		t.Errorf("topology is %s, want sentinel", got)
	}
}

// unexported finds what a Config remembers for itself.
func unexported(p cmp.Path) bool {
	f, ok := p.Last().(cmp.StructField)
	return ok && f.Name() == "origin"
}

func TestLoadNamesTheFileThatIsMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.yaml")
	_, err := config.Load(path)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("error is %v", err)
	}
	if _, ok := errors.AsType[config.Faults](err); ok {
		t.Error("a missing file came back as Faults")
	}
}

func TestAliasesCannotMultiply(t *testing.T) {
	var b strings.Builder
	b.WriteString("intercept: {other_hosts: [" + strings.Repeat("a,", 2000) + "a]}\nsubscriptions:\n")
	b.WriteString("  - {id: a0, provider: openai, credential: {value: env:A}, models: &m [" + strings.Repeat("a,", 2000) + "a]}\n")
	b.WriteString(strings.Repeat("  - {id: a0, provider: openai, credential: {value: env:A}, models: *m}\n", 1000))
	for _, line := range faultsOf(t, b.String()) {
		if strings.Contains(line, "the file says too much") {
			return
		}
	}
	t.Error("two million values were read without a fault")
}

func FuzzLoad(f *testing.F) {
	f.Add("listen: a\n")
	f.Add("subscriptions:\n  - id: a\n    provider: openai\n    credential: {value: env:A}\n")
	f.Add("a: &x [*x]\nproviders: {x: *x}\n")
	f.Add("redis: {url: 'redis://:p@h'}\n---\n")
	f.Add("? a\n: b\n")
	f.Add("log: !!map {level: |\n  info}\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := config.Parse("a.yaml", []byte(text))
		if err == nil {
			c.Warnings()
			return
		}
		faults, ok := errors.AsType[config.Faults](err)
		if !ok {
			t.Fatalf("error is %T", err)
		}
		lines := strings.Count(strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n"), "\n") + 1
		for _, fault := range faults {
			if fault.Line < 1 || fault.Column < 1 || fault.Line > lines+1 || fault.Column > len(text)+1 {
				t.Errorf("%d lines, fault at %d:%d: %v", lines, fault.Line, fault.Column, fault)
			}
		}
	})
}
