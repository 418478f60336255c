"""Torch in a forked process, such as a worker of a DataLoader: it computes with one thread there.

OpenMP, with which torch shares an operation among threads, notes for each thread the team that it shared the last one
with. A fork copies that note and none of the threads, so the next shared operation would wait for them for ever: seen
with torch 2 on Linux, where a process trained or multiplied matrices with several threads before it forked.
"""

import os
import threading

import torch

_PROCESS_AT_IMPORT = os.getpid()
_LIMITED = threading.local()


def limit_threads_after_fork() -> None:
    """Let the calling thread, and those that start later, compute alone where this process was forked.

    Once for each thread; nothing is done in a process that imported this itself, as one that was spawned.
    """
    process = os.getpid()
    if process != _PROCESS_AT_IMPORT and getattr(_LIMITED, "process", None) != process:
        _LIMITED.process = process
        torch.set_num_threads(1)
