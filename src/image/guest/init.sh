#!/bin/sh
# PID 1 of the default initramfs: finds the monitor's virtio-console ports, mounts the root file system,
# runs one command in it and reports how it ended. Written for busybox ash.
#
# Kernel command line:
#   sparkler.root=/dev/vda          root file system (root= with ro or rw is understood as well); a partition also as
#                                   PARTUUID=ID
#   sparkler.rootflags=rw           mount options, the first of them ro or rw
#   sparkler.rootfstype=ext4
#   sparkler.modules=a,b            further kernel modules to load, of those in /sparkler/modules
#   sparkler.ip=ADDR/PREFIX[,GATEWAY[,DNS]]   address of eth0
#   init=/sbin/init                 what to start in the root when there is no /sparkler/cmd
# Files that the host appends to the initramfs, all sourced:
#   /sparkler/cmd    set -- 'program' 'argument'...
#   /sparkler/env    set -- 'NAME=value'... "$@"
#   /sparkler/cwd    cwd='/directory'
#   /sparkler/adds   add N '/guest/path'    (the files are in /sparkler/add/N)
# Control port, from here to the host: "ready", "exit N", "error TEXT".
PATH=/bin
export PATH

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# Without a usable console the kernel starts PID 1 with no open files; what is opened next must not become fd 1.
[ -e /proc/self/fd/2 ] || exec </dev/null >/dev/null 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
echo sparkler >/proc/sys/kernel/hostname

control=
rootopt=
say() {
  if [ -c /dev/console ]; then echo "sparkler: $*" >/dev/console; else echo "sparkler: $*" >/dev/kmsg; fi
} 2>/dev/null
stop() {
  sync
  # The moved root is this shell's working directory; by path it cannot be reached any more.
  [ -z "$rootopt" ] || mount -o remount,ro none . 2>/dev/null
  reboot -f
  while :; do sleep 60; done
}
die() {
  say "$*"
  [ -z "$control" ] || echo "error $*" >&3
  stop
}

root= rootflags= rootmode=ro fstype=ext4 extra= ip= init=/sbin/init
read -r cmdline </proc/cmdline
set -f
for word in $cmdline; do
  case $word in
  sparkler.root=*) root=${word#*=} rootmode=rw ;;
  sparkler.rootflags=*) rootflags=${word#*=} ;;
  sparkler.rootfstype=* | rootfstype=*) fstype=${word#*=} ;;
  sparkler.modules=*) extra=,${word#*=}, ;;
  sparkler.ip=*) ip=${word#*=} ;;
  root=*) [ -n "$root" ] || root=${word#*=} ;;
  ro | rw) rootmode=$word ;;
  init=*) init=${word#*=} ;;
  esac
done
set +f
[ -n "$rootflags" ] || rootflags=$rootmode

# Modules fit one kernel only; another one must have its drivers built in.
skip_modules=1
read -r x x release x </proc/version
[ ! -e /sparkler/release ] || read -r built_for </sparkler/release
if [ "$release" = "$built_for" ]; then
  read -r skip_modules </proc/sys/kernel/modules_disabled
  [ "$skip_modules" = 0 ] ||
    say "kernel modules are disabled, so no virtio device works: remove 'nomodule' from the kernel command line"
fi

loaded=" "
load() {
  [ "$skip_modules" = 0 ] || return
  for module; do
    case $loaded in *" $module "*) continue ;; esac
    insmod "/sparkler/lib/$module.ko" || say "cannot load kernel module $module"
    loaded="$loaded$module "
  done
}
# A line of /sparkler/modules: NAME, the virtio device id it drives or -, then the modules in loading order.
load_named() {
  while read -r name id files; do
    case $1 in *",$name,"*) load $files ;; esac
  done </sparkler/modules
}
virtio_ids() {
  ids=" "
  for file in /sys/bus/virtio/devices/*/device; do
    [ -e "$file" ] || continue
    read -r id <"$file"
    ids="$ids$((id)) "
  done
}
load_named ,virtio_mmio,
set -- /sys/bus/pci/devices/*
[ ! -e "$1" ] || load_named ,virtio_pci,
[ -z "$extra" ] || load_named "$extra"
virtio_ids
while read -r name id files; do
  case $ids in *" $id "*) load $files ;; esac
done </sparkler/modules

find_ports() {
  in= out= err= ctl=
  for file in /sys/class/virtio-ports/*/name; do
    [ -e "$file" ] || continue
    read -r name <"$file"
    port=${file%/name} port=/dev/${port##*/}
    case $name in
    sparkler.stdin) in=$port ;;
    sparkler.stdout) out=$port ;;
    sparkler.stderr) err=$port ;;
    sparkler.control) ctl=$port ;;
    esac
  done
  [ -c "$in" ] && [ -c "$out" ] && [ -c "$err" ] && [ -c "$ctl" ]
}
# Ports are announced by the device one message after the other; id 3 is the console device.
case $ids in
*" 3 "*)
  tries=0
  until find_ports; do
    tries=$((tries + 1))
    [ $tries -lt 1000 ] || break
    usleep 5000
  done
  ;;
