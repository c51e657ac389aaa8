from typing import Any

import pytest

from service.access.rules import is_open
from service.errors import MEDIA_TYPE
from tests.service.gateway import Gateway


@pytest.fixture
def schema(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = gateway.client.get("/openapi.json").json()
    return found


def test_errors_are_problem_documents(schema: dict[str, Any]) -> None:
    names = schema["components"]["schemas"]
    assert "HTTPValidationError" not in names
    assert "ValidationError" not in names
    assert set(names["Problem"]["required"]) >= {"type", "title", "status", "detail", "request_id"}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == [MEDIA_TYPE], (method, path, status)


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            found = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return found.union(*(references(value) for value in node.values()))
        return set().union(*map(references, node)) if isinstance(node, list) else set()

    known = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert references(schema) <= known


def test_both_bodies_of_generate(schema: dict[str, Any]) -> None:
    operation = schema["paths"]["/generate"]["post"]
    content = operation["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    form = schema["components"]["schemas"]["GenerateForm"]["properties"]
    body = schema["components"]["schemas"]["GenerateJson"]["properties"]
    assert set(form) - set(body) == {"labels", "dataset"}  # and `dataset_uri` in both
    assert all(option.get("description") for option in (*form.values(), *body.values()))
    for properties in (form, body):
        assert properties["method"]["enum"] == ["conditional-mean", "diffusion", "kde", "retrieve"]
        assert properties["method"]["default"] == "conditional-mean"
        assert properties["holdout"].get("default") is None
        assert "cross-validation" in properties["holdout"]["description"]
    assert {"200", "202", "400", "401", "403", "409", "413", "415", "422", "429", "503"} == set(operation["responses"])
    assert operation["responses"]["202"]["headers"]["Location"]


def test_every_operation_is_there_once_and_described(schema: dict[str, Any]) -> None:
    operations = {
        (method, path): operation for path, methods in schema["paths"].items() for method, operation in methods.items()
    }
    assert set(operations) == {
        ("post", "/generate"),
        ("get", "/jobs"),
        ("get", "/jobs/{job_id}"),
        ("get", "/jobs/{job_id}/events"),
        ("post", "/jobs/{job_id}/cancel"),
        ("get", "/models"),
        ("post", "/models"),
        ("get", "/models/{model_id}/neighbours"),
        ("post", "/similarity"),
        ("post", "/similarity/matrix"),
        ("get", "/models/{model_id}"),
        ("delete", "/models/{model_id}"),
        ("get", "/models/{model_id}/weights"),
        ("head", "/models/{model_id}/weights"),
        ("get", "/models/{model_id}/onnx"),
        ("head", "/models/{model_id}/onnx"),
        ("get", "/targets"),
        ("get", "/bundles"),
        ("get", "/livez"),
        ("get", "/readyz"),
        ("get", "/metrics"),
    }
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(set(ids)) == len(ids)
    assert all(operation["description"] for operation in operations.values())


def test_bodies_of_similarity(schema: dict[str, Any]) -> None:
    def content(path: str) -> set[str]:
        return set(schema["paths"][path]["post"]["requestBody"]["content"])

    assert content("/similarity") == {"multipart/form-data", "application/json"}
    assert content("/similarity/matrix") == {"application/json"}
    assert content("/models") == {"multipart/form-data"}
    shapes = schema["components"]["schemas"]
    plain = {"a", "b", "source", "similarity", "same_architecture", "method", "bundle", "baselines"}
    for name in ("SimilarityForm", "SimilarityJson", "MatrixJson", "UploadForm", "SimilarityResult", "Neighbour"):
        fields = shapes[name]["properties"]
        assert {field for field, about in fields.items() if not about.get("description")} <= plain, name


def test_keys_are_documented_wherever_they_are_needed(schema: dict[str, Any]) -> None:
    assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            keyed = not is_open(method.upper(), path)
            assert ("security" in operation) is keyed, (method, path)
            assert ({"401", "403", "429"} <= set(operation["responses"])) is keyed, (method, path)
            assert keyed is bool(operation.get("x-scopes")), (method, path)


def test_links_lead_to_operations_and_their_parameters(schema: dict[str, Any]) -> None:
    operations = {o["operationId"]: o for methods in schema["paths"].values() for o in methods.values()}
    links = [
        link
        for operation in operations.values()
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert len(links) > 10
    for link in links:
        parameters = {parameter["name"] for parameter in operations[link["operationId"]]["parameters"]}
        assert set(link["parameters"]) <= parameters


def test_the_docs_page(gateway: Gateway) -> None:
    assert gateway.client.get("/docs").status_code == 200
