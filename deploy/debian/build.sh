#!/bin/sh
# Builds a Debian package of this checkout for the Python of this Debian:
#
#   deploy/debian/build.sh [DIRECTORY]      (default: build)
#
# All but the interpreter and nftables is inside, below /opt/mptcp-proxy.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-build}
python=/usr/bin/python3
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
architecture=$(dpkg --print-architecture)
minor=$($python -c 'import sys; print(sys.version_info.minor)')

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
home=$stage/opt/mptcp-proxy
$python -m venv "$home"
"$home/bin/pip" install -q --disable-pip-version-check --no-compile .
"$home/bin/pip" freeze --disable-pip-version-check | grep -v '^mptcp-proxy' >"$home/versions.txt"
"$home/bin/pip" install -q --disable-pip-version-check 'argparse-manpage>=4.6,<5'
install -d "$stage/usr/share/man/man1" "$stage/usr/share/bash-completion/completions"
(
    cd /
    "$home/bin/python" "$home/bin/argparse-manpage" --module proxy.cli --function make_parser \
        --prog mptcp-proxy --project-name mptcp-proxy --version "$version" \
        --description "TCP over several uplinks at once, as Multipath TCP" |
        gzip -9n >"$stage/usr/share/man/man1/mptcp-proxy.1.gz"
    "$home/bin/mptcp-proxy" completion bash >"$stage/usr/share/bash-completion/completions/mptcp-proxy"
)
"$home/bin/pip" uninstall -q -y --disable-pip-version-check argparse-manpage
"$home/bin/pip" uninstall -q -y --disable-pip-version-check pip setuptools
grep -rlI "$stage" "$home/bin" "$home/pyvenv.cfg" | xargs sed -i "s#$stage##g"
rm -rf "$home"/bin/[Aa]ctivate*

install -d "$stage/usr/bin" "$stage/etc/mptcp-proxy" "$stage/usr/share/doc/mptcp-proxy/examples"
install -d -m 700 "$stage/etc/mptcp-proxy/keys"
ln -s /opt/mptcp-proxy/bin/mptcp-proxy "$stage/usr/bin/mptcp-proxy"
for unit in mptcp-proxy mptcp-gateway; do
    install -D -m 644 -t "$stage/lib/systemd/system" deploy/systemd/$unit.service
    install -D -m 644 -t "$stage/lib/systemd/system/$unit.service.d" deploy/systemd/daemon.conf
done
install -D -m 644 deploy/systemd/mptcp-proxy.sysusers "$stage/usr/lib/sysusers.d/mptcp-proxy.conf"
install -D -m 644 deploy/systemd/mptcp-proxy.modules-load "$stage/usr/lib/modules-load.d/mptcp-proxy.conf"
install -m 644 LICENSE "$stage/usr/share/doc/mptcp-proxy/copyright"
install -m 644 docs/*.md CHANGELOG.md "$stage/usr/share/doc/mptcp-proxy"
install -m 644 deploy/*.example deploy/homes/*.toml deploy/prometheus/*.yml deploy/grafana/*.json \
    "$stage/usr/share/doc/mptcp-proxy/examples"

install -d "$stage/DEBIAN"
install -m 755 deploy/debian/postinst deploy/debian/prerm deploy/debian/postrm "$stage/DEBIAN"
cat >"$stage/DEBIAN/control" <<END
Package: mptcp-proxy
Version: $version
Architecture: $architecture
Maintainer: mptcp-proxy developers <mptcp-proxy@localhost>
Depends: python3 (>= 3.$minor), python3 (<< 3.$((minor + 1))), nftables
Recommends: systemd
Section: net
Priority: optional
Installed-Size: $(du -sk "$stage" | cut -f1)
Description: TUN-based transparent TCP-to-MPTCP proxy
 Makes several Internet lines one: a proxy at home carries TCP as Multipath TCP
 over all uplinks to a gateway on a public host. Both roles are in this package;
 neither needs MPTCP in the kernel.
END
mkdir -p "$out"
package=$out/mptcp-proxy_${version}_$architecture.deb
dpkg-deb --build --root-owner-group "$stage" "$package" >/dev/null
echo "built $package"
