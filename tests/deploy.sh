#!/bin/sh
# Installer and Debian package, tried in clean machines that are made for it: takes some minutes, and the
# network (Debian's packages and PyPI). With arguments: these go to pytest.
#
# NEDGE_TEST_ROOT=DIR keeps the clean Debian there for the next time.
set -eu

project=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH CI=true

sh "$project/deploy/install-deps.sh" test
DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends debootstrap systemd-container >/dev/null
cd "$project"
exec "$project/.venv/bin/python" -m pytest tests/deploy "$@"
