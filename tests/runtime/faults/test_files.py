"""Fault 15: plan and profile files that are damaged or hostile.

What each is refused for, and the fuzzing of both, is in tests/partitioner/plan/test_plan_files.py,
tests/profiles/test_json_files.py and tests/profiles/test_cost_profile.py; here is what it costs to refuse them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.profiles.test_cost_profile import HOSTILE as PROFILES
from tests.support.hostile_plans import HOSTILE as PLANS
from tests.support.hostile_plans import LARGE

ROOT = Path(__file__).parents[3]

LOADER = """
import json, pathlib, re, sys, time
from partitioner.errors import PartitionerError
from partitioner.plan.plan import Plan
from profiles.cost_profile import CostProfile
from profiles.json_files import JsonFileError

for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    load = Plan.load if path.name.startswith("plan") else CostProfile.load
    begin = time.process_time()
    try:
        load(path)
    except (PartitionerError, JsonFileError) as error:
        print(json.dumps([path.name, time.process_time() - begin, str(error)]))
peak = re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())
print(json.dumps(int(peak[1])))
"""


@pytest.mark.processes
def test_every_hostile_file_is_refused_in_a_sentence_a_second_and_200_mb(tmp_path: Path) -> None:
    files = {f"plan {name}": data for name, (data, _) in PLANS.items()}
    files |= {f"plan large {name}": make() for name, make in LARGE.items()}
    files |= {f"profile {name}": data for name, (data, _) in PROFILES.items()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in ("plan zeros", "profile zeros"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 2**30)
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    *refusals, peak_kb = map(json.loads, done.stdout.splitlines())
    assert {name for name, _, _ in refusals} == {*files, "plan zeros", "profile zeros"}
    slow = {name: seconds for name, seconds, _ in refusals if seconds >= 1}
    assert not slow, "of the processor's time"
    assert all("\n" not in text and len(text) < 600 + len(str(tmp_path)) for _, _, text in refusals)
    assert peak_kb < 200_000
