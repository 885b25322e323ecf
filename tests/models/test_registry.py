"""Naming a model, and the page that lists them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headwater.feature_store.errors import JobError
from headwater.models.base import ModelConfig
from headwater.models.ctr.base import CTRModel
from headwater.models.registry import CTR_MODELS, MODELS, load_model
from headwater.models.retrieval.base import RetrievalModel

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("name", MODELS)
def test_a_registered_model_keeps_its_own_config_and_says_where_it_comes_from(name: str) -> None:
    model_class = load_model(name)
    assert issubclass(model_class, CTRModel if name in CTR_MODELS else RetrievalModel)
    assert issubclass(model_class.config_class, ModelConfig)
    module = model_class.__module__
    assert module == f"headwater.models.{model_class.family}.{name}"


def test_a_model_of_ones_own_is_named_by_module_and_class() -> None:
    assert load_model("headwater.models.ctr.fm:FM").__name__ == "FM"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("finalmpl", r"unknown model 'finalmpl'\. Did you mean 'finalmlp'\?"),
        ("transformer", r"unknown model 'transformer'\. Known: logistic_regression, "),
        ("no_such_package:Model", "cannot import 'no_such_package:Model'"),
        ("headwater.models.ctr.fm:FMM", "cannot import .*FMM"),
    ],
)
def test_a_wrong_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        load_model(name)


@pytest.mark.parametrize("name", MODELS)
def test_the_page_of_models_has_a_row_for_each(name: str) -> None:
    assert f"| `{name}` |" in PAGE.read_text(encoding="utf-8")


def test_the_model_of_ones_own_on_the_page_runs() -> None:
    code = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    namespace: dict[str, Any] = {"__name__": "page"}
    # Not under the page's own name: pydantic would look for docstrings in its lines, which are no Python.
    exec(compile(code, "<page>", "exec", dont_inherit=True), namespace)
    model = namespace["Mean"](namespace["MeanConfig"](embedding_dim=8), num_features=3)
    assert model(torch.randn(5, 3, 8)).shape == (5,)
