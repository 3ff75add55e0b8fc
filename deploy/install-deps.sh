#!/bin/sh
# Install what nedge needs: Debian packages, and a virtual environment in .venv.
#
#     deploy/install-deps.sh packages    only the Debian packages for a gateway, no .venv
#     deploy/install-deps.sh run     a gateway
#     deploy/install-deps.sh demo    a gateway, and the lab's clients and servers (default)
#     deploy/install-deps.sh test    all of these, and what the tests need
#
# For Debian 12 and 13 and Ubuntu 24.04. What is there already is left alone: a second run is quick and
# needs no network. Packages that would start a service are not among them.
set -eu

fail() {
    printf 'install-deps: %s\n' "$1" >&2
    exit 1
}

project=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
wanted=${1:-demo}
venv=$project/.venv
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# Python's headers, a compiler and libnetfilter-queue-dev build the one extension module. libndpi-bin has
# the same name on every release, and brings the library, which has not.
run_packages="python3 python3-venv python3-dev gcc libc6-dev libnetfilter-queue-dev libndpi-bin
    iptables ipset ebtables conntrack iproute2 kmod ethtool procps"
lab_packages="curl bind9-dnsutils dnsmasq-base dropbear-bin openssl openssh-client tcpdump iputils-ping"
test_packages="nftables systemd"
case $wanted in
    packages | run) level=1 packages=$run_packages extras='' ;;
    demo) level=2 packages="$run_packages $lab_packages" extras='[lab]' ;;
    test) level=3 packages="$run_packages $lab_packages $test_packages" extras='[dev,ndpi5]' ;;
    *)
        printf 'usage: install-deps.sh [packages|run|demo|test]\n' >&2
        exit 2
        ;;
esac

[ "$(id -u)" = 0 ] || fail "needs root, to install packages and to make network namespaces: use sudo."
command -v apt-get >/dev/null || fail "needs apt-get (Debian 12 or 13, Ubuntu 24.04)."

missing() {
    for package in $packages; do
        state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) || state=absent
        [ "$state" = installed ] || printf '%s ' "$package"
    done
}

install_packages() {
    absent=$(missing)
    [ -n "$absent" ] || return 0
    printf 'install-deps: installing %s\n' "$absent" >&2
    # Nothing that is installed here, whatever it draws in, may start a service on this machine.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        trap 'exit 129' HUP
        trap 'exit 130' INT
        trap 'exit 143' TERM
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    apt="apt-get -qq -y -o DPkg::Lock::Timeout=300"
    $apt update >/dev/null || fail "apt-get update failed (its words are above)."
    # shellcheck disable=SC2086 # lists of words
    $apt install --no-install-recommends $absent >/dev/null || fail "apt-get install failed (its words are above)."
    trap - EXIT HUP INT TERM
    [ ! -f $policy ] || ! grep -qx 'exit 101' $policy || rm -f $policy
}

install_python() {
    # Debian's own interpreter: python3-dev has the headers of that one.
    python=/usr/bin/python3
    $python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "needs Python 3.11 or later."
    # The stamp tells what the environment was made of, and for which set; a later set contains the earlier.
    made_of=$({ cat "$project/pyproject.toml"; $python -VV; printf '%s\n' "$project"; } | sha256sum | cut -d ' ' -f 1)
    stamp=$venv/nedge-stamp
    if "$venv/bin/python" -c '' 2>/dev/null && read -r was_made_of was_level <"$stamp" 2>/dev/null &&
        [ "$was_made_of" = "$made_of" ] && [ "$was_level" -ge "$level" ]; then
        return 0
    fi
    printf 'install-deps: making %s\n' "$venv" >&2
    rm -f "$stamp"
    $python -m venv --clear "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --use-pep517 -e "$project$extras" >&2 ||
        fail "pip install failed (its words are above)."
    printf '%s %s\n' "$made_of" "$level" >"$stamp"
}

install_packages
[ "$wanted" = packages ] || install_python
