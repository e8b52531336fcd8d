"""Types of a plan file's fields, and short printable forms of invalid values for errors."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError

from partitioner.graph.nodes import DTYPE_BYTES

InputRole = Literal["latent", "step", "timestep", "prompt", "constant"]

# "module.path/operator.number"; module names are what add_module takes, and "@1" marks a module's second call
KEY_PATTERN = r"^([A-Za-z0-9_@-]+(\.[A-Za-z0-9_@-]+)*)?/[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\.[0-9]+$"
KEY_REGEX = re.compile(KEY_PATTERN)
NodeKey = Annotated[str, Field(pattern=KEY_PATTERN, max_length=512)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")]
ClassName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
DenoiserName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]  # what a pipeline calls it
ArgumentPath = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*$", max_length=256)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Figure = Annotated[float, Field(ge=0, le=1e15)]
Size = Annotated[int, Field(ge=1, le=4096)]


def _from_array(value: object) -> object:
    """JSON has arrays only; strict validation expects a tuple."""
    return tuple(value) if isinstance(value, list) else value


ARRAY = (FailFast(), BeforeValidator(_from_array))
TensorShape = Annotated[tuple[Annotated[int, Field(ge=0, le=2**40)], ...], Field(max_length=16), *ARRAY]


def as_label(text: str) -> str:
    """A name as plans allow it: "NVIDIA H200 (1)" -> "NVIDIA-H200-1"."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-._+")[:128] or "unknown"


class PlanRecord(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def _check_dtype(value: object) -> object:
    if not isinstance(value, str) or value not in DTYPE_BYTES:
        raise ValueError(f"expected a dtype such as float16, got {shown_briefly(value)}")
    return value


Dtype = Annotated[str, BeforeValidator(_check_dtype), Field(json_schema_extra={"enum": list(DTYPE_BYTES)})]


def _check_placement(value: object) -> object:
    """First error only: a hostile file could make a million."""
    if not isinstance(value, dict) or not value:
        raise ValueError("expected an object of node keys and component numbers")
    for key, component in value.items():
        if not isinstance(key, str) or len(key) > 512 or not KEY_REGEX.fullmatch(key):
            raise ValueError(f"{shown_briefly(key)} is no node key; expected module.path/operator.number")
        if type(component) is not int or not 0 <= component < 4096:
            raise ValueError(
                f"node {shown_briefly(key)} is on component {shown_briefly(component)}; expected a number from 0"
            )
    return value


def _check_versions(value: object) -> object:
    if not isinstance(value, dict) or len(value) > 64:
        raise ValueError("expected an object of package names and versions")
    return value


PlacementField = Annotated[dict[NodeKey, Annotated[int, Field(ge=0, lt=4096)]], BeforeValidator(_check_placement)]
Versions = Annotated[dict[Label, Label], BeforeValidator(_check_versions)]


def first_error_of(error: ValidationError) -> str:
    """The first error that pydantic found, in one sentence: field, what is wrong, what was given."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    where = ".".join(str(part)[:80] for part in first["loc"])
    if first["type"] in ("value_error", "missing", "extra_forbidden"):
        return f"{where}: {message}" if where else message
    return f"{where}: {message}, got {shown_briefly(first['input'])}"


def shown_briefly(value: Any) -> str:
    """A short, printable form of a value from a file that may be hostile."""
    if isinstance(value, (dict, list, tuple)):
        return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value)}"
    text = ascii(value) if not isinstance(value, int) or value.bit_length() < 256 else "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}…"
