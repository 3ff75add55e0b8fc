#!/bin/sh
# Install nedge as a service between two network interfaces, or upgrade it.
#
#     deploy/install.sh LAN WAN    LAN: the interface towards your hosts; WAN: towards the Internet
#     deploy/install.sh            upgrade: the configuration stays as it is
#
# For Debian 12 and 13 and Ubuntu 24.04, as root. Asks nothing. Each release gets a directory of its own in
# /opt/nedge; while the service restarts, the kernel goes on with what is decided.
set -eu

fail() {
    printf 'install: %s\n' "$1" >&2
    exit "${2:-1}"
}
say() { printf 'install: %s\n' "$1" >&2; }

project=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH
home=/opt/nedge
config=/etc/nedge/nedge.toml

case $# in
    0 | 2) ;;
    *) fail "usage: install.sh LAN WAN, or (to upgrade) install.sh without either" 2 ;;
esac
for name in "$@"; do
    case $name in
        '' | *[!A-Za-z0-9_.@:-]* | -*) fail "'$name' is no name of a network interface" 2 ;;
    esac
    [ "${#name}" -le 15 ] || fail "'$name' is no name of a network interface: it has more than 15 characters" 2
done
if [ $# = 2 ]; then
    [ "$1" != "$2" ] || fail "LAN and WAN must be two interfaces, not both '$1'" 2
else
    [ -e $config ] || fail "usage: install.sh LAN WAN (there is no $config yet)" 2
fi
[ "$(id -u)" = 0 ] || fail "needs root: use sudo"
[ ! -e /usr/lib/nedge/system.sh ] || fail "nedge is installed as a package: upgrade that, or remove it first"

sh "$project/deploy/install-deps.sh" packages

release=$home/$(date +%Y%m%d-%H%M%S)
mkdir -p "$release"
drop_release() { rm -rf "$release"; }
trap 'drop_release' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "making $release"
/usr/bin/python3 -m venv "$release/venv"
"$release/venv/bin/python" -m pip install -q --disable-pip-version-check --use-pep517 "$project" >&2 ||
    fail "pip install failed (its words are above)"
NEDGE=$release/venv/bin/nedge
SETTINGS=$release/system/sysctl.conf
export NEDGE SETTINGS
cp -R "$project/deploy/system" "$project/deploy/uninstall.sh" "$release"

fresh=$release/nedge.toml
if [ -e $config ]; then
    [ $# = 0 ] || say "$config is there, and stays as it is"
    cp $config "$fresh"
else
    sed -e "s/^lan = .*/lan = [\"$1\"]/" -e "s/^wan = .*/wan = [\"$2\"]/" "$project/deploy/nedge.toml" >"$fresh"
fi
checked=$fresh
[ ! -e $config ] || checked=$config # relative paths are relative to it
"$NEDGE" doctor --config "$checked" >&2 ||
    fail "not installed: the doctor found errors, above. Nothing was changed, but for Debian packages"

trap - EXIT INT TERM
install -d -m 755 /etc/nedge
[ -e $config ] || install -m 644 "$fresh" $config
rm -f "$fresh"
chmod -R go+rX "$home"

lib=/etc/systemd/system
install -d $lib /etc/sysctl.d /etc/modules-load.d /etc/tmpfiles.d /usr/local/bin
sed "s#@BIN@#$home/current/venv/bin/nedge#" "$release/system/nedge.service" >$lib/nedge.service
version=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
if [ "${version:-0}" -ge 253 ]; then
    install -D -m 644 "$release/system/notify-reload.conf" $lib/nedge.service.d/notify-reload.conf
fi
install -m 644 "$release/system/sysctl.conf" /etc/sysctl.d/10-nedge.conf
install -m 644 "$release/system/modules-load.conf" /etc/modules-load.d/nedge.conf
install -m 644 "$release/system/tmpfiles.conf" /etc/tmpfiles.d/nedge.conf
sh "$release/system/system.sh" prepare
former=$(readlink $home/current) || former=
ln -sfn "$release" $home/current
ln -sfn $home/current/venv/bin/nedge /usr/local/bin/nedge

if ! sh "$release/system/system.sh" start; then
    [ -n "$former" ] || fail "installed, but the service does not start (why is above)"
    ln -sfn "$former" $home/current
    sh "$release/system/system.sh" start || fail "neither this release nor the former one starts (why is above)"
    drop_release
    fail "this release does not start (why is above); the former one runs again"
fi
# The former releases: until now the old processes could need their files.
for old in "$home"/2*; do
    [ "$old" = "$release" ] || rm -rf "$old"
done
say "done: configuration in $config, nedge doctor says how it is, journalctl -u nedge what happens; $home/current/uninstall.sh removes it"