esac
if [ -c "$ctl" ]; then
  exec 3>"$ctl"
  control=$ctl
  find_ports || die "the console device lacks one of the ports sparkler.stdin, sparkler.stdout and sparkler.stderr"
fi

ip link set lo up 2>/dev/null
dns=
if [ -n "$ip" ]; then
  IFS=,
  set -- $ip
  unset IFS
  ip link set eth0 up && ip addr add "$1" dev eth0 || die "cannot give eth0 the address $1: is there a network device?"
  [ -z "$2" ] || ip route add default via "$2" || die "cannot set the default route to $2"
  dns=$3
  [ -z "$dns" ] || echo "nameserver $dns" >/etc/resolv.conf
fi

# The kernel resolves PARTUUID= itself only where there is no initramfs.
# Hex digits of N bytes of a disk: hex DISK OFFSET N
hex() {
  dd if="/dev/$1" bs=1 skip="$2" count="$3" 2>/dev/null | od -An -v -tx1 | tr -d ' \n'
}
# Hex digits of a little-endian number, most significant first.
swap() {
  swapped= digits=$1
  while [ -n "$digits" ]; do swapped=${digits%"${digits#??}"}$swapped digits=${digits#??}; done
  echo "$swapped"
}
# The id of partition N as the kernel has it: partition_id DISK N
partition_id() {
  # GPT: header in sector 1 with the place (72) and the size (84) of the entries, each with its GUID at 16.
  if [ "$(hex "$1" 512 8)" = 4546492050415254 ]; then
    entries=$((0x$(swap "$(hex "$1" 584 8)"))) size=$((0x$(swap "$(hex "$1" 596 4)")))
    guid=$(hex "$1" $((entries * 512 + ($2 - 1) * size + 16)) 16)
    tail=${guid#????????????????}
    a=${guid%????????????????????????} b=${guid#????????} b=${b%????????????????????} c=${guid#????????????}
    echo "$(swap "$a")-$(swap "$b")-$(swap "${c%????????????????}")-${tail%????????????}-${tail#????}"
  # MBR: signature of the disk at 440.
  elif [ "$(hex "$1" 510 2)" = 55aa ]; then
    printf '%s-%02x\n' "$(swap "$(hex "$1" 440 4)")" "$2"
  fi
}
# The device of the partition with an id; empty if there is none.
find_partition() {
  for file in /sys/class/block/*/partition; do
    [ -e "$file" ] || continue
    read -r number <"$file"
    dir=$(readlink -f "${file%/partition}")
    disk=${dir%/*}
    [ "$(partition_id "${disk##*/}" "$number")" != "$1" ] || echo "/dev/${dir##*/}"
  done
}
if [ -n "$root" ]; then
  case $root in
  /dev/*) device=$root most=200 ;;
  PARTUUID=*) device= id=$(echo "${root#*=}" | tr A-Z a-z) most=20 ;;
  *) die "root=$root: only a device such as /dev/vda or a PARTUUID= is understood" ;;
  esac
  tries=0
  until
    [ "$device" = "$root" ] || device=$(find_partition "$id")
    [ -b "$device" ]
  do
    tries=$((tries + 1))
    [ $tries -lt $most ] || die "$root does not exist: is a drive attached?"
    usleep 5000
  done
  root=$device
  message=$(mount -t "$fstype" -o "$rootflags" "$root" /newroot 2>&1) ||
    die "cannot mount $root as $fstype ($rootflags): $message"
  cd /newroot
  case ,$rootflags, in *,ro,*) ;; *) mkdir -p proc sys dev run tmp ;; esac
  [ ! -d proc ] || mount -t proc proc proc
  [ ! -d sys ] || mount -t sysfs sysfs sys
  [ ! -d dev ] || mount -o rbind /dev dev
  case ,$rootflags, in
  *,ro,*)
    [ ! -d run ] || mount -t tmpfs -o mode=755 tmpfs run
    [ ! -d tmp ] || mount -t tmpfs -o mode=1777 tmpfs tmp
    ;;
  *) [ -z "$dns" ] || cp /etc/resolv.conf etc/resolv.conf ;;
  esac
  if [ ! -e /sparkler/cmd ]; then
    umount /dev/pts /dev/shm /dev /sys /proc
    cd /
    exec switch_root /newroot "$init"
  fi
  # Over "/", as switch_root does it: below a plain chroot the kernel refuses user namespaces. This shell keeps
  # the initramfs as its root and the new root as its working directory.
  mount -o move . / || die "cannot move the root file system to /"
  rootopt=-r/proc/1/cwd
else
  cd /
fi

# Runs a busybox applet inside the root, which need not have a busybox: the working directory stays outside, in
# /sparkler. From there ".." must not be used, it leads into the root that now covers "/".
ln /bin/busybox /sparkler/busybox
in_root() {
  (cd /sparkler && exec ./busybox nsenter $rootopt ./busybox "$@")
}
add() {
  parent=${2%/*}
  in_root mkdir -p "${parent:-/}" || die "cannot create ${parent:-/} in the root file system for an added file"
  if [ -d "/sparkler/add/$1" ] && in_root test -d "$2"; then
    message=$(in_root cp -a "add/$1/." "$2" 2>&1)
  elif [ -n "$rootopt" ] || [ -e "$2" ]; then
    message=$(in_root cp -aT "add/$1" "$2" 2>&1)
  else
    message=$(mv "/sparkler/add/$1" "$2" 2>&1)
  fi || die "cannot add $2: $message"
}
if [ -e /sparkler/adds ]; then
  . /sparkler/adds
  rm -rf /sparkler/add
fi

if [ ! -e /sparkler/cmd ]; then
  [ -z "$control" ] || die "the initramfs has no /sparkler/cmd: nothing to run"
  say "no command given: a shell on the console (exit ends the machine)"
  HOME=/root TERM=linux setsid cttyhack /bin/sh </dev/console >/dev/console 2>&1
  stop
fi

ulimit -Hn 524288
cwd=/
[ ! -e /sparkler/cwd ] || . /sparkler/cwd

# Looks the program up by PATH inside the root. busybox would otherwise prefer its own applet of that name.
lookup='
cd "$2" || exit 125
case $1 in
*/*)
  [ -e "$1" ] || exit 127
  [ -f "$1" ] && [ -x "$1" ] || exit 126
  printf %s "$1"
  exit 0
  ;;
