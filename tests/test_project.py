"""What the project says of itself is true, and it names nothing of the machine it was written on."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_OURS = {
    ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints",
    "__pycache__", "build", "dist", "demo", "runs", "scratch",
}  # fmt: skip
# Each pattern holds a class of one letter, so that this file does not match itself.
FORBIDDEN = [
    r"/wor[k]/", r"/roo[t]/", r"/hom[e]/\w", r"/User[s]/\w", r"/tm[p]/(s|data)/", r"\.\./share[d]",
    r"pyp[i]\.org", r"pythonhoste[d]\.org", r"download\.pytorc[h]\.org", r"anacond[a]\.(org|com)", r"npmj[s]\.",
    r"index-ur[l]", r"find-link[s]",
]  # fmt: skip


def texts(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every text file of the project, without caches and outputs."""
    for path in sorted(folder.iterdir()):
        if path.name in NOT_OURS or path.is_symlink():
            continue
        if path.is_dir():
            yield from texts(path)
        elif b"\0" not in path.read_bytes():
            yield path, path.read_text(encoding="utf-8")


def forbidden(folder: Path) -> list[str]:
    """Return file, line and text of every place of this machine, and every package registry, that is named."""
    return [
        f"{path.relative_to(folder)}:{number}: {line.strip()}"
        for path, text in texts(folder)
        for number, line in enumerate(text.splitlines(), start=1)
        if any(re.search(pattern, line) for pattern in FORBIDDEN)
    ]


def names(requirements: list[str]) -> set[str]:
    """Return the names of requirements, without versions and comments."""
    return {
        re.split(r"[=<>\[]", line)[0].strip().lower() for line in requirements if line and not line.startswith("#")
    }


def tree_of(readme: str) -> set[str]:
    """Return the folders that the README's tree of src/dermkit names."""
    block = readme.split("src/dermkit/\n")[1].split("```")[0]
    return set(re.findall(r"(\w+)/", block))


def test_the_project_names_no_machine_and_no_registry() -> None:
    assert forbidden(ROOT) == []


@pytest.mark.parametrize(
    "parts",
    [("/wor", "k/main"), ("/roo", "t/x"), ("/hom", "e/jo"), ("/tm", "p/s/x"), ("../share", "d"), ("pyp", "i.org"),
     ("download.pytorc", "h.org"), ("--extra-index-ur", "l"), ("files.pythonhoste", "d.org")],
)  # fmt: skip
def test_a_planted_place_is_found(tmp_path: Path, parts: tuple[str, str]) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "note.md").write_text(f"first line\nsee {''.join(parts)} there\n")
    assert forbidden(tmp_path) == [f"docs/note.md:2: see {''.join(parts)} there"]


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        item
        for extra in ("train", "tune", "export", "serve", "dev")
        for item in project["optional-dependencies"][extra]
    ]
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert names(pins) == names(wanted)
    assert [pin for pin in pins if not re.fullmatch(r"[\w-]+==[\w.]+", pin)] == []


def test_the_readme_names_both_commands_and_every_package() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "\nmake demo" in readme and "\nmake test" in readme
    packages = {path.parent.name for path in (ROOT / "src" / "dermkit").rglob("*/__init__.py")}
    assert packages - tree_of(readme) == set(), "give each a line in the README's tree"


def test_ci_runs_make_test_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "exec make test"]
    assert script.stat().st_mode & 0o111


def test_slow_tests_are_left_to_test_all() -> None:
    recipes = dict(re.findall(r"^(test|test-all): check\n\t(.*)$", (ROOT / "Makefile").read_text(), re.M))
    assert '-m "not slow"' in recipes["test"]
    assert '-m "slow or not slow"' in recipes["test-all"]
