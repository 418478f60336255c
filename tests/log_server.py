"""A real server with a prediction log and a worker without a net, which starts in a second: `python log_server.py LOG`.

Only the model is left out: socket, limits, queue, the worker's process and the log are those of `dermkit serve`.
"""

import hashlib
import sys
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dermkit.images.statistics import ImageStatistics
from dermkit.prediction_log.writer import open_log
from dermkit.progress import Progress
from dermkit.serving.feedback import FEEDBACK_RULES, feedback_router
from dermkit.serving.jobs import Job, WorkerSettings, receive_jobs, send_message
from dermkit.serving.log_recorder import LogRecorder
from dermkit.serving.server import serve
from dermkit.serving.settings import ServeSettings
from server_parts import MODEL_FACTS, image_result

FACTS = {
    **MODEL_FACTS,
    "model": {
        **MODEL_FACTS["model"],
        "model_key": "ab" * 32,
        "preprocessing_sha256": "cd" * 32,
        "version": "0.1.0",
    },
}
STATISTICS = asdict(ImageStatistics(600, 450, 180.5, 140.25, 130.0, 20.0, 21.0, 22.0, None))


def answer_job(job: Job) -> dict[str, Any]:
    """Return an answer that is made of the image's bytes; what begins with "broken" is refused."""
    if job.data.startswith(b"broken"):
        return {"refusal": {"reason": "truncated", "detail": "Jane Doe 1970.jpg"}}
    pixels = hashlib.sha256(job.data).hexdigest()
    return {**image_result(job.data), "pixel_sha256": pixels, "statistics": STATISTICS}


def run_quick_worker(connection: Connection, settings: WorkerSettings) -> None:
    """Answer jobs at once, in place of `run_worker`."""
    send_message(connection, {"event": "ready", "facts": FACTS})
    while True:
        try:
            jobs = receive_jobs(connection, max_bytes=settings.max_image_bytes)
        except (EOFError, OSError):
            return
        for index, job in enumerate(jobs):
            send_message(connection, {"event": "begin", "index": index, "answer": None})
            send_message(connection, {"event": "answer", "index": index, "answer": answer_job(job)})
        send_message(connection, {"event": "done", "index": None, "answer": None})


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until stopped; prints the address."""
    with open_log(sys.argv[1]) as log:
        serve(
            ServeSettings(model=Path("model"), port=0), recorder=LogRecorder(log), routers=[feedback_router(log)],
            rules=FEEDBACK_RULES, progress=Progress(say=say), entry=run_quick_worker,
        )  # fmt: skip


if __name__ == "__main__":
    main()
