"""Settings of torch that hold for a whole process and by which operators choose how they compute, and round.

A user makes them in his process; ranks in processes of their own must compute by the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch

Settings = tuple[tuple[str, Any], ...]  # name -> value
_Access = tuple[Callable[[], Any], Callable[[Any], Any]]  # how a setting is read and written


def torch_settings() -> Settings:
    """The settings of this process, by name.

    >>> dict(torch_settings())["default dtype"]
    torch.float32
    """
    return tuple((name, read()) for name, (read, _) in _SETTINGS.items())


def apply_settings(settings: Iterable[tuple[str, Any]]) -> None:
    """Have this process compute by settings of another one."""
    for name, value in settings:
        read, write = _SETTINGS[name]
        if read() != value and value is not None:
            write(value)


def _attributes(kind: str, owner: Any, *names: str) -> Iterator[tuple[str, _Access]]:
    for name in names:

        def read(name: str = name) -> Any:
            return getattr(owner, name)

        def write(value: Any, name: str = name) -> None:
            setattr(owner, name, value)

        yield f"{kind}.{name}", (read, write)


def _matmul_precision() -> str | None:
    """None once precisions were set by the newer names, which torch does not tell by this one then."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


_CUDA, _CUDNN, _MKLDNN = torch.backends.cuda, cast(Any, torch.backends.cudnn), cast(Any, torch.backends.mkldnn)
_SETTINGS: dict[str, _Access] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic algorithms": (_deterministic, _set_deterministic),
    "flash attention": (_CUDA.flash_sdp_enabled, _CUDA.enable_flash_sdp),
    "memory-efficient attention": (_CUDA.mem_efficient_sdp_enabled, _CUDA.enable_mem_efficient_sdp),
    "plain attention": (_CUDA.math_sdp_enabled, _CUDA.enable_math_sdp),
    "cuDNN's attention": (_CUDA.cudnn_sdp_enabled, _CUDA.enable_cudnn_sdp),
    "float32 matrix products": (_matmul_precision, torch.set_float32_matmul_precision),
    **dict(_attributes("cudnn", _CUDNN, "enabled", "benchmark", "deterministic")),
    **dict(_attributes("cudnn.conv", _CUDNN.conv, "fp32_precision")),
    **dict(_attributes("mkldnn.matmul", _MKLDNN.matmul, "fp32_precision")),
    **dict(_attributes("mkldnn", _MKLDNN, "enabled")),
    **dict(
        _attributes(
            "cuda.matmul",
            _CUDA.matmul,
            "allow_fp16_reduced_precision_reduction",
            "allow_bf16_reduced_precision_reduction",
            "allow_fp16_accumulation",
            "fp32_precision",
        )
    ),
}
