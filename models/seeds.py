"""Seeds of the parts of a model, from the one seed of a run."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str) -> int:
    """Return a 63-bit seed for a part of a model, from the run's seed and the part's names."""
    text = "\0".join((str(seed), *names)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
