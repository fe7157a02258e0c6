# make demo | test | lint | bench. `./demo.sh` and `./test.sh` do all set-up on a bare Debian 12 and call these.
VENV ?= .venv
PY := $(VENV)/bin/python
CLANG ?= clang
BPF_CFLAGS := -O2 -g -Wall -Wextra -Werror -target bpf -mcpu=v3 -I/usr/include/$(shell uname -m)-linux-gnu
BPF_OBJECTS := $(patsubst %.c,%.o,$(wildcard divhook/bpf/*.c))

.PHONY: all bpf lint format test demo bench bench-move upgrade-test move-tests differential mutants clean
all: bpf

bpf: $(BPF_OBJECTS)
divhook/bpf/%.o: divhook/bpf/%.c $(wildcard divhook/bpf/*.h divhook/bpf/lib/*.h)
	$(CLANG) $(BPF_CFLAGS) -c $< -o $@

lint:
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	shellcheck -x $$(git ls-files '*.sh' scripts/bootstrap scripts/install-host .ci/run vagrant/up vagrant/provision divhook/lab/initramfs/init | sort -u)

format:
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# make test TESTS="--require-all"; make test TESTS="--tier unit -- -k lab"
test: bpf
	@$(PY) scripts/run_tests.py $(TESTS)

# Several hosts on this machine and what divhook does for their guests, as a story. DEMO="--help" lists options.
demo: bpf
	@$(PY) -m divhook.lab.demo $(DEMO)

# divhook side by side with what people use instead: docs/benchmark.md. As root. QUICK=1: under five minutes.
# BENCH="--only divhook bridge": some contenders.
bench:
	@scripts/bootstrap --bench
	@$(MAKE) --no-print-directory bpf
	@$(PY) -m bench $(if $(QUICK),--quick) $(BENCH)

# A guest moved under traffic, with divhook and on a plain bridge: bench/out/moves.{json,md,svg}. As root.
# QUICK=1: 6 moves, not 30. BENCH="--only divhook --moves 12"
bench-move: bpf
	@$(PY) -m bench.moves $(if $(QUICK),--moves 6) $(BENCH)

# Agents killed, upgraded and downgraded under traffic, and every datagram accounted for: make upgrade-test CYCLES=100
upgrade-test: bpf
	@DIVHOOK_LIFE_CYCLES=$(or $(CYCLES),100) $(PY) -m pytest -q -o timeout=3600 tests/netns/test_fastpath_life.py

# Real guests moved in every way, and moves broken at every stage, in both modes: make move-tests MOVES=20
move-tests: bpf
	@for mode in on off; do DIVHOOK_MOVES=$(or $(MOVES),10) $(PY) -m pytest -q -o timeout=900 --fastpath $$mode \
	  tests/libvirt/test_moves_of_every_kind.py tests/libvirt/test_moves_that_fail.py tests/libvirt/test_moving_sessions.py \
	  tests/libvirt/test_refused_moves.py || exit 1; done

# The core and the programs side by side, frames and worlds from a seed: make differential FRAMES=10000000 SEED=any
differential: bpf
	@$(PY) tests/bpf/fastpath_referee.py --frames $(or $(FRAMES),1000000) --jobs $(or $(JOBS),2) $(if $(SEED),--seed "$(SEED)")

# Faults planted in the fast path one by one, and whether the differential finds them. MUTANTS="'TTL stays'": only that
mutants:
	@$(PY) tests/bpf/fastpath_mutants.py $(MUTANTS)

clean:
	rm -f $(BPF_OBJECTS)
