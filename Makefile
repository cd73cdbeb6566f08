# Decree: `make help` lists what there is.
SHELL := /bin/bash
BIN := $(CURDIR)/bin

# Tools are pinned, and built from source into ./bin on first use.
STATICCHECK := $(BIN)/staticcheck-v0.8.2
BUF := $(BIN)/buf-v1.75.0
GEN_GO := $(BIN)/protoc-gen-go-v1.36.12
GEN_GRPC := $(BIN)/protoc-gen-go-grpc-v1.6.2

FUZZTIME ?= 20s
SEEDS ?= 1000
CYCLES ?= 1000
# after which the tests of a package wait for something for ever
TIMEOUT ?= 40m

.PHONY: help demo test race fuzz sim mutants crash powercut bench endure snapshots joins restarts nobody overload lint macos proto proto-check ci clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## three nodes, two proxies, a ledger, a leader that dies, and books that balance: under a minute
	go run ./examples/ledger demo

# rsm takes as long as several others together: it begins first, beside all of them, not last and alone. On a slow machine it takes more than the ten minutes of go test.
test: ## all tests
	go test -timeout $(TIMEOUT) ./rsm ./...

race: ## all tests under the race detector
	go test -race -short -timeout $(TIMEOUT) ./rsm ./...

fuzz: ## every fuzz target for FUZZTIME (20s) each
	@set -e; for pkg in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; done

mutants: ## the faults that are built in on purpose: the simulator must find each
	go test -tags mutants ./internal/sim -run TestMutants -count=1 -v -timeout $(TIMEOUT)

sim: ## SEEDS (1000) simulated clusters, new ones each time (FIRST=n: from n on), on all cores (PROCS=n); SEED=n replays one with its trace; TUNE=name: clusters made for something (internal/sim/tunes_test.go)
	@mkdir -p $(BIN)
	go test -c -o $(BIN)/sim.test ./internal/sim
	cd internal/sim && $(BIN)/sim.test -test.run 'TestSim$$' -test.v -test.timeout 0 \
	  $(if $(SEED),-sim.seed=$(SEED),-sim.seeds=$(SEEDS) -sim.first=$(or $(FIRST),0)) $(if $(PROCS),-sim.procs=$(PROCS)) $(if $(TUNE),-sim.tune=$(TUNE))

crash: ## every state that a crash of a recorded node could leave is opened (10 to 25 minutes; Linux)
	go test ./rsm -run 'TestCrash|TestFlippedBits' -count=1 -v -timeout 90m -crash.all $(if $(SEED),-crash.seed=$(SEED))

powercut: ## CYCLES (1000) power cuts of a node under load (Linux, root)
	go test ./rsm -run TestPowerCut -count=1 -v -timeout 90m -powercut.cycles=$(CYCLES)

bench: ## Decree and dragonboat side by side, in one run (about 15 minutes; BENCH="-cells full" for all cells)
	cd bench && go run . -cells quick $(BENCH)

overload: ## a proxy is offered three times what its shard can do: goodput, latency of what is taken, refusals (one minute)
	go test ./proxy -run TestOverload -count=1 -v -hold

nobody: ## 200 clients through two proxies, for two minutes, while leaders are killed every 3 s and each proxy twice
	go test ./proxy -run TestNobodyNotices -count=1 -v -timeout 10m -hold

endure: ## DURATION (1h) of load on three nodes with flushes, cuts and a follower that comes and goes; samples into CSV (endure.csv) and a plot beside it
	go test ./rsm -run 'TestEndure$$' -count=1 -v -timeout 0 -endure.duration=$(or $(DURATION),1h) -endure.csv=$(abspath $(or $(CSV),endure.csv)) $(ENDURE)
	cd bench && go run ./plot $(abspath $(or $(CSV),endure.csv)) > $(basename $(abspath $(or $(CSV),endure.csv))).svg

snapshots: ## what a cut of STATE (1073741824) bytes costs those who are served: less than a fifth of throughput, less than 50 ms (five minutes; MEASURE="-measure.follower" for more flags)
	go test ./rsm -run TestMeasureSnapshots -count=1 -v -timeout 0 -hold -measure snapshots -measure.state=$(or $(STATE),1073741824) $(MEASURE)

joins: ## that a newcomer to STATE bytes catches up under load, and goes on when it was killed (six minutes)
	go test ./rsm -run TestMeasureJoins -count=1 -v -timeout 0 -hold -measure joins -measure.state=$(or $(STATE),1073741824) -measure.rounds=2 $(MEASURE)

restarts: ## how long a restart takes with 100 thousand entries of history and with ENTRIES (10000000): at most 1.2 times as long (five minutes, 10 GB of disk)
	go test ./rsm -run TestMeasureRestarts -count=1 -v -timeout 0 -hold -measure restarts -measure.entries=$(or $(ENTRIES),10000000) $(MEASURE)

lint: $(STATICCHECK) ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'run gofmt -w on these'; exit 1; }
	go vet ./...
	$(STATICCHECK) ./...
	cd bench && go vet ./... && $(STATICCHECK) ./...

macos: ## build and vet for macOS, on any machine: no test is run there
	GOOS=darwin GOARCH=arm64 go build ./...
	GOOS=darwin GOARCH=arm64 go vet ./...

proto: $(BUF) $(GEN_GO) $(GEN_GRPC) ## generate code from api/**/*.proto
	cd api && PATH="$(BIN):$$PATH" $(BUF) generate

proto-check: proto ## fail if the generated code is not what is checked in
	@test -z "$$(git status --porcelain -- api)" || { git status --porcelain -- api; git diff --stat -- api; echo 'run make proto and commit the result'; exit 1; }

ci: ## everything that must hold before a change lands: under 25 minutes on two cores
	@set -e; for step in lint proto-check test race sim mutants demo; do \
	  echo "== $$step"; start=$$SECONDS; $(MAKE) --no-print-directory $$step; echo "== $$step ok in $$((SECONDS - start)) s"; \
	done

clean: ## remove built tools
	rm -rf $(BIN)

# one rule for all tools: bin/NAME-VERSION
define tool
$(1):
	@mkdir -p $(BIN)
	GOBIN=$(BIN) go install $(2)
	@mv $(BIN)/$(3) $(1) && ln -sf $(notdir $(1)) $(BIN)/$(3)
endef
$(eval $(call tool,$(STATICCHECK),honnef.co/go/tools/cmd/staticcheck@v0.8.2,staticcheck))
$(eval $(call tool,$(BUF),github.com/bufbuild/buf/cmd/buf@v1.75.0,buf))
$(eval $(call tool,$(GEN_GO),google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12,protoc-gen-go))
$(eval $(call tool,$(GEN_GRPC),google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2,protoc-gen-go-grpc))
