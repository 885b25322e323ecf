"""The models a job file can name. An entry is `module:Class`, imported when it is used."""

from __future__ import annotations

import importlib
from typing import Any

from headwater.feature_store.errors import JobError, did_you_mean

CTR_MODELS = {
    "logistic_regression": "headwater.models.ctr.logistic_regression:LogisticRegression",
    "fm": "headwater.models.ctr.fm:FM",
    "dnn": "headwater.models.ctr.dnn:DNN",
    "dual_mlp": "headwater.models.ctr.dual_mlp:DualMLP",
    "deepfm": "headwater.models.ctr.deepfm:DeepFM",
    "dcnv2": "headwater.models.ctr.dcnv2:DCNv2",
    "finalmlp": "headwater.models.ctr.finalmlp:FinalMLP",
    "optinter": "headwater.models.ctr.optinter:OptInter",
    "optembed": "headwater.models.ctr.optembed:OptEmbed",
}
RETRIEVAL_MODELS = {
    "popularity": "headwater.models.retrieval.popularity:Popularity",
    "item_knn": "headwater.models.retrieval.item_knn:ItemKNN",
    "rp3beta": "headwater.models.retrieval.rp3beta:RP3beta",
    "ease": "headwater.models.retrieval.ease:EASE",
    "bpr_mf": "headwater.models.retrieval.bpr_mf:BPRMF",
    "lightgcn": "headwater.models.retrieval.lightgcn:LightGCN",
    "dccf": "headwater.models.retrieval.dccf:DCCF",
    "sasrec": "headwater.models.retrieval.sasrec:SASRec",
    "cl4srec": "headwater.models.retrieval.cl4srec:CL4SRec",
    "mclrec": "headwater.models.retrieval.mclrec:MCLRec",
    "multi_dae": "headwater.models.retrieval.multi_dae:MultiDAE",
}
MODELS = CTR_MODELS | RETRIEVAL_MODELS

ADDING_COLUMNS = frozenset({"optinter"})
"""Registered models with `columns` beside the declared ones; the others need not be imported to know it."""


def may_add_columns(name: str) -> bool:
    """Return whether a model may read columns beside the declared ones, as one of a user's own may."""
    return name in ADDING_COLUMNS or name not in MODELS


def load_model(name: str) -> type[Any]:
    """Return the class of a registered name or of `package.module:Class`; else JobError."""
    target = MODELS.get(name, name)
    module, _, attribute = target.partition(":")
    if not attribute:
        hint = did_you_mean(name, MODELS)
        raise JobError(
            f"model.type: unknown model {name!r}.{hint} Known: {', '.join(MODELS)}. "
            "Your own model is named as 'package.module:Class'."
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise JobError(f"model.type: cannot import {target!r}: {error}.") from error
