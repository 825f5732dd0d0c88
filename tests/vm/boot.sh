#!/usr/bin/env bash
# boot.sh - runs a command as root inside a real Debian kernel in QEMU and returns its exit code.
#
#   boot.sh [options] KERNEL -- COMMAND [ARG...]
#   boot.sh --fetch KERNEL...       only download and unpack
#
# KERNEL   a version prefix: 5.10, 6.1, 6.12 ...; the newest of Debian's kernels that begins with it
# COMMAND  a program of this machine; it goes in with its shared libraries, under the same path
#
#   -f PATH        also copy this file or folder in, under the same path (repeatable)
#   -e NAME=VALUE  environment (repeatable)
#   -m MIB         memory (default 1024)
#   -t SECONDS     time limit (default 600)
#
# Exit: COMMAND's code; 124 time limit; 125 the virtual machine died (its last console lines are on stderr);
# 126 this machine can't boot one (the last line of stderr says why).
#
# The guest has no disk: an initramfs of busybox, the kernel's network modules and the tools below. The command's
# output comes back over a serial port, its exit code over another.
set -euo pipefail

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/netpol-trace/vm
FLAVOUR=cloud-amd64
TOOLS="bash dash ip tc nft iptables-legacy ip6tables-legacy iptables-nft ip6tables-nft ipset bpftool ping modprobe"
MODULES="kernel/net kernel/drivers/net kernel/drivers/virtio"
# Folders of network modules that no test needs.
UNUSED='/(ethernet|wireless|usb|can|fddi|hamradio|arcnet|ieee802154|wwan|phy|dsa|sunrpc|mac80211|bluetooth|ceph|rds|tipc|smc|batman-adv|ax25|rxrpc|nfc|6lowpan|9p)/'
MEMORY=1024 LIMIT=600 FETCH=0 FILES=() VARIABLES=()
PATH=$PATH:/usr/sbin:/sbin

cannot() { echo "$*" >&2; exit 126; }

# ---- The archive: a private view of apt with only the suites that carry kernels ----

# The archive that this machine already uses, without /debian.
mirror() {
  local found
  found=$(grep -rhvE '^ *#' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null | grep -oE 'https?://[^ ]+/debian/?( |$)' || true)
  found=$(head -1 <<< "$found" | sed -E 's#/debian/? *$##')
  echo "${found:-http://deb.debian.org}"
}

view=$CACHE/apt
apt_in_view() {
  local tool=$1; shift
  "apt-$tool" -oDir::Etc::sourcelist="$view/sources.list" -oDir::Etc::sourceparts=- -oDir::State="$view/state" \
    -oDir::State::Lists="$view/lists" -oDir::Cache="$view/cache" -oDir::State::status="$view/state/status" \
    -oAcquire::Languages=none -oAPT::Sandbox::User=root -oAcquire::Retries=3 "$@"
}

