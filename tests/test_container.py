"""container/: what the image installs, and how its server runs, as the files say it. They are parsed, not searched."""

import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from packaging.requirements import Requirement

from dermkit.cli.app import app
from dermkit.prediction_log.database import parse_address
from dermkit.serving.settings import ServeLimits, ServeSettings

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "container" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"serve", "postgres"}
REFUSED = re.compile(r"torch|timm|lightning|nvidia|triton|safetensors|pytest|mypy|ruff|openvino")
UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}


class Instruction(NamedTuple):
    """One instruction of a Dockerfile, its lines joined."""

    name: str
    text: str


def parse_dockerfile(text: str) -> list[list[Instruction]]:
    """Return the instructions of each stage."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: list[list[Instruction]] = []
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.strip().partition(" ")
        if name.upper() == "FROM":
            stages.append([])
        stages[-1].append(Instruction(name.upper(), rest.strip()))
    return stages


STAGES = parse_dockerfile(DOCKERFILE.read_text())


def texts(name: str, stage: list[Instruction]) -> list[str]:
    return [one.text for one in stage if one.name == name]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "container" / "compose.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def server(compose: dict[str, Any]) -> dict[str, Any]:
    one: dict[str, Any] = compose["services"]["server"]
    return one


def n_bytes(text: str) -> int:
    return int(text[:-1]) * UNITS[text[-1]]


# What is installed ----------------------------------------------------------------------------------------------


def installs() -> list[Requirement]:
    """Return what the image's pip is told to install, this project as `dermkit`."""
    commands = [part.split() for stage in STAGES for text in texts("RUN", stage) for part in text.split("&&")]
    (words,) = (words for words in commands if words[0].endswith("pip") and words[1] == "install")
    return [Requirement(f"dermkit{word.strip(chr(39))[1:]}") for word in words[2:] if word.startswith("'.")]


def closure(names: list[Requirement]) -> set[str]:
    """Return the names of all that requirements bring with them, as the packages here say."""
    seen: set[tuple[str, str]] = set()
    waiting = [(one.name.lower(), extra) for one in names for extra in ("", *one.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for one in map(Requirement, lines):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                waiting += [(one.name.lower(), inner) for inner in ("", *one.extras)]
    return {name for name, _ in seen}


def test_the_image_installs_this_project_with_the_extras_of_a_server() -> None:
    (one,) = installs()
    assert one.name == "dermkit" and one.extras == EXTRAS
    assert set(PROJECT["optional-dependencies"]) > EXTRAS
    wanted = [
        Requirement(text)
        for text in [*PROJECT["dependencies"], *(x for e in EXTRAS for x in PROJECT["optional-dependencies"][e])]
    ]
    assert {one.name for one in wanted} >= {"onnxruntime", "fastapi", "sqlalchemy", "psycopg"}


def test_no_torch_and_no_tool_for_developers_comes_with_it() -> None:
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in EXTRAS)]
    names = closure([Requirement(text) for group in groups for text in group])
    assert {"onnxruntime", "numpy", "starlette"} <= names
    assert [name for name in sorted(names) if REFUSED.search(name)] == []
    torch = closure([Requirement(text) for text in PROJECT["optional-dependencies"]["train"]])
    assert any(REFUSED.search(name) for name in torch), "the check would see it"


def test_versions_are_those_of_the_tests_and_pip_does_not_stay() -> None:
    (line,) = (text for text in texts("RUN", STAGES[1]) if "pip install" in text)
    words = line.split()
    assert words[words.index("--constraint") + 1] == "requirements.txt"
    assert "pip uninstall --yes setuptools pip" in line and "pip check" in line
    assert not any(word.startswith(("-i", "--extra", "--trusted", "http")) for word in words)
    assert [text.split("--from=")[1].split()[0] for text in texts("COPY", STAGES[-1])] == ["build"]


def test_every_stage_comes_from_one_base_and_no_registry_is_named() -> None:
    sources = [texts("FROM", stage)[0].split()[0] for stage in STAGES]
    assert sources == ["debian:bookworm-slim", "python", "python"]  # its Python is 3.11
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.11")


def test_the_builder_is_sent_what_is_copied_and_no_more() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {word for text in texts("COPY", STAGES[1]) for word in text.split()[:-1]}
    assert lines[0] == "*" and copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert "/container/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


# How it runs ----------------------------------------------------------------------------------------------------


def test_the_image_runs_as_nobody_that_matters() -> None:
    last = STAGES[-1]
    (user,) = texts("USER", last)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    assert f"--uid {user.split(':')[0]} " in texts("RUN", last)[0]
    names = [one.name for one in last]
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in ("RUN", "COPY"))
    assert json.loads(texts("ENTRYPOINT", last)[0]) == ["dermkit"]


