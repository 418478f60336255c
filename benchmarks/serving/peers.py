"""`dermkit serve` beside LitServe and BentoML: the same model, the same clients, one image a request.

    python benchmarks/serving/peers.py MODEL IMAGES --python PYTHON [--peers NAME...] [--repeats 3] [--short]

MODEL, IMAGES: as of load.py. PYTHON: the interpreter of an environment with dermkit[train,serve], litserve and bentoml;
it runs all three servers. Each peer calls the same `predict_images` that ours calls, so that the servers are compared
and not the models; batches of up to 32 images, one worker. Rows go to benchmarks/serving.csv as load.py's do.

burst      1,000 requests at one time: answers, refusals, requests without an answer in 60 s, and the health page
sustained  32 clients, each with one request at a time, against the model alone on the same files
"""

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from load import (
    ROWS,
    Job,
    Row,
    Times,
    add_part,
    ask,
    health_checks,
    images_folder,
    model_alone,
    quantile,
    request_bytes,
)

from scale import commit, read_rows

LITSERVE = """
import sys
import litserve
from PIL import Image
import dermkit as dk

class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = dk.load_model(sys.argv[1])
    def decode_request(self, request):
        image = Image.open(request["images"].file)
        image.load()
        return image
    def batch(self, inputs):
        return list(inputs)
    def predict(self, images):
        return list(self.model.predict_images(images if isinstance(images, list) else [images]))
    def unbatch(self, answers):
        return answers
    def encode_response(self, answer):
        answer = answer[0] if isinstance(answer, list) else answer
        return {"predicted": answer.predicted, "probabilities": {k: float(v) for k, v in answer.probabilities.items()}}

if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False)
"""

BENTOML = """
import os
from pathlib import Path
import bentoml
import dermkit as dk

@bentoml.service(workers=1, traffic={"timeout": 60})
class Api:
    def __init__(self):
        self.model = dk.load_model(os.environ["PEER_MODEL"])
    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=60_000)
    def predict(self, images: list[Path]) -> list[dict]:
        return [
            {"predicted": one.predicted, "probabilities": {k: float(v) for k, v in one.probabilities.items()}}
            for one in self.model.predict_images([Path(image) for image in images])
        ]
"""


@dataclass(frozen=True)
class Contestant:
    """A server: how it is started on a port, where it predicts, and where it says that it lives."""

    command: tuple[str, ...]
    predict_path: str
    health_path: str


def contestants(python: Path, model: Path, folder: Path) -> dict[str, Contestant]:
    """Return the servers by name; "PORT" stands for the port. folder: where the peers' services are written."""
    (folder / "lit.py").write_text(LITSERVE)
    (folder / "bento.py").write_text(BENTOML)
    bento = str(python.parent / "bentoml")
    return {
        "dermkit": Contestant(
            (str(python), "-m", "dermkit.cli", "serve", str(model), "--port", "PORT"), "/v1/predict", "/health"
        ),
        "litserve": Contestant((str(python), str(folder / "lit.py"), str(model), "PORT"), "/predict", "/health"),
        "bentoml": Contestant(
            (bento, "serve", "bento:Api", "--working-dir", str(folder), "--host", "127.0.0.1", "--port", "PORT"),
            "/predict", "/livez",
        ),
    }  # fmt: skip


@contextlib.contextmanager
def running(contestant: Contestant, model: Path, image: bytes) -> Iterator[int]:
    """Run a server until the block ends; yields its port once it has answered for an image."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    command = [word.replace("PORT", str(port)) for word in contestant.command]
    environment = {
        **os.environ, "PEER_MODEL": str(model), "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(Path(tempfile.gettempdir()) / "bentoml-home"),
    }  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        first = request_bytes(contestant.predict_path, [image])
        deadline = time.monotonic() + 120
        while asyncio.run(ask(port, first))[0] != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[:4]}: it does not answer")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


async def burst(contestant: Contestant, port: int, images: Sequence[bytes], n: int) -> list[Row]:
    """Send n requests at one time."""
    times = Times()
    requests = [request_bytes(contestant.predict_path, [images[index % len(images)]]) for index in range(n)]
    async with health_checks(port, contestant.health_path) as health:
        for status, seconds in await asyncio.gather(*(ask(port, data) for data in requests)):
            times.add(status, seconds)
    answered, refused = times.of(200), times.of(429, 503)
    return [
        ("answered", len(answered), quantile(answered, 0.99), "s p99"),
        ("refused", len(refused), quantile(refused, 0.99), "s p99"),
        ("health", len(health.of(200)), quantile(health.of(200), 0.99), "s p99"),
        ("no answer or another status", n, times.without(200, 429, 503), "requests"),
    ]


async def sustained(contestant: Contestant, port: int, images: Sequence[bytes], n: int) -> list[Row]:
    """Keep 32 requests of one image under way."""
    times, numbers = Times(), iter(range(n))

    async def client() -> None:
        for number in numbers:
            data = request_bytes(contestant.predict_path, [images[number % len(images)]])
            while (answer := await ask(port, data))[0] == 503:
                await asyncio.sleep(0.02)
            times.add(*answer)

    start_time = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(32)))
    rate = len(times.of(200)) / (time.perf_counter() - start_time)
    return [
        ("server", len(times.of(200)), rate, "images/s"),
        ("requests of one image", len(times.of(200)), quantile(times.of(200), 0.99), "s p99"),
        ("another status", n, times.without(200), "requests"),
    ]


def measure(contestant: Contestant, job: Job) -> dict[str, list[Row]]:
    """Return the rows of both parts; each has a server of its own."""
    rows = {}
    for name, part, n in (("burst", burst, job.n(1000)), ("sustained", sustained, job.n(2000))):
        with running(contestant, job.model, job.images[0]) as port:
            asyncio.run(burst(contestant, port, job.images, 32))  # its first batches are slower
            rows[name] = asyncio.run(part(contestant, port, job.images, n))
    return rows


def main() -> None:
    """Measure what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--peers", nargs="+", default=["dermkit", "litserve", "bentoml"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    images = tuple(path.read_bytes() for path in sorted(options.images.iterdir()) if path.is_file())
    job = Job(options.model.resolve(), images, 0.1 if options.short else 1.0)
    label = f"{options.model.name}, {len(images)} images{', short' if options.short else ''}"
    present = {(row["commit"], row["part"], row["options"], row["repeat"]) for row in read_rows(ROWS)}
    for repeat in range(options.repeats):
        if (commit(), "peers alone", label, str(repeat)) not in present:
            rates = [model_alone(job, job.n(2000)) for _ in range(2)]
            add_part(
                "peers alone", label, repeat, [("model alone", job.n(2000), statistics.mean(rates), "images/s")]
            )
        with tempfile.TemporaryDirectory() as folder:
            for name, contestant in contestants(options.python, job.model, Path(folder)).items():
                if name in options.peers and (commit(), f"sustained of {name}", label, str(repeat)) not in present:
                    for part, rows in measure(contestant, job).items():
                        add_part(f"{part} of {name}", label, repeat, rows)
    for path in images_folder(()).iterdir():
        path.unlink()


if __name__ == "__main__":
    main()
