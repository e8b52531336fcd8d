"""What a running engine has open on one machine, as docs/guides/security.md lists it: nothing that others can reach."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from tests.support.engines import equal
from tests.support.traces import Traces, listening, rank_processes
from tests.support.trouble import engine_for, fragile, plan_for, trajectory

pytestmark = pytest.mark.processes(forked=False)

FRAGILE = fragile()
LISTENS = 0x10000  # a flag of /proc/net/unix
# what has no name in any folder, and so can be reached only by who has a descriptor of it
NAMELESS = ("pipe:", "anon_inode:", "/memfd:diffusion-partitioner (deleted)")


def test_nothing_that_a_running_engine_has_open_can_be_reached_by_others() -> None:
    before = Traces.now(), _descriptors(os.getpid())
    with engine_for(FRAGILE, plan_for(FRAGILE, 3), exact=True) as engine:
        assert equal(trajectory(engine), trajectory(FRAGILE))
        ranks = rank_processes()
        assert len(ranks) == 2
        held = {pid: _descriptors(pid) for pid in (os.getpid(), *ranks)}
        held[os.getpid()] = {number: to for number, to in held[os.getpid()].items() if before[1].get(number) != to}
        assert held[os.getpid()], "the lines to the ranks"
        assert not listening(list(held))
        sockets = {to for descriptors in held.values() for to in descriptors.values() if to.startswith("socket:")}
        assert len(sockets) == 3 * 2 + 2 * 2, "two ends of a line between every two, and of the driver's to each"
        assert not sockets & _of_a_network()
        assert all(_is_a_nameless_pair(name) for name in sockets)
        for pid, descriptors in held.items():
            assert not [to for number, to in descriptors.items() if not _is_own(pid, number, to)]
        now = Traces.now()
        assert (now.ports, now.shared_memory, now.temporary) == (
            before[0].ports, before[0].shared_memory, before[0].temporary,
        )  # fmt: skip


def _descriptors(pid: int) -> dict[int, str]:
    """What a process has open, by number, without its standard streams."""
    folder = f"/proc/{pid}/fd"
    assert stat.S_IMODE(os.stat(folder).st_mode) & 0o077 == 0, "others do not get at descriptors"
    found = {}
    for name in os.listdir(folder):
        try:
            found[int(name)] = os.readlink(f"{folder}/{name}")
        except OSError:
            continue  # by which the folder itself was read
    return {number: to for number, to in found.items() if number > 2}


def _of_a_network() -> set[str]:
    """All sockets of this machine that are of a network: TCP, UDP and raw ones."""
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            found.add(f"socket:[{line.split()[9]}]")
    return found


def _is_a_nameless_pair(name: str) -> bool:
    """Whether it is a Unix socket that is connected, does not listen, and has no address to connect to."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        _, _, _, flags, _, _, inode, *path = line.split()
        if f"socket:[{inode}]" == name:
            return not path and not int(flags, 16) & LISTENS
    return False


def _is_own(pid: int, number: int, to: str) -> bool:
    """Whether a descriptor is of nothing that others can open, or of a file that is only read."""
    if to.startswith(("socket:", *NAMELESS)) or to == "/dev/null":
        return True
    flags = next(
        int(line.split()[1], 8)
        for line in Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
        if line.startswith("flags:")
    )
    return flags & os.O_ACCMODE == os.O_RDONLY and not to.startswith(tempfile.gettempdir())
