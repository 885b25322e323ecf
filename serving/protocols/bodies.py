"""The body of a request: read and inflated within its bounds, and decoded beside the event loop if large."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from headwater.serving.errors import EncodingError, RequestError, TooLargeError, shorten
from headwater.serving.protocols.routes import Headers

if TYPE_CHECKING:
    from granian.rsgi import HTTPProtocol

P = ParamSpec("P")
T = TypeVar("T")

LARGE_BYTES = 256 * 1024
"""A larger body is decoded off the event loop, so that it does not hold up small ones."""

_WBITS = {"gzip": 31, "deflate": 15}
_GZIP_MAGIC = b"\x1f\x8b"
_MEMBER_STEP = 1024
"""Of a further member, so many bytes are read first, then twice as many: zlib copies what is after its end,
and there may be many members."""
_DISCARD = 8
"""Of a body that is too large, at most this many times the limit is read on, so that the client
gets to read the answer; then the connection is closed under it."""


async def read_body(protocol: HTTPProtocol, headers: Headers, limit: int) -> bytes:
    """Return the body as it came; raises `TooLargeError` above `limit` bytes."""
    length = headers.get("content-length")
    if length is None and headers.get("transfer-encoding") is None:
        return b""
    if length is not None and int(length) <= limit:
        return await protocol()
    # A declared length is refused as well by reading: a body left unread would reset the connection.
    chunks: list[bytes] = []
    size = 0
    async for chunk in protocol:
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        else:
            chunks.clear()
            if size > _DISCARD * limit:
                break
    if size > limit:
        raise TooLargeError(
            f"body: expected at most {limit} bytes, found {length or 'more'}; send fewer rows at once"
        )
    return b"".join(chunks)


def inflate(body: bytes, encoding: str | None, limit: int) -> bytes:
    """Return the body without its content encoding, `gzip` or `deflate` (which is zlib's format).

    A gzip body may have several members after each other, as RFC 1952 says. Raises `EncodingError` for
    another encoding, `TooLargeError` above `limit` bytes, `RequestError` where the data is corrupt.
    """
    encoding = (encoding or "identity").strip().lower()
    if encoding == "identity":
        return body
    wbits = _WBITS.get(encoding.removeprefix("x-"))
    if wbits is None:
        raise EncodingError(
            f"content-encoding: expected gzip or deflate, found {shorten(encoding, 60)!r}"
        )
    decoder = zlib.decompressobj(wbits)
    view = memoryview(body)
    pieces: list[bytes] = []
    size = start = 0
    # Nearly always one step is all.
    step = len(body)
    while True:
        try:
            piece = decoder.decompress(view[start : start + step], limit + 1 - size)
        except zlib.error as error:
            raise RequestError(f"body: expected valid {encoding}, found: {error}") from None
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise TooLargeError(
                f"body: expected at most {limit} bytes after {encoding}, found more"
            )
        start = min(start + step, len(body)) - len(decoder.unused_data)
        if not decoder.eof:
            if start == len(body):
                raise RequestError(f"body: expected valid {encoding}, found the data cut short")
            step *= 2
        elif start == len(body):
            return b"".join(pieces)
        elif wbits == _WBITS["gzip"] and body.startswith(_GZIP_MAGIC, start):
            decoder, step = zlib.decompressobj(wbits), _MEMBER_STEP
        else:
            raise RequestError(f"body: expected valid {encoding}, found bytes after its end")


async def decoded(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `function(*args)`, computed in a thread where `size` bytes would hold up others."""
    if size <= LARGE_BYTES:
        return function(*args, **kwargs)
    call = partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(None, call)
