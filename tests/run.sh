#!/bin/sh
# All checks: format, lint, types, tests. Any that fails, fails. With arguments: these go to pytest instead.
#
# CI=true in the environment: a test that cannot run here fails, instead of being skipped.
set -eu

project=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH
cd "$project"

# Live tests run what gets installed: a wheel, with its compiled modules. It is made meanwhile, as the compiler
# keeps one core busy for a minute; in a session of its own, to be ended with all that it has started.
make_wheel() {
    work=$(mktemp -d)
    chmod 755 "$work" # some tests are run as nobody
    trap '[ -e "$work/status" ] || kill -- "-${wheel:-}" 2>/dev/null || true; rm -rf "$work"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    mkdir "$work/tmp"
    # shellcheck disable=SC2016 # it is the inner shell's
    TMPDIR=$work/tmp setsid sh -c '/usr/bin/python3 -m venv "$1/venv" &&
        "$1/venv/bin/python" -m pip install -q --disable-pip-version-check --use-pep517 --no-deps \
            --target "$1/site" "$2"
        echo $? >"$1/status"' sh "$work" "$project" >"$work/log" 2>&1 &
    wheel=$!
}

sh deploy/install-deps.sh packages
[ $# -gt 0 ] || make_wheel
sh deploy/install-deps.sh test
bin=$project/.venv/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
[ $# -eq 0 ] || exec "$bin/python" -m pytest "$@"
"$bin/python" -m pytest -n auto tests/unit
wait "$wheel"
[ "$(cat "$work/status")" = 0 ] || {
    cat "$work/log" >&2
    exit 1
}

cp -R tests policies deploy pyproject.toml README.md "$work"
cd "$work"
export PYTHONPATH="$work/site"
# What decides, compiled: there some things mean something else than in Python, such as whether an optional enumeration is true.
"$bin/python" -m pytest -n auto tests/unit/core tests/unit/scripts/test_verdict_rules.py
# Side by side, two for each core: each has a lab of its own, and waits most of the time. Then what has to be alone.
"$bin/python" -m pytest -n $(($(nproc) * 2)) --dist worksteal -m "not alone" tests/live
"$bin/python" -m pytest -m alone tests/live
