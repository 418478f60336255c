"""What README, docs/ and notebooks name is there: commands with their flags, files, keys, functions, linked pages."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

import dermkit as dk
from dermkit.cli.app import app

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dermkit"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "notebooks").iterdir())]
LINKED = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md")),
          *sorted((ROOT / "docs" / "decisions").iterdir()), *sorted((ROOT / "benchmarks").glob("*.md"))]  # fmt: skip

FOREIGN_FLAGS = {
    "--standalone", "--nproc-per-node", "--max-restarts",  # torchrun
    "--nodes", "--ntasks-per-node", "--gpus-per-node", "--gpus-per-task", "--cpus-per-task", "--time", "--signal",
    "--kill-on-bad-exit",  # SLURM
    "--build", "--wait",  # docker compose
}  # fmt: skip
FOREIGN_FILES = {
    "HAM10000_metadata.csv", "ISIC_2019_Training_Metadata.csv", "ISIC2018_Task3_Training_LesionGroupings.csv",
    "metadata.csv", "dermamnist.npz",  # as their archives name them
    "00000.png",  # an example of numbered files
    "requirements.txt",  # ours, not written by a command
    "mine.json",  # a reader's own
}  # fmt: skip
SUFFIX = r"\.(?:jsonl|json|csv|html|png|txt|md|safetensors|npz)"
REPOSITORY_FOLDERS = ("docs/", "benchmarks/", "tests/", "src/", "log/", "notebooks/")


def text_of(page: Path) -> str:
    """Return a page's text; of a notebook, its cells, code fenced."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = [("".join(cell["source"]), cell["cell_type"]) for cell in json.loads(text)["cells"]]
    return "\n\n".join(f"```\n{source}\n```" if kind == "code" else source for source, kind in cells)


def code_spans(text: str) -> tuple[list[str], list[str]]:
    """Return the lines of fenced code, continued ones joined and comments left out, and the inline code."""
    fences = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)
    lines = [re.split(r"\s#\s", line)[0] for fence in fences for line in fence.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return lines, [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


@cache
def flags_of_commands() -> dict[str, set[str]]:
    """Return command -> its flags, hidden ones left out; `recipes list` is a command of two words."""
    commands: dict[str, set[str]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        commands[" ".join(words)] = {flag for parameter in shown for flag in parameter.opts if flag[0] == "-"}
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*words, name))

    walk(typer.main.get_command(app), ())
    return commands


def command_problems(text: str) -> list[str]:
    """Return the commands and flags of a page that the command line does not have."""
    commands = flags_of_commands()
    any_flag = set[str]().union(*commands.values()) | FOREIGN_FLAGS
    lines, inline = code_spans(text)
    problems = []
    for span in [*lines, *inline]:
        flags = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", span)
        problems += [f"{flag} in `{span}`" for flag in flags if flag not in any_flag]
        for words in re.findall(r"(?<!import )\bdermkit(?:\.cli)? (?=[a-z])([^;|]*)", span):
            problems += _problems_of_call(words, span)
        if span.split(" ")[0] in commands and span in inline:
            problems += _problems_of_call(span, span)
    return problems


def _problems_of_call(words: str, span: str) -> list[str]:
    commands = flags_of_commands()
    first, second = [*words.split(" "), ""][:2]
    name = f"{first} {second}" if f"{first} {second}" in commands else first
    if name not in commands:
        return [f"no command {first} in `{span}`"]
    flags = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", words)
    return [f"{name} has no {flag} in `{span}`" for flag in flags if flag not in commands[name] | {"--help"}]


def strings_of(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a module, `*` for what an f-string fills in; names of files of older versions left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Assign) and re.match(r"_?OLD_", ast.unparse(node.targets[0])):
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "*" for part in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        yield from strings_of(node)


@cache
def modules() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


@cache
def file_patterns() -> list[re.Pattern[str]]:
    """Return one pattern per file name that the source has; at least three letters of it are fixed."""
    strings = {text.split("/")[-1] for tree in modules().values() for text in strings_of(tree)}
    names = {text for text in strings if re.fullmatch(rf"[\w.*-]*{SUFFIX}", text)}
    stems = {name: re.sub(rf"{SUFFIX}$", "", name) for name in names}
    fixed = [
        ("*" + name if name[0] == "." else name) for name, stem in stems.items() if len(stem.strip("*._")) > 2
    ]
    return [re.compile(re.escape(name).replace(r"\*", r".+")) for name in fixed]


def file_problems(text: str) -> list[str]:
    """Return the file names of a page that the source does not write or read, nor the repository holds.

    A name in capitals (`METADATA.csv`) or of one letter (`x.jpg`) stands for a reader's own file; DA012.csv for a
    finding's table.
    """
    problems = []
    for span in code_spans(text)[1]:
        if span.startswith(REPOSITORY_FOLDERS):
            problems += [] if (ROOT / span.split(":")[0]).exists() else [f"{span} is not in the repository"]
            continue
        for name in re.findall(rf"(?<![\w*.-])([\w*-][\w*.-]*{SUFFIX})(?![\w-])", span):
            is_placeholder = re.fullmatch(r"[A-Z_]+\.\w+|\w\.\w+|DA\d{3}\.csv", name)
            if is_placeholder or name in FOREIGN_FILES or (ROOT / name).exists():
                continue
            name = name.replace("*", "any")
            problems += (
                [] if any(pattern.fullmatch(name) for pattern in file_patterns()) else [f"{name} in `{span}`"]
            )
    return problems


def is_migration(path: Path) -> bool:
    return "migration" in path.name or path.name == "formats.py"


@cache
def words_of_source() -> set[str]:
    """Return every word of the source, its templates included and what reads older formats left out."""
    paths = [path for path in SOURCE.rglob("*") if path.suffix in (".py", ".html", ".css", ".js", ".txt", ".j2")]
    return {
        word for path in paths if not is_migration(path) for word in re.findall(r"\w+", path.read_text("utf-8"))
    }  # fmt: skip


@cache
def keys_of_older_formats() -> set[str]:
    """Return the keys that migrations rename and no other module has as a string of its own."""
    dictionaries = [
        node for path, tree in modules().items() if "migration" in path.name for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
    ]  # fmt: skip
    pairs = [
        (key.value, value.value) for node in dictionaries for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str)
    ]  # fmt: skip
    current = {text for path, tree in modules().items() if not is_migration(path) for text in strings_of(tree)}
    return {str(old) for old, _ in pairs} - {new for _, new in pairs} - current


