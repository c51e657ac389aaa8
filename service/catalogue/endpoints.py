"""`GET /targets`, `GET /bundles`."""

from fastapi import APIRouter

from service.catalogue.schemas import BundleList, TargetList
from service.errors import problems
from service.state import ServicesDep

router = APIRouter(tags=["catalogue"])


@router.get("/targets", responses=problems(503))
def list_targets(services: ServicesDep) -> TargetList:
    """What can be generated, with the accuracy to expect."""
    return TargetList(targets=services.catalogue.targets(), default=services.catalogue.bundle().default_target)


@router.get("/bundles", responses=problems(503))
def list_bundles(services: ServicesDep) -> BundleList:
    """What generates: training data, measured results, licence."""
    return BundleList(bundles=(services.catalogue.bundle(),))
