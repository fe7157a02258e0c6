"""Policy files with one mistake each, or two: (text of policies/shop.yaml, every problem as it is printed)."""

SHOP = "cell: shop\n"
IN = "cell: shop\ningress:\n"
OUT = "cell: shop\negress:\n"

WRONG: dict[str, tuple[str, list[str]]] = {
    "unknown key of the file": (
        SHOP + "ingres: []\n",
        [
            "shop.yaml:2:1: unknown key 'ingres' (did you mean 'ingress'?)",
        ],
    ),
    "no cell": (
        "defaults: {}\n",
        [
            "shop.yaml:1:1: key 'cell' is missing (The cell that the file belongs to; the file's path says the same)",
        ],
    ),
    "another cell's name by path": (
        "cell: lab\n",
        [
            "shop.yaml:1:7: the file belongs to cell 'shop' by its path, not to 'lab' "
            "(write cell: shop, or move the file)",
        ],
    ),
    "cell as a number": (
        "cell: 7\n",
        [
            'shop.yaml:1:7: a name must be text, not 7 (write it in quotes: "7")',
        ],
    ),
    "a list where a mapping belongs": (
        "- cell: shop\n",
        [
            "shop.yaml:1:1: the file must be a mapping, not a list (indented lines of `key: value`)",
        ],
    ),
    "a mapping where a list belongs": (
        IN + "  from: any\n  allow: any\n",
        [
            "shop.yaml:3:3: 'ingress' must be a list, not a mapping (one line with `- ` per item, or [a, b])",
        ],
    ),
    "unknown key of a rule": (
        IN + "  - from: any\n    alow: tcp/443\n",
        [
            "shop.yaml:4:5: unknown key 'alow' (did you mean 'allow'?)",
        ],
    ),
    "no peers": (
        IN + "  - to: {subnet: web}\n    allow: tcp/443\n",
        [
            "shop.yaml:3:5: key 'from' is missing "
            "(Who may or may not reach them: any, cell, external, host, or a list of peers)",
        ],
    ),
    "empty peers": (
        IN + "  - from: []\n    allow: tcp/443\n",
        [
            "shop.yaml:3:11: an empty list matches nobody (leave the rule out, or name somebody)",
        ],
    ),
    "peers left empty": (
        IN + "  - from:\n    allow: tcp/443\n",
        [
            "shop.yaml:3:10: empty is no peer (a mapping such as {subnet: web} or {group: …})",
        ],
    ),
    "neither allow nor deny": (
        IN + "  - from: any\n",
        [
            "shop.yaml:3:5: this rule has neither `allow` nor `deny` (one of them, as in allow: tcp/443)",
        ],
    ),
    "both allow and deny": (
        IN + "  - from: any\n    allow: any\n    deny: tcp/22\n",
        [
            "shop.yaml:3:5: this rule has both `allow` and `deny` (one of them, as in allow: tcp/443)",
        ],
    ),
    "a bare name for a peer": (
        IN + "  - from: web\n    allow: any\n",
        [
            "shop.yaml:3:11: 'web' is no peer "
            "(write {subnet: web}, {group: web} or {guest: web}; alone stand any, cell, external, host)",
        ],
    ),
    "a bare prefix for a peer": (
        IN + "  - from: 192.0.2.0/24\n    allow: any\n",
        [
            "shop.yaml:3:11: '192.0.2.0/24' is no peer (write {cidr: 192.0.2.0/24})",
        ],
    ),
    "a bare address for a peer": (
        IN + "  - from: 192.0.2.7\n    allow: any\n",
        [
            "shop.yaml:3:11: '192.0.2.7' is no peer (write {cidr: 192.0.2.7})",
        ],
    ),
    "a bare DNS name for a peer": (
        OUT + "  - to: [deb.example.net]\n    allow: any\n",
        [
            "shop.yaml:3:10: 'deb.example.net' is no peer (write {dns: deb.example.net})",
        ],
    ),
    "an unknown kind of peer": (
        IN + "  - from: {subnets: web}\n    allow: any\n",
        [
            "shop.yaml:3:21: unknown key 'subnets' (did you mean 'subnet'?)",
        ],
    ),
    "a peer that names nobody": (
        IN + "  - from: [{except: {guest: a}}]\n    allow: any\n",
        [
            "shop.yaml:3:12: this peer names nobody (add one of subnet, group, guest, labels, cell, cidr, dns)",
        ],
    ),
    "an unknown subnet": (
        IN + "  - from: {subnet: wbe}\n    allow: any\n",
        [
            "shop.yaml:3:20: cell 'shop' has no subnet 'wbe' (did you mean 'web'?)",
        ],
    ),
    "an unknown subnet of another cell": (
        IN + "  - from: {cell: lab, subnet: web}\n    allow: any\n",
        [
            "shop.yaml:3:31: cell 'lab' has no subnet 'web' (subnets: ci)",
        ],
    ),
    "an unknown group": (
        SHOP + "groups: {front: {subnet: web}}\ningress:\n  - from: {group: frnt}\n    allow: any\n",
        [
            "shop.yaml:4:19: cell 'shop' has no group 'frnt' (did you mean 'front'?)",
        ],
    ),
    "an unknown subnet in an exception": (
        IN + "  - from: {subnet: web, except: [{subnet: dbs}]}\n    allow: any\n",
        [
            "shop.yaml:3:43: cell 'shop' has no subnet 'dbs' (did you mean 'db'?)",
        ],
    ),
    "guests of another cell": (
        IN + "  - from: {cell: lab, guest: ci-1}\n    allow: any\n",
        [
            "shop.yaml:3:30: `guest` of another cell can't be seen from here "
            "(match by its subnet, or by a group that it exports; for endpoints of your own cell leave "
            "`cell` out)",
        ],
    ),
    "labels of another cell": (
        IN + "  - from: {cell: lab, labels: a=b}\n    allow: any\n",
        [
            "shop.yaml:3:31: `labels` of another cell can't be seen from here "
            "(match by its subnet, or by a group that it exports; for endpoints of your own cell leave "
            "`cell` out)",
        ],
    ),
    "a prefix with host bits": (
        IN + "  - from: {cidr: 192.0.2.7/24}\n    allow: any\n",
        [
            "shop.yaml:3:18: '192.0.2.7/24' is not an IPv4 network (did you mean 192.0.2.0/24?)",
        ],
    ),
    "a prefix of guests": (
        IN + "  - from: {cidr: 10.1.2.0/24}\n    allow: any\n",
        [
            "shop.yaml:3:18: 10.1.2.0/24 is inside the virtual address space 10.0.0.0/8 (write {subnet: db})",
        ],
    ),
    "a prefix of unknown guests": (
        IN + "  - from: {cidr: 10.9.0.0/16}\n    allow: any\n",
        [
            "shop.yaml:3:18: 10.9.0.0/16 is inside the virtual address space 10.0.0.0/8 "
            "(guests are matched by subnet, group, guest or labels: an address can pass from one to another)",
        ],
    ),
    "an exception outside its prefix": (
        IN + "  - from: {cidr: 192.0.2.0/24, except: [198.51.100.0/25]}\n    allow: any\n",
        [
            "shop.yaml:3:41: 198.51.100.0/25 is not in 192.0.2.0/24 (an exception is a part of its prefix)",
        ],
    ),
    "an exception that leaves nothing": (
        IN + "  - from: {cidr: 192.0.2.0/24, except: 192.0.2.0/24}\n    allow: any\n",
        [
            "shop.yaml:3:40: the exception is all of 192.0.2.0/24 (nothing is left: leave the peer out)",
        ],
    ),
    "two kinds in one peer": (
        IN + "  - from: {cidr: 192.0.2.0/24, subnet: web}\n    allow: any\n",
        [
            "shop.yaml:3:40: `subnet` can't stand beside `cidr` (they never meet: write two peers)",
        ],
    ),
    "a star inside a DNS name": (
        OUT + "  - to: {dns: mirror*.example.net}\n    allow: any\n",
        [
            "shop.yaml:3:15: 'mirror*.example.net': * stands for whole labels at the start only (as in *.example.net)",
        ],
    ),
    "an address as a DNS name": (
        OUT + "  - to: {dns: 192.0.2.7}\n    allow: any\n",
        [
            "shop.yaml:3:15: '192.0.2.7' is an address, not a DNS name (write cidr: 192.0.2.7/32)",
        ],
    ),
    "brackets in a guest pattern": (
        IN + "  - from: {guest: 'web-[12]'}\n    allow: any\n",
        [
            "shop.yaml:3:19: 'web-[12]': a pattern has only * and ? (several patterns are several peers)",
        ],
    ),
    "a selector that can't be read": (
        IN + "  - from: {labels: 'tier=web env=prod'}\n    allow: any\n",
        [
            "shop.yaml:3:20: 'tier=web env=prod' is no selector: it can't be read from 'tier=web env=prod' on "
            "(as in: tier=web, env in (prod, stage), !old)",
        ],
    ),
    "a selector as a mapping": (
        IN + "  - from: {labels: {tier: web}}\n    allow: any\n",
        [
            "shop.yaml:3:20: a selector must be text, not a mapping (write labels: tier=web)",
        ],
    ),
    "a wrong value in a selector": (
        IN + "  - from: {labels: 'env in (prod, a b)'}\n    allow: any\n",
        [
            "shop.yaml:3:20: 'env in (prod, a b)': 'a b' is no label value (letters, digits and -_. (63))",
        ],
    ),
    "a port without protocol": (
        IN + "  - from: any\n    allow: 5432\n",
        [
            "shop.yaml:4:12: 5432 is no IP protocol: 0 to 255 (for a port write tcp/5432 or udp/5432)",
        ],
    ),
    "a service without protocol": (
        IN + "  - from: any\n    allow: https\n",
        [
            "shop.yaml:4:12: 'https' is no protocol (write tcp/https or udp/https)",
        ],
    ),
    "an unknown protocol": (
        IN + "  - from: any\n    allow: tpc/443\n",
        [
            "shop.yaml:4:12: 'tpc/443': 'tpc' is no protocol (did you mean 'tcp'?)",
        ],
    ),
    "an unknown port name": (
        IN + "  - from: any\n    allow: [tcp/http, tcp/htps]\n",
        [
            "shop.yaml:4:23: 'tcp/htps': no port of tcp is called 'htps' "
            "(did you mean 'https'? or write the port's number)",
        ],
    ),
    "a name of another protocol": (
        IN + "  - from: any\n    allow: tcp/wireguard\n",
        [
            "shop.yaml:4:12: 'tcp/wireguard': no port of tcp is called 'wireguard' (write udp/wireguard)",
        ],
    ),
    "a port too large": (
        IN + "  - from: any\n    allow: tcp/70000\n",
        [
            "shop.yaml:4:12: 'tcp/70000': 70000 is no port (0 to 65535)",
        ],
    ),
    "a range backwards": (
        IN + "  - from: any\n    allow: tcp/9000-8000\n",
        [
            "shop.yaml:4:12: 'tcp/9000-8000': the range ends before it starts (write tcp/8000-9000)",
        ],
    ),
    "a port of a protocol without ports": (
        IN + "  - from: any\n    allow: gre/80\n",
        [
            "shop.yaml:4:12: 'gre/80': only tcp, udp, sctp and icmp have ports or types (write gre)",
        ],
    ),
    "an unknown ICMP type": (
        IN + "  - from: any\n    allow: icmp/echo\n",
        [
            "shop.yaml:4:12: 'icmp/echo': 'echo' is no ICMP type "
            "(ICMP types: destination-unreachable, echo-reply, echo-request, fragmentation-needed, "
            "host-unreachable, network-unreachable, parameter-problem, ping, port-unreachable, redirect, "
            "time-exceeded, timestamp-reply, timestamp-request or write its number)",
        ],
    ),
    "an ICMP type too large": (
        IN + "  - from: any\n    allow: icmp/300\n",
        [
            "shop.yaml:4:12: 'icmp/300': ICMP types and codes are 0 to 255 (as in icmp/3/4)",
        ],
    ),
    "no service": (
        IN + "  - from: any\n    allow: []\n",
        [
            "shop.yaml:4:12: an empty list of services (write any for every service)",
        ],
    ),
    "log neither on nor off": (
        IN + "  - from: any\n    allow: any\n    log: maybe\n",
        [
            "shop.yaml:5:10: 'maybe' is neither on nor off (write on or off)",
        ],
    ),
    "a comment of two lines": (
        IN + '  - from: any\n    allow: any\n    comment: "a\\nb"\n',
        [
            "shop.yaml:5:14: 'a\\nb' must be one line of 1 to 255 characters",
        ],
    ),
    "a default that is no action": (
        SHOP + "defaults: {ingress: drop}\n",
        [
            "shop.yaml:2:21: a default can't be 'drop' (write allow, deny, or a mapping as in {subnet: deny})",
        ],
    ),
    "a default for one relation that is no action": (
        SHOP + "defaults:\n  egress: {external: alow}\n",
        [
            "shop.yaml:3:22: 'external' can't be 'alow' (did you mean 'allow'?)",
        ],
    ),
    "a default between cells": (
        SHOP + "defaults:\n  egress: {other: allow}\n",
        [
            "shop.yaml:3:12: unknown key 'other' (possible here: cell, external, subnet)",
        ],
    ),
    "defaults of an unknown subnet": (
        SHOP + "subnets:\n  dbs: {ingress: deny}\n",
        [
            "shop.yaml:3:3: cell 'shop' has no subnet 'dbs' (did you mean 'db'?)",
        ],
    ),
    "a group of groups": (
        SHOP + "groups:\n  a: {subnet: web}\n  b: [{guest: x}, {group: a}]\n",
        [
            "shop.yaml:4:27: a group is not made of groups (repeat the other group's members here)",
        ],
    ),
    "a group name with capitals": (
        SHOP + "groups:\n  Front: {subnet: web}\n",
        [
            "shop.yaml:3:3: 'Front' is not a name: 1 to 63 of a-z, 0-9 and '-', no '-' at an end "
            "(RFC 1123) (for example 'front')",
        ],
    ),
    "an exported group that is none": (
        SHOP + "groups: {front: {subnet: web}}\nexports: [back]\n",
        [
            "shop.yaml:3:11: cell 'shop' has no group 'back' (groups: front)",
        ],
    ),
    "a key twice": (
        SHOP + "ingress: []\ningress: []\n",
        [
            "shop.yaml:3:1: key 'ingress' is here twice (first on line 2: keep one)",
        ],
    ),
    "a tab": (
        IN + "\t- from: any\n",
        [
            "shop.yaml:3:1: a tab where YAML wants spaces (indent with spaces, never with tabs)",
        ],
    ),
    "two mistakes in one rule": (
        IN + "  - from: {subnet: Web}\n    to: {cell: lab}\n    allow: tcp/443\n",
        [
            "shop.yaml:3:20: 'Web' is not a name: 1 to 63 of a-z, 0-9 and '-', no '-' at an end "
            "(RFC 1123) (for example 'web')",
            "shop.yaml:4:16: unknown key 'cell' (possible here: except, group, guest, labels, subnet)",
        ],
    ),
}
