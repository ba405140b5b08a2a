"""The errors a user may meet: each message says what, where, what was expected and what to do."""


class RisfError(Exception):
    """Base of all errors that a user can mend; launchers print it as one line without a traceback."""


class ParamsError(RisfError):
    """A parameter file or value is wrong."""


class DataError(RisfError):
    """An image, an annotation file or a path of the data is wrong; `problems` are all findings, one line each."""

    def __init__(self, message: str, *, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class SplitError(RisfError):
    """A base/novel partition or a few-shot split cannot be had from the data; `kind` names the cause for the check."""

    def __init__(self, message: str, *, kind: str = "base and novel classes") -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(RisfError):
    """A checkpoint is unreadable or does not fit the model."""


class RecordError(RisfError):
    """A run that is needed is not finished, or its record is unreadable or out of date."""


class ShapeError(RisfError, ValueError):
    """A tensor or array has the wrong shape, type or range."""
