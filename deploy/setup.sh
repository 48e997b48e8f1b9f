#!/bin/sh
# Makes this checkout ready: the Debian packages that the demo and the tests need, the virtual
# environment .venv, and the extension. Safe to run again; does nothing when nothing is missing.
#
#   deploy/setup.sh            all of it
#   deploy/setup.sh --runtime  only what running the proxy needs (no test tools)
#   deploy/setup.sh --bench    all of it, and the relays that "make bench" compares with
set -eu
cd "$(dirname "$0")/.."

runtime_packages="nft:nftables ip:iproute2 cc:gcc"
test_packages="curl:curl nginx:nginx-light iperf3:iperf3 sshd:openssh-server ssh:openssh-client
tshark:tshark tcpdump:tcpdump ethtool:ethtool conntrack:conntrack redis-server:redis-server
psql:postgresql-client"
# A Docker engine and a browser are much to install unasked: the tests that need them are skipped
# without, but not in CI.
container_packages="dockerd:docker.io docker-compose:docker-compose debootstrap:debootstrap
systemd-nspawn:systemd-container"
browser_packages="chromium-headless-shell:chromium-headless-shell"
bench_packages="ss-server:shadowsocks-libev socat:socat haproxy:haproxy mptcpize:mptcpize"

say() { printf 'setup: %s\n' "$*"; }
have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

missing=""
need() {
    for pair in $1; do
        have "${pair%%:*}" || missing="$missing ${pair##*:}"
    done
}

find_python() {
    # The system's own first: it is built with profile-guided optimisation, which many that come
    # by other ways are not, and those took a third more time for the same work.
    for candidate in /usr/bin/python3 python3.13 python3.12 python3.11 python3; do
        if have "$candidate" && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            return
        fi
    done
    say "Python 3.11 or newer is needed and was not found" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install_missing() {
    [ -n "$missing" ] || return 0
    if ! have apt-get; then
        say "these are missing; install them with your system's package manager, then run this again:" >&2
        say "  $missing" >&2
        exit 1
    fi
    say "installing$missing"
    # The servers are for the tests' own namespaces: they must not start on this machine.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
        trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    # shellcheck disable=SC2086 # a list of names
    {
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
    } >.setup.log 2>&1 || { cat .setup.log >&2; exit 1; }
    rm -f .setup.log
}

need "$runtime_packages"
if [ "${1:-}" != --runtime ]; then
    need "$test_packages"
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
    if [ "${CI:-}" = true ]; then
        need "$container_packages $browser_packages"
        # The package is built for the system's own Python.
        /usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
        ls /usr/include/python3.*/Python.h >/dev/null 2>&1 || missing="$missing python3-dev"
    fi
fi
[ "${1:-}" != --bench ] || need "$bench_packages"
find_python
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
[ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
    missing="$missing python3-dev"
install_missing

if [ ! -x .venv/bin/python ]; then
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
stamp=.venv/.setup-stamp
if [ ! -e $stamp ] || [ pyproject.toml -nt $stamp ]; then
    say "installing Python packages"
    .venv/bin/pip install -q --disable-pip-version-check -e '.[dev]' 2>.setup.log ||
        { cat .setup.log >&2; exit 1; }
    rm -f .setup.log
    touch $stamp
fi
if [ "${1:-}" = --bench ] && [ ! -x .venv/bin/py-spy ]; then
    say "installing py-spy"
    .venv/bin/pip install -q --disable-pip-version-check -e '.[bench]' 2>.setup.log ||
        { cat .setup.log >&2; exit 1; }
    rm -f .setup.log
fi
.venv/bin/python setup.py -q build_ext --inplace
say "ready: .venv/bin/mptcp-proxy"
