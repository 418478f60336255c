"""Everything that is read is a regular file, of a bounded size, inside its folder; what was hashed is what is used."""

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dermkit as dk
from conftest import Invoke
from dermkit.errors import DermkitError, UntrustedError
from dermkit.files import open_regular, read_json, read_regular, sha256_file
from dermkit.models import checksums, model_content
from dermkit.models.checksums import CHECKSUM_FILE, write_checksums
from dermkit.prediction.load import load_model


@pytest.fixture(autouse=True)
def nobody_waits() -> Iterator[None]:
    """End a test that waits for the writer of a pipe."""

    def give_up(*_: object) -> None:
        raise TimeoutError("something was waited for")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "model", tmp_path / "model"))


@pytest.fixture
def data(binary: Path, tmp_path: Path) -> Path:
    """Return a data set folder with images of its own."""
    shutil.copytree(binary.parent, tmp_path / "binary")
    return dk.import_dataset("folder", tmp_path / "binary" / "images", out=tmp_path / "data").dataset.folder


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have 107 characters
        server.bind(path.name)
        os.chdir(folder)


def folder(path: Path) -> None:
    path.mkdir()


KINDS = [pipe, device, unix_socket, folder]
Make = Callable[[Path], None]


@pytest.mark.parametrize("make", KINDS)
def test_only_regular_files_are_opened(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "x"
    make(path)
    for read in (open_regular, read_regular, sha256_file):
        with pytest.raises(OSError, match="not a regular file"):
            read(path)
    with pytest.raises(DermkitError, match="not a regular file"):
        read_json(path, format=1)


def test_the_size_is_capped_and_a_file_that_is_swapped_meanwhile_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10))
    assert read_regular(path, max_bytes=10) == bytes(10)
    with pytest.raises(OSError, match="larger than 9 bytes"):
        read_regular(path, max_bytes=9)
    with path.open("wb") as stream:
        stream.truncate(2**37)  # sparse: it takes no room
    with pytest.raises(OSError, match="larger than"):
        sha256_file(path)
    pipe(tmp_path / "pipe")
    status = path.stat()
    monkeypatch.setattr(Path, "stat", lambda *_args, **_kwargs: status)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "pipe")


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", ["model.json", "seen.csv", "member-0.safetensors", CHECKSUM_FILE])
def test_a_model_folder_with_something_else_than_files_is_refused(model: Path, name: str, make: Make) -> None:
    (model / name).unlink()
    make(model / name)
    with pytest.raises(UntrustedError):
        load_model(model)


@pytest.mark.parametrize(
    "name", ["model.json", "seen.csv", "member-0.safetensors", "MODEL_CARD.md", CHECKSUM_FILE]
)
def test_no_link_leads_out_of_a_model_folder(model: Path, tmp_path: Path, name: str) -> None:
    shutil.move(model / name, tmp_path / "elsewhere")
    (model / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedError, match="leads out of the model folder"):
        load_model(model)
    with pytest.raises(UntrustedError, match="leads out of the model folder"):
        checksums.check_hashes(model, preserved="")


def test_a_linked_model_folder_and_a_link_inside_it_are_fine(model: Path, tmp_path: Path) -> None:
    shutil.move(model / "seen.csv", model / "list.csv")
    (model / "seen.csv").symlink_to("list.csv")
    write_checksums(model)
    (tmp_path / "linked").symlink_to(model)
    assert len(load_model(tmp_path / "linked").training_images) > 10


def test_what_was_hashed_is_what_is_used(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone swaps both files right after they were verified."""
    expected = load_model(model)
    real = checksums.read_verified

    def read_then_swap(folder: Path) -> dict[str, bytes]:
        content = real(folder)
        (folder / "model.json").write_text('{"format": 99}')
        (folder / "seen.csv").write_text("pixel_sha256,isic_id,split\nother,,train\n")
        return content

    monkeypatch.setattr(model_content, "read_verified", read_then_swap)
    loaded = load_model(model)
    assert loaded.card == expected.card
    assert loaded.training_images == expected.training_images
    assert loaded.policy is not None


@pytest.mark.parametrize("make", KINDS)
def test_something_else_in_the_place_of_an_image_is_listed_and_nobody_waits(
    data: Path, tmp_path: Path, invoke: Invoke, make: Make
) -> None:
    dataset = dk.load_dataset(data)
    path = dataset.image_path(dataset.manifest["image_id"][0])
    path.unlink()
    make(path)
    code, _, said = invoke("audit", data)
    assert (code, "fault" in said) in [(0, False), (3, False)]
    assert "1 image changed, went missing or became unreadable" in (data / "audit" / "audit.html").read_text() or (
        "unreadable" in (data / "audit" / "audit.json").read_text()
    )
    assert invoke("split", data, "--scheme", "holdout", "--name", "new")[0] == 0
    code, _, said = invoke("train", "demo", data, "--out", tmp_path / "runs", "--split", "new")
    assert code == 3
    assert path.name in said


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", ["manifest.csv", "dataset.json", "location.json", "refused.csv"])
def test_a_data_set_folder_with_something_else_than_files(
    data: Path, name: str, invoke: Invoke, make: Make
) -> None:
    (data / name).unlink(missing_ok=True)
    make(data / name)
    code, _, said = invoke("audit", data)
    assert code in (0, 3, 5)
    assert "fault in dermkit" not in said
    assert code == 0 or name in said


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize(
    "name", ["run.json", "metrics.json", "predictions.csv", "log.csv", "split.csv", "recipe.json"]
)
def test_a_run_folder_with_something_else_than_files(
    trained: Path, tmp_path: Path, name: str, invoke: Invoke, make: Make
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))
    (run / name).unlink()
    make(run / name)
    for command in (["report", run], ["evaluate", run], ["compare", run, trained, "--out", tmp_path / "c"]):
        code, _, said = invoke(*command)
        assert code in (0, 2, 3, 5), said
        assert "fault in dermkit" not in said
