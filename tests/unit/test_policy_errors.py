"""Wrong policy files: what is wrong, where (file:line:column), and what to do."""

from pathlib import Path

import pytest
from policy_wrong_files import WRONG

from divhook.config.problems import ConfigError
from divhook.policy import files
from divhook.policy.cell import CellPolicy
from divhook.policy.files import PolicyLoader, load, load_file

SHOP = "cell: shop\nnumber: 1\nsubnets: {web: {number: 1}, db: {number: 2}}\n"
LAB = "cell: lab\nnumber: 2\nsubnets: {ci: {number: 1}}\n"


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A configuration directory with two cells and no policies yet."""
    for name, text in (("shop", SHOP), ("lab", LAB)):
        put(tmp_path, f"cells/{name}.yaml", text)
    (tmp_path / "policies").mkdir()
    return tmp_path


def put(directory: Path, name: str, text: str | bytes) -> Path:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(directory: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(directory)
    return [str(p).replace(f"{directory}/policies/", "").replace(f"{directory}/", "") for p in caught.value.problems]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_says_what_where_and_what_to_do(name: str, etc: Path) -> None:
    text, expected = WRONG[name]
    put(etc, "policies/shop.yaml", text)
    assert problems_of(etc) == expected


def test_a_group_defined_in_two_files_of_a_cell_is_refused(etc: Path) -> None:
    put(etc, "policies/shop.yaml", "cell: shop\ngroups: {front: {subnet: web}}\n")
    put(etc, "policies/shop/a.yaml", "cell: shop\n\ngroups: {front: {subnet: db}}\n")
    assert problems_of(etc) == [
        "shop.yaml:2:10: group 'front' is also in shop/a.yaml:3:10 (one group has one place)",
    ]


def test_a_default_set_in_two_files_of_a_cell_is_refused(etc: Path) -> None:
    put(etc, "policies/shop.yaml", "cell: shop\ndefaults: {ingress: deny}\n")
    put(etc, "policies/shop/a.yaml", "cell: shop\ndefaults: {ingress: {cell: deny}, egress: {cell: deny}}\n")
    assert problems_of(etc) == [
        "shop.yaml:2:21: this default is also in shop/a.yaml:2:28 (one default has one place)",
    ]


def test_a_policy_of_a_cell_that_has_no_file_is_refused(etc: Path) -> None:
    put(etc, "policies/shpo.yaml", "cell: shpo\n")
    assert problems_of(etc) == [
        "shpo.yaml:1:7: cell 'shpo' has no file in cells/ (did you mean 'shop'? or add its file)"
    ]


def test_a_file_in_another_cells_directory_cannot_speak_for_its_own(etc: Path) -> None:
    put(etc, "policies/lab/mine.yaml", "cell: shop\n")
    assert problems_of(etc) == [
        "lab/mine.yaml:1:7: the file belongs to cell 'lab' by its path, not to 'shop' "
        "(write cell: lab, or move the file)"
    ]


def test_what_would_be_ignored_silently_is_a_problem(etc: Path) -> None:
    put(etc, "policies/shop.yml", "cell: shop\n")
    put(etc, "policies/lab/more.json", "{}")
    put(etc, "policies/.hidden.yaml", "no: [policy")
    (etc / "policies" / "lab" / "old.yaml").mkdir()
    put(etc, "policies/README", "of no interest")
    assert problems_of(etc) == [
        "lab/more.json: this file is not read: policy files end in .yaml (rename it to more.yaml)",
        "lab/old.yaml: this directory is not read (put its files one level up)",
        "shop.yml: this file is not read: policy files end in .yaml (rename it to shop.yaml)",
    ]


def test_policies_that_cannot_be_listed_are_a_problem(etc: Path) -> None:
    (etc / "policies").rmdir()
    put(etc, "policies", "a file")
    assert problems_of(etc) == ["policies: can't be read: Not a directory"]


def test_no_policies_at_all_are_no_problem(etc: Path) -> None:
    (etc / "policies").rmdir()
    assert load(etc).cell("shop") == CellPolicy("shop")


def test_the_bounds_are_told(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("MAX_RULES", "MAX_GROUPS", "MAX_POLICY_FILES"):
        monkeypatch.setattr(files, bound, 1)
    text = "cell: shop\ngroups: {a: {subnet: web}, b: {subnet: db}}\ningress:\n"
    put(etc, "policies/shop.yaml", text + "  - {from: any, allow: tcp/1}\n  - {from: any, allow: tcp/2}\n")
    put(etc, "policies/lab.yaml", "cell: lab\n")
    assert problems_of(etc) == ["policies: more than 1 policy files"]
    (etc / "policies" / "lab.yaml").unlink()
    assert problems_of(etc) == [
        "shop.yaml:1:7: cell 'shop' has 2 groups: at most 1",
        "shop.yaml:1:7: cell 'shop' has 2 rules: at most 1 (use ranges, groups)",
    ]


def test_a_prefix_of_guests_of_another_cell_is_told_by_its_name(etc: Path) -> None:
    put(etc, "policies/shop.yaml", "cell: shop\ningress:\n  - {from: {cidr: 10.2.1.0/25}, allow: any}\n")
    assert problems_of(etc) == [
        "shop.yaml:3:19: 10.2.1.0/25 is inside the virtual address space 10.0.0.0/8 (write {cell: lab, subnet: ci})"
    ]


def test_a_file_in_a_cells_directory_is_checked_alone(etc: Path) -> None:
    path = put(etc, "policies/shop/a.yaml", "cell: lab\n")
    with pytest.raises(ConfigError, match="belongs to cell 'shop' by its path"):
        load_file(path)
    put(etc, "cells/lab.yaml", "no: cell")
    path.write_text("cell: shop\ningress:\n  - {from: {cell: shop, subnet: web}, allow: any}\n")
    assert str(load_file(path).cell("shop").rules[0]) == "ingress allow any from subnet web to cell"


def test_a_file_that_is_no_utf8_text_says_where(etc: Path) -> None:
    put(etc, "policies/shop.yaml", b"cell: shop\n# caf\xe9\n")
    assert problems_of(etc) == ["shop.yaml:2:6: the file is not UTF-8 text (save it as UTF-8)"]


def test_problems_of_all_files_and_of_the_cells_are_told_at_once(etc: Path) -> None:
    put(etc, "policies/shop.yaml", "cell: shop\nrules: []\n")
    put(etc, "policies/lab.yaml", "cell: lab\nexport: []\n")
    put(etc, "cells/lab.yaml", "cell: lab\nnumber: two\nsubnets: {ci: {number: 1}}\n")
    assert problems_of(etc) == [
        "cells/lab.yaml:2:9: 'number' must be a whole number, not 'two'",
        "lab.yaml:2:1: unknown key 'export' (did you mean 'exports'?)",
        "shop.yaml:2:1: unknown key 'rules' (possible here: cell, defaults, egress, exports, groups, ingress, subnets)",
    ]


def test_a_rule_that_is_too_long_is_refused(etc: Path) -> None:
    services = ", ".join(f"tcp/{port}" for port in range(1, 67))
    peers = ", ".join(f"{{guest: g{n}}}" for n in range(257))
    put(etc, "policies/shop.yaml", f"cell: shop\ningress:\n  - from: [{peers}]\n    allow: [{services}]\n")
    assert problems_of(etc) == [
        "shop.yaml:3:11: 257 entries: at most 256 (make a group of them)",
        "shop.yaml:4:12: 66 services: at most 64 in one rule (use ranges, or a second rule)",
    ]


def test_one_file_alone_is_checked_against_the_cells_around_it(etc: Path) -> None:
    path = put(etc, "policies/shop.yaml", "cell: shop\ningress:\n  - from: {subnet: wbe}\n    allow: any\n")
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    assert str(caught.value) == f"{path}:3:20: cell 'shop' has no subnet 'wbe' (did you mean 'web'?)"
    elsewhere = put(etc, "drafts/new.yaml", "cell: any-name\ningress:\n  - from: {subnet: wbe}\n    allow: any\n")
    assert len(load_file(elsewhere).cell("any-name").rules) == 1


def test_a_file_that_cannot_be_read_says_so(etc: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_file(etc / "policies" / "none.yaml")
    assert str(caught.value) == f"{etc}/policies/none.yaml: can't be read: No such file or directory"
    (etc / "policies" / "shop.yaml").symlink_to(etc / "nowhere")
    assert problems_of(etc) == ["shop.yaml: can't be read: No such file or directory"]


def test_only_files_that_changed_are_parsed_again(etc: Path) -> None:
    put(etc, "policies/shop/a.yaml", "cell: shop\ningress:\n  - {from: any, allow: tcp/80}\n")
    put(etc, "policies/shop/b.yaml", "cell: shop\ningress:\n  - {from: any, allow: tcp/443}\n")
    loader = PolicyLoader()
    loader.load(etc)
    before = {path.name: parsed for path, (_, parsed) in loader._parsed.items()}
    put(etc, "policies/shop/b.yaml", "cell: shop\ningress:\n  - {from: any, allow: tcp/8443}\n")
    rules = loader.load(etc).cell("shop").rules
    after = {path.name: parsed for path, (_, parsed) in loader._parsed.items()}
    assert after["a.yaml"] is before["a.yaml"]
    assert after["b.yaml"] is not before["b.yaml"]
    assert [str(r) for r in rules] == [
        "ingress allow tcp/80 from any to cell",
        "ingress allow tcp/8443 from any to cell",
    ]
