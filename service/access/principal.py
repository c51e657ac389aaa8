"""Who a request comes from."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from service.access.keys import LOCAL, SCOPES, Allowance, Scope


@dataclass(frozen=True)
class Principal:
    """A key, as endpoints see it."""

    key_id: str
    owner: str | None
    """Whose jobs and models are this one's; None where keys are off."""
    scopes: frozenset[Scope]
    allowance: Allowance = field(default_factory=Allowance)
    webhook_versions: tuple[int, ...] = (1,)

    def may(self, scopes: Collection[Scope]) -> bool:
        """Whether one of these scopes is held."""
        return "admin" in self.scopes or not self.scopes.isdisjoint(scopes)

    @property
    def sees(self) -> str | None:
        """The owner whose jobs and models are all that may be seen; None for everybody's."""
        return None if "admin" in self.scopes else self.owner

    def may_see(self, owner: str | None) -> bool:
        """Whether something of this owner's may be seen."""
        return "admin" in self.scopes or (owner is not None and owner == self.owner)


ANYBODY = Principal(LOCAL, None, frozenset(SCOPES))
"""Everyone, where keys are off."""


async def _principal(request: Request) -> Principal:
    return cast(Principal, request.state.principal)


PrincipalDep = Annotated[Principal, Depends(_principal)]
