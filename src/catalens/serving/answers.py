"""What the API answers, as its OpenAPI description shows it.

{"predictions": [{"fields": {"title": {"value": "Red Tote Bag", "confidence": 0.97, "needs_review": false},
                             "full_price": {"value": 129.0, "confidence": 0.64, "needs_review": true,
                                            "low": 112.4, "high": 148.1}},
                  "needs_review": true, "error": null}],
 "calibrated": true, "model": "demo"}
"""

from typing import Any

from pydantic import BaseModel

from catalens.config import PromptSpec
from catalens.examples import Value
from catalens.inference import Prediction
from catalens.serving.intake import JSON, MULTIPART, PictureSource

REFUSALS = {
    400: "the form is broken or cut short",
    401: "the token is missing or wrong",
    403: "asked by another site's page",
    408: "the body came too slowly",
    413: "body, picture or number of pictures too large",
    415: "neither multipart/form-data nor application/json",
    422: "the only picture cannot be read, or the body has another form",
    429: "the queue is full: come back after Retry-After seconds",
    503: "no answer in time, the model failed, or the server is ending: come back after Retry-After seconds",
}
"""Why there is no answer, by status."""


class FieldAnswer(BaseModel, use_attribute_docstrings=True):
    """One field of a picture."""

    value: Value
    """What the picture shows."""
    confidence: float | None
    """Probability that the value is right (a number: within 10 % of the truth)."""
    needs_review: bool
    """Whether a person should look at it."""


class NumberAnswer(FieldAnswer):
    """A number, with bounds that hold the truth as often as the calibration promises; null without a calibration."""

    low: float | None
    high: float | None


class PictureAnswer(BaseModel, use_attribute_docstrings=True):
    """One picture."""

    fields: dict[str, NumberAnswer | FieldAnswer]
    """By column; empty where there is an error."""
    needs_review: bool
    """Whether any field does, or there is an error."""
    error: str | None
    """Why the picture was not read."""


class Answer(BaseModel, use_attribute_docstrings=True):
    """All pictures of a request, in its order."""

    predictions: list[PictureAnswer]
    calibrated: bool
    """Whether confidences are calibrated; where not, they are the model's own."""
    model: str
    """Name of the run."""


def answer_of(prompt: PromptSpec, prediction: Prediction) -> PictureAnswer:
    """A prediction as the API answers it."""
    fields: dict[str, NumberAnswer | FieldAnswer] = {}
    for spec in prompt.fields if prediction.values is not None else ():
        values = {
            "value": (prediction.values or {})[spec.column],
            "confidence": prediction.confidence.get(spec.column),
            "needs_review": spec.column in prediction.needs_review,
        }
        low, high = prediction.intervals.get(spec.column, (None, None))
        fields[spec.column] = (
            NumberAnswer(**values, low=low, high=high) if spec.kind == "number" else FieldAnswer(**values)
        )
    return PictureAnswer(fields=fields, needs_review=prediction.for_a_person, error=prediction.error)


def described_request() -> dict[str, Any]:
    """The two forms of a request, for OpenAPI."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    form = {"type": "object", "required": ["pictures"], "properties": {"pictures": files}}
    examples = {
        "bytes": {"summary": "A picture itself", "value": {"pictures": [{"base64": "/9j/4AAQSkZJRgABAQ..."}]}},
        "urls": {
            "summary": "Pictures by URL, where the server allows it",
            "value": {"pictures": [{"url": "https://shop.example/1.jpg"}, {"url": "https://shop.example/2.jpg"}]},
        },
    }
    pictures = {"type": "array", "items": PictureSource.model_json_schema(), "minItems": 1}
    body = {"type": "object", "required": ["pictures"], "properties": {"pictures": pictures}}
    content = {MULTIPART: {"schema": form}, JSON: {"schema": body, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


def described_answers(prompt: PromptSpec) -> dict[int | str, dict[str, Any]]:
    """The statuses of an answer, for OpenAPI, with an example that has the fields of `prompt`."""
    shown: dict[str, Any] = {"text": "Red Tote Bag", "category": "BAGS", "number": 129.0}
    example = Prediction(
        values={spec.column: shown[spec.kind] for spec in prompt.fields},
        confidence={spec.column: 0.64 if spec.kind == "number" else 0.97 for spec in prompt.fields},
        intervals={spec.column: (112.4, 148.1) for spec in prompt.fields if spec.kind == "number"},
    )
    bad = Prediction(values=None, error="not a picture in one of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF")
    predictions = [answer_of(prompt, example), answer_of(prompt, bad)]
    answer = Answer(predictions=predictions, calibrated=True, model="demo").model_dump()
    answered = {"description": "one entry a picture", "content": {JSON: {"example": answer}}}
    return {200: answered} | described_refusals(*REFUSALS)


def described_refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Some of the statuses without an answer, for OpenAPI."""
    detail = {"schema": {"type": "object", "properties": {"detail": {"type": "string"}}}}
    return {status: {"description": REFUSALS[status], "content": {JSON: detail}} for status in statuses}
