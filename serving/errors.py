"""Errors of a request, each with its HTTP status; the message becomes `{"error": message}`.

    InputError
    `- RequestError             400  malformed JSON, wrong type, wrong shape, unknown feature
       |- KindError             400  a release of a kind that the route cannot ask
       |- UnknownError          404  no such route, model or version
       |- MethodError           405  the route exists, the method does not
       |- SlowRequestError      408  the body did not arrive in time
       |- TooLargeError         413  more bytes or rows than the service takes
       |- EncodingError         415  a content encoding other than gzip and deflate
       |- QueueFullError        429  try again later
       |- NotReadyError         503  no release is ready, or the service is draining
       `- DeadlineError         504  not scored in time

`Misfit` is what the conversion of values raises where it does not yet know the path of the value.
"""

from __future__ import annotations

from collections.abc import Iterable

from headwater.feature_store.errors import InputError, did_you_mean


class RequestError(InputError):
    """The request cannot be answered as it is; offline, the table cannot be scored as it is."""

    status = 400
    headers: tuple[tuple[str, str], ...] = ()


class KindError(RequestError):
    """The release is of another kind than the one that is asked; `found` is its own."""

    def __init__(self, name: str, *, found: str, expected: str) -> None:
        super().__init__(f"model {name!r}: expected the kind {expected!r}, found {found!r}")
        self.found = found


class UnknownError(RequestError):
    """No such route, model or version."""

    status = 404


class MethodError(RequestError):
    """The route exists, but not for this method; `allowed` are those that it has."""

    status = 405

    def __init__(self, message: str, *, allowed: Iterable[str]) -> None:
        super().__init__(message)
        self.headers = (("allow", ", ".join(sorted(allowed))),)


class SlowRequestError(RequestError):
    """The body did not arrive in time."""

    status = 408


class TooLargeError(RequestError):
    """More bytes or rows than the service takes in one request."""

    status = 413


class EncodingError(RequestError):
    """The body is compressed in a way that the service does not know."""

    status = 415
    headers = (("accept-encoding", "gzip, deflate"),)


class QueueFullError(RequestError):
    """As much work waits as the service lets wait."""

    status = 429
    headers = (("retry-after", "1"),)


class NotReadyError(RequestError):
    """No release of the model is ready, or the service is draining."""

    status = 503
    headers = (("retry-after", "1"),)


class DeadlineError(RequestError):
    """The request was not scored in time."""

    status = 504


class Misfit(Exception):  # noqa: N818  # never leaves the package: `at` makes it a RequestError
    """A value does not fit its input; `place` is where inside the values, as `[3]`."""

    def __init__(self, *, expected: str, found: str, place: str = "") -> None:
        super().__init__(f"{place}: expected {expected}, found {found}")
        self.expected = expected
        self.found = found
        self.place = place

    def at(self, where: str, place: str | None = None) -> RequestError:
        """Return the error for a user: `where`, then `place` (default: the misfit's own)."""
        place = self.place if place is None else place
        return RequestError(f"{where}{place}: expected {self.expected}, found {self.found}")


def unknown_name(where: str, kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that is not known, with the nearest one that is."""
    known = list(known)
    hint = did_you_mean(name, known) or f" Known: {shorten(', '.join(known))}."
    return f"{where}: unknown {kind} {shorten(name)!r}.{hint}"


def shorten(text: str, limit: int = 200) -> str:
    """Return at most `limit` characters of `text`, so that a message never echoes a huge input."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
