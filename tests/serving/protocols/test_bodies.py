"""Compressed bodies: gzip in one member or several, and what is no whole body."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.serving.errors import RequestError, TooLargeError
from headwater.serving.protocols.bodies import inflate

RANK = json.dumps({"model": "shop", "candidates": [{"item": 1}, {"item": 2}]}).encode()
EMPTY = gzip.compress(b"", mtime=0)
# Longer than a step that is read of a member, compressed too.
NOISE = random.Random(0).randbytes(10_000)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", " GZIP "])
@given(parts=st.lists(st.binary(), min_size=1))
def test_members_after_each_other_are_one_body(encoding: str, parts: list[bytes]) -> None:
    body = b"".join(gzip.compress(part, mtime=0) for part in parts)
    assert inflate(body, encoding, 10_000) == b"".join(parts)


def test_members_may_be_large_or_have_names() -> None:
    compressor = zlib.compressobj(wbits=31, strategy=zlib.Z_HUFFMAN_ONLY)
    other = compressor.compress(NOISE) + compressor.flush()
    named = b"\x1f\x8b\x08\x08" + bytes(6) + b"name\0" + gzip.compress(RANK, mtime=0)[10:]
    body = gzip.compress(NOISE, mtime=0) + EMPTY + other + named + EMPTY
    assert inflate(body, "gzip", 10**6) == NOISE * 2 + RANK


def test_bound_holds_for_all_members_together() -> None:
    body = gzip.compress(b" " * 600) + EMPTY + gzip.compress(NOISE, mtime=0)
    assert len(inflate(body, "gzip", 10_600)) == 10_600
    with pytest.raises(TooLargeError, match="expected at most 10599 bytes after gzip"):
        inflate(body, "gzip", 10_599)


_SECOND = gzip.compress(NOISE, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        ("gzip", b"", "cut short"),
        ("gzip", EMPTY + _SECOND[:-1], "cut short"),
        ("gzip", EMPTY + _SECOND[:2000], "cut short"),
        ("gzip", EMPTY + _SECOND[:2], "cut short"),
        ("gzip", EMPTY + _SECOND[:1], "bytes after its end"),
        ("gzip", EMPTY * 2 + b"x", "bytes after its end"),
        ("gzip", EMPTY * 2 + bytes(8), "bytes after its end"),
        ("gzip", EMPTY + zlib.compress(b"{}"), "bytes after its end"),
        ("gzip", EMPTY + _SECOND[:-8] + bytes(8), "incorrect data check"),
        ("gzip", EMPTY + b"\x1f\x8b\x07" + bytes(20), "unknown compression method"),
        ("deflate", zlib.compress(b"{}") * 2, "bytes after its end"),
        ("deflate", zlib.compress(b"{}") + EMPTY, "bytes after its end"),
    ],
)
def test_what_is_not_whole_members_is_refused(encoding: str, body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=f"body: expected valid {encoding}, found.*{message}"):
        inflate(body, encoding, 10**6)


def test_many_members_are_inflated_in_time() -> None:
    # In time that grows with the square of their number, it would take minutes.
    assert inflate(gzip.compress(b"1", mtime=0) * 50_000, "gzip", 10**6) == b"1" * 50_000


def test_request_in_several_members_is_answered(server: Any) -> None:
    members = [gzip.compress(part, mtime=0) for part in (RANK[:30], b"", RANK[30:])]
    status, answer = server.post("/v1/rank", b"".join(members), content_encoding="gzip")
    assert (status, answer) == server.post("/v1/rank", RANK)
    assert status == 200


@pytest.mark.parametrize(
    ("tail", "status", "message"),
    [
        (b"x", 400, "body: expected valid gzip, found bytes after its end"),
        (
            gzip.compress(b" ", mtime=0)[:-3],
            400,
            "body: expected valid gzip, found the data cut short",
        ),
        (gzip.compress(b" " * (4 << 20)), 413, "body: expected at most 4194304 bytes after gzip"),
    ],
)
def test_request_with_a_wrong_last_member_is_refused(
    server: Any, tail: bytes, status: int, message: str
) -> None:
    answer = server.post("/v1/rank", gzip.compress(RANK, mtime=0) + tail, content_encoding="gzip")
    assert answer[0] == status
    assert message in answer[1]["error"]


@pytest.mark.parametrize(
    ("encoding", "body", "status", "message"),
    [
        ("br", b"{}", 415, "content-encoding: expected gzip or deflate, found 'br'"),
        ("gzip", b"{}", 400, "body: expected valid gzip"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-3], 400, "cut short"),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"x", 400, "bytes after its end"),
        ("deflate", zlib.compress(b" " * (5 << 20)), 413, "after deflate"),
        ("gzip", gzip.compress(b" " * (5 << 20)), 413, "after gzip"),
    ],
)
def test_bad_content_encoding_is_refused(
    server: Any, encoding: str, body: bytes, status: int, message: str
) -> None:
    answer = server.post("/v2/models/shop/infer", body, content_encoding=encoding)
    assert answer[0] == status
    assert message in answer[1]["error"]
