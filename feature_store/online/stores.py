"""Open an online store by its URL."""

from __future__ import annotations

from pathlib import Path

from headwater.feature_store.errors import InputError
from headwater.feature_store.online.store import OnlineStore


def open_store(url: str, job: str, *, create: bool = True) -> OnlineStore:
    """Return the store of a job: in an LMDB folder, as `lmdb:PATH`, or a server, as `redis://HOST:6379/0`."""
    scheme, separator, rest = url.partition(":")
    if scheme == "lmdb" and separator and rest:
        # Late, so that a service with another store needs no lmdb.
        from headwater.feature_store.online.lmdb import LmdbStore

        return LmdbStore(Path(rest), job, create=create)
    if scheme in ("redis", "rediss", "valkey", "valkeys") and rest.startswith("//"):
        from headwater.feature_store.online.redis import RedisStore

        return RedisStore(f"{scheme.replace('valkey', 'redis')}:{rest}", job)
    raise InputError(f"store {url!r}: expected lmdb:PATH or redis://HOST:PORT/NUMBER.")
