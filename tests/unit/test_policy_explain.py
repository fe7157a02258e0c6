"""`divhook policy explain` and `test`: which rule decides, where it stands, and what an owner expects."""

import json
from pathlib import Path

import pytest
from policy_files import configured, read

from divhook.cli.main import main
from divhook.config.problems import ConfigError
from divhook.policy.expectations import read_expectations

SHOP = """\
groups:
  front: {subnet: web}
  ops: {guest: ops-*}
exports: [front]
subnets: {db: {ingress: deny}}
ingress:
  - {from: any, to: {group: front}, allow: [tcp/80, tcp/443], comment: open}
  - {from: {subnet: web}, to: {subnet: db}, allow: tcp/5432}
  - {from: {group: ops}, to: {subnet: db}, allow: tcp/5000-6000, log: on}
  - {from: {guest: web-bad}, deny: any, log: on}
egress:
  - {to: {dns: "*.example.net"}, allow: tcp/443}
  - {to: {cidr: 192.0.2.0/24, except: 192.0.2.128/25}, allow: udp}
"""
LAB = "egress:\n  - {to: {cell: shop, group: front}, allow: tcp}\n"


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    return configured(tmp_path, shop=SHOP, lab=LAB)


def explained(etc: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["policy", "explain", "--config", str(etc), "--socket", str(etc / "no-agent.sock"), *arguments])
    out = capsys.readouterr()
    return code, (out.out + out.err).replace(f"{etc}/policies/", "")


