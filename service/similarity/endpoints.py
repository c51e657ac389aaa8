"""`/similarity`, `/similarity/matrix`, `/models/{id}/neighbours`."""

from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from service import forms
from service.access.principal import Principal, PrincipalDep
from service.errors import Responses, TooLarge, Unprocessable, UnsupportedType, invalid, problems
from service.jobs.once import REPLAYED, IdempotencyKey
from service.jobs.schemas import Job
from service.jobs.service import wait
from service.models.endpoints import CardDep
from service.models.uploads import inspect
from service.similarity import service
from service.similarity.schemas import MatrixJson, SimilarityForm, SimilarityJson
from service.similarity.service import Source
from service.state import Services, ServicesDep
from workers.messages import JobRecord, MatrixResult, NeighboursResult, SimilarityResult

router = APIRouter(tags=["similarity"])
BODIES = (SimilarityForm, SimilarityJson, MatrixJson)
"""Models of the bodies, for the OpenAPI schema: files are read by hand, while they come in."""

_Body = TypeVar("_Body", bound=BaseModel)
_SIDES = ("a", "b")
_HEADERS = {
    "Location": {"description": "The job.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds until it is worth asking.", "schema": {"type": "integer"}},
    **REPLAYED,
}
PreferHeader = Annotated[str, Header(description="`respond-async` asks for the job instead of the answer.")]


def _answers(result: type[BaseModel], *statuses: int) -> Responses:
    return {
        200: {"model": result, "description": "The answer."},
        202: {"model": Job, "description": "The job, where the answer takes longer.", "headers": _HEADERS},
        **problems(*statuses),
    }


def _body(**content: type[BaseModel]) -> dict[str, Any]:
    types = {"form": "multipart/form-data", "json": "application/json"}
    references = {
        types[kind]: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}} for kind, model in content.items()
    }
    return {"requestBody": {"required": True, "content": references}}


@router.post(
    "/similarity",
    responses=_answers(SimilarityResult, 400, 404, 409, 410, 413, 415, 422, 503),
    openapi_extra=_body(form=SimilarityForm, json=SimilarityJson),
    response_model=None,
)
async def compare(
    request: Request,
    services: ServicesDep,
    principal: PrincipalDep,
    prefer: PreferHeader = "",
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """How related the tasks of two checkpoints are, judged by their weights alone; nothing is run or unpickled.

    Large checkpoints lead to a job. Values that are NaN or infinite are refused.
    """
    kind = forms.media_type(request)
    if kind == "application/json":
        given = _parsed(SimilarityJson, await forms.small_body(request))
        pointers = [f"/{name}" for name in _SIDES]
        cards = await run_in_threadpool(service.cards_of, services, principal, [given.a, given.b], pointers)
        sides = dict(zip(_SIDES, cards, strict=True))
        asked = await run_in_threadpool(service.compare_pair, services, principal, sides, idempotency_key)
        return await _answer(services, *asked, held=service.is_small(services, cards) and _waits(prefer))
    if kind != "multipart/form-data":
        raise UnsupportedType("Send multipart/form-data or application/json.")
    async with forms.form(request, files=2, fields=2) as data:
        forms.no_others(data, frozenset(_SIDES))
        sources = {name: await run_in_threadpool(_source, services, principal, data, name) for name in _SIDES}
        asked = await run_in_threadpool(service.compare_pair, services, principal, sources, idempotency_key)
    return await _answer(services, *asked, held=service.is_small(services, list(sources.values())) and _waits(prefer))


@router.post(
    "/similarity/matrix",
    responses=_answers(MatrixResult, 400, 404, 409, 410, 413, 422, 503),
    openapi_extra=_body(json=MatrixJson),
    response_model=None,
)
async def compare_all(
    request: Request,
    services: ServicesDep,
    principal: PrincipalDep,
    prefer: PreferHeader = "",
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """The similarity of every pair of some stored models."""
    ids = _parsed(MatrixJson, await forms.small_body(request)).ids
    most = services.settings.max_matrix_models
    if len(ids) > most:
        raise TooLarge(f"There are {len(ids):,} models; the limit is {most:,}.", pointer="/ids")
    pointers = [f"/ids/{number}" for number in range(len(ids))]
    cards = await run_in_threadpool(service.cards_of, services, principal, ids, pointers)
    asked = await run_in_threadpool(service.compare_all, services, principal, cards, idempotency_key)
    return await _answer(services, *asked, held=service.is_small(services, cards) and _waits(prefer))


@router.get(
    "/models/{model_id}/neighbours",
    responses=_answers(NeighboursResult, 404, 409, 410, 422, 503),
    response_model=None,
)
async def neighbours(
    services: ServicesDep,
    principal: PrincipalDep,
    card: CardDep,
    k: Annotated[int, Query(ge=1, le=100, description="How many.")] = 10,
    prefer: PreferHeader = "",
) -> Response:
    """The stored models, and the zoo models of the bundle, whose tasks are most like a model's own."""
    record = await run_in_threadpool(service.look_around, services, principal, card, k)
    return await _answer(services, record, new=True, held=_waits(prefer))


def _parsed(model: type[_Body], body: bytes) -> _Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False, include_context=False)) from None


def _source(services: Services, principal: Principal, data: Any, name: str) -> Source:
    value = forms.one(data, name)
    if value is None:
        raise Unprocessable(f"`{name}` is missing: send a file, or the id of a stored model.", pointer=f"/{name}")
    if isinstance(value, str):
        return service.cards_of(services, principal, [value], [f"/{name}"])[0]
    return inspect(value, services.settings, f"/{name}")


def _waits(prefer: str) -> bool:
    return "respond-async" not in (part.strip().lower() for part in prefer.replace(";", ",").split(","))


async def _answer(services: Services, record: JobRecord, new: bool, *, held: bool) -> Response:
    headers = {} if new else {"Idempotent-Replayed": "true"}
    if held:
        record = await wait(services, record.id, services.settings.max_wait_s)
        if (result := service.result_of(record)) is not None:
            return Response(result.model_dump_json(), headers=headers, media_type="application/json")
    job = Job.of(record)
    headers |= {"Location": job.links.self, "Retry-After": "1"}
    return Response(job.model_dump_json(), HTTPStatus.ACCEPTED, headers, "application/json")