# Writes $view/index, a line per kernel package: release, kind (image | binary | modules), size, package.
refresh_index() {
  [ -f "$view/ok" ] && [ -z "$(find "$view/ok" -mmin +1440)" ] && return
  command -v apt-get >/dev/null || cannot "Debian's kernels are fetched with apt, which this machine lacks"
  local key=/usr/share/keyrings/debian-archive-keyring.gpg archive suite list
  [ -f $key ] || cannot "no $key: apt-get install debian-archive-keyring"
  archive=$(mirror)
  mkdir -p "$view"/{lists/partial,cache/archives/partial,state}
  : > "$view/state/status"
  for suite in bullseye bookworm trixie; do
    echo "deb [signed-by=$key] $archive/debian-security $suite-security main"
  done > "$view/sources.list"
  for suite in bookworm-backports trixie-backports experimental; do
    echo "deb [signed-by=$key] $archive/debian $suite main"
  done >> "$view/sources.list"
  apt_in_view get update -qq >&2 || cannot "the Debian archive at $archive can't be reached"
  for list in "$view"/lists/*_Packages*; do /usr/lib/apt/apt-helper cat-file "$list"; done |
    awk -v flavour="$FLAVOUR" '
      /^Package: /{package=$2} /^Size: /{size=$2}
      /^$/{
        if (match(package, /^linux-(image|binary-unsigned|binary|modules)-[0-9]/) && package ~ "-" flavour "$") {
          release = package; sub(/^linux-(image|binary-unsigned|binary|modules)-/, "", release); sub("-" flavour "$", "", release)
          kind = "image"; if (package ~ /^linux-binary/) kind = "binary"; if (package ~ /^linux-modules/) kind = "modules"
          # An image below 1 MB is a metapackage.
          if (release !~ /-(rt|cloud)$/ && (kind != "image" || size > 1000000)) print release, kind, size, package
        }
        package = ""
      }' | sort -u > "$view/index"
  touch "$view/ok"
}

# The newest release that begins with $1 and has its modules.
resolve() {
  awk '{ has[$1, $2] = 1; releases[$1] = 1 }
       END { for (r in releases) if ((r, "image") in has || ((r, "binary") in has && (r, "modules") in has)) print r }' "$view/index" |
    awk -v want="$1" '$1 == want || index($1, want ".") == 1 || index($1, want "+") == 1 || index($1, want "-") == 1' |
    sort -V | tail -1
}

# Downloads the packages of release $1 and prints their files.
download() {
  local package
  mkdir -p "$CACHE/debs"
  awk -v r="$1" '$1 == r { print $2, $4 }' "$view/index" |
    awk '{ of[$1] = $2 } END { if ("image" in of) print of["image"]; else { print of["binary"]; print of["modules"] } }' |
    while read -r package; do
      compgen -G "$CACHE/debs/${package}_*.deb" >/dev/null ||
        (cd "$CACHE/debs" && apt_in_view get download -qq "$package" >&2) || cannot "$package can't be downloaded"
      compgen -G "$CACHE/debs/${package}_*.deb" | tail -1
    done
}

# ---- A folder per kernel: vmlinuz, and base.cpio with its network modules ----

prepare() {
  local want=$1 release dir deb vmlinuz version modules folder debs
  refresh_index
  release=$(resolve "$want")
  [ -n "$release" ] || cannot "the Debian archive has no kernel $want"
  dir=$CACHE/kernels/$release
  [ -f "$dir/ok" ] && { echo "$dir"; return; }
  echo "Fetching kernel $release" >&2
  debs=$(download "$release")
  rm -rf "$dir"; mkdir -p "$dir/unpacked" "$dir/root"
  for deb in $debs; do dpkg-deb -x "$deb" "$dir/unpacked"; done
  vmlinuz=$(find "$dir/unpacked" -name 'vmlinuz*' -type f | sort | head -1)
  case $vmlinuz in */boot/*) version=${vmlinuz##*/vmlinuz-};; *) version=$(basename "$(dirname "$vmlinuz")");; esac
  mv "$vmlinuz" "$dir/vmlinuz"
  modules=$(find "$dir/unpacked" -type d -path "*lib/modules/$version" | head -1)
  mkdir -p "$dir/root/lib/modules/$version"
  cp "$modules"/modules.{builtin,order,builtin.modinfo} "$dir/root/lib/modules/$version/" 2>/dev/null || true
  depmod -b "${modules%/lib/modules/*}" "$version" 2>/dev/null || true
  (
    cd "$modules"
    for folder in $MODULES; do find "$folder" -name '*.ko*' 2>/dev/null || true; done | grep -Ev "$UNUSED" | sort -u > "$dir/wanted"
    # What is wanted and what that depends on.
    awk -F: 'NR == FNR { wanted[$1] = 1; next }
             $1 in wanted { print $1; n = split($2, needs, " "); for (i = 1; i <= n; i++) print needs[i] }' "$dir/wanted" modules.dep |
      sort -u | cpio -pdm --quiet "$dir/root/lib/modules/$version"
  )
  find "$dir/root" -name '*.ko.xz' -print0 | xargs -0r -n64 -P2 xz -d
  find "$dir/root" -name '*.ko.zst' -print0 | xargs -0r -n64 zstd -dq --rm
  depmod -b "$dir/root" "$version" 2>/dev/null || true
  (cd "$dir/root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet > "$dir/base.cpio")
  rm -rf "$dir/unpacked" "$dir/root"
  touch "$dir/ok"
  echo "$dir"
}

