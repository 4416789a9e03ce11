#!/bin/sh
# Finds out what this machine lacks for building, testing or showing bertha_socket, and installs it when it
# can: as root on Debian (or a derivative), with apt-get.  Everyone else is told what is missing, and the
# rest goes on: what needs a missing program says so itself.
#
#   tools/deps.sh [--check] GROUP...      groups: build test lint demo bench; from the top of the checkout
#
# --check only tells.  Services that come with a package are not started: while packages are installed,
# /usr/sbin/policy-rc.d says no (an existing one is left as it is).  A machine with systemd may start
# them at its next boot, as with any package.
# shellcheck disable=SC2086,SC2116,SC2046 # lists of packages are meant to be split
set -eu

PYTHON=${PYTHON:-python3}

check_only=
groups=
for word in "$@"; do
  case $word in
    --check) check_only=1 ;;
    build | test | lint | demo | bench) groups="$groups $word" ;;
    *)
      echo "deps: unknown word '$word': groups are build, test, lint, demo, bench" >&2
      exit 2
      ;;
  esac
done

has() { # a command, also where only root looks
  command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]
}
has_file() { # any of these paths
  for path in "$@"; do [ -e "$path" ] && return 0; done
  return 1
}
has_header() {
  has cc && printf '#include <stddef.h>\n#include <%s>\n' "$1" | cc -x c -E - >/dev/null 2>&1
}
links() { # a C library with its header: can a program with it be linked?
  has cc && printf '#include <stdarg.h>\n#include <stddef.h>\n#include <setjmp.h>\n#include <stdint.h>\n#include <%s>\nint main(void) { return 0; }\n' "$1" |
    cc -x c - -o /dev/null "-l$2" 2>/dev/null
}
clang_version() { # of Debian's `clang`: 14
  apt-cache depends clang 2>/dev/null | sed -n 's/^ *Depends: clang-\([0-9]*\)$/\1/p' | head -n 1
}

missing=
need() { # need PACKAGE "what for" TEST...
  package=$1
  what=$2
  shift 2
  case " $missing " in *" $package "*) return 0 ;; esac
  "$@" && return 0
  echo "deps: missing $package ($what)"
  missing="$missing $package"
}
python_fits() {
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}
python_can() { # a statement runs
  python_fits && "$PYTHON" -c "$1" 2>/dev/null
}

look() {
  missing=
  for group in $groups; do
    case $group in
      build)
        need build-essential "C compiler and make" has cc
        need build-essential "make" has make
        need python3 "Python 3.11 or later" python_fits
        need python3-venv "virtual environments" python_can 'import venv, ensurepip'
        need python3-dev "Python's headers" python_can \
          'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
        need libssl-dev "the native carrier: encrypt" has_header openssl/ssl.h
        need libzstd-dev "the native carrier: compress" has_header zstd.h
        need liblz4-dev "the native carrier: compress" has_header lz4frame.h
        ;;
      demo)
        need redis-server "the programs of the demo" has redis-server
        need redis-tools "the programs of the demo" has redis-benchmark
        ;;
      test)
        need libcmocka-dev "native tests" links cmocka.h cmocka
        need binutils "tests of the library's symbols" has readelf
        need iproute2 "network namespaces" has ip
        need util-linux "network namespaces" has unshare
        need procps "ps" has ps
        need redis-server "program tests" has redis-server
        need redis-tools "program tests" has redis-cli
        need memcached "program tests" has memcached
        need nginx-light "program tests" has nginx
        need postgresql "program tests" has_file /usr/lib/postgresql/*/bin/postgres
        need postgresql-client "program tests" has psql
        need iperf3 "program tests" has iperf3
        need wrk "program tests" has wrk
        need haproxy "program tests" has haproxy
        need vsftpd "program tests" has vsftpd
        need apache2-utils "program tests" has ab
        need curl "program tests" has curl
        need openssl "certificates of the TLS tests" has openssl
        need tshark "tests that look at what crosses the network" has tshark
        need liburing-dev "tests of io_uring" links liburing.h uring
        need mariadb-server "program tests" has mariadbd
        need sockperf "program tests" has sockperf
        need strace "tests that count system calls" has strace
        need clang "fuzzers" has clang
        need "libclang-rt-$(clang_version)-dev" "fuzzers" \
          has_file /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a \
          /usr/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a
        ;;
      lint)
        need cppcheck "static analysis of the C sources" has cppcheck
        ;;
      bench)
        need redis-tools "benchmarks" has redis-benchmark
        need redis-server "benchmarks" has redis-server
        need memcached "benchmarks" has memcached
        need nginx-light "benchmarks" has nginx
        need wrk "benchmarks" has wrk
        need iperf3 "benchmarks" has iperf3
        need iproute2 "network namespaces" has ip
        ;;
    esac
  done
  # Each once, and without the name that is only half known where there is no apt.
  missing=$(printf '%s\n' $missing | sed 's/^libclang-rt--dev$/libclang-rt-dev/' | sort -u)
}

look
[ -n "$missing" ] || exit 0
if [ -n "$check_only" ]; then
  exit 1
fi
if ! has apt-get; then
  echo "deps: no apt-get here: install the counterparts of these Debian packages by hand; going on without"
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  echo "deps: not root: run 'apt-get install" $missing"' as root to have them; going on without"
  exit 0
fi

policy=/usr/sbin/policy-rc.d
made_policy=
cleanup() {
  if [ -n "$made_policy" ]; then rm -f "$policy"; fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ ! -e "$policy" ]; then
  made_policy=1
  printf '#!/bin/sh\n# Written by bertha_socket'\''s tools/deps.sh, which removes it when it ends.\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
log=build/deps.log # below the checkout, from which make runs us
mkdir -p build
apt() {
  echo "# apt-get $*" >>"$log"
  apt-get -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -qq "$@" </dev/null >>"$log" 2>&1
}
install() {
  apt install -y --no-install-recommends "$@"
}
: >"$log"
echo "deps: installing $(echo $missing) (log: $log)"
if ! has_file /var/lib/apt/lists/*_Packages* || ! install $missing; then
  echo "deps: bringing the package lists up to date, then once more"
  apt update || echo "deps: apt-get update failed; trying with the lists there are"
  look >/dev/null # with lists, the names that depend on a version are known
  if ! install $missing; then # one by one: a name that this release does not know holds up no other
    for package in $missing; do
      install "$package" || echo "deps: apt-get could not install $package: see $log; going on without" >&2
    done
  fi
fi
