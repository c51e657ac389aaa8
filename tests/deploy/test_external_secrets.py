"""The secrets of the overlay for AWS, as the External Secrets operator would read them; needs no kubectl."""

import jsonschema
import pytest
import yaml

from tests.deploy import external_secrets
from tests.deploy.manifests import ROOT, Resource


@pytest.fixture
def store_and_secret() -> list[Resource]:
    found = list(yaml.safe_load_all((ROOT / "k8s" / "overlays" / "aws" / "secrets.yaml").read_text()))
    assert [resource["kind"] for resource in found] == ["SecretStore", "ExternalSecret"]
    return found


def test_they_fit_the_operators_schema(store_and_secret: list[Resource]) -> None:
    for resource in store_and_secret:
        external_secrets.check(resource)


def test_a_field_that_the_operator_does_not_know_is_found(store_and_secret: list[Resource]) -> None:
    store, secret = store_and_secret
    for resource, part in (
        (store, store["spec"]["provider"]["aws"]),
        (secret, secret["spec"]["target"]),
        (secret, secret["spec"]["data"][0]["remoteRef"]),
    ):
        part["nameless"] = "x"
        with pytest.raises(jsonschema.ValidationError, match="nameless"):
            external_secrets.check(resource)
        del part["nameless"]


def test_a_field_that_the_operator_needs_is_missed(store_and_secret: list[Resource]) -> None:
    store, secret = store_and_secret
    for resource, part, name in (
        (store, store["spec"]["provider"]["aws"], "region"),
        (secret, secret["spec"]["data"][0]["remoteRef"], "key"),
    ):
        del part[name]
        with pytest.raises(jsonschema.ValidationError, match=f"'{name}' is a required property"):
            external_secrets.check(resource)