class _Answers(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one.server_port
        one.shutdown()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_the_health_check_tells_a_server_that_answers(
    port: int, status: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Answers, "status", status)
    assert _check_health(port) == code


def test_the_health_check_of_no_server_fails() -> None:
    assert _check_health(1) == 1


def _check_health(port: int) -> int:
    (text,) = texts("HEALTHCHECK", STAGES[-1])
    words = json.loads(text[text.index("CMD ") + 4 :])
    assert words[0] == "python" and words[-1].count("8000") == 1 and texts("EXPOSE", STAGES[-1]) == ["8000"]
    command = [sys.executable, *words[1:-1], words[-1].replace("8000", str(port))]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode


@pytest.mark.parametrize("name", ["server", "database"])
def test_a_service_may_write_nowhere_and_do_nothing_but_its_work(compose: dict[str, Any], name: str) -> None:
    one = compose["services"][name]
    assert one["read_only"] is True and one["cap_drop"] == ["ALL"] and "cap_add" not in one
    assert one["security_opt"] == ["no-new-privileges:true"] and not one.get("privileged")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", one["user"])
    assert n_bytes(one["mem_limit"]) == n_bytes(one["memswap_limit"]) and 0 < one["pids_limit"] <= 256
    assert any(text.startswith("/" + "tmp:") and "noexec,nosuid,nodev" in text for text in one["tmpfs"])
    assert all("size=" in text for text in one["tmpfs"])


def test_secrets_come_as_files(compose: dict[str, Any]) -> None:
    named = {secret for one in compose["services"].values() for secret in one["secrets"]}
    assert named == set(compose["secrets"])
    assert all(set(one) == {"file"} and one["file"].startswith("secrets/") for one in compose["secrets"].values())
    assert set(compose["services"]["server"]["secrets"]) & set(compose["services"]["database"]["secrets"]) == set()
    texts_of = [
        f"{key}={value}" for one in compose["services"].values() for key, value in one["environment"].items()
    ]
    passwords = [text for text in texts_of if "PASSWORD" in text.split("=")[0]]
    assert passwords == ["POSTGRES_PASSWORD_FILE=/run/secrets/database_password"]


def test_the_model_cannot_be_written_and_what_must_last_is_on_a_volume(server: dict[str, Any]) -> None:
    model, state = server["volumes"]
    assert model["target"] == "/model" and model["read_only"] is True
    assert model["bind"] == {"create_host_path": False}, "a wrong path is an error, not an empty folder of root's"
    volume, _, target = state.partition(":")
    assert target == texts("WORKDIR", STAGES[-1])[0] and volume == "outbox"
    assert f"--log-outbox={target}/" in " ".join(server["command"])


def test_a_stop_leaves_time_to_answer(compose: dict[str, Any], server: dict[str, Any]) -> None:
    assert int(server["stop_grace_period"].rstrip("s")) > ServeLimits().stop_seconds
    assert server["init"] is True and server["stop_signal"] == "SIGTERM"
    assert compose["services"]["database"]["stop_signal"] == "SIGINT"
    assert server["depends_on"]["database"]["condition"] == "service_healthy"
    assert compose["services"]["database"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]


def test_an_image_may_take_the_memory_that_the_server_allows_it(server: dict[str, Any]) -> None:
    limits = ServeLimits()
    assert n_bytes(server["mem_limit"]) > limits.worker_bytes + limits.max_buffered_bytes


def test_only_this_machine_reaches_the_server_and_nobody_the_database(compose: dict[str, Any]) -> None:
    server, database = compose["services"]["server"], compose["services"]["database"]
    assert server["ports"] == ["127.0.0.1:8000:8000"] and "ports" not in database
    assert database["networks"] == ["log"] and compose["networks"]["log"] == {"internal": True}


def parsed_options(words: list[str]) -> Mapping[str, Any]:
    """Return the options of `dermkit serve` as its own parser reads them."""
    command: Any = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    context = command.make_context(words[0], words[1:])
    parameters: Mapping[str, Any] = context.params
    return parameters


def test_both_commands_are_taken_by_the_command_line(server: dict[str, Any]) -> None:
    words = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in server["command"]]
    for line in (words, json.loads(texts("CMD", STAGES[-1])[0])):
        options = parsed_options(line)
        settings = ServeSettings(
            model=options["model"], host=options["host"], port=options["port"], keys=options["keys"],
            allowed_hosts=tuple(options["allow_host"]),
        )  # fmt: skip
        assert settings.port == 8000 and str(settings.keys) == "/run/secrets/api_keys"
        assert "localhost" in settings.trusted_hosts
    assert "api_keys" in server["secrets"]


def test_the_log_is_on_the_database_with_a_password_that_no_message_names(server: dict[str, Any]) -> None:
    address = parse_address(server["environment"]["DERMKIT_LOG"])
    assert (address.url.host, address.url.database, address.url.password) == ("database", "dermkit", None)
    file = Path(str(address.url.query["passfile"]))
    assert file.parent == Path("/run/secrets") and file.name in server["secrets"]
    assert "passfile" not in address.name
