"""`/models`: cards and files."""

from contextlib import suppress
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from model_store.records import ModelCard
from model_store.store import InvalidKey
from model_store.store import NotFound as NotStored
from service import forms
from service.access.principal import PrincipalDep
from service.errors import NotFound, Responses, Unprocessable, UnsupportedType, problems
from service.models.files import answer
from service.models.schemas import Model, ModelList, UploadForm, linked
from service.models.uploads import inspect, keep
from service.state import ServicesDep

router = APIRouter(tags=["models"])
BODIES = (UploadForm,)
"""Models of the body, for the OpenAPI schema: the file is read by hand, while it comes in."""

_BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_FILE: Responses = {
    200: {"description": "The file; its `ETag` is its SHA-256.", **_BINARY},
    206: {"description": "The range asked for.", **_BINARY},
    304: {"description": "The client has it."},
    307: {"description": "The file is at this URL of the store for a while."},
    **problems(404, 416, 503),
}


@router.get("/models", responses=problems(422, 503))
def list_models(
    services: ServicesDep,
    principal: PrincipalDep,
    target: Annotated[str | None, Query(description="Only models of this target.")] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> ModelList:
    """Models, newest first."""
    try:
        page = services.models.list(after=cursor, limit=limit, target=target, owner=principal.sees)
    except InvalidKey as error:
        raise Unprocessable("The cursor is not one of ours; leave it out to start anew.", pointer="/cursor") from error
    return ModelList(models=[linked(card) for card in page.models], next_cursor=page.next_cursor)


@router.post(
    "/models",
    status_code=HTTPStatus.CREATED,
    responses={
        200: {"model": Model, "description": "The model was there already: its card as it is."},
        201: {
            "description": "The card of the new model.",
            "headers": {"Location": {"description": "The model.", "schema": {"type": "string"}}},
        },
        **problems(400, 413, 415, 422, 503),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": {"$ref": f"#/components/schemas/{UploadForm.__name__}"}}},
        }
    },
)
async def upload_model(request: Request, response: Response, services: ServicesDep, principal: PrincipalDep) -> Model:
    """Store a checkpoint of your own, as safetensors; a pickle is never opened.

    Values are not looked at here: NaN and infinity are stored, and refused where a checkpoint is compared.
    """
    if forms.media_type(request) != "multipart/form-data":
        raise UnsupportedType("Send multipart/form-data, the checkpoint as the file `weights`.")
    async with forms.form(request, files=1, fields=services.settings.max_classes + 1) as data:
        forms.no_others(data, frozenset(UploadForm.model_fields))
        weights, licence = forms.one(data, "weights"), forms.one(data, "licence") or ""
        if weights is None or isinstance(weights, str):
            raise Unprocessable("`weights` must be sent as a file, with a filename.", pointer="/weights")
        classes = [name for name in data.getlist("classes") if isinstance(name, str)]
        if not isinstance(licence, str) or len(licence) > 200:
            raise Unprocessable("`licence` is a text of at most 200 characters.", pointer="/licence")
        checkpoint = await run_in_threadpool(inspect, weights, services.settings, "/weights")
        card, new = await run_in_threadpool(keep, services, principal.owner, checkpoint, classes, licence)
    response.headers["Location"] = f"/models/{card.id}"
    if not new:
        response.status_code = HTTPStatus.OK
    return linked(card)


def _card(services: ServicesDep, principal: PrincipalDep, model_id: str) -> ModelCard:
    with suppress(NotStored):
        card = services.models.card(model_id)
        if principal.may_see(card.owner):
            return card
    raise NotFound(f"There is no model {model_id[:100]!r}.")


CardDep = Annotated[ModelCard, Depends(_card)]


@router.get("/models/{model_id}", responses=problems(404, 503))
def get_model(card: CardDep) -> Model:
    """The card of a model."""
    return linked(card)


@router.delete("/models/{model_id}", status_code=HTTPStatus.NO_CONTENT, responses=problems(404, 503))
def delete_model(services: ServicesDep, card: CardDep) -> None:
    """Remove a model for good."""
    services.models.delete(card.id)


@router.get("/models/{model_id}/weights", response_class=Response, responses=_FILE)
@router.head("/models/{model_id}/weights", response_class=Response, responses=_FILE)
def get_weights(services: ServicesDep, card: CardDep, request: Request) -> Response:
    """The weights as safetensors."""
    return answer(request, services.models, card, "weights", services.settings.url_expires_s)


@router.get("/models/{model_id}/onnx", response_class=Response, responses=_FILE)
@router.head("/models/{model_id}/onnx", response_class=Response, responses=_FILE)
def get_onnx(services: ServicesDep, card: CardDep, request: Request) -> Response:
    """The whole runnable model: uint8 images (n,h,w,c) in, logits out, class names in its metadata."""
    return answer(request, services.models, card, "onnx", services.settings.url_expires_s)