"") exit 127 ;;
esac
found=
IFS=:
set -f
for dir in $PATH; do
  case $dir in "") dir=. ;; esac
  [ -f "$dir/$1" ] || continue
  if [ -x "$dir/$1" ]; then printf %s "$dir/$1"; exit 0; fi
  found=1
done
[ -z "$found" ] || exit 126
exit 127'
with_env() {
  [ ! -e /sparkler/env ] || . /sparkler/env
  cd /sparkler
  exec ./busybox env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"
}
. /sparkler/cmd
program=$(with_env ./busybox nsenter $rootopt ./busybox sh -c "$lookup" sh "$1" "$cwd" 2>/dev/null)
status=$?
[ $status != 125 ] || die "the working directory $cwd does not exist in the root file system"

launch() {
  case $status in
  126) echo "sparkler: $1: not an executable file" >&2 ; exit 126 ;;
  127) echo "sparkler: $1: command not found" >&2 ; exit 127 ;;
  esac
  shift
  with_env ./busybox setsid ./busybox nsenter $rootopt ./busybox nsenter -w"$cwd" -- "$program" "$@"
}

if [ -z "$control" ]; then
  launch "$@" </dev/console >/dev/console 2>&1 &
  wait $!
  say "exit $?"
  stop
fi

# The command gets pipes, not the ports: a port can be opened only once, so /dev/stdout would fail in the command.
# Standard input is no named pipe, because opening one of those (as /dev/stdin) waits for a writer.
mkfifo -m 600 /sparkler/out /sparkler/err
cat </sparkler/out >"$out" 3>&- &
copiers=$!
cat </sparkler/err >"$err" 3>&- &
copiers="$copiers $!"
echo ready >&3

supervise() {
  (launch "$@" 2>/sparkler/err)
  status=$?
  # Whatever the command left running would keep the pipes open; the copier of standard input may wait for ever.
  read -r self rest </proc/self/stat
  for process in /proc/[0-9]*; do
    process=${process#/proc/}
    case " 1 $self $copiers " in *" $process "*) ;; *) kill -9 "$process" ;; esac
  done
  return $status
} 2>/dev/null
# Opened after the host took "ready": until the host has opened its end of stdin, reads from it say end of file.
cat <"$in" 3>&- | supervise "$@" >/sparkler/out 3>&- &
wait $! 2>/dev/null
status=$?
wait $copiers
echo "exit $status" >&3
stop
