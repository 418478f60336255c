"""`dermkit ARGS...`, with checkpoints inside epochs all the time, not every few minutes; see test_campaigns.py."""

import os
import sys

OFTEN = 0.05
"""Seconds between two checkpoints inside an epoch: a run of seconds then has dozens."""


def main() -> None:
    """Run the command line like this here, and in every rank that it starts."""
    from dermkit import cli
    from dermkit.training.distributed import launcher

    words = launcher.supervise.__kwdefaults__
    assert words is not None
    words["command"] = (sys.executable, __file__)
    if "RANK" in os.environ or "--devices" not in sys.argv:
        from dermkit.training import loop

        loop.SAVE_SECONDS = OFTEN
    cli.main()


if __name__ == "__main__":
    main()
