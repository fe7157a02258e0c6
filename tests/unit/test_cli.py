"""The `divhook` command: dispatch, exit codes, one clear line for what goes wrong; check, key and schema."""

import json
import re
import stat
from pathlib import Path

import pytest

from divhook.cli.main import COMMANDS, main
from divhook.core.keys import parse_key_text

CELL = "cell: shop\nnumber: 1\nsubnets: {web: {number: 1}}\n"


def usage_exit(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_exit(command, "--help") == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"  divhook {command}" in text
    assert max(map(len, text.splitlines())) <= 120


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_exit("--help") == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^ +{name}\b", text, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["check", "--nonsense"], ["key"], ["assign"]])
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_exit(*argv) == 2
    assert capsys.readouterr().err.startswith("usage: divhook")


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_exit("--version") == 0
    assert re.fullmatch(r"divhook \d+\.\d+\S*\n", capsys.readouterr().out)


def test_check_of_good_files_counts_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "shop.yaml").write_text(CELL)
    assert main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (f"{tmp_path}: good: 1 cell, 1 subnet, 0 endpoints in 10.0.0.0/8 as 8+8+8 bits\n")


def test_check_of_bad_files_prints_each_problem_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(CELL.replace("cell:", "cel:").replace("number: 1}", "number: x}"))
    assert main(["check", str(file)]) == 1
    assert capsys.readouterr().out == (
        f"{file}:1:1: key 'cell' is missing (Name of the cell)\n"
        f"{file}:1:1: unknown key 'cel' (did you mean 'cell'?)\n"
        f"{file}:3:25: 'number' must be a whole number, not 'x'\n"
        "3 problems\n"
    )


def test_check_as_json_is_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "divhook.yaml"
    file.write_text("\nqueu: 5\n")
    assert main(["check", "--json", str(file)]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "problems": [
            {
                "file": str(file),
                "line": 2,
                "column": 1,
                "message": "unknown key 'queu'",
                "hint": "did you mean 'queue'?",
            }
        ],
    }


def test_check_of_nothing_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "nowhere")]) == 1
    assert "there is no such file or directory" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["host", "cell"])
def test_schema_is_json_with_a_title(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", name]) == 0
    assert "divhook cluster" in json.loads(capsys.readouterr().out)["title"]


def test_a_new_key_file_is_private_and_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "etc" / "cluster.key"
    assert main(["key", "new", "--out", str(path), "--id", "7"]) == 0
    ring = parse_key_text(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ring.sending.key_id == 7
    assert f"new key 7, fingerprint {ring.sending.fingerprint()}" in capsys.readouterr().out


def test_a_key_file_is_never_overwritten_by_accident(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.key"
    path.write_text("precious")
    assert main(["key", "new", "--out", str(path)]) == 1
    assert path.read_text() == "precious"
    assert capsys.readouterr().err.startswith(f"divhook: {path} exists: ")


def test_force_replaces_a_key_file_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    path.write_text("old")
    path.chmod(0o644)
    assert main(["key", "new", "--force", "--out", str(path)]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(parse_key_text(path.read_text()).keys) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["cluster.key"]


def test_a_key_file_is_not_written_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert main(["key", "new", "--out", str(tmp_path / "link")]) == 1
    assert not (tmp_path / "elsewhere").exists()


def test_key_show_tells_ids_and_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.key"
    main(["key", "new", "--out", str(path)])
    capsys.readouterr()
    key = parse_key_text(path.read_text()).sending
    assert main(["key", "show", str(path)]) == 0
    text = capsys.readouterr().out
    assert [line.split() for line in text.splitlines()] == [
        ["ID", "ROLE", "FINGERPRINT"],
        ["1", "send", key.fingerprint()],
    ]
    assert key.secret.hex() not in text


def test_key_show_complains_of_an_open_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.key"
    main(["key", "new", "--out", str(path)])
    path.chmod(0o640)
    assert main(["key", "show", str(path)]) == 1
    assert f"{path} is open to others (mode 0640): chmod 600 {path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no {path}: make it with `divhook key new`, or copy it from another host"),
        ("", "{path}: the file is empty; make one with 'divhook key new'"),
        ("\xff", "{path}:1: the first line must be 'divhook-keys 1'; make a key file with 'divhook key new'"),
    ],
)
def test_key_show_of_a_bad_file_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    path = tmp_path / "cluster.key"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    assert main(["key", "show", str(path)]) == 1
    assert capsys.readouterr().err == f"divhook: {message.format(path=path)}\n"


def test_a_key_id_out_of_range_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "new", "--out", str(tmp_path / "k"), "--id", "256"]) == 1
    assert capsys.readouterr().err == "divhook: key id 256 is outside 0 to 255\n"


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 1)])
def test_an_interrupted_command_ends_quietly(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_args: object) -> int:
        raise raised

    monkeypatch.setattr("divhook.cli.schema.run", run)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert main(["schema"]) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("argv", "target"), [(["agent", "--teardown"], "agent.main.run"), (["lab", "down"], "lab.cli.run")]
)
def test_agent_and_lab_get_their_arguments_and_say_how_it_ended(
    argv: list[str], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(f"divhook.{target}", lambda args: seen.append(args) or 7)
    assert main(argv) == 7
    assert len(seen) == 1
