"""How `dermkit serve` bears load: one real server on a loopback port, and clients in this process.

    python benchmarks/serving/load.py MODEL IMAGES [PART...] [--repeats 3] [--short]

MODEL: a model folder. IMAGES: a folder of photographs, which the clients send. PART: what is measured (default: all).

burst      1,000 requests at one time: those that were accepted and refused, and /health meanwhile
sustained  clients that keep the queue full, against the same model on the same files without a server
slow       200 sockets that send half their headers and 200 that trickle a body, and a good client beside them
hostile    broken and odd images and bombs, against good images one by one
mixed      50,000 mixed requests: memory of the server and its worker at ten moments
start      seconds from the command to the first answer

Each repeat of a part adds rows to benchmarks/serving.csv; one whose rows are there, of this commit and with these
options, is left out, so that a stopped campaign goes on. On a shared machine read the ratios. --short: a tenth.
"""

import argparse
import asyncio
import contextlib
import datetime
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from raw_client import send_at_once

from scale import add_rows, commit, machine, read_rows, versions

ROWS = Path(__file__).parents[1] / "serving.csv"
HEADER = ("date", "commit", "machine", "versions", "part", "options", "repeat", "what", "n", "value", "unit")
BOUNDARY = b"load-boundary"
QUEUE = 32
"""Images that may wait in the measured server."""

Row = tuple[str, int, float, str]
"""What, of how many, its value, its unit."""


# A server and a client ----------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A running `dermkit serve`: its process and port."""

    process: subprocess.Popen[str]
    port: int

    def processes(self) -> list[int]:
        """Return the server's process id and that of its worker."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()  # a thread starts the worker, and is its parent
        children = [child for task in tasks for child in (task / "children").read_text().split()]
        lines = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
        (worker,) = (child for child, line in lines.items() if "spawn_main" in line)
        return [self.process.pid, worker]


@contextlib.contextmanager
def running(model: Path, *args: str) -> Iterator[Server]:
    """Run a server until the block ends."""
    command = [sys.executable, "-m", "dermkit.cli", "serve", str(model), "--port", "0", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        lines = (re.search(r"http://127\.0\.0\.1:(\d+)", line) for line in process.stdout or ())
        match = next(found for found in lines if found)
        yield Server(process, int(match[1]))
    finally:
        process.terminate()
        process.wait(60)


def request_bytes(path: str, images: Sequence[bytes] = ()) -> bytes:
    """Return a request whose connection is closed after its answer."""
    head = "Host: localhost\r\nConnection: close\r\n"
    if not images:
        return f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()
    names = b'Content-Disposition: form-data; name="images"; filename="x.jpg"\r\nContent-Type: image/jpeg'
    part = b"--%s\r\n" + names + b"\r\n\r\n%s\r\n"
    body = b"".join([*(part % (BOUNDARY, image) for image in images), b"--%s--\r\n" % BOUNDARY])
    kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\nContent-Length: {len(body)}\r\n"
    return f"POST {path} HTTP/1.1\r\n{head}{kind}\r\n".encode() + body


@dataclass
class Times:
    """Seconds of requests, by status; 0 = no answer."""

    seconds: dict[int, list[float]] = field(default_factory=dict)

    def add(self, status: int, seconds: float) -> None:
        self.seconds.setdefault(status, []).append(seconds)

    def of(self, *statuses: int) -> list[float]:
        return [value for status in statuses for value in self.seconds.get(status, [])]

    def without(self, *statuses: int) -> int:
        """Return how many requests got another status."""
        return sum(len(values) for status, values in self.seconds.items() if status not in statuses)


async def ask(port: int, data: bytes, *, timeout: float = 60.0) -> tuple[int, float]:
    """Send one request; returns its status, 0 = no answer in time, and seconds."""
    start_time = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(data)
                head = await reader.readuntil(b"\r\n")
                await reader.read()
                return int(head.split()[1]), time.perf_counter() - start_time
            finally:
                writer.close()
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return 0, time.perf_counter() - start_time


def quantile(values: Sequence[float], q: float) -> float:
    """Return a quantile, nan of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


@contextlib.asynccontextmanager
async def health_checks(port: int, path: str) -> AsyncIterator[Times]:
    """Ask a server again and again whether it lives, while the block runs."""
    times = Times()

    async def check() -> None:
        while True:
            times.add(*await ask(port, request_bytes(path)))
            await asyncio.sleep(0.05)

    task = asyncio.create_task(check())
    yield times
    task.cancel()


