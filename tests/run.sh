#!/bin/sh
# All checks: format, lint, types, tests. Any that fails, fails. With arguments: these go to pytest instead.
#
# CI=true in the environment: a test that cannot run here fails, instead of being skipped.
set -eu

project=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

sh "$project/deploy/install-deps.sh" test
cd "$project"
bin=$project/.venv/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
[ $# -eq 0 ] || exec "$bin/python" -m pytest "$@"

# Live tests run what gets installed: a wheel, with its compiled modules. It is made meanwhile: the compiler has
# work for one core and a minute or two.
work=$(mktemp -d)
chmod 755 "$work" # some of them are run as nobody
trap 'wait; rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
"$bin/python" -m pip install -q --disable-pip-version-check --use-pep517 --no-deps --target "$work/site" "$project" \
    >"$work/log" 2>&1 &
wheel=$!
"$bin/python" -m pytest -n auto tests/unit
wait "$wheel" || {
    cat "$work/log" >&2
    exit 1
}

cp -R tests policies deploy pyproject.toml README.md "$work"
cd "$work"
export PYTHONPATH="$work/site"
# Two for each core: each has a lab of its own, and waits most of the time.
"$bin/python" -m pytest -n $(($(nproc) * 2)) -m "not alone" tests/live
"$bin/python" -m pytest -m alone tests/live
