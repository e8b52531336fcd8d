"""Record: the base class of what JSON files specify, and the one way to read a document as a record."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from profiles.json_files import JsonFileError

Text = Annotated[str, Field(max_length=4096)]


class Record(BaseModel):
    """An immutable record, in which no field may be missing, unknown or of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def from_document(cls, document: object, source: object, what: str) -> Self:
        """The record that a JSON document holds.

        Args:
            document: What read_json gives.
            source: The file, for the message.
            what: What the file should be, for the message ("cost profile").

        Raises:
            JsonFileError: The document is no such record; the message says what is wrong first.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part)[:80] for part in first["loc"]) or "the document"
            raise JsonFileError(f"{source} is no {what}: {where}: {first['msg']}") from None
