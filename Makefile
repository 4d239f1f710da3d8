# vosfs. `make demo` and `make test` need nothing before them; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
AZURITE := $(VENV)/azurite
# Of each kind of test that moves bytes: half a minute.
ON_S3 := tests/server/test_bytes.py tests/server/test_audit.py tests/vospace/test_archives.py tests/vospace/test_bytes.py tests/mount/test_posix.py
# On plain VOSpace: POSIX, saves that fail, and what programs do to files: a minute.
ON_PLAIN := tests/mount/test_kept.py tests/mount/test_posix.py tests/mount/test_science.py
CEPH := ceph-mon ceph-osd radosgw ceph-base ceph-common
DEBIAN := fuse3 libfuse3-dev pkg-config postgresql gcc libc6-dev python3-dev python3-venv

.PHONY: help init demo test test-s3 test-plain object-stores conformance check format bench bench-quick bench-peers bench-latency bench-s3 bench-ngas bench-daemon soak posix fsx fuzz run docs clean debian

help:  ## list these targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

init: $(STAMP)  ## put everything into .venv/

$(STAMP): setup.cfg setup.py pyproject.toml vosfs/_libfuse.c scripts/debian.sh | debian
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip setuptools wheel
	$(BIN)/python -m pip install -qq --editable '.[test,check,docs]'
	touch $@

debian:
	@sh scripts/debian.sh $(DEBIAN)

demo: $(STAMP)  ## serve a space, mount it, put real files through it, and say what happened
	@$(BIN)/python scripts/demo.py

test: $(STAMP) object-stores  ## all tests, with real mounts, a real PostgreSQL, Ceph and Azurite
	@sh scripts/debian.sh rsync git sqlite3 attr openssl systemd
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest -q --storage s3 $(ON_S3)
	$(BIN)/python -m pytest -q --plain $(ON_PLAIN)

test-s3: $(STAMP) object-stores  ## the tests of the mount, the daemon and VOSpace with S3 as the only storage (nine minutes)
	@sh scripts/debian.sh rsync git sqlite3 attr openssl
	$(BIN)/python -m pytest --storage s3 tests/mount tests/server tests/vospace tests/clients

test-plain: $(STAMP)  ## the tests of the mount without the gateway binding, as with anybody's VOSpace (eight minutes)
	@sh scripts/debian.sh rsync git sqlite3 attr openssl
	$(BIN)/python -m pytest --plain tests/mount

object-stores:  # what is missing is skipped, and the summary says so: these are 240 MB, and a network may be missing too
	@sh scripts/debian.sh $(CEPH) || echo "Tests against S3 will be skipped."
	@test -x $(AZURITE)/node_modules/.bin/azurite-blob || ! command -v npm >/dev/null \
	    || npm install --silent --no-audit --no-fund --prefix $(AZURITE) azurite@3 >/dev/null 2>&1 \
	    || echo "Tests against Azure will be skipped."

check: $(STAMP)  ## format, lint, types, import directions
	$(BIN)/ruff format --check vosfs server scripts tests
	$(BIN)/ruff check vosfs server scripts tests
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/style

format: $(STAMP)  ## let ruff format and mend what it can
	$(BIN)/ruff check --fix vosfs server scripts tests
	$(BIN)/ruff format vosfs server scripts tests

bench: $(STAMP)  ## the workload on the mount, sshfs and the local disk; JSON and a table in bench-results/ (bench-daemon: the daemon alone)
	@sh scripts/debian.sh sshfs openssh-server git
	PYTHONPATH=scripts $(BIN)/python -m bench

bench-quick: $(STAMP)  ## one short round of it
	@sh scripts/debian.sh sshfs openssh-server git
	PYTHONPATH=scripts $(BIN)/python -m bench --rounds 1 --big 128

bench-peers: $(STAMP)  ## the same against sshfs and rclone
	@sh scripts/debian.sh sshfs openssh-server git rclone
	PYTHONPATH=scripts $(BIN)/python -m bench --targets local,sshfs,rclone,vosfs

bench-latency: $(STAMP)  ## sshfs, rclone and the mount with 10 and 50 ms to the server
	@sh scripts/debian.sh sshfs openssh-server rclone
	PYTHONPATH=scripts $(BIN)/python -m bench --far 10,50

bench-s3: $(STAMP)  ## s3fs, rclone and the mount on one object store
	@sh scripts/debian.sh s3fs rclone $(CEPH)
	PYTHONPATH=scripts $(BIN)/python -m bench --objects --big 128

bench-ngas: $(STAMP)  ## the NGAS driver and a bare HTTP client on one server
	PYTHONPATH=scripts $(BIN)/python -m bench.ngas

bench-daemon: $(STAMP)  ## requests per second, listings, moves and bytes of the daemon alone, on SQLite and PostgreSQL
	$(BIN)/python scripts/load.py

soak: $(STAMP)  ## the long checks: a big tree, 4 GiB, 100 000 entries (an hour at most)
	@sh scripts/debian.sh rsync
	$(BIN)/python scripts/soak.py

posix: $(STAMP)  ## pjdfstest on a mount, as root (five minutes): make posix PJDFSTEST=its directory, built
	$(BIN)/python scripts/posix.py $(PJDFSTEST)

fsx: $(STAMP)  ## a million random operations beside a local file system, in each of four settings (an hour or two)
	for setting in cold small cut trees; do $(BIN)/python scripts/fsx.py --setting $$setting || exit 1; done

fuzz: $(STAMP)  ## 100 000 hostile requests to a daemon with a secret (about ten minutes)
	$(BIN)/python scripts/fuzz.py

conformance: $(STAMP)  ## docs/conformance.rst: every requirement, with the tests that hold it and their result
	$(BIN)/python -m pytest -q tests/server tests/vospace --conformance docs/conformance.rst

run: $(STAMP)  ## a daemon and a mount to play with, until ^C
	@$(BIN)/python scripts/demo.py --stay

docs: $(STAMP)  ## HTML in docs/_build
	$(BIN)/sphinx-build -q -W -b html docs docs/_build

clean:  ## remove what was built
	rm -rf $(VENV) build *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
