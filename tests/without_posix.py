"""Take from this process what Windows lacks, as far as that can be done on Linux; `test_portability` uses it.

A module, function or signal that Windows does not have is gone. What Windows refuses is refused: opening a folder,
flushing what is open for reading only, setting the times of an open file, and replacing or deleting a file that this
process has open or mapped. Paths stay POSIX paths: drive letters and backslashes are tested where paths are read.
"""

import builtins
import errno
import importlib
import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MODULES = (
    "fcntl",
    "resource",
    "termios",
    "tty",
    "pty",
    "pwd",
    "grp",
    "syslog",
    "readline",
    "crypt",
    "spwd",
    "nis",
)
OS_NAMES = (
    "fork", "forkpty", "link", "pread", "pwrite", "preadv", "pwritev", "sched_getaffinity", "sched_setaffinity",
    "getuid", "geteuid", "getgid", "getpgid", "setpgid", "setsid", "killpg", "wait", "waitid", "mkfifo", "mknod",
    "chown", "lchown", "chroot", "nice", "sysconf", "fdatasync", "posix_fadvise", "posix_fallocate",
    "sendfile", "getloadavg", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_SYNC", "WNOHANG",
)  # fmt: skip
SIGNALS = (
    "SIGHUP", "SIGKILL", "SIGQUIT", "SIGALRM", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGSTOP", "SIGTSTP",
    "SIGCONT", "alarm", "setitimer", "pthread_sigmask", "sigwait", "siginterrupt",
)  # fmt: skip
OPEN_FILES, MAPS = Path("/proc/self/fd"), Path("/proc/self/maps")


def take_away() -> None:
    """Hide and refuse all of it, for the rest of this process."""
    import fcntl  # the real one, for `_refuse_fsync` alone

    importlib.import_module(
        "subprocess"
    )  # these two read POSIX names as they are imported, or decide by `os.name`
    importlib.import_module("asyncio")
    multiprocessing.set_start_method("spawn", force=True)
    _refuse_fsync(fcntl)
    _refuse_calls()
    for name in OS_NAMES:
        if hasattr(os, name):
            delattr(os, name)
    for name in SIGNALS:
        if hasattr(signal, name):
            delattr(signal, name)
    for name in [name for name in dir(mmap) if name.startswith("MADV_")]:
        delattr(mmap, name)
    mmap.mmap = _WindowsMmap  # type: ignore[misc]
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # type: ignore[assignment]  # as tempfile does there
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Refuse())


class _Refuse:
    """Refuse the import of a module that Windows lacks."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)


class _WindowsMmap(mmap.mmap):
    @property
    def madvise(self) -> Any:
        raise AttributeError("mmap has no madvise on Windows")


def _refuse_fsync(fcntl: Any) -> None:
    fsync, getfl = os.fsync, fcntl.F_GETFL

    def windows_fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if fcntl.fcntl(number, getfl) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Windows flushes only what is open for writing")
        fsync(number)

    setattr(os, "fsync", windows_fsync)  # noqa: B010


def _refuse_calls() -> None:
    def windows_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None or (isinstance(path, str | bytes | os.PathLike) and os.path.isdir(path)):  # noqa: PTH112
            raise PermissionError(errno.EACCES, "Windows cannot open a folder", str(path))
        return os_open(path, flags, mode)

    def windows_utime(path: Any, *args: Any, **options: Any) -> None:
        if isinstance(path, int):
            raise NotImplementedError("utime: fd unavailable on this platform")
        os_utime(path, *args, **options)

    os_open, os.open = os.open, windows_open
    os_utime, os.utime = os.utime, windows_utime
    for name, n_paths in {"replace": 2, "rename": 2, "unlink": 1, "remove": 1}.items():
        setattr(os, name, _only_closed(getattr(os, name), n_paths))


def _only_closed(call: Callable[..., None], n_paths: int) -> Callable[..., None]:
    """Return the call as Windows makes it: not on a file that this process has open or mapped."""

    def windows_call(*args: Any, **options: Any) -> None:
        if options.get("dir_fd") is not None or options.get("src_dir_fd") is not None:
            raise NotImplementedError("dir_fd unavailable on this platform")
        options = {key: value for key, value in options.items() if not key.endswith("dir_fd")}
        for path in args[:n_paths]:
            if is_open(path):
                raise PermissionError(errno.EACCES, "another program or mapping has the file open", str(path))
        call(*args, **options)

    return windows_call


def is_open(path: Any) -> bool:
    """Say whether this process has a regular file open or mapped."""
    name = os.path.realpath(os.fsdecode(path))
    if not os.path.isfile(name):  # noqa: PTH113
        return False
    open_names: list[str] = []
    for descriptor in OPEN_FILES.iterdir():
        try:
            open_names.append(str(descriptor.readlink()))
        except OSError:
            continue  # the descriptor of the listing itself
    with MAPS.open(encoding="utf-8", errors="surrogateescape") as stream:
        return name in open_names or any(line.rstrip("\n").endswith(f" {name}") for line in stream)


def refusals(snippets: Sequence[str]) -> list[str]:
    """Run each snippet; return the name of the exception that it ends with, or "nothing"."""
    names = []
    for snippet in snippets:
        try:
            builtins.exec(snippet, {})  # noqa: S102
        except Exception as error:  # noqa: BLE001
            names.append(type(error).__name__)
        else:
            names.append("nothing")
    return names
