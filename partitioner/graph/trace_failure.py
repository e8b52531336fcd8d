"""What a user is told where torch.export cannot trace a denoiser: which module, why, and what to do."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from traceback import extract_tb
from types import CodeType

import torch
from torch import nn

from partitioner.errors import ForwardFailed, TraceError, first_line
from partitioner.graph.modules import shown_file
from partitioner.graph.torch_private.fakes import FakeTensor

_ADDRESS = re.compile(r" object at 0x[0-9a-f]+")
UNKNOWN_VALUES = (
    "whose values are not known where the denoiser is built without weights; register it as a buffer in __init__, or "
    "make it of numbers alone, as torch.arange does"
)
_NOT_THE_DENOISERS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}", "<")
_PACKAGES = tuple(
    f"{sysconfig.get_path(name)}{os.sep}" for name in ("purelib", "platlib")
)  # may be inside Python's own
_PYTHON = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib"))
_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer, FakeTensor)


def refuse_unloadable(module: nn.Module, model: str) -> None:
    """Refuse a module with parameters that are no plain tensors, such as quantised and sparse ones.

    Raises:
        TraceError: There is one; the message names it.
    """
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if type(tensor) not in _PLAIN:
            raise TraceError(
                f"{model}: parameter {path} is of type {type(tensor).__name__}, a tensor with parts of its own (it is "
                "quantised, say), which ranks cannot load; load the denoiser without quantisation"
            )
        if tensor.layout is not torch.strided:
            raise TraceError(
                f"{model}: parameter {path} has the layout {str(tensor.layout).removeprefix('torch.')}, which ranks "
                "cannot load; expected an ordinary, dense tensor: convert it with .to_dense()"
            )


def trace_failure(error: BaseException, module: nn.Module, where: str, model: str) -> TraceError:
    """The error to raise.

    Args:
        error: What torch.export raised.
        module: The denoiser.
        where: Path of the module whose forward was running; empty for the denoiser itself.
        model: What errors call the denoiser.
    """
    child = module.get_submodule(where)
    place = f"module {where or '<root>'} ({type(child).__name__})"
    if isinstance(error, OSError):
        return TraceError(
            f"{model} cannot be traced, since the system refuses what torch asks for: {first_line(error)}. It needs "
            "files, and a folder for temporary ones that it can write to (TMPDIR)"
        )
    if getattr(vars(child).get("forward"), "engine", None) is not None:
        return TraceError(
            f"{model} cannot be traced: {place} is inside a parallelize block, whose engine computes its calls; use "
            "that engine, or leave the block first"
        )
    if "forward" in vars(child) and type(child).forward.__code__ not in _codes(error):
        return TraceError(
            f"{model} cannot be traced: a hook has taken over the forward of {place}, and moves or casts weights "
            "in it, or keeps something between calls. Ranks hold their share of the weights as they are and run one "
            "trace: leave offloading, casts between layers and caches out for the run"
        )
    if "torch._C.Generator" in first_line(error):  # torch 2.11; newer ones record the call: see graph.reader
        return TraceError(
            f"{model}: {place} draws random numbers from a torch.Generator of its own{_line(error)}, which every rank "
            "would draw for itself: give it the numbers as an argument"
        )
    return ForwardFailed(
        f"torch.export cannot trace {model}: {place}: {_failing_operator(error)}{why_failed(error)}{_line(error)}\n"
        "What to do: control flow and sizes must not depend on the values of tensors (no .item(), no "
        "`if tensor:`), every argument must be given as in a real call, and all parameters must be on one "
        "device. Rewrite that module's forward, or split the model so that it lies outside."
    )


def why_failed(error: BaseException) -> str:
    """What went wrong in a forward, in the user's words where torch's are about its own insides."""
    name, text = type(error).__name__, first_line(error)
    if "DataDependent" in name or "DynamicOutputShape" in name or "SymInt" in text:
        return "a size or a branch depends on the values of a tensor"
    if "fake tensor in the exported program constant" in text:
        return "it reads a tensor that is neither parameter nor buffer, " + UNKNOWN_VALUES
    return f"{name}: {_ADDRESS.sub('', text)}"


def _line(error: BaseException) -> str:
    """The innermost line that ran of what is neither torch's, Python's nor this package's, for a message."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for one in reversed(chain):
        frames = [frame for frame in extract_tb(one.__traceback__) if _is_denoisers(frame.filename)]
        if frames:
            last = frames[-1]
            return f", at {shown_file(last.filename)}:{last.lineno}, in {last.name}: {last.line}"
    return ""


def _is_denoisers(file: str) -> bool:
    if file.startswith(_PACKAGES):
        return not file.startswith(_NOT_THE_DENOISERS)
    return not file.startswith((*_NOT_THE_DENOISERS, *_PYTHON))


def _codes(error: BaseException) -> Iterator[CodeType]:
    """The code that was running when the error was raised, outermost first."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame.f_code
        traceback = traceback.tb_next


def _failing_operator(error: BaseException) -> str:
    """'operator aten.x: ' where the message or the error's cause names one."""
    func = getattr(error, "func", None)
    if func is not None:
        return f"operator {func}: "
    for word in str(error).replace("(", " ").replace(")", " ").split():
        if word.startswith(("aten.", "torch.ops.aten.")):
            return f"operator {word.rstrip(',:;')}: "
    return ""