def test_an_allowed_flow_names_the_rule_of_either_side(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = explained(etc, capsys, "shop/web/web-1", "shop/db/db-1", "tcp/5432")
    assert code == 0
    assert text == (
        "shop/web/web-1 → shop/db/db-1 tcp/5432: allowed\n"
        "\n"
        "  source       shop (subnet=web; exported: front), identity 08d00cde6ea1e7fe\n"
        "  destination  shop (subnet=db), identity d1cafabc7f1bf96e\n"
        "\n"
        "  egress of cell shop (same cell): allow\n"
        "    built-in default: same cell is allow, no rule speaks of the flow\n"
        "\n"
        "  ingress of cell shop (same cell): allow\n"
        "    shop.yaml:9:5: ingress allow tcp/5432 from subnet web to subnet db\n"
    )


def test_a_denied_flow_says_what_other_rules_lack(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = explained(etc, capsys, "shop/db/db-2", "shop/db/db-1", "tcp/5432", "--why-not")
    assert code == 1
    assert text.endswith(
        "  ingress of cell shop (same subnet): deny\n"
        "    shop.yaml:6:25: default of this direction, no rule speaks of the flow\n"
        "    not shop.yaml:9:5: is for subnet web, not for shop (subnet=db)\n"
        "    not shop.yaml:10:5: is for group ops, not for shop (subnet=db)\n"
    )


def test_a_deny_wins_and_other_rules_are_listed(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = explained(etc, capsys, "shop/web/web-bad", "shop/db/db-1", "tcp/5432")
    assert code == 1
    assert text.endswith(
        "  ingress of cell shop (same cell): deny, logged\n"
        "    shop.yaml:11:5: ingress deny any from guest web-bad to cell\n"
        "    also shop.yaml:9:5: ingress allow tcp/5432 from subnet web to subnet db\n"
    )


def test_two_cells_must_agree(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(etc, capsys, "lab/ci", "shop/web", "tcp/443")[0] == 0
    code, text = explained(etc, capsys, "lab/ci", "shop/web", "tcp/22", "--why-not")
    assert code == 1
    assert text.endswith(
        "  egress of cell lab (other cell): allow\n"
        "    lab.yaml:3:5: egress allow tcp from cell to cell shop and group front\n"
        "\n"
        "  ingress of cell shop (other cell): deny\n"
        "    built-in default: other cell is deny, no rule speaks of the flow\n"
        "    not shop.yaml:8:5: is for tcp/80; tcp/443, not for tcp/22\n"
    )
    code, text = explained(etc, capsys, "shop/web", "lab/ci", "tcp/443")
    assert code == 1
    assert text.count("built-in default: other cell is deny") == 2


def test_external_ends_have_no_side_of_their_own(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = explained(etc, capsys, "shop/web", "www.Example.net.", "tcp/443")
    assert code == 0
    assert text.endswith("  no ingress: that end is no guest and has no policy\n")
    assert "  destination  external: www.example.net\n" in text
    assert explained(etc, capsys, "shop/web", "192.0.2.7", "udp/53")[0] == 0
    assert explained(etc, capsys, "shop/web", "192.0.2.130", "udp/53")[0] == 1
    code, text = explained(etc, capsys, "192.0.2.7", "shop/web", "tcp/443")
    assert code == 0
    assert text.endswith(
        'ingress allow tcp/80, tcp/443 from any to group front\n    "open"\n\n'
        "  no egress: that end is no guest and has no policy\n"
    )


def test_hypothetical_guests_have_the_labels_that_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = "defaults: {ingress: deny}\ningress:\n  - {from: {labels: 'tier=web, !old'}, allow: tcp/80}\n"
    etc = configured(tmp_path, shop=rules)
    assert explained(etc, capsys, "shop/web,tier=web", "shop/db", "tcp/http")[0] == 0
    assert explained(etc, capsys, "shop/web/w,tier=web,old=yes", "shop/db", "tcp/http")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shop/web", "10.1.2.3", "tcp/1"],
         "10.1.2.3 is in the virtual address space "
         "(the agent knows no guest there; write CELL/SUBNET/GUEST for one that need not exist)"),
        (["192.0.2.7", "a.example.net", "tcp/1"], "neither end is a guest: no policy has a say in that"),
        (["shop/web", "shop/wbe", "tcp/1"], "shop/wbe: cell 'shop' has no subnet 'wbe' (subnets: web, db)"),
        (["shpo/web", "shop/web", "tcp/1"], "shpo/web: cell 'shpo' is not known here"),
        (["shop/web", "shop/db", "any"], "`any` is no single flow (write one service, as in tcp/443)"),
        (["shop/web", "shop/db", "http"], "'http' is no protocol (write tcp/http)"),
        (["shop/web", "192.0.2.7,tier=web", "tcp/1"],
         "192.0.2.7,tier=web: only guests have labels (write CELL/SUBNET,tier=web)"),
        (["shop/web,tier=a b", "shop/db", "tcp/1"],
         "shop/web,tier=a b: 'a b' is no value of label tier (letters, digits and -_. (63 at most))"),
        (["shop/web/x" + "".join(f",{n:063}={n:063}" for n in range(9)), "shop/db", "tcp/1"],
         "guest 'x' in shop/web: labels, matched guest patterns and exported groups need 1179 bytes, more than 1024 "
         "(fewer or shorter labels, or groups by label in place of guest patterns)"),
    ],
)  # fmt: skip
def test_wrong_questions_are_wrong_usage(
    etc: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert explained(etc, capsys, *arguments) == (2, f"divhook: {message}\n")


def test_the_answer_as_json_is_for_programs(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = explained(etc, capsys, "shop/db/ops-1", "192.0.2.7", "udp/53", "--json")
    answer = json.loads(text)
    assert code == 0
    assert answer["source"] == {
        "name": "shop/db/ops-1",
        "identity": answer["source"]["identity"],
        "cell": "shop",
        "labels": [["divhook:guest", "ops-*"], ["divhook:subnet", "db"]],
        "exports": [],
    }
    assert answer["destination"] == {"name": "192.0.2.7", "identity": None}
    assert answer["sides"] == [
        {
            "direction": "egress",
            "cell": "shop",
            "relation": "external",
            "allow": True,
            "log": False,
            "rule": "egress allow udp from cell to 192.0.2.0/24 except (192.0.2.128/25)",
            "where": "shop.yaml:14:5",
            "also": [],
            "missed": [],
        }
    ]


def test_bad_policies_explain_nothing(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (etc / "policies" / "shop.yaml").write_text("cell: shop\nx: 1\n")
    code, text = explained(etc, capsys, "shop/web", "shop/db", "tcp/1")
    assert code == 1
    assert text.startswith("divhook: the policies are not usable:\nshop.yaml:2:1: unknown key 'x'")


# --- expectations ---------------------------------------------------------------------------------------------------

ENDS = """\
guests:
  web-1: {cell: shop, subnet: web}
  bad: {cell: shop, subnet: web, guest: web-bad}
  db-1: {cell: shop, subnet: db}
  ops: {cell: shop, subnet: db, guest: ops-1}
  ci: {cell: lab, subnet: ci}
  world: {address: 192.0.2.130}
  site: {dns: www.example.net, address: 198.51.100.7}
expect:
"""


def broken(etc: Path, text: str) -> list[str]:
    policies = read(etc, shop=SHOP, lab=LAB)
    found = read_expectations("t.yaml", (ENDS + text).encode(), policies).failures()
    return [f"{f.where}: {f.text}".replace(f"{etc}/policies/", "") for f in found]


def test_expectations_that_hold_say_nothing(tmp_path: Path) -> None:
    text = """\
  - {from: web-1, to: db-1, allow: tcp/5432}
  - {from: ops, to: db-1, allow: tcp/5000-6000}
  - {from: ci, to: web-1, allow: [tcp/80, tcp/443]}
  - {from: [world, ci], to: web-1, deny: tcp/22}
  - {from: bad, to: [web-1, db-1], deny: any}
  - {from: db-1, to: site, allow: tcp/443}
  - {from: world, to: site, deny: any, comment: not ours}
  - {to: db-1, only: true}
"""
    assert broken(tmp_path, text) == []


def test_a_broken_expectation_names_the_deciding_rule(tmp_path: Path) -> None:
    text = """\
  - {from: "*-1", to: db-1, allow: tcp/5430-5432}
  - {from: world, to: web-1, deny: tcp}
  - {from: ci, to: bad, allow: udp}
  - {from: bad, to: db-1, allow: any}
  - {to: db-1, only: true}
  - {from: db-1, to: site, deny: tcp/443}
"""
    assert broken(tmp_path, text) == [
        "t.yaml:10:5: web-1 → db-1 tcp/5430-5431 must pass: ingress of cell shop denies it by default (shop.yaml:6:25)",
        "t.yaml:11:5: world → web-1 tcp/80, tcp/443 must not pass: ingress of cell shop allows it by shop.yaml:8:5: "
        "ingress allow tcp/80, tcp/443 from any to group front",
        "t.yaml:12:5: ci → bad udp must pass: egress of cell lab denies it by default (built in: other cell)",
        "t.yaml:13:5: bad → db-1 tcp, udp, every other protocol must pass: ingress of cell shop denies it by "
        "shop.yaml:11:5: ingress deny any from guest web-bad to cell",
        "t.yaml:14:5: ops → db-1 tcp/5000-6000 passes and is not expected: ingress of cell shop allows it by "
        "shop.yaml:10:5: ingress allow tcp/5000-6000 from group ops to subnet db",
        "t.yaml:15:5: db-1 → site tcp/443 must not pass: egress of cell shop allows it by shop.yaml:13:5: "
        "egress allow tcp/443 from cell to dns *.example.net",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("guests: {}\nexpect: [{to: a, deny: any}]\n",
         "1:9: 'guests' must not be empty (The ends that expectations speak of, by name)"),
        ("guests: {a: {address: 192.0.2.7}}\nexpect: []\n",
         "2:9: this file expects nothing (one line per expectation)"),
        ("guests: {a: {cell: shop}}\nexpect: [{to: a, deny: any}]\n",
         "1:13: this end is nobody (add `cell` and `subnet`, `address` or `dns` of an external end, or `host: true`)"),
        ("guests: {a: {cell: shop, subnet: web, address: 192.0.2.7}}\nexpect: [{to: a, deny: any}]\n",
         "1:13: this is a guest and an external end at once (a guest has no `address` and no `dns` here)"),
        ("guests: {a: {cell: shop, subnet: wbe}}\nexpect: [{to: a, deny: any}]\n",
         "1:34: cell 'shop' has no subnet 'wbe' (did you mean 'web'?)"),
        ("guests: {a: {cell: shop, subnet: web, labels: {a b: c}}}\nexpect: [{to: a, deny: any}]\n",
         "1:47: 'a b' is no label key (letters, digits and -_./ (63 at most), as in tier)"),
        ("guests: {a: {address: 192.0.2.7}}\nexpect: [{to: a}]\n",
         "2:10: this expects nothing (add allow, deny, or only: true)"),
        ("guests: {a: {address: 192.0.2.7}}\nexpect: [{to: a, allow: any, deny: any}]\n",
         "2:10: this expects `allow` and `deny` (write two expectations)"),
        ("guests: {ab: {address: 192.0.2.7}}\nexpect: [{from: [ab, ac], to: ab, deny: any}]\n",
         "2:22: no guest of this file is called 'ac' (guests here: ab)"),
        ("guests: {a: {address: 192.0.2.7}}\nexpect: [{to: [a, 7], deny: any}]\n",
         "2:19: a guest of this file must be text, not 7 (write it in quotes: \"7\")"),
        ("guests: {a: {address: 192.0.2.7}}\nexpect: [{to: 7, deny: any}]\n",
         "2:15: a guest of this file must be text, not 7 (write it in quotes: \"7\")"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_expectations_says_where(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_expectations("t.yaml", text.encode(), read(tmp_path))
    assert str(caught.value) == f"t.yaml:{problem}"


def test_a_guest_whose_labels_are_too_long_is_told_with_its_place(tmp_path: Path) -> None:
    labels = ", ".join(f"{n:063}: {'x' * 63}" for n in range(9))
    text = f"guests:\n  a: {{cell: shop, subnet: web, labels: {{{labels}}}}}\nexpect: [{{to: a, deny: any}}]\n"
    with pytest.raises(ConfigError, match=r"t\.yaml:2:3: guest 'a' in shop/web: labels, .* more than 1024"):
        read_expectations("t.yaml", text.encode(), read(tmp_path))


def test_the_command_counts_and_fails(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = etc / "t.yaml"
    arguments = ["policy", "test", "--config", str(etc), str(file)]
    file.write_text(ENDS + "  - {from: web-1, to: db-1, allow: tcp/5432}\n")
    assert main(arguments) == 0
    assert capsys.readouterr().out == "1 expectations hold\n"
    file.write_text(ENDS + "  - {from: [web-1, bad], to: db-1, allow: tcp/22}\n  - {to: world, deny: any}\n")
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert out.count(f"{file}:10:5: ") == 2
    assert out.endswith("\n1 of 2 expectations broken\n")
    assert main([*arguments, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["expectations"], len(answer["failures"])) == (False, 2, 2)
    file.write_text("guests: 1\n")
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("divhook: the expectations are not usable:\n")
    assert main(["policy", "test", "--config", str(etc), str(etc / "none.yaml")]) == 1
    assert capsys.readouterr().err == f"divhook: {etc}/none.yaml: can't be read: No such file or directory\n"


def test_the_host_is_nobody_but_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither `any` nor `external` nor a prefix of everything means it, and `host` means nothing else."""
    wide = "  - {to: any, allow: any}\n  - {to: external, allow: any}\n  - {to: {cidr: 0.0.0.0/0}, allow: any}\n"
    etc = configured(tmp_path / "wide", shop=f"egress:\n{wide}")
    code, text = explained(etc, capsys, "shop/web", "host", "udp/53")
    assert code == 1
    assert "  destination  the guest's own host\n" in text
    assert "  egress of cell shop (its host): deny\n    built-in default: its host is deny, no rule" in text
    etc = configured(tmp_path / "host", shop="egress:\n  - {to: host, allow: udp/53}\n")
    assert explained(etc, capsys, "shop/web", "host", "udp/53")[0] == 0
    assert explained(etc, capsys, "shop/web", "host", "tcp/53")[0] == 1
    assert explained(etc, capsys, "host", "shop/web", "udp/53")[0] == 1
    assert explained(etc, capsys, "shop/web", "192.0.2.7", "udp/53")[0] == 1
