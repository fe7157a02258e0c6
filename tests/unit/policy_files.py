"""Policies for tests, written as people write them."""

from pathlib import Path

from divhook.policy.cell import CellPolicy
from divhook.policy.files import PolicySet, load

CELLS = {
    "shop": "cell: shop\nnumber: 1\nsubnets: {web: {number: 1}, db: {number: 2}}\n",
    "lab": "cell: lab\nnumber: 2\nsubnets: {ci: {number: 1}}\n",
}


def configured(directory: Path, **policies: str) -> Path:
    """A configuration directory with cells shop and lab, and policies/NAME.yaml of each."""
    for kind, files in (("cells", CELLS), ("policies", policies)):
        (directory / kind).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            head = f"cell: {name}\n" if kind == "policies" else ""
            (directory / kind / f"{name}.yaml").write_text(head + text)
    return directory


def read(directory: Path, **policies: str) -> PolicySet:
    """Those policies, loaded."""
    return load(configured(directory, **policies))


def read_shop(directory: Path, text: str) -> CellPolicy:
    """The policy of cell shop alone."""
    return read(directory, shop=text).cell("shop")
