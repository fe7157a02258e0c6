#!/bin/sh
# What udhcpc calls. Every option of the last lease is in /run/dhcp.<nic>.env, that of eth0 also in /run/dhcp.env.
# shellcheck disable=SC2154  # the variables come from udhcpc
event=$1
if [ "$event" = deconfig ]; then
  ip address flush dev "$interface"
  exit
fi
export -p | sed 's/^export //' >"/run/dhcp.$interface.env"
[ "$interface" != eth0 ] || cp /run/dhcp.eth0.env /run/dhcp.env
case $event in bound | renew) ;; *) exit ;; esac

if ! ip -4 -o address show dev "$interface" | grep -qF " $ip/$mask "; then
  ip address flush dev "$interface"
  ip address add "$ip/$mask" broadcast "${broadcast:-+}" dev "$interface"
fi
[ -z "$mtu" ] || ip link set dev "$interface" mtu "$mtu"
if [ -n "$staticroutes" ]; then # RFC 3442: pairs of prefix and gateway, instead of the router option
  # shellcheck disable=SC2086
  set -- $staticroutes
  while [ $# -ge 2 ]; do
    if [ "$2" = 0.0.0.0 ]; then ip route replace "$1" dev "$interface"; else ip route replace "$1" via "$2" dev "$interface"; fi
    shift 2
  done
else
  ip route replace default via "${router%% *}" dev "$interface"
fi
{
  [ -z "$search$domain" ] || echo "search ${search:-$domain}"
  for server in $dns; do echo "nameserver $server"; done
} >/etc/resolv.conf
[ -z "$hostname" ] || hostname "$hostname"
