"""`POST /v1/recommend`: the items for a user, a history or a basket. `POST /v1/similar`: items like some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from headwater.serving.errors import (
    Misfit,
    RequestError,
)
from headwater.serving.kinds.retriever import Retriever
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.operations.recommend import Query, Wish
from headwater.serving.operations.recommend import recommend as recommended
from headwater.serving.protocols.bodies import decoded
from headwater.serving.protocols.json_values import decode_json
from headwater.serving.protocols.rank import tensors_of
from headwater.serving.protocols.routes import (
    ASKING_ERRORS,
    JSON_TYPE,
    Form,
    Request,
    Response,
    Route,
    json_response,
)
from headwater.serving.protocols.value_schemas import (
    JsonSchema,
    body_of_any,
    closed_object,
    value_schema,
)
from headwater.serving.registry import Model
from headwater.serving.service import Service
from headwater.serving.tensors import Arrays

Id = str | int
MOST = 1000
"""Items of an answer, and candidates behind it."""
Count = Annotated[int, msgspec.Meta(ge=1, le=MOST)]
Ids = list[Id]
Filter = Annotated[
    dict[str, Any],
    msgspec.Meta(
        description="Conditions by column, which all must hold: a value, a list of values, or comparisons "
        "(eq, ne, lt, le, gt, ge, in, not_in).",
        examples=[{"year": {"ge": 1990}, "genres": {"in": ["Drama"]}}],
    ),
]


class RecommendQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who asks: a user, a history or a basket, as the release wants it."""

    user: Id | None = None
    history: list[Id | None] | None = None
    """Items, the oldest first."""
    basket: list[Id | None] | None = None
    seen: Ids | None = None
    """Items that are no answer; by default those of history or basket, where the job masks them."""
    context: dict[str, Any] | None = None
    """Inputs of the ranker that the items do not have."""


class RecommendRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Queries, and what their answers should be."""

    model: str
    queries: Annotated[list[RecommendQuery], msgspec.Meta(min_length=1)]
    k: Count = 10
    version: int | None = None
    """Default: the newest version."""
    id: str | None = None
    """Comes back in the answer."""
    filter: Filter | None = None
    allow: Ids | None = None
    """Items of which answers are made; all when absent."""
    block: Ids | None = None
    """Items that no answer has."""
    ranker: str | None = None
    """A click model that ranks what was retrieved."""
    ranker_version: int | None = None
    candidates: Count = 200
    """Items that are retrieved where they are ranked or re-ranked."""
    diversity: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Weight of unlikeness to the items before, by maximal marginal relevance."""
    explain: bool = False
    """Say of each item why it is there."""


class RecommendedItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An item and its score; the other fields where `explain` asked for them."""

    item: Id
    score: float
    retrieval_score: float | None = None
    retrieval_rank: int | None = None
    rank_score: float | None = None
    nearest: Id | None = None
    """Item of the history that it is most like."""
    likeness: float | None = None
    """Cosine with it."""


class RecommendAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The items of one query, the best first."""

    items: list[RecommendedItem]
    fallback: str | None = None
    """Reason why they are not by the model."""


class RankedBy(msgspec.Struct, kw_only=True):
    """The ranker and its version."""

    model: str
    version: int


class RecommendResponse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An answer a query, in the order of the request."""

    model: str
    version: int
    ranker: RankedBy | None = None
    id: str | None = None
    answers: list[RecommendAnswer]


class SimilarRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Items, and how many like them are wanted."""

    model: str
    items: Annotated[Ids, msgspec.Meta(min_length=1)]
    k: Count = 10
    version: int | None = None
    id: str | None = None
    filter: Filter | None = None


class SimilarItem(msgspec.Struct, kw_only=True):
    """An item and its likeness: the cosine of vectors, or the sum of weights of a model without."""

    item: Id
    score: float


