"""What `divhook policy check` warns of: rules that are not wrong but hardly meant. And what it must not warn of."""

from pathlib import Path

import pytest
from policy_files import configured, read

from divhook.cli.main import main
from divhook.policy import analyse
from divhook.policy.analyse import warnings

DENY = "defaults: {ingress: deny}\n"


def warned(directory: Path, text: str, **others: str) -> list[str]:
    found = warnings(read(directory, shop=text, **others))
    return [str(p).replace(f"{directory}/policies/", "") for p in found]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (
            "  - {from: {subnet: web}, allow: tcp/5432}\n  - {from: cell, deny: tcp}\n",
            ["shop.yaml:4:5: tcp/5432 is never allowed here: the deny at shop.yaml:5:5 covers it "
             "(a deny wins whatever the order: narrow it, or remove this)"],
        ),
        (
            "  - {from: {subnet: web}, allow: tcp/1-100}\n  - {from: any, deny: tcp/50-200}\n",
            ["shop.yaml:4:5: tcp/1-100 is partly denied by shop.yaml:5:5 (tcp/50-200), which reaches beyond it "
             "(the deny wins where they overlap: is that meant?)"],
        ),
        (
            "  - {from: any, allow: [tcp/80, tcp/443]}\n  - {from: {cidr: 192.0.2.0/24}, allow: tcp/443}\n",
            ["shop.yaml:5:5: tcp/443 repeats what shop.yaml:4:5 says (remove one of the two)"],
        ),
        (
            "  - {from: {subnet: web}, allow: tcp/443}\n  - {from: any, allow: tcp/443}\n",
            ["shop.yaml:4:5: tcp/443 repeats what shop.yaml:5:5 says (remove one of the two)"],
        ),
        (
            "  - {from: any, allow: tcp/443}\n  - {from: any, comment: again, allow: tcp/443}\n",
            ["shop.yaml:5:5: this rule is also at shop.yaml:4:5 (remove one of the two)"],
        ),
        (
            "  - {from: [{subnet: web}, {guest: a}], allow: tcp/443}\n"
            "  - {from: [{guest: a}, {subnet: web}], allow: tcp/443}\n",
            ["shop.yaml:5:5: tcp/443 repeats what shop.yaml:4:5 says (remove one of the two)"],
        ),
        (
            "  - {from: {labels: 'a=1, a=2'}, allow: any}\n",
            ["shop.yaml:4:5: labels a=1, a=2 matches nobody: no guest meets all that it asks of label a "
             "(is one of the two meant for another peer?)"],
        ),
        (
            "  - {from: {subnet: web, guest: x, except: {guest: x}}, allow: any}\n",
            ["shop.yaml:4:5: subnet web and guest x except (guest x) matches nobody: its exception takes all of it "
             "(leave it out)"],
        ),
        (
            "  - {from: {cell: labs, group: x}, allow: any}\n",
            ["shop.yaml:4:5: cell 'labs' is not known here (did you mean 'lab'?; right on hosts without it)"],
        ),
        (
            "  - {from: {cell: lab, group: x}, allow: any}\n",
            ["shop.yaml:4:5: cell 'lab' does not export a group 'x': this peer is nobody (it exports: y)"],
        ),
        (
            "  - {from: {dns: a.example.net}, allow: tcp/1}\n  - {from: {dns: '*.example.net'}, allow: tcp}\n",
            ["shop.yaml:4:5: tcp/1 repeats what shop.yaml:5:5 says (remove one of the two)"],
        ),
        (
            "  - {from: {cell: lab, group: y}, allow: tcp/1}\n  - {from: {cell: lab}, deny: any}\n",
            ["shop.yaml:4:5: tcp/1 is never allowed here: the deny at shop.yaml:5:5 covers it "
             "(a deny wins whatever the order: narrow it, or remove this)"],
        ),
        (
            "  - {from: {cidr: 192.0.2.0/24, except: 192.0.2.0/26}, deny: tcp/1}\n"
            "  - {from: {cidr: 192.0.0.0/16, except: 192.0.2.0/28}, deny: tcp}\n",
            ["shop.yaml:4:5: tcp/1 repeats what shop.yaml:5:5 says (remove one of the two)"],
        ),
    ],
)  # fmt: skip
def test_what_is_hardly_meant_is_told_with_both_places(tmp_path: Path, rules: str, expected: list[str]) -> None:
    lab = "groups: {y: {subnet: ci}}\nexports: [y]\n"
    found = warned(tmp_path, f"{DENY}ingress:\n{rules}", lab=lab)
    assert [line.replace(f"{tmp_path}/policies/", "") for line in found] == expected


@pytest.mark.parametrize(
    "rules",
    [
        "  - {from: any, allow: tcp}\n  - {from: any, deny: tcp/22}\n",  # an exception
        "  - {from: any, allow: tcp}\n  - {from: any, allow: tcp/22, log: on}\n",  # logs one port
        "  - {from: {subnet: web}, allow: tcp/1-9}\n  - {from: {subnet: db}, deny: tcp/5-20}\n",  # never meet
        "  - {from: {subnet: web}, to: {subnet: db}, allow: tcp}\n  - {from: cell, to: {subnet: web}, deny: tcp}\n",
        "  - {from: {cidr: 192.0.0.0/16, except: 192.0.2.0/24}, deny: tcp}\n"
        "  - {from: {cidr: 192.0.2.0/25}, allow: tcp}\n",
        "  - {from: {subnet: web, except: {guest: a}}, deny: any}\n  - {from: {subnet: web, guest: b}, allow: tcp}\n",
        "  - {from: {dns: '*.example.net'}, allow: tcp}\n  - {from: {dns: example.net}, allow: tcp}\n",
        "  - {from: any, allow: tcp/1-9}\n  - {from: any, allow: tcp/5-12}\n",
        "  - {from: any, allow: udp}\n  - {from: any, deny: tcp}\n",
    ],
)
def test_what_is_meant_is_not_warned_of(tmp_path: Path, rules: str) -> None:
    assert warned(tmp_path, f"{DENY}ingress:\n{rules}") == []