# ---- The guest's files ----

# take ROOT PATH: copies it, and the shared libraries and interpreters that it needs.
take() {
  local root=$1 path=$2 file
  [ -e "$path" ] || cannot "no such file: $path"
  if [ -d "$path" ]; then mkdir -p "$root$path"; cp -a "$path/." "$root$path/"
  elif [ ! -e "$root$path" ]; then mkdir -p "$root$(dirname "$path")"; cp -L "$path" "$root$path"; fi
  find -L "$path" -type f \( -perm /111 -o -name '*.so*' \) -size +0 | while read -r file; do
    case $(head -c4 "$file" | od -An -c | tr -d ' ') in
      177ELF) ldd "$file" 2>/dev/null | grep -o '/[^ ]*' || true;;
      '#!'*) head -1 "$file" | sed 's/^#! *//' | cut -d' ' -f1 | grep '^/' || true;;
    esac
  done | sort -u | while read -r file; do
    [ -e "$root$file" ] || { mkdir -p "$root$(dirname "$file")"; cp -L "$file" "$root$file"; }
  done
}

skeleton() {
  local root=$1 dir
  mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{bb,proc,sys,dev,tmp,run,root,etc,var/run,vm}
  for dir in bin sbin lib lib64; do ln -s usr/$dir "$root/$dir"; done
}

