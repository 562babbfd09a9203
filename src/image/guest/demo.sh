#!/bin/sh
# What `npm start` runs in the guest: the machine as the guest sees it.
echo
echo "  Hello from inside a microVM."
echo
field() { printf '  %-10s %s\n' "$1" "$2"; }
value() { sed -n "s/^$1[[:space:]]*:[[:space:]]*//p" "$2" | head -n 1; }
read -r up _ </proc/uptime
field kernel "$(uname -srm)"
field version "$(uname -v)"
field cpu "$(nproc) x $(value 'model name' /proc/cpuinfo)"
field memory "$(value MemTotal /proc/meminfo), $(value MemFree /proc/meminfo) free"
field clock "$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource 2>/dev/null)"
field devices "$(for d in /sys/bus/virtio/devices/*/driver; do [ -e "$d" ] && basename "$(readlink "$d")"; done | tr '\n' ' ')"
field uptime "$up s since the kernel started"
echo
ps -o pid,ppid,args 2>/dev/null | grep -v '\[.*\]$' | cut -c -100 | sed 's/^/  /'
echo
