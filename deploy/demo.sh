#!/bin/sh
# The demo: builds a lab of three network namespaces, runs nedge between real clients and servers, shows
# what was let through and what was cut off, and takes everything down again.
#
# For a bare Debian 12, Debian 13 or Ubuntu 24.04, as root. Leaves the packages and .venv behind, for the
# next time, but no namespace, rule or process.
set -eu

project=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

sh "$project/deploy/install-deps.sh" demo
# In place of this shell, so that Ctrl-C and SIGTERM reach the one process that cleans up.
exec "$project/.venv/bin/python" -m nedge lab demo "$@"
