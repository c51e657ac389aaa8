"""`/models`: cards and files."""

from contextlib import suppress
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from model_store.records import ModelCard
from model_store.store import InvalidKey
from model_store.store import NotFound as NotStored
from service.access.principal import PrincipalDep
from service.errors import NotFound, Responses, Unprocessable, problems
from service.models.files import answer
from service.models.schemas import Model, ModelList, linked
from service.state import ServicesDep

router = APIRouter(tags=["models"])

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
