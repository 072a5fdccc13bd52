# Everything that is done with this repository; `make help` lists it.
# Tools are pinned here and built into .cache/bin (git ignores it) when missing.

GOLANGCI_LINT_VERSION := v2.15.0
GOFUMPT_VERSION       := v0.12.0
GOVULNCHECK_VERSION   := v1.8.0
CCUSAGE_VERSION       := 20.0.24 # later ones have no native part for Linux

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TOOLS         := $(CURDIR)/.cache/bin
GOLANGCI_LINT := $(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION)
GOFUMPT       := $(TOOLS)/gofumpt-$(GOFUMPT_VERSION)
GOVULNCHECK   := $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION)

AGENTS        := $(CURDIR)/.cache/agents
CCUSAGE       := $(CURDIR)/.cache/ccusage-$(strip $(CCUSAGE_VERSION))

FUZZTIME ?= 30s
CRASHES  ?= 500
STORM    ?= 5m
SEEDS    ?= 40
LINEAR   ?= 60s

SIDECARS      ?= 1000
SESSIONS      ?= 100000
SUBSCRIPTIONS ?= 500
REQUESTS      ?= 12 # of a session, in the mean

IMAGE    ?= authpool:dev

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/authpool, static
	CGO_ENABLED=0 go build -trimpath -o bin/authpool ./cmd/authpool

.PHONY: fmt
fmt: $(GOFUMPT) $(GOLANGCI_LINT) ## format all Go files (gofumpt, import groups)
	$(GOFUMPT) -w .
	$(GOLANGCI_LINT) fmt ./...

.PHONY: lint
lint: $(GOLANGCI_LINT) ## vet, lint and check the import floors (builds the linter at first use: minutes)
	$(GOLANGCI_LINT) run ./...

.PHONY: test
test: ## run all tests; installs redis-server and the npm SDKs, or says what to install
	.ci/need redis-server node npm curl && .ci/clients
	AUTHPOOL_REQUIRE_REDIS=1 go test -count=1 ./... # bench/e2e builds the program itself, which the test cache cannot see

.PHONY: race
race: ## run all tests under the race detector
	.ci/need redis-server node npm curl && .ci/clients
	AUTHPOOL_REQUIRE_REDIS=1 go test -race -timeout 18m ./...

.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME (default 30s) each
	.ci/fuzz $(FUZZTIME)

.PHONY: e2e
e2e: ## run the real program alone: stories, clients, stops, outages against the simulator
	.ci/need redis-server node npm curl && .ci/clients
	AUTHPOOL_REQUIRE_REDIS=1 go test -count=1 ./cmd/... ./bench/e2e

.PHONY: crash
crash: ## kill authpool and Redis under load CRASHES times (default 500; minutes); usage must equal the ledger
	.ci/need redis-server
	AUTHPOOL_REQUIRE_REDIS=1 AUTHPOOL_CRASHES=$(CRASHES) go test -count=1 -timeout 60m -v -run '^TestCrashes' ./bench/e2e

.PHONY: storm
storm: ## let 200 agents rage over limited subscriptions, each storm STORM long (default 5m), and Redis go away (half an hour)
	.ci/need redis-server
	AUTHPOOL_REQUIRE_REDIS=1 AUTHPOOL_STORM=$(STORM) go test -count=1 -timeout 60m -v -run '^Test(Storm|Chaos)' ./pool ./bench/e2e

.PHONY: linear
linear: ## let eight processes bind, move, release and expire sessions on one Redis and on the Cluster for LINEAR (default 60s) each
	.ci/need redis-server
	AUTHPOOL_REQUIRE_REDIS=1 AUTHPOOL_LINEAR=$(LINEAR) go test -count=1 -timeout 60m -v -run '^TestLinear$$' ./pool

.PHONY: simulate-pool
simulate-pool: ## let SIDECARS with SESSIONS on SUBSCRIPTIONS live for a day, and print the table of bench/poolsim (half an hour)
	AUTHPOOL_SIMULATE="$(SIDECARS) $(SESSIONS) $(SUBSCRIPTIONS) $(strip $(REQUESTS))" go test -count=1 -timeout 90m -v -run '^TestSimulatePool$$' ./pool

.PHONY: replay
replay: ## replay the recordings that AUTHPOOL_RECORDINGS names, each cut in SEEDS ways (default 40)
	AUTHPOOL_RECORDINGS=$${AUTHPOOL_RECORDINGS:?names no folder} AUTHPOOL_RECORDINGS_SEEDS=$(SEEDS) go test -count=1 -timeout 30m -run TestRecordings ./proxy/...

.PHONY: bench
bench: ## compare with nginx and print the table (minutes)
	.ci/need nginx
	go run ./bench/compare

.PHONY: bench-smoke
bench-smoke: ## run every benchmark and the comparison once, to see that they still work
	.ci/need redis-server nginx
	AUTHPOOL_REQUIRE_REDIS=1 go test -run '^$$' -bench . -benchtime 1x ./...
	go run ./bench/compare -smoke

.PHONY: ccusage
ccusage: ## compare the blocks with the real ccusage (npm) on the same events
	.ci/need redis-server node npm
	.ci/ccusage $(CCUSAGE) $(CCUSAGE_VERSION)
	AUTHPOOL_REQUIRE_REDIS=1 AUTHPOOL_CCUSAGE=$(CCUSAGE)/node_modules/.bin/ccusage go test -count=1 -run 'Ccusage|ByHand' ./ratelimit/usage

.PHONY: cover
cover: ## measure what the tests reach; writes cover.out
	.ci/need redis-server node npm curl && .ci/clients
	AUTHPOOL_REQUIRE_REDIS=1 go test -coverpkg ./... -coverprofile cover.out ./...
	go tool cover -func cover.out | tail -n 1

.PHONY: vuln
vuln: $(GOVULNCHECK) ## look for known vulnerabilities (asks Go's public database)
	$(GOVULNCHECK) ./...

.PHONY: image
image: ## build the container image IMAGE (default authpool:dev)
	docker build -f deploy/Dockerfile -t $(IMAGE) .

.PHONY: clients
clients: ## drive every known client as base URL and as proxy: curl, the SDKs, and the real agents (npm, some 1.2 GB in .cache)
	.ci/need node npm curl
	.ci/clients
	.ci/agents $(AGENTS)
	AUTHPOOL_REQUIRE_REDIS=1 AUTHPOOL_REQUIRE_AGENTS=1 go test -count=1 -v -run '^Test(SDKs|AgentsRun)$$' ./bench/e2e

.PHONY: agents
agents: ## drive the real Claude Code and Codex (npm, some 1.2 GB in .cache) through every fault
	.ci/need node npm
	.ci/agents $(AGENTS)
	AUTHPOOL_REQUIRE_AGENTS=1 go test -count=1 -run Agents ./bench/e2e

.PHONY: check
check: fmt lint race vuln ## what must pass before a release: format, lint, race, vulnerabilities, no changed file
	git diff --exit-code

$(GOLANGCI_LINT):
	.ci/tool $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)

$(GOFUMPT):
	.ci/tool $@ mvdan.cc/gofumpt@$(GOFUMPT_VERSION)

$(GOVULNCHECK):
	.ci/tool $@ golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
