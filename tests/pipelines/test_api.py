"""The Python API: what `headwater.pipelines` offers, lazily."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

import headwater.pipelines


@pytest.mark.parametrize("name", headwater.pipelines.__all__)
def test_every_public_name_is_what_it_says_even_after_its_submodule_is_imported(name: str) -> None:
    value = getattr(headwater.pipelines, name)
    importlib.import_module(value.__module__)
    assert getattr(headwater.pipelines, name) is value
    assert not isinstance(value, ModuleType)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'foretell'"):
        headwater.pipelines.foretell  # noqa: B018
