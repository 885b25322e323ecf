"""Files are known by their content."""

from __future__ import annotations

from pathlib import Path

from headwater.feature_store.files import file_sha256


def test_a_file_is_known_by_the_sha256_of_its_content(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == expected
