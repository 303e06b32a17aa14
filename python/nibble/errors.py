"""What can go wrong, also under the names that Python has for it."""
from __future__ import annotations


class NibbleError(Exception):
    """Base of all errors of this package."""


class InvalidArgumentError(NibbleError, ValueError):
    """Something malformed was asked for."""


class NotFoundError(NibbleError, FileNotFoundError):
    """No such file or model."""


class CorruptError(NibbleError):
    """A file that contradicts itself."""


class UnsupportedError(NibbleError, NotImplementedError):
    """Well formed, but not by this build or device."""


class OutOfMemoryError(NibbleError, MemoryError):
    """Of the host, or of the KV cache."""


class UnavailableError(NibbleError):
    """Shutting down."""


class CancelledError(NibbleError):
    """Interrupted."""


# By the numbers of nibble::ErrorCode.
_CLASSES = (
    InvalidArgumentError,
    NotFoundError,
    CorruptError,
    UnsupportedError,
    OutOfMemoryError,
    UnavailableError,
    CancelledError,
)


def error_of(code: int, message: str) -> NibbleError:
    return _CLASSES[code - 1](message)
