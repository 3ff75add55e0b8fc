#!/bin/sh
# Remove nedge as install.sh installed it: service, bridge, rules, settings, files.
#
#     /opt/nedge/current/uninstall.sh [--purge]    --purge: configuration, records and the user nedge, too
#
# Debian packages that it needed stay, as others may need them by now.
set -eu

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH
home=/opt/nedge

case $#:${1:-} in
    0: | 1:--purge) ;;
    *)
        printf 'usage: uninstall.sh [--purge]\n' >&2
        exit 2
        ;;
esac
if [ "$(id -u)" != 0 ]; then
    printf 'uninstall: needs root: use sudo\n' >&2
    exit 1
fi
system=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/system/system.sh
NEDGE=$home/current/venv/bin/nedge
SETTINGS=/etc/sysctl.d/10-nedge.conf
export NEDGE SETTINGS
if [ -x $NEDGE ]; then
    sh "$system" stop
    sh "$system" restore
fi
[ "${1:-}" != --purge ] || sh "$system" purge
rm -rf $home /etc/systemd/system/nedge.service /etc/systemd/system/nedge.service.d \
    /etc/sysctl.d/10-nedge.conf /etc/modules-load.d/nedge.conf /etc/tmpfiles.d/nedge.conf
[ ! -L /usr/local/bin/nedge ] || rm -f /usr/local/bin/nedge
[ ! -d /run/systemd/system ] || systemctl daemon-reload
