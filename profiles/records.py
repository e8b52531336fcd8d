"""Record: the base of what files specify, and the one way to read a document as one."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from profiles.json_files import JsonFileError


class Record(BaseModel):
    """Immutable; no field may be missing, unknown or of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def from_document(cls, document: object, source: object, what: str) -> Self:
        """The record that a JSON document holds. JsonFileError: "SOURCE is no WHAT" and the first thing amiss."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part)[:80] for part in first["loc"]) or "the document"
            raise JsonFileError(f"{source} is no {what}: {where}: {first['msg']}") from None
