"""Make the peers' environments, each its own; what is there already is left alone.

    python benchmarks/speed/setup.py [--envs FOLDER] [--peer keras timm fastai ultralytics]

uv does it, because it links the files that environments share instead of copying them: three of them hold a torch of
several GB. Where there is no uv, one is installed into FOLDER/tools.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PEERS = ("keras", "timm", "fastai", "ultralytics")
ENVS = Path.home() / ".cache" / "dermkit-peers"


def python_of(envs: Path, peer: str) -> Path:
    """Return the interpreter of a peer's environment, there or not."""
    return envs / peer / "bin" / "python"


def is_ready(envs: Path, peer: str) -> bool:
    """Tell whether an environment was finished from the requirements of today."""
    mark = envs / peer / ".ready"
    return mark.is_file() and mark.read_text() == _wanted(peer)


def _wanted(peer: str) -> str:
    return hashlib.sha256((HERE / "peers" / peer / "requirements.txt").read_bytes()).hexdigest()


def make(envs: Path, peer: str) -> None:
    """Make one environment; a half-made one is finished."""
    if is_ready(envs, peer):
        print(f"{peer}: ready")
        return
    uv = _uv(envs)
    if not python_of(envs, peer).exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(envs / peer)], check=True)
    wanted = str(HERE / "peers" / peer / "requirements.txt")
    install = [uv, "pip", "install", "--quiet", "--python", str(python_of(envs, peer)), "--requirement", wanted]
    subprocess.run(install, check=True)
    (envs / peer / ".ready").write_text(_wanted(peer))
    print(f"{peer}: made")


def _uv(envs: Path) -> str:
    found = shutil.which("uv")
    own = envs / "tools" / "bin" / "uv"
    if found is None and not own.exists():
        subprocess.run([sys.executable, "-m", "venv", str(envs / "tools")], check=True)
        subprocess.run([str(envs / "tools" / "bin" / "pip"), "install", "--quiet", "uv>=0.5,<1"], check=True)
    return found or str(own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, default=ENVS)
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=list(PEERS))
    given = parser.parse_args()
    given.envs.mkdir(parents=True, exist_ok=True)
    for peer in given.peer:
        make(given.envs.resolve(), peer)


if __name__ == "__main__":
    main()
