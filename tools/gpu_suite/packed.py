"""What travels to a machine with a GPU besides the source tree: packages that it lacks, and traced graphs.

Nothing here needs more than Python's own library: it runs where those packages are not there yet.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LACKING = (  # by PyTorch's images, and what they need in turn
    "diffusers", "pydantic", "pydantic-core", "typing-inspection", "annotated-types", "importlib-metadata",
    "torch-tb-profiler",
)  # fmt: skip
MACHINE = ("--python-version", "3.12", "--implementation", "cp")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pack(folder: Path, wheels: Path | None, names: Sequence[str]) -> None:
    """Make a folder to carry to a machine with a GPU: ``wheels`` and ``traces``.

    Args:
        folder: where to make it.
        wheels: a folder of wheels for that machine; None: they are downloaded, in the versions that are installed here.
        names: of the denoisers to trace; what is there already is kept. Graphs are traced by the torch that is here.

    Raises:
        ValueError: a package that the machine lacks is not among the wheels.
    """
    carried = folder / "wheels"
    carried.mkdir(parents=True, exist_ok=True)
    if wheels is None:
        _download(carried)
    else:
        for wheel in wheels.glob("*.whl"):
            shutil.copy2(wheel, carried)
    there = {wheel.name.split("-")[0].replace("_", "-").lower() for wheel in carried.glob("*.whl")}
    if absent := [name for name in LACKING if name not in there]:
        raise ValueError(f"{carried} has no wheel of {', '.join(absent)}")
    from tools.gpu_suite.denoisers import graphs_of

    traces = folder / "traces"
    traces.mkdir(exist_ok=True)
    for name in names:
        graphs_of(name, traces)


def _download(folder: Path) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run([*command, *MACHINE, *platforms, *map(_pinned, LACKING)], check=True)


def _pinned(package: str) -> str:
    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:
        return package


def unpack(folder: Path, place: Path) -> Path:
    """Put the traces of a packed folder into ``place``, and the packages into a folder there that is returned."""
    packages = place / "packages"
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as content:
            content.extractall(packages)
    # once, on all processors, instead of in every part
    subprocess.run([sys.executable, "-m", "compileall", "-qq", "-j", "0", str(packages)], check=False)
    for trace in (folder / "traces").glob("*.pickle.gz"):
        shutil.copy2(trace, place)
    return packages
