"""What travels to a machine with a GPU besides the source tree: packages that it lacks, and traced graphs.

Nothing here needs more than Python's own library: it runs where those packages are not there yet.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from email import message_from_string
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LACKING = (  # by PyTorch's images, and what they need in turn
    "diffusers", "pydantic", "pydantic-core", "typing-inspection", "annotated-types", "importlib-metadata",
    "lazy-importer", "torch-tb-profiler",
)  # fmt: skip
THERE = (  # in those images, of what the packages that they lack need
    "filelock", "huggingface-hub", "numpy", "pandas", "pillow", "regex", "requests", "safetensors", "tensorboard",
    "typing-extensions", "zipp",
)  # fmt: skip
PYTHON = "3.12"
MACHINE = ("--python-version", PYTHON, "--implementation", "cp")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pack(folder: Path, wheels: Path | None, names: Sequence[str]) -> str:
    """Make a folder to carry to a machine with a GPU: ``wheels`` and ``traces``.

    Args:
        folder: where to make it.
        wheels: a folder of wheels for that machine; None: they are downloaded, in the versions that are installed here.
        names: of the denoisers to trace; what is there already is kept. Graphs are traced by the torch that is here.

    Returns:
        What is in it, in a line.

    Raises:
        ValueError: a package that the machine lacks, or one that they need in turn, is not among the wheels.
    """
    carried = folder / "wheels"
    carried.mkdir(parents=True, exist_ok=True)
    if wheels is None:
        _download(carried)
    else:
        for wheel in wheels.glob("*.whl"):
            shutil.copy2(wheel, carried)
    needs = {_plain(wheel.name.split("-")[0]): _needs(wheel) for wheel in sorted(carried.glob("*.whl"))}
    if absent := [name for name in LACKING if name not in needs]:
        raise ValueError(f"{carried} has no wheel of {', '.join(absent)}")
    for package, needed in needs.items():
        if absent := sorted(needed - needs.keys() - set(THERE)):
            raise ValueError(
                f"{package} needs {', '.join(absent)}, of which {carried} has no wheel; name it in LACKING, or in "
                f"THERE if PyTorch's images have it ({__name__})"
            )
    from tools.gpu_suite.denoisers import graphs_of

    traces = folder / "traces"
    traces.mkdir(exist_ok=True)
    for name in names:
        graphs_of(name, traces)
    size_bytes = sum(file.stat().st_size for file in (*carried.iterdir(), *traces.iterdir()))
    graphs = f"{', '.join(names) or 'nothing'} traced by torch {version('torch')}"
    return f"{folder}: {len(needs)} wheels for Python {PYTHON}; {graphs}; {size_bytes / 1e6:.1f} MB"


def _needs(wheel: Path) -> set[str]:
    """The packages that a wheel's package needs on the machine."""
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as content:
        (name,) = [name for name in content.namelist() if name.endswith(".dist-info/METADATA")]
        text = content.read(name).decode()
    said = [Requirement(need) for need in message_from_string(text).get_all("Requires-Dist", [])]
    machine = {"python_version": PYTHON, "sys_platform": "linux", "extra": ""}
    return {_plain(need.name) for need in said if need.marker is None or need.marker.evaluate(machine)}


def _plain(name: str) -> str:
    return name.replace("_", "-").lower()


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
