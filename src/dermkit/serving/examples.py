"""Bodies and problems as /openapi.json describes them, with an example of each."""

from typing import Any

from dermkit.serving.problems import PROBLEM_KINDS, PROBLEM_TYPE
from dermkit.serving.rules import MULTIPART_TYPE
from dermkit.serving.schemas import ProblemAnswer

_IMAGE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, BMP or TIFF; never a URL"}
_METADATA = {
    "type": "string",
    "description": "JSON: age, sex and site of the images, an object for each, for a model that takes them",
    "examples": ['[{"age": 55, "sex": "female", "site": "back"}]'],
}
_GROUPS = {
    "type": "string",
    "description": "JSON: site, device and age_group of the images, one object for all or one for each; taken where "
    "the server keeps a prediction log",
    "examples": ['{"site": "back", "device": "dermatoscope A", "age_group": "50-59"}'],
}


def predict_body() -> dict[str, Any]:
    """Return the body of /v1/predict."""
    images = {"type": "array", "items": _IMAGE, "minItems": 1}
    return _body({"images": images, "metadata": _METADATA, "groups": _GROUPS}, required=["images"])


def explain_body() -> dict[str, Any]:
    """Return the body of /v1/explain."""
    class_name = {"type": "string", "description": "The class to explain; absent = the predicted one"}
    against = {"type": "string", "description": "The class to set it against; absent = all others"}
    fields = {"image": _IMAGE, "class_name": class_name, "against": against, "metadata": _METADATA}
    return _body(fields, required=["image"])


def _body(properties: dict[str, Any], *, required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {MULTIPART_TYPE: {"schema": schema}}}}


def _problem_responses() -> dict[int | str, dict[str, Any]]:
    responses: dict[int | str, dict[str, Any]] = {}
    for status in dict.fromkeys(kind.status for kind in PROBLEM_KINDS.values()):
        kinds = {code: kind for code, kind in PROBLEM_KINDS.items() if kind.status == status}
        examples = {
            code.value: {
                "value": {
                    "type": f"urn:dermkit:problem:{code.value}", "title": kind.title, "status": status,
                    "code": code.value, "detail": kind.title, "request_id": "0" * 32,
                }
            }
            for code, kind in kinds.items()
        }  # fmt: skip
        responses[status] = {
            "description": "; ".join(kind.title for kind in kinds.values()),
            "content": {
                PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}, "examples": examples}
            },
        }
    # One of them carries the model, so that its schema is among the components.
    responses[500] = {**responses[500], "model": ProblemAnswer}
    return responses


PROBLEM_RESPONSES = _problem_responses()