class SimilarResponse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The items most like those of the request, without these."""

    model: str
    version: int
    id: str | None = None
    items: list[SimilarItem]


_recommend = msgspec.json.Decoder(RecommendRequest)
_similar = msgspec.json.Decoder(SimilarRequest)


async def recommend(service: Service, request: Request) -> Response:
    """Answer with the best items of each query."""
    message = await decoded(len(request.body), decode_json, _recommend, memoryview(request.body))
    # Both are held from here on, so that one answer is of one version of each.
    _, retriever = service.registry.get(message.model, message.version, Retriever)
    ranker = None
    if message.ranker is not None:
        _, ranker = service.registry.get(message.ranker, message.ranker_version, Scorer)
    queries = [
        _query(each, retriever, ranker, f"$.queries[{number}]")
        for number, each in enumerate(message.queries)
    ]
    wish = Wish(
        k=message.k,
        candidates=message.candidates,
        conditions=message.filter or {},
        allow=message.allow,
        block=message.block or (),
        ranker=ranker,
        diversity=message.diversity,
        explain=message.explain,
    )
    answers = await recommended(service, request.admitted, retriever, queries, wish)
    manifest = retriever.manifest
    by = None
    if ranker is not None:
        by = RankedBy(model=ranker.manifest.name, version=ranker.manifest.version)
    return json_response(
        RecommendResponse(
            model=manifest.name,
            version=manifest.version,
            ranker=by,
            id=message.id,
            answers=[
                RecommendAnswer(
                    items=msgspec.convert(
                        answer.items, list[RecommendedItem], from_attributes=True
                    ),
                    fallback=answer.fallback,
                )
                for answer in answers
            ],
        )
    )


def _query(
    message: RecommendQuery, retriever: Retriever, ranker: Scorer | None, where: str
) -> Query:
    wanted = retriever.retrieval.query
    given = {
        name: value
        for name in ("user", "history", "basket")
        if (value := getattr(message, name)) is not None
    }
    # A basket is a history whose order means nothing.
    asked = given.pop(wanted, None)
    if given or asked is None:
        found = " and ".join(map(repr, given)) or "nothing"
        raise RequestError(
            f"{where}: expected {wanted!r}, which model {retriever.manifest.name!r} answers, found {found}"
        )
    context: Arrays = {}
    for name, value in (message.context or {}).items():
        path = f"{where}.context.{name}"
        if ranker is None:
            raise RequestError(f"{path}: the context is for a ranker; name one")
        column = ranker.signature.inputs.get(name)
        if column is None:
            raise ranker.signature.unknown(path, "input", name, ranker.signature.inputs)
        try:
            context |= tensors_of(column, [value])
        except Misfit as fault:
            raise fault.at(path, fault.place.removeprefix("[0]")) from None
    return Query(asked, message.seen, context)


async def similar(service: Service, request: Request) -> Response:
    """Answer with the items most like some."""
    message = await decoded(len(request.body), decode_json, _similar, memoryview(request.body))
    _, retriever = service.registry.get(message.model, message.version, Retriever)
    items = retriever.items
    places = [items.place(each, f"$.items[{n}]") for n, each in enumerate(message.items)]
    mask = items.mask(message.filter, "$.filter") if message.filter else None
    name = retriever.manifest.name
    request.admitted.take(name, 1)
    found, scores = await service.batcher.call(
        lambda: retriever.similar(places, message.k, mask), name, 1
    )
    pairs = zip(found.tolist(), scores.tolist(), strict=True)
    return json_response(
        SimilarResponse(
            model=name,
            version=retriever.manifest.version,
            id=message.id,
            items=[SimilarItem(item=items.ids[place], score=score) for place, score in pairs],
        )
    )


def schemas_of(path: str, models: Mapping[str, Model]) -> dict[str, JsonSchema]:
    """Return the body of a recommendation by any retriever that is loaded, for the only path."""
    return body_of_any(path, models, Retriever, _schema)


def _schema(retriever: Retriever, is_newest: bool) -> JsonSchema:
    """Return the body of `POST /v1/recommend` for a release, with an example."""
    manifest, wanted = retriever.manifest, retriever.retrieval.query
    own = closed_object({wanted: value_schema(retriever.asker)})
    own["additionalProperties"] = True
    own["required"] = [wanted]
    version = {"enum": [manifest.version, None] if is_newest else [manifest.version]}
    first = retriever.items.ids[:2]
    return {
        "type": "object",
        "title": f"{manifest.name}, version {manifest.version}",
        "properties": {
            "model": {"const": manifest.name},
            "version": version,
            "queries": {"type": "array", "minItems": 1, "items": own},
        },
        "required": ["model", "queries", *([] if is_newest else ["version"])],
        "examples": [
            {
                "model": manifest.name,
                "queries": [{wanted: "a user" if wanted == "user" else first}],
                "k": 10,
            }
        ],
    }


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/recommend",
        recommend,
        "Recommend items for users, histories or baskets",
        kind=Retriever,
        bodies=(Form(JSON_TYPE, RecommendRequest),),
        answers=(Form(JSON_TYPE, RecommendResponse),),
        schemas_of=schemas_of,
        errors=ASKING_ERRORS,
    ),
    Route(
        "POST",
        "/v1/similar",
        similar,
        "Find items like some",
        kind=Retriever,
        bodies=(Form(JSON_TYPE, SimilarRequest),),
        answers=(Form(JSON_TYPE, SimilarResponse),),
        errors=ASKING_ERRORS,
    ),
)
