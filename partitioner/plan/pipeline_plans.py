"""PipelinePlans: the plans of a pipeline's denoisers in one file, each under the pipeline's name for the denoiser.

Such a file is UTF-8 JSON, at most MAX_PLANS_BYTES, with ``schema_version`` and ``plans``: an object of 2 to MOST_PLANS
plans, each as in a file of its own. All of them MUST have as many ranks, for the same ranks run them all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from partitioner.errors import PlanError
from partitioner.plan.fields import DenoiserName, PlanRecord, first_error_of
from partitioner.plan.plan import Plan
from partitioner.plan.plan_files import MAX_PLAN_BYTES, as_file, check_version, read_plan_file, write_plan_file

MOST_PLANS = 4
MAX_PLANS_BYTES = MOST_PLANS * MAX_PLAN_BYTES


class PipelinePlans(PlanRecord):
    """Plans by the name of their denoiser in the pipeline, the one that is named first first; immutable."""

    schema_version: Literal[1] = 1
    plans: Annotated[dict[DenoiserName, Plan], Field(min_length=2, max_length=MOST_PLANS)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ranks = {name: plan.ranks for name, plan in self.plans.items()}
        if len(set(ranks.values())) > 1:
            shown = ", ".join(f"{name} has {count}" for name, count in ranks.items())
            raise ValueError(f"the same ranks run all plans of a file, and the plans have others: {shown}")
        return self

    @classmethod
    def of(cls, plans: Mapping[str, Plan]) -> Self:
        """The plans of a pipeline; PlanError if they cannot stand in one file."""
        try:
            return cls(plans=dict(plans))
        except ValidationError as error:
            raise PlanError(f"these plans cannot be in one file: {first_error_of(error)}") from None

    @property
    def ranks(self) -> int:
        """How many ranks run the plans."""
        return next(iter(self.plans.values())).ranks

    @cached_property
    def canonical(self) -> bytes:
        """The bytes of the file."""
        plans = {name: plan.document for name, plan in self.plans.items()}
        return as_file({"schema_version": self.schema_version, "plans": plans}, MAX_PLANS_BYTES)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the file, whole or not at all; PlanError if it exists or cannot be written."""
        write_plan_file(path, self.canonical, overwrite)


def load_plans(path: str | os.PathLike[str]) -> Plan | PipelinePlans:
    """Read a plan file, of one denoiser or of several; PlanError in one sentence for anything that is not valid."""
    document = read_plan_file(path, MAX_PLANS_BYTES)
    if not isinstance(document, dict) or "plans" not in document:
        return Plan.load(path)
    check_version(document, str(path))
    try:
        return PipelinePlans.model_validate(document)
    except ValidationError as error:
        raise PlanError(f"{path} is no valid plan: {first_error_of(error)}") from None


def plan_schema() -> dict[str, Any]:
    """The JSON schema of a plan file, as published in docs/plan.schema.json."""
    adapter: TypeAdapter[Plan | PipelinePlans] = TypeAdapter(Plan | PipelinePlans)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **adapter.json_schema(mode="validation")}
