#!/bin/sh
# What an installed nedge needs of the machine beside its files: a user, kernel modules, settings.
#
#     system.sh prepare            make the user, load the modules, apply the settings (what was before is noted)
#     system.sh start              enable the service; start it, or restart it where it runs
#     system.sh stop               stop and disable the service, and undo what a crashed gateway left
#     system.sh restore            put the settings back
#     system.sh purge              remove the user, and all that nedge wrote
#
# Called by install.sh, uninstall.sh and the package's scripts. NEDGE is the command, SETTINGS the sysctl.d file.
set -eu

state=/var/lib/nedge
noted=$state/sysctl-before

say() { printf 'nedge: %s\n' "$1" >&2; }

running_systemd() { [ -d /run/systemd/system ]; }

# The lines of the settings file as "path value".
settings() { sed -n 's/^-\{0,1\}\([a-z0-9_.-]*\) *= *\(.*\)$/\1 \2/p' "$SETTINGS" | tr . /; }

prepare() {
    if ! getent passwd nedge >/dev/null; then
        useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin nedge
    fi
    install -d -o nedge -g nedge -m 750 "$state" /var/log/nedge /var/cache/nedge
    had_bridges=no
    [ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || had_bridges=yes
    for module in br_netfilter nf_conntrack nfnetlink_queue; do
        modprobe -q "$module" 2>/dev/null || true # built in, or doctor will say that it lacks
    done
    if running_systemd; then
        systemd-tmpfiles --create nedge.conf || true # the lock of the old iptables; doctor tries the rules
    fi
    [ -e "$noted" ] || : >"$noted"
    settings | while read -r path value; do
        file=/proc/sys/$path
        [ -w "$file" ] || continue
        before=$(cat "$file")
        case $path in
            net/bridge/*) [ $had_bridges = no ] || continue ;;      # somebody else's, who may want it so
            *_max) [ "$before" -lt "$value" ] || continue ;;        # more is fine
        esac
        grep -q "^$path " "$noted" || printf '%s %s\n' "$path" "$before" >>"$noted"
        printf '%s\n' "$value" 2>/dev/null >"$file" || say "$path could not be set to $value"
    done
}

start() {
    if ! command -v systemctl >/dev/null; then
        say "there is no systemd: start it yourself (nedge run --config /etc/nedge/nedge.toml)"
        return 0
    fi
    systemctl -q enable nedge.service
    if ! running_systemd; then
        say "systemd is not running here: the service will start with the machine"
        return 0
    fi
    systemctl daemon-reload
    systemctl reset-failed nedge.service 2>/dev/null || true
    if ! timeout 150 systemctl restart nedge.service; then
        journalctl -u nedge.service -n 20 --no-pager -o cat >&2 || true
        systemctl stop nedge.service || true
        say "the service did not start; what it said is above"
        return 1
    fi
}

stop() {
    if running_systemd && command -v systemctl >/dev/null; then
        systemctl stop nedge.service 2>/dev/null || true
    fi
    ! command -v systemctl >/dev/null || systemctl -q disable nedge.service 2>/dev/null || true
    "$NEDGE" cleanup || say "what a crashed gateway left is still there"
}

restore() {
    [ -e "$noted" ] || return 0
    while read -r path value; do
        [ ! -w "/proc/sys/$path" ] || printf '%s\n' "$value" >"/proc/sys/$path" ||
            say "$path could not be set back to $value"
    done <"$noted"
    rm -f "$noted"
    if [ -e /run/xtables.lock ]; then
        chown root:root /run/xtables.lock
        chmod 600 /run/xtables.lock
    fi
}

purge() {
    rm -rf /etc/nedge "$state" /var/log/nedge /var/cache/nedge /run/nedge
    ! getent passwd nedge >/dev/null || userdel nedge
    ! getent group nedge >/dev/null || groupdel nedge
}

case ${1:-} in
    prepare | start | stop | restore | purge) "$1" ;;
    *)
        printf 'usage: system.sh prepare|start|stop|restore|purge\n' >&2
        exit 2
        ;;
esac
