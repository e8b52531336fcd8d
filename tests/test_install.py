"""The wheel, installed and used as users do, also from a folder whose own packages have our names."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import partitioner

ROOT = Path(__file__).parents[1]
PACKAGES = ("partitioner", "profiles", "runtime", "tools")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel, and sees this one's packages for the dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    interpreter = folder / "bin" / "python"
    target = subprocess.run(
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.strip()  # fmt: skip
    install = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, "--quiet", str(wheel)], check=True, capture_output=True, timeout=120)
    # A plain path line: site-packages come after the wheel, and their own .pth files (an editable install) stay unread.
    Path(target, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return interpreter


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with packages named like ours, which must never be imported."""
    for name in ("tools", "runtime"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the hostile package was imported')\n")
    return tmp_path


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"diffusion_partitioner-{partitioner.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:  # not a checkout: what lies there is what counts
        sources = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.*")}
        sources = {name for name in sources if "__pycache__" not in name}
    else:
        sources = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    held = {name for name in names if ".dist-info/" not in name}
    assert held == sources
    data = {
        "partitioner/models/data/svd.json",
        "partitioner/baselines/data/asyncdiff_splits.json",
        "profiles/devices.json",
    }
    assert data <= held
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_metadata_names_the_commands_and_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(f"{folder}/METADATA").decode()
        commands = archive.read(f"{folder}/entry_points.txt").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "partition-model = partitioner.cli:main" in commands
    assert "run-plan = runtime.cli:main" in commands


@pytest.mark.parametrize("command", [pytest.param("partition-model", marks=pytest.mark.slow), "run-plan"])
def test_commands_start_from_a_hostile_folder(python: Path, hostile: Path, command: str) -> None:
    done = run(hostile, python.parent / command, "--help")
    assert done.returncode == 0, done.stderr
    assert command in done.stdout


@pytest.mark.slow
def test_a_plan_is_made_from_a_hostile_folder(python: Path, hostile: Path) -> None:
    command = [python.parent / "partition-model", "--model", "sd15", "--devices", "2", "--branches", "1"]
    command += ["--output", "sd15.plan.json"]
    done = run(hostile, *command)
    assert done.returncode == 0, done.stderr
    assert (hostile / "sd15.plan.json").is_file()


@pytest.mark.slow
def test_workers_import_our_packages_from_a_hostile_folder(python: Path, hostile: Path) -> None:
    code = "import partitioner, runtime.worker.worker, profiles, tools; print(runtime.__file__, tools.__file__)"
    done = run(hostile, python, "-P", "-c", code)
    assert done.returncode == 0, done.stderr
    assert all(Path(name).is_relative_to(python.parents[1]) for name in done.stdout.split())


@pytest.mark.parametrize("start", [("-m", "partitioner.cli", "--help"), ("-c", "import profiles")])
def test_the_guard_names_the_folder_that_shadows_a_package(python: Path, hostile: Path, start: tuple[str, ...]) -> None:
    done = run(hostile, python, *start)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: another 'runtime' shadows diffusion-partitioner's")
    assert str(hostile / "runtime") in last
    assert "python -P" in last
    assert "hostile package was imported" not in done.stderr


def test_the_guard_names_a_file_that_shadows_a_package(python: Path, tmp_path: Path) -> None:
    (tmp_path / "profiles.py").write_text("raise SystemExit('the hostile module was imported')\n")
    done = run(tmp_path, python, "-c", "import partitioner")
    assert done.returncode == 1
    assert f"Python finds {tmp_path / 'profiles.py'}" in done.stderr
    assert "hostile module was imported" not in done.stderr


def test_the_guard_lets_folders_pass_that_shadow_nothing(python: Path, tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()  # without __init__.py, so that ours is found
    (tmp_path / "tools" / "notes.txt").write_text("notes")
    done = run(tmp_path, python, "-c", "import partitioner, runtime, tools, profiles; print(tools.__file__)")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(python.parents[1])


def test_importing_the_packages_stays_free_of_torch(python: Path, tmp_path: Path) -> None:
    code = "import sys, partitioner, runtime, tools, profiles; print('torch' in sys.modules)"
    assert run(tmp_path, python, "-c", code).stdout.strip() == "False"


def test_the_package_gives_functions_even_after_their_submodules_are_imported(python: Path, tmp_path: Path) -> None:
    code = (
        "import partitioner.graph.export, partitioner.plan.plan\n"
        "from partitioner import Plan, compile, trace\n"
        "from runtime import Engine, parallelize\n"
        "print(Plan.__name__, compile.__name__, trace.__name__, Engine.__name__, parallelize.__name__)"
    )
    done = run(tmp_path, python, "-c", code)
    assert done.stdout.split() == ["Plan", "compile", "trace", "Engine", "parallelize"], done.stderr
