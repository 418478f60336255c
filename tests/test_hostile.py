"""Hostile tables, folders and archives: refused with everything named, or read right; nothing is written elsewhere.

A few of each run always; `make test-all` runs 60 tables, 40 folders and 60 archives. A failing seed names itself:
`pytest tests/test_hostile.py -k "tables and 17"`.
"""

import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Cli, Invoke
from hostile_archives import make_archive
from hostile_folders import make_folder
from hostile_tables import make_table
from hostile_watch import Case, Wrong, differences, judge, mark, outside, snapshot, writes

MAKERS: dict[str, tuple[Callable[[Path, int], Case], int, tuple[int, ...]]] = {
    "tables": (make_table, 60, (8, 26, 45)),
    "folders": (make_folder, 40, (3, 18, 26)),
    "archives": (make_archive, 60, (0, 5, 25)),
}
"""Kind -> who makes a case, how many there are, and which run always."""

MOST_WRITTEN = 8 << 20
"""No case holds pictures of more than some kilobytes: what is larger is a bomb that went off."""


def _cases(*, always: bool) -> list[tuple[str, int]]:
    return [
        (kind, seed)
        for kind, (_, n, chosen) in MAKERS.items()
        for seed in (chosen if always else range(n))
        if always or seed not in chosen
    ]


def _play(kind: str, seed: int, root: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Import a hostile source; fail where the end is not right or anything outside the output folder was touched."""
    case = MAKERS[kind][0](root, seed)
    out, elsewhere = root / "out", root / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before = snapshot(root, but=out)
    with writes() as written:
        try:
            code, _, message = invoke("import", *case.arguments, "--out", out)
        except Exception:  # noqa: BLE001  a crash is an end too, and the worst
            code, message = 1, traceback.format_exc(limit=-3)
    problems = judge(case, code, message, out)
    problems += [f"written outside: {path}" for path in outside(written, out)]
    problems += differences(before, snapshot(root, but=out))
    problems += [f"{weight >> 20} MB written"] if (weight := _weight(out)) > MOST_WRITTEN else []
    if problems:
        lines = [f"{kind} {seed}: {', '.join(case.faults)}", *problems, f"exit code {code}", message[:3000]]
        pytest.fail("\n".join(lines), pytrace=False)
    return case


def _weight(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.mark.parametrize(("kind", "seed"), _cases(always=True))
def test_hostile_sources(
    kind: str, seed: int, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    _play(kind, seed, tmp_path, invoke, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), _cases(always=False))
def test_more_hostile_sources(
    kind: str, seed: int, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = _play(kind, seed, tmp_path, invoke, monkeypatch)
    if case.skipped:
        pytest.skip("; ".join(case.skipped))


def test_the_command_itself_ends_the_same_way(tmp_path: Path, cli: Cli) -> None:
    """A few cases in a process of their own: the exit code that a shell sees, and no file anywhere else."""
    for kind, seed in (("tables", 3), ("folders", 24), ("archives", 5)):
        root = tmp_path / kind
        case = MAKERS[kind][0](root, seed)
        before = snapshot(root, but=root / "out")
        done = cli("import", *case.arguments, "--out", root / "out", cwd=root)
        assert judge(case, done.returncode, done.stderr, root / "out") == []
        assert "Traceback" not in done.stderr
        assert differences(before, snapshot(root, but=root / "out")) == []


# The judge is judged -----------------------------------------------------------------------------------------------


def _made(folder: Path, rows: str, refused: str = "") -> Path:
    folder.mkdir()
    (folder / "manifest.csv").write_text("path,label,pixel_sha256\n" + rows)
    (folder / "refused.csv").write_text("path,reason,detail\n" + refused)
    (folder / "dataset.json").write_text('{"warnings": []}')
    return folder


def test_a_wrong_end_is_seen(tmp_path: Path) -> None:
    case = Case([], {1: {"label": "nv"}, 2: {"label": "mel"}}, [Wrong("lost", "lost")], maybe={3: "odd"})
    right = f"a,nv,{mark(1)}\nb,mel,{mark(2)}\n"
    out = _made(tmp_path / "right", right, "lost,missing,\nodd,bad_name,\n")
    assert judge(case, 7, "", out) == []
    assert judge(case, 0, "", out) == ["exit code 0 with 2 refused"]
    assert judge(case, 1, "Traceback", out) == ["exit code 1: Traceback"]
    assert judge(case, 3, "lost", out) == ["refused as a whole although nothing calls for it"]
    wrong = f"a,bcc,{mark(1)}\nc,nv,{mark(7)}\n"
    assert judge(case, 7, "", _made(tmp_path / "wrong", wrong, "x,y,\n")) == [
        "not listed as refused: lost",
        "neither in the manifest nor refused by name: odd",
        "in the manifest, and should not be: 'c' ('nv')",
        "picture 1: label is 'bcc', should be 'nv'",
        "not in the manifest: picture 2 {'label': 'mel'}",
    ]
    twice = _made(tmp_path / "twice", right + right, "lost,,\nodd,,\n")
    assert judge(case, 7, "", twice) == ["a picture is in the manifest twice"]
    stopping = Case([], case.good, [Wrong("row 4"), Wrong("gone", "gone"), Wrong("dark", "dark", late=True)])
    assert judge(stopping, 3, "row 4", out) == ["not named: gone"]
    assert judge(Case([], fatal=True), 0, "", out) == [
        "exit code 0 although the source must be refused as a whole"
    ]


def test_a_write_elsewhere_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, other = tmp_path / "out", tmp_path / "other"
    for folder in (allowed, other):
        (folder / "deep").mkdir(parents=True)
    (allowed / "way").symlink_to(other)
    monkeypatch.chdir(other)
    before = snapshot(tmp_path, but=allowed)
    with writes() as written:
        (allowed / "fine.txt").write_text("x")
        shutil.rmtree(allowed / "deep")
        assert outside(written, allowed) == []
        Path("relative.txt").write_text("x")
        (allowed / "way" / "through.txt").write_text("x")
        (other / "deep").rmdir()
        (allowed / "fine.txt").rename(other / "moved.txt")
        (other / "link").symlink_to(allowed)
    names = ["deep", "link", "moved.txt", "relative.txt", "through.txt"]
    assert [Path(path).name for path in outside(written, allowed)] == names
    assert len(differences(before, snapshot(tmp_path, but=allowed))) == 6  # these five, and the folder's own time
    assert differences(before, before) == []
