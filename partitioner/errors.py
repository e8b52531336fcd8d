"""Errors of planning; each message says what was expected, what came and what to do."""


class PartitionerError(Exception):
    """Base of every error that partitioner raises for its user; ``exit_code`` is the command's."""

    exit_code = 2


class UsageError(PartitionerError):
    """An option, a name or a combination of them is wrong."""


class TraceError(PartitionerError):
    """The denoiser cannot be traced."""


class ForwardFailed(TraceError):
    """The denoiser's forward cannot be traced with these arguments; with others it may be."""


class MeasureError(PartitionerError):
    """A device is not there, or cannot run what was to be measured."""


class PlanError(PartitionerError):
    """A plan file is corrupt, of another kind, or does not fit the model."""

    exit_code = 3


class InfeasibleError(PartitionerError):
    """No split satisfies the constraints."""

    exit_code = 4


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty; the name of its class where it has no message.

    >>> first_line(ValueError("\\nbad value\\nmore"))
    'bad value'
    >>> first_line(KeyboardInterrupt())
    'KeyboardInterrupt'
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, to stand inside a sentence: without its full stop.

    >>> reason_of(ValueError("The value is bad.\\nMore about it."))
    'The value is bad'
    """
    return first_line(error).rstrip(".")
