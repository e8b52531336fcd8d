"""What acceleration devices can have, and what is refused."""

from __future__ import annotations

import pytest

from runtime.devices.acceleration import check_acceleration
from runtime.engine import Engine
from runtime.errors import InputError
from runtime.options import EngineOptions
from tests.support.engines import toy, toy_plan


@pytest.mark.parametrize(
    ("transport", "options", "expected"),
    [
        ("threads", {"cuda_graphs": True}, "CUDA graphs need GPUs, and the devices are cpu, cpu"),
        ("emulation", {"cuda_graphs": True}, "CUDA graphs need GPUs"),
        ("threads", {"green_contexts": True}, "none of cpu, cpu is shared"),
        ("processes", {"green_contexts": True}, "use transport 'threads', not 'processes'"),
    ],
)
def test_what_only_gpus_can_do_is_refused(transport: str, options: dict[str, bool], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Engine(toy(), toy_plan(toy(), 2), EngineOptions(transport=transport, **options))


def test_graphs_are_for_gpus_only_among_the_devices() -> None:
    check_acceleration("threads", ["cuda:0", "cuda"], cuda_graphs=True, green_contexts=True)
    with pytest.raises(InputError, match="cuda:0, cpu"):
        check_acceleration("threads", ["cuda:0", "cpu"], cuda_graphs=True, green_contexts=False)
