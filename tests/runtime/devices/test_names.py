"""The devices that a user names for ranks: what is none is refused by name, before anything is done."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from runtime.devices.names import device_names
from runtime.errors import InputError


@pytest.mark.parametrize(
    "name", ["meta", "mps", "xpu:0", "", "CPU", "cuda:-1", "cuda:٣", "cuda:1e3", "nowhere", None, 0]
)
def test_what_ranks_cannot_compute_on_is_refused(name: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"devices has {name!r}; expected cpu or cuda:N")):
        device_names(["cpu", name])


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu", "", [], 2, None, {"cpu"}])
def test_what_is_no_list_is_refused(devices: Any) -> None:
    with pytest.raises(InputError, match="; expected a list of devices such as"):
        device_names(devices)


def test_devices_may_be_given_as_torch_has_them() -> None:
    assert device_names([torch.device("cpu"), "cpu:0"]) == ["cpu", "cpu:0"]