def key_problems(text: str) -> list[str]:
    """Return the keys, columns and fields of a page that the source does not know, or knows in older formats alone."""
    problems = []
    for span in code_spans(text)[1]:
        if not re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)*(\[\])?", span) or re.search(rf"{SUFFIX}$", span):
            continue
        for word in re.findall(r"\w+", span):
            if "_" in word.strip("_") and word not in words_of_source():
                problems.append(f"{word} in `{span}`: no such name")
            elif word in keys_of_older_formats():
                problems.append(f"{word} in `{span}`: a key of an older format")
    return problems


def python_problems(text: str) -> list[str]:
    """Return the names that a page takes from `dk` and that the public interface does not offer."""
    lines, inline = code_spans(text)
    names = {name for span in [*lines, *inline] for name in re.findall(r"\bdk\.(\w+)", span)}
    return sorted(f"dk.{name}" for name in names - {*dk.__all__, "metrics", "errors"})


def link_problems(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    return [target for target in targets if "://" not in target and not (page.parent / target).exists()]


CHECKS = [command_problems, file_problems, key_problems, python_problems]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path, check: Callable[[str], list[str]]) -> None:
    assert check(text_of(page)) == []


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert link_problems(page) == []


@pytest.mark.parametrize(
    ("check", "text", "problem"),
    [
        (command_problems, "```\ndermkit evaluate RUN --wish sensitivity=.9\n```", "evaluate has no --wish"),
        (command_problems, "```\ndermkit evaluate RUN \\\n  --seal\n```", "evaluate has no --seal"),
        (command_problems, "then `dermkit judge RUN`", "no command judge"),
        (command_problems, "add `--refer 0.8`", "--refer in"),
        (command_problems, "`predict --save-targets`", "predict has no --save-targets"),
        (file_problems, "the run's `decision.json`", "decision.json in"),
        (file_problems, "`DATASET/audit/findings.json`", "findings.json in"),
        (file_problems, "`benchmarks/none.md`", "benchmarks/none.md is not in the repository"),
        (key_problems, "`no_operating_points` says why", "no such name"),
        (key_problems, "column `chosen_one`", "chosen_one in `chosen_one`: no such name"),
        (key_problems, "its `wish_rate`", "no such name"),
        (key_problems, "under `refer`", "refer in `refer`: a key of an older format"),
        (python_problems, "`dk.audit(dataset)`", "dk.audit"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(check: Callable[[str], list[str]], text: str, problem: str) -> None:
    assert [found for found in check(text) if problem in found], check(text)


def test_a_planted_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("[here](page.md), [there](gone.md#part), [web](https://example.org)")
    assert link_problems(tmp_path / "page.md") == ["gone.md"]