def test_an_allow_of_what_the_default_allows_changes_nothing(tmp_path: Path) -> None:
    rules = "ingress:\n  - {from: {subnet: web}, to: {subnet: db}, allow: tcp/5432}\n"
    assert warned(tmp_path, rules) == [
        "shop.yaml:3:5: tcp/5432 is allowed within the cell by default: this rule changes nothing "
        "(for isolation set defaults: {ingress: deny})"
    ]
    assert warned(tmp_path, f"subnets: {{db: {{ingress: deny}}}}\n{rules}") == []
    assert len(warned(tmp_path, f"subnets: {{web: {{ingress: deny}}}}\n{rules}")) == 1
    assert warned(tmp_path, f"{rules}  - {{from: {{guest: x}}, deny: tcp/5000-6000}}\n") == []
    everywhere = "ingress:\n  - {from: cell, allow: tcp/5432}\n"
    assert len(warned(tmp_path, everywhere)) == 1
    assert warned(tmp_path, f"subnets: {{db: {{ingress: {{cell: deny}}}}}}\n{everywhere}") == []


def test_a_group_that_nobody_uses_is_told(tmp_path: Path) -> None:
    groups = "groups: {a: {subnet: web}, b: {subnet: web}, c: {subnet: db}, d: {subnet: db}}\nexports: [b]\n"
    rules = "ingress:\n  - {from: {group: c, except: {group: d}}, deny: any}\n"
    assert warned(tmp_path, groups + rules) == [
        "shop.yaml:2:10: group 'a' is not used (name it in a rule, or export it)"
    ]


def test_warnings_of_one_cell_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyse, "MAX_WARNINGS", 3)
    rules = "".join(f"  - {{from: {{subnet: web}}, allow: tcp/{port}}}\n" for port in range(1, 9))
    assert len(warned(tmp_path, f"ingress:\n{rules}")) == 3


def test_check_prints_warnings_and_fails_on_them_only_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    etc = configured(tmp_path, shop="groups: {a: {subnet: web}}\n")
    assert main(["policy", "check", str(etc)]) == 0
    line = f"{etc}/policies/shop.yaml:2:10: warning: group 'a' is not used (name it in a rule, or export it)\n"
    assert capsys.readouterr().out == (f"{line}{etc}: 1 warning: 0 rules and 1 group of 1 cell\n")
    assert main(["policy", "check", str(etc), "--strict"]) == 1


def test_check_of_one_file_and_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    etc = configured(tmp_path, shop="ingress:\n  - {from: any, allow: tcp/443}\n")
    assert main(["policy", "check", str(etc / "policies" / "shop.yaml")]) == 0
    assert capsys.readouterr().out.endswith("good: 1 rule and 0 groups of 1 cell\n")
    assert main(["policy", "check", str(etc / "nowhere")]) == 1
    assert capsys.readouterr().err == f"divhook: {etc}/nowhere: there is no such file or directory\n"


def test_the_general_check_reads_policies_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    etc = configured(tmp_path, shop="groups: {a: {subnet: web}}\n")
    plan = "2 cells, 3 subnets, 0 endpoints in 10.0.0.0/8 as 8+8+8 bits"
    doubt = f"{etc}/policies/shop.yaml:2:10: warning: group 'a' is not used (name it in a rule, or export it)\n"
    assert main(["check", str(etc)]) == 0
    assert capsys.readouterr().out == f"{doubt}{etc}: good: 0 rules and 1 group of 1 cell; {plan}\n"
    assert main(["check", str(etc / "policies" / "shop.yaml")]) == 0
    assert capsys.readouterr().out == f"{doubt}{etc}/policies/shop.yaml: good: 0 rules and 1 group of 1 cell\n"
    assert main(["check", str(etc), "--json"]) == 0
    assert '"warnings": [' in capsys.readouterr().out
    (etc / "policies" / "shop.yaml").write_text("cell: shop\nx: 1\n")
    (etc / "cells" / "lab.yaml").write_text("cell: lab\n")
    assert main(["check", str(etc)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in lines[:-1]] == ["lab.yaml", "lab.yaml", "shop.yaml"]
    assert lines[-1] == "3 problems"


def test_check_of_bad_files_prints_each_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    etc = configured(tmp_path, shop="ingres: []\n")
    assert main(["policy", "check", str(etc)]) == 1
    where = f"{etc}/policies/shop.yaml"
    assert capsys.readouterr().out == f"{where}:2:1: unknown key 'ingres' (did you mean 'ingress'?)\n1 problem\n"
    assert main(["policy", "check", str(etc), "--json"]) == 1
    assert '"hint": "did you mean \'ingress\'?"' in capsys.readouterr().out
