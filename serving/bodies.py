"""Reads a request's body within its bounds: bytes on the wire and, where compressed, bytes inflated."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from headwater.serving.errors import EncodingError, RequestError, TooLargeError, shorten
from headwater.serving.routes import Headers

if TYPE_CHECKING:
    from granian.rsgi import HTTPProtocol

_WBITS = {"gzip": 31, "deflate": 15}
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

    Raises `EncodingError` for another, `TooLargeError` above `limit` bytes, `RequestError` where the data
    is corrupt.
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
    try:
        data = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(f"body: expected valid {encoding}, found: {error}") from None
    if len(data) > limit:
        raise TooLargeError(f"body: expected at most {limit} bytes after {encoding}, found more")
    if not decoder.eof or decoder.unused_data:
        what = "bytes after its end" if decoder.eof else "the data cut short"
        raise RequestError(f"body: expected valid {encoding}, found {what}")
    return data