# The tools as an archive, made anew when one of them changes.
tools() {
  local tool path key archive root
  key=$(for tool in $TOOLS busybox; do path=$(command -v "$tool") && stat -Lc '%n %Y %s' "$path"; done | sha1sum | cut -c1-10)
  archive=$CACHE/tools-$key.cpio
  [ -f "$archive" ] && { echo "$archive"; return; }
  root=$(mktemp -d "$CACHE/tools.XXXXXX"); skeleton "$root"
  cp "$(command -v busybox)" "$root/bb/busybox"
  for tool in $TOOLS; do
    path=$(command -v "$tool") || { echo "no $tool here: the guest has none" >&2; continue; }
    take "$root" "$path"
    case $tool in ip*tables*) for path in /usr/lib/*/xtables; do take "$root" "$path"; done;; esac
  done
  for path in /etc/iproute2 /usr/share/iproute2 /etc/protocols /etc/services /etc/passwd /etc/group; do
    [ -e $path ] && take "$root" $path
  done
  ln -sf "$([ -e "$root/usr/bin/dash" ] && echo dash || echo /bb/busybox)" "$root/usr/bin/sh"
  (cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet > "$archive.new")
  mv "$archive.new" "$archive"; rm -rf "$root"
  echo "$archive"
}

# ttyS0 is the console, ttyS1 the command's output, ttyS2 its exit code.
init_script() { cat <<'INIT'
#!/bb/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/bb HOME=/root TERM=dumb
/bb/busybox --install -s /bb
attach() { mkdir -p "$2"; mount -t "$1" "$1" "$2" 2>/dev/null; }
attach proc /proc; attach sysfs /sys; attach devtmpfs /dev; attach devpts /dev/pts; attach tmpfs /dev/shm; attach tmpfs /run
attach bpf /sys/fs/bpf; attach debugfs /sys/kernel/debug; attach tracefs /sys/kernel/tracing
attach cgroup2 /sys/fs/cgroup; attach securityfs /sys/kernel/security
mkdir -p /run/netns /run/lock; chmod 1777 /tmp
for port in 1 2; do stty -F /dev/ttyS$port raw -echo; done
[ -x /sbin/modprobe ] || ln -sf /bb/modprobe /sbin/modprobe
ip link set lo up
( . /vm/command ) </dev/null >/dev/ttyS1 2>&1
code=$?
stty -F /dev/ttyS1 raw
echo "code=$code" > /dev/ttyS2
stty -F /dev/ttyS2 raw
poweroff -f
INIT
}

# ---- Main ----

while [ $# -gt 0 ]; do
  case $1 in
    -f) FILES+=("$(realpath -s "$2")"); shift 2;;
    -e) VARIABLES+=("$2"); shift 2;;
    -m) MEMORY=$2; shift 2;;
    -t) LIMIT=$2; shift 2;;
    --fetch) FETCH=1; shift;;
    -h|--help) sed -n '2,21p' "$0"; exit 0;;
    -*) cannot "unknown option $1";;
    *) break;;
  esac
done

[ "$(uname -m)" = x86_64 ] || cannot "Debian's $FLAVOUR kernels need an x86_64 machine"
for program in qemu-system-x86_64 busybox cpio xz depmod dpkg-deb; do
  command -v $program >/dev/null || cannot "no $program on this machine: cargo xtask setup installs it"
done
mkdir -p "$CACHE"
exec 9> "$CACHE/lock"; flock 9      # one preparation at a time
if [ $FETCH = 1 ]; then for kernel in "$@"; do prepare "$kernel"; done; exit; fi
[ $# -ge 3 ] && [ "$2" = -- ] || cannot "usage: boot.sh [options] KERNEL -- COMMAND [ARG...]"
kernel=$(prepare "$1"); shift 2
command=$(command -v "$1") || cannot "no such command: $1"; command=$(realpath -s "$command"); shift

work=$(mktemp -d "${TMPDIR:-/tmp}/netpol-trace-vm.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"; skeleton "$work/root"
for file in "$command" ${FILES[@]+"${FILES[@]}"}; do take "$work/root" "$file"; done
init_script > "$work/root/init"; chmod +x "$work/root/init"
{
  for variable in ${VARIABLES[@]+"${VARIABLES[@]}"}; do printf 'export %q\n' "$variable"; done
  printf 'cd / && exec'; printf ' %q' "$command" "$@"; echo
} > "$work/root/vm/command"
(cd "$work/root" && find . | cpio -o -H newc -R 0:0 --quiet > "$work/run.cpio")
tools=$(tools)
cat "$kernel/base.cpio" "$tools" "$work/run.cpio" > "$work/initrd"
rm -rf "$work/root" "$work/run.cpio"
exec 9>&-

# Hardware help where there is some; a /dev/kvm without vmx or svm can't run a stock kernel.
if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then machine=(-accel kvm -cpu host) clock="tsc=reliable"
else
  machine=(-accel tcg,tb-size=256 -cpu max,la57=off)
  # An emulated processor that has to wait measures its own clocks wrongly, and then a minute passes in a second. HPET's
  # frequency is known without measuring.
  clock="clocksource=hpet tsc=unstable nolapic_timer"
fi
set +e
timeout --foreground -k 5 "$LIMIT" qemu-system-x86_64 -M pc "${machine[@]}" -m "$MEMORY" -smp 1 \
  -display none -nodefaults -no-user-config -no-reboot -kernel "$kernel/vmlinuz" -initrd "$work/initrd" \
  -serial "file:$work/console" -serial stdio -serial "file:$work/code" \
  -append "console=ttyS0 panic=-1 oops=panic mitigations=off $clock no_timer_check cryptomgr.notests random.trust_cpu=on rdinit=/init 8250.nr_uarts=4" \
  </dev/null 2>"$work/qemu"
qemu=$?
set -e
code=$(sed -n 's/^code=\([0-9]*\).*/\1/p' "$work/code" 2>/dev/null | tail -1)
[ -n "$code" ] && exit "$code"
{ cat "$work/qemu"; tail -25 "$work/console"; } >&2 || true
if [ $qemu = 124 ] || [ $qemu = 137 ]; then echo "the virtual machine reached its time limit of $LIMIT s" >&2; exit 124; fi
echo "the virtual machine ended without a result (qemu: $qemu)" >&2
exit 125