# Parts --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a part is given."""

    model: Path
    images: tuple[bytes, ...]
    scale: float

    def n(self, usual: int) -> int:
        return max(10, round(usual * self.scale))


async def burst(job: Job) -> list[Row]:
    """Send 1,000 requests at one time."""
    with running(job.model, "--max-waiting", str(QUEUE), "--max-images", "16") as server:
        await ask(server.port, request_bytes("/v1/predict", job.images[:1]))
        alone = [(await ask(server.port, request_bytes("/health")))[1] for _ in range(20)]
        # The queue's bound: how long the model takes for as many images as may wait.
        halves = [request_bytes("/v1/predict", job.images[:16])] * (QUEUE // 16)
        bound = max(seconds for _, seconds in await asyncio.gather(*(ask(server.port, data) for data in halves)))
        n, times, health = job.n(1000), Times(), Times()
        requests = [request_bytes("/v1/predict", [job.images[index % len(job.images)]]) for index in range(n)]
        before = [time.process_time(), *map(processor_seconds, server.processes())]
        answers, checks = send_at_once(server.port, requests, request_bytes("/health"))
        after = [time.process_time(), *map(processor_seconds, server.processes())]
    for target, pairs in ((times, answers), (health, checks)):
        for status, seconds in pairs:
            target.add(status, seconds)
    client, server_seconds, worker_seconds = (end - begin for begin, end in zip(before, after, strict=True))
    accepted, refused = times.of(200), times.of(503)
    return [
        ("bound of the queue", QUEUE, bound, "s"),
        ("accepted", len(accepted), quantile(accepted, 0.99), "s p99"),
        ("accepted over bound", len(accepted), quantile(accepted, 0.99) / bound, "ratio"),
        ("refused", len(refused), quantile(refused, 0.99), "s p99"),
        ("health", len(health.of(200)), quantile(health.of(200), 0.99), "s p99"),
        ("health before", 20, quantile(alone, 0.5), "s median"),
        ("no answer or another status", n, times.without(200, 503), "requests"),
        ("health failed", len(health.of(200)), health.without(200), "requests"),
        ("client", n, client, "s of processor time"),
        ("server process", n, server_seconds, "s of processor time"),
        ("worker process", n, worker_seconds, "s of processor time"),
    ]


def processor_seconds(process_id: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def model_alone(job: Job, n_images: int) -> float:
    """Return images per second of the model without a server: the same files, decoded, measured and scored."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "import dermkit as dk\n"
        "from dermkit.images.decode import open_image\n"
        "model = dk.load_model(sys.argv[1])\n"
        "images = [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())]\n"
        "files = [Path(sys.argv[2]) / path.name for path in sorted(Path(sys.argv[2]).iterdir())]\n"
        "list(model.predict_images(files[:32]))\n"
        "n = int(sys.argv[3])\n"
        "start = time.perf_counter()\n"
        "list(model.predict_images([files[index % len(files)] for index in range(n)]))\n"
        "print(n / (time.perf_counter() - start))\n"
    )
    folder = images_folder(job.images)
    command = [sys.executable, "-c", script, str(job.model), str(folder), str(n_images)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def images_folder(images: Sequence[bytes]) -> Path:
    """Return a folder that holds these images as files."""
    folder = Path(tempfile.gettempdir()) / f"dermkit-load-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    for index, data in enumerate(images):
        (folder / f"{index:05}.jpg").write_bytes(data)
    return folder


async def sustained(job: Job) -> list[Row]:
    """Keep the queue full with requests of 4 images, and compare with the model alone, before and after."""
    n_images, size = job.n(2000), 4
    rate_before = model_alone(job, n_images)
    with running(job.model) as server:
        await ask(server.port, request_bytes("/v1/predict", job.images[:4]))
        times, left = Times(), iter(range(0, n_images, size))

        async def client() -> None:
            for start in left:
                chosen = [job.images[(start + offset) % len(job.images)] for offset in range(size)]
                data = request_bytes("/v1/predict", chosen)
                while (answer := await ask(server.port, data))[0] == 503:
                    await asyncio.sleep(0.02)
                times.add(*answer)

        before_client, before_server = time.process_time(), processor_seconds(server.process.pid)
        start_time = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(14)))
        rate = n_images / (time.perf_counter() - start_time)
        client_seconds = time.process_time() - before_client
        server_seconds = processor_seconds(server.process.pid) - before_server
    rate_after = model_alone(job, n_images)
    alone = statistics.mean([rate_before, rate_after])
    return [
        ("server", n_images, rate, "images/s"),
        ("model alone, before", n_images, rate_before, "images/s"),
        ("model alone, after", n_images, rate_after, "images/s"),
        ("server over model alone", n_images, rate / alone, "ratio"),
        ("requests of 4 images", len(times.of(200)), quantile(times.of(200), 0.99), "s p99"),
        ("another status", len(times.of(200)), times.without(200), "requests"),
        ("client", n_images, client_seconds, "s of processor time"),
        ("server process", n_images, server_seconds, "s of processor time"),
    ]


async def hold_slow(port: int, data: bytes, trickle: bytes) -> float:
    """Open a connection that sends a beginning and then a byte a second; returns when the server ended it."""
    start_time = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    end = asyncio.create_task(reader.read())
    while not end.done() and time.perf_counter() - start_time < 60:
        with contextlib.suppress(OSError):
            writer.write(trickle)
            await writer.drain()
        await asyncio.wait([end], timeout=1.0)
    end.cancel()
    writer.close()
    return time.perf_counter() - start_time


async def good_client(job: Job, port: int, n: int, times: Times) -> None:
    for index in range(n):
        times.add(*await ask(port, request_bytes("/v1/predict", [job.images[index % len(job.images)]])))


async def slow(job: Job) -> list[Row]:
    """Let 400 slow sockets stand beside one good client."""
    n_slow, n_good = job.n(200), job.n(200)
    with running(job.model) as server:
        await good_client(job, server.port, 20, Times())
        alone, beside = Times(), Times()
        await good_client(job, server.port, n_good, alone)
        whole = request_bytes("/v1/predict", job.images[:1])
        head = whole.index(b"\r\n\r\n")
        sockets = [
            *(hold_slow(server.port, whole[: head // 2], b"x") for _ in range(n_slow)),
            *(hold_slow(server.port, whole[: head + 200], b"x") for _ in range(n_slow)),
        ]
        tasks = [asyncio.create_task(one) for one in sockets]
        await asyncio.sleep(0.5)
        await good_client(job, server.port, n_good, beside)
        ended = [await task for task in tasks]
    p99 = [quantile(one.of(200), 0.99) for one in (alone, beside)]
    return [
        ("good client alone", len(alone.of(200)), p99[0], "s p99"),
        ("good client beside slow sockets", len(beside.of(200)), p99[1], "s p99"),
        ("beside over alone", n_good, p99[1] / p99[0], "ratio"),
        ("slow headers ended after", n_slow, max(ended[:n_slow]), "s at most"),
        ("slow bodies ended after", n_slow, max(ended[n_slow:]), "s at most"),
        ("good client failed", n_good, beside.without(200), "requests"),
    ]


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return an image with one fault: cut, bits turned, a piece doubled, noise, a false size, a bomb, or no image."""
    kind = rng.randrange(7)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        spoilt = bytearray(data)
        for _ in range(rng.randrange(1, 40)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        return bytes(spoilt)
    if kind == 2:
        start = rng.randrange(len(data))
        return data[:start] + data[max(0, start - 500) :]
    if kind == 3:
        return rng.randbytes(rng.randrange(2000))
    if kind == 4:  # a JPEG that says it is larger than it is
        place = data.find(b"\xff\xc0")
        sizes = rng.choice([b"\xff\xff\xff\xff", b"\x00\x01\xff\xff", b"\x27\x10\x27\x10"])
        return data[: place + 5] + sizes + data[place + 9 :] if place > 0 else b""
    if kind == 5:  # a PNG of nothing that unpacks to hundreds of megabytes
        return png_bomb(rng.choice([4_000, 8_000, 16_000, 60_000]))
    return rng.choice(
        [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<svg onload=alert(1)>", b"RIFF\0\0\0\0WEBPVP8X" + data]
    )


def png_bomb(side: int) -> bytes:
    """Return a PNG of one colour: some KB for side x side pixels."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(9)
    row = b"\0" * (side // 8 + 1)
    packed = [packer.compress(row) for _ in range(min(side, 20_000))] + [packer.flush()]
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(packed)) + chunk(b"IEND", b"")


async def hostile(job: Job) -> list[Row]:
    """Send damaged images and good ones in turn, one by one."""
    rng, n = random.Random(1), job.n(5000)
    good, bad = Times(), Times()
    with running(job.model) as server:
        await good_client(job, server.port, 20, Times())
        worker = server.processes()[1:]
        for index in range(n):
            image = job.images[index % len(job.images)]
            bad.add(*await ask(server.port, request_bytes("/v1/predict", [damage(image, rng)])))
            if index % 5 == 0:
                good.add(*await ask(server.port, request_bytes("/v1/predict", [image])))
        is_same_worker = server.processes()[1:] == worker
    p99_good, p99_bad = quantile(good.of(200), 0.99), quantile(bad.of(200, 422), 0.99)
    return [
        ("scored or refused", len(bad.of(200, 422)), p99_bad, "s p99"),
        ("good image", len(good.of(200)), p99_good, "s p99"),
        ("hostile less good", n, p99_bad - p99_good, "s of p99"),
        ("slowest", n, max(bad.of(200, 422)), "s"),
        ("another status", n, bad.without(200, 422) + good.without(200), "requests"),
        ("workers lost", n, float(not is_same_worker), "workers"),
    ]


def resident_mb(process_id: int) -> float:
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def mixed(job: Job) -> list[Row]:
    """Send 50,000 requests of every kind, and look at memory ten times after a tenth that is left out."""
    rng, n = random.Random(2), job.n(50_000)
    kinds: list[Callable[[bytes], bytes]] = [
        lambda image: request_bytes("/v1/predict", [image]), lambda image: request_bytes("/v1/predict", [image[:500]]),
        lambda _: request_bytes("/health"), lambda _: request_bytes("/metrics"), lambda _: request_bytes("/v1/model"),
        lambda _: request_bytes("/nothing"), lambda image: request_bytes("/v1/predict", [image, image[1:]]),
        lambda _: b"nonsense\r\n\r\n",
    ]  # fmt: skip
    times, moments = Times(), list[tuple[int, float, float]]()
    with running(job.model) as server:
        numbers = iter(range(n))

        async def client() -> None:
            for number in numbers:
                data = rng.choice(kinds)(rng.choice(job.images))
                times.add(*await ask(server.port, data))
                if number % (n // 11) == 0:
                    server_mb, worker_mb = map(resident_mb, server.processes()[:2])
                    moments.append((number, server_mb, worker_mb))

        await asyncio.gather(*(client() for _ in range(8)))
    used = moments[2:]
    slopes = [10_000 * slope([one[0] for one in used], [one[place] for one in used]) for place in (1, 2)]
    return [
        ("server memory", n, slopes[0], "MB per 10,000 requests"),
        ("worker memory", n, slopes[1], "MB per 10,000 requests"),
        ("server at the end", n, moments[-1][1], "MB"),
        ("worker at the end", n, moments[-1][2], "MB"),
        ("no answer, or 5xx", n, times.without(200, 400, 404, 422, 503), "requests"),
    ]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of a line by least squares."""
    return statistics.linear_regression(x, y).slope if len(x) > 1 else float("nan")


async def start(job: Job) -> list[Row]:
    """Start a server and ask it once."""
    start_time = time.perf_counter()
    with running(job.model) as server:
        up_seconds = time.perf_counter() - start_time
        status, seconds = await ask(server.port, request_bytes("/v1/predict", job.images[:1]))
        return [
            ("command to listening", 1, up_seconds, "s"),
            ("command to first answer", 1, time.perf_counter() - start_time, "s"),
            ("first answer", 1, seconds if status == 200 else float("nan"), "s"),
        ]


PARTS: dict[str, Callable[[Job], Coroutine[Any, Any, list[Row]]]] = {
    "burst": burst, "sustained": sustained, "slow": slow, "hostile": hostile, "mixed": mixed, "start": start,
}  # fmt: skip


def main() -> None:
    """Measure what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    images = tuple(path.read_bytes() for path in sorted(options.images.iterdir()) if path.is_file())
    job = Job(options.model, images, 0.1 if options.short else 1.0)
    label = f"{options.model.name}, {len(images)} images{', short' if options.short else ''}"
    taken = {(row["commit"], row["part"], row["options"], row["repeat"]) for row in read_rows(ROWS)}
    for repeat in range(options.repeats):
        for name in options.parts or PARTS:
            if (commit(), name, label, str(repeat)) in taken:
                continue
            add_part(name, label, repeat, asyncio.run(PARTS[name](job)))


def add_part(part: str, label: str, repeat: int, rows: Sequence[Row]) -> None:
    """Add the rows of a part to the table and show them."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    fixed = (today, commit(), machine(), versions(), part, label, repeat)
    add_rows(ROWS, HEADER, [(*fixed, what, n, f"{value:.5g}", unit) for what, n, value, unit in rows])
    for what, n, value, unit in rows:
        print(f"{part}: {what}: {value:.4g} {unit} (n = {n})", flush=True)


if __name__ == "__main__":
    main()
