#!/bin/sh
# Build nedge_VERSION_ARCH.deb into the current directory, or the one given.
#
#     deploy/build-deb.sh [DIRECTORY]
#
# The package brings its Python packages in a virtual environment of its own, /usr/lib/nedge/venv, as Debian's are
# too old (pydantic) or not there at all (netfilterqueue). It is put together with dpkg-deb alone: what debhelper
# would add, this project has little use for. It fits the release that it was built on, as its modules are
# compiled for one version of Python.
set -eu

fail() {
    printf 'build-deb: %s\n' "$1" >&2
    exit "${2:-1}"
}

project=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
[ $# -le 1 ] || fail "usage: build-deb.sh [DIRECTORY]" 2
out=${1:-.}
[ -d "$out" ] || fail "$out is no directory" 2
python=/usr/bin/python3
command -v dpkg-deb >/dev/null || fail "needs dpkg-deb (Debian or Ubuntu)"
$python -c 'import ensurepip, venv' 2>/dev/null || fail "needs python3-venv, python3-dev, gcc and libnetfilter-queue-dev"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
umask 022
root=$work/root
lib=$root/usr/lib/nedge
venv=$lib/venv

# Built by one environment, installed into another that has no pip.
$python -m venv "$work/builder"
pip="$work/builder/bin/python -m pip --disable-pip-version-check"
$pip wheel -q --use-pep517 -w "$work/wheels" "$project" >&2 || fail "pip wheel failed (its words are above)"
mkdir -p "$lib"
$python -m venv --without-pip "$venv"
$pip --python "$venv/bin/python" install -q --no-compile --no-index --find-links "$work/wheels" nedge >&2

# What knows where it was made: programs (nedge is the one we want), the note of the command that made it.
find "$venv/bin" -type f -delete
rm -rf "$venv/include" "$venv/share"
cat >"$venv/bin/nedge" <<'END'
#!/usr/lib/nedge/venv/bin/python3
import sys

from nedge.cli import main

sys.exit(main())
END
chmod 755 "$venv/bin/nedge"
sed -i '/^command = /d' "$venv/pyvenv.cfg"
find "$venv" -name direct_url.json -delete
find "$venv" -name __pycache__ -prune -exec rm -rf {} +
! grep -rIl "$work" "$root" || fail "files above tell where they were made"
packages=$(echo "$venv"/lib/python3.*/site-packages)

install -d "$root/usr/bin" "$root/usr/share/nedge" "$root/etc/nedge" "$root/usr/share/doc/nedge"
ln -s ../lib/nedge/venv/bin/nedge "$root/usr/bin/nedge"
mv "$packages/nedge/policies" "$root/usr/share/nedge/policies"
ln -s /usr/share/nedge/policies "$packages/nedge/policies"
install -m 644 "$project/deploy/nedge.toml" "$root/etc/nedge/nedge.toml"
doc=$root/usr/share/doc/nedge # laid out as in the sources, so that links hold
install -d "$doc/deploy/images" "$doc/policies"
install -m 644 "$project/README.md" "$doc/README.md"
install -m 644 "$project"/deploy/*.md "$project/deploy/nedge.toml" "$project/deploy/grafana-dashboard.json" "$doc/deploy"
install -m 644 "$project"/deploy/images/*.svg "$doc/deploy/images"
install -m 644 "$project/policies/README.md" "$doc/policies/README.md"
install -m 644 "$project/LICENSE" "$root/usr/share/doc/nedge/copyright"

# The system's side. In /usr/lib, where an administrator's own files in /etc override ours.
system=$project/deploy/system
install -d "$root/usr/lib/systemd/system" "$root/usr/lib/sysctl.d" "$root/usr/lib/modules-load.d" "$root/usr/lib/tmpfiles.d"
sed 's#@BIN@#/usr/bin/nedge#' "$system/nedge.service" >"$root/usr/lib/systemd/system/nedge.service"
install -m 644 "$system/sysctl.conf" "$root/usr/lib/sysctl.d/10-nedge.conf"
install -m 644 "$system/modules-load.conf" "$root/usr/lib/modules-load.d/nedge.conf"
install -m 644 "$system/tmpfiles.conf" "$root/usr/lib/tmpfiles.d/nedge.conf"
install -m 755 "$system/system.sh" "$lib/system.sh"
install -m 644 "$system/notify-reload.conf" "$lib/notify-reload.conf"

version=$("$work/builder/bin/python" -c 'import sys, tomllib; print(tomllib.load(open(sys.argv[1], "rb"))["project"]["version"])' "$project/pyproject.toml")
this=$($python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
next=$($python -c 'import sys; print("%d.%d" % (sys.version_info[0], sys.version_info[1] + 1))')
arch=$(dpkg --print-architecture)
install -d "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<END
Package: nedge
Version: $version
Architecture: $arch
Maintainer: nedge <nedge@localhost>
Section: net
Priority: optional
Installed-Size: $(du -sk "$root" | cut -f 1)
Depends: python3 (>= $this), python3 (<< $next), libndpi-bin, libnetfilter-queue1, iptables, ipset, ebtables, iproute2, kmod, ethtool, procps, passwd
Recommends: systemd
Description: open, scriptable inline bridging firewall
 Bridges two network cards, finds out with nDPI what every flow is, has the
 administrator's scripts score it, and passes or drops it by that.
END
echo /etc/nedge/nedge.toml >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    install -m 755 "$project/deploy/debian/$script" "$root/DEBIAN/$script"
done

file=$out/nedge_${version}_$arch.deb
dpkg-deb --root-owner-group --build "$root" "$file" >/dev/null
printf '%s\n' "$file"
