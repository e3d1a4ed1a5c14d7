"""The same predictor for clients of OpenAI's API: `POST /v1/chat/completions`, `GET /v1/models`.

    {"model": "demo", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ..."}}]}]}

    {"choices": [{"message": {"role": "assistant", "content": "Product: Red Tote Bag, Category: BAGS, ..."}, ...}],
     "prediction": {"fields": {"title": {"value": "Red Tote Bag", "confidence": 0.97, ...}, ...}}, ...}

A model that was fine-tuned answers the one question that it learned: pictures are all that it is asked by, and the
question may be sent along. Constrained greedy decoding takes no temperature and no number of tokens, so these are
left alone; what would change an answer's form or number is refused. Limits and the token are those of /v1/predict.
"""

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, ValidationError

from catalens.config import PromptSpec
from catalens.errors import PromptError
from catalens.examples import render_answer
from catalens.serving.requests import JSON, Product, Received, check_caller, decoded, invalid, refuse_skeleton

if TYPE_CHECKING:
    from catalens.serving.app import Service

DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""Types of OpenAI's errors by status; a request that is wrong is 400 there."""


class ImageUrl(BaseModel):
    """Address of a picture: a data: URL, or one to fetch where the server allows it."""

    url: str


class TextPart(BaseModel):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """Picture of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """Message of the one user."""

    role: Literal["user"]
    content: str | list[Part]


class ResponseFormat(BaseModel):
    """Form of the content: as the model was trained to write, or a JSON object of the values by column."""

    type: Literal["text", "json_object"] = "text"


class ChatBody(BaseModel):
    """Chat of one message with the pictures of one product."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=1)]
    response_format: ResponseFormat = ResponseFormat()
    stream: bool = False
    """In one piece."""
    n: Literal[1] | None = 1
    logprobs: Literal[False] | None = None
    """Confidences are in the answer's `prediction`."""
    tools: Annotated[list[Any], Field(max_length=0)] | None = None


class Chat:
    """One request of OpenAI's API: reads its body, and puts the answer into its form."""

    def __init__(self, model: str, prompt: PromptSpec) -> None:
        self._model, self._prompt = model, prompt
        self._body: ChatBody | None = None

    def read(self, body: bytes, limit: int) -> list[Product]:
        """Read the pictures of a body, all of one product; HTTPException 404, 413, 422."""
        refuse_skeleton(body, '{"model": "...", "messages": [{"role": "user", "content": [...]}]}')
        try:
            asked = self._body = ChatBody.model_validate_json(body)
        except ValidationError as error:
            raise invalid(error, ("text", "image_url", "list[Part]")) from error
        if asked.model != self._model:
            raise HTTPException(404, f"there is no model {asked.model[:60]!r}: ask {self._model!r}")
        content = asked.messages[0].content
        parts = [] if isinstance(content, str) else content
        pictures = [_source(part.image_url.url) for part in parts if isinstance(part, ImagePart)]
        told = content if isinstance(content, str) else " ".join(p.text for p in parts if isinstance(p, TextPart))
        question = " ".join(self._prompt.question.split())
        if " ".join(told.split()) not in ("", question):
            raise HTTPException(422, f"the model answers one question: send pictures alone, or with {question!r}")
        if self._prompt.inputs:
            texts = ", ".join(self._prompt.inputs)
            raise HTTPException(422, f"the model is given {texts}, which a chat cannot name: use /v1/predict")
        if not pictures:
            raise HTTPException(422, "no picture: send a part of type image_url")
        if len(pictures) > limit:
            raise HTTPException(413, f"more than {limit} pictures: send fewer at a time")
        return [Product(pictures, {})]

    def response(self, prediction: Mapping[str, Any]) -> Response:
        """Answer with a prediction in the form of /v1/predict; HTTPException 503 where nothing could be read."""
        assert self._body is not None
        if prediction["error"] is not None:
            raise HTTPException(503, f"the answer cannot be read: {prediction['error']}")
        values = {column: field["value"] for column, field in prediction["fields"].items()}
        try:
            text = render_answer(self._prompt, values)
        except PromptError as error:
            raise HTTPException(503, f"the answer cannot be read: {error}") from error
        as_text = self._body.response_format.type == "text"
        content = text if as_text else json.dumps(values, ensure_ascii=False)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._model}
        tail: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        message = {"role": "assistant", "content": content}
        if self._body.stream:
            chunk = {**head, "object": "chat.completion.chunk", "prediction": prediction}
            chunk["choices"] = [{**tail, "delta": message}]
            events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
            return Response(events, media_type="text/event-stream")
        choice = {**tail, "message": message | {"refusal": None}}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "prediction": prediction})


def refusal(refused: HTTPException) -> Response:
    """Put a refusal into the form of OpenAI's errors."""
    status = 400 if refused.status_code == 422 else refused.status_code
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": refused.detail, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, refused.headers)


def add_chat_routes(app: FastAPI, service: "Service", locked: Sequence[Any]) -> None:
    """Add the two routes of OpenAI's API to the app; `locked` are the dependencies that describe the token."""

    @app.post(
        "/v1/chat/completions",
        dependencies=locked,
        openapi_extra={"requestBody": {"required": True, "content": {JSON: {"schema": _schema()}}}},
        summary="Read the pictures of a product, for clients of OpenAI's API",
    )
    async def chat(request: Request) -> Response:
        """The answer as the model writes it, or a JSON object of its values; `prediction` has the confidences."""
        asked = Chat(service.name, service.predictor.prompt)
        try:
            answer = await service.predict(request, asked.read)
            return answer if isinstance(answer, Response) else asked.response(answer.predictions[0].model_dump())
        except HTTPException as refused:
            return refusal(refused)

    @app.get("/v1/models", dependencies=locked, summary="The model, for clients of OpenAI's API")
    def models(request: Request) -> Response:
        """A list of one."""
        try:
            check_caller(request, service.settings)
        except HTTPException as refused:
            return refusal(refused)
        one = {"id": service.name, "object": "model", "created": service.started, "owned_by": "catalens"}
        return JSONResponse({"object": "list", "data": [one]})


def _schema() -> dict[str, Any]:
    """Describe a body for OpenAPI, without references."""
    schema = ChatBody.model_json_schema()
    known = schema.pop("$defs")

    def inlined(node: Any) -> Any:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            plain = known[name] if name else node
            return {key: inlined(value) for key, value in plain.items() if key != "discriminator"}
        return [inlined(value) for value in node] if isinstance(node, list) else node

    return inlined(schema)


def _source(url: str) -> Received | str:
    """Decode a data: URL; another is to be fetched."""
    if url[:5].lower() != "data:":
        return url
    found = DATA_URL.match(url)
    if found is None:
        return Received(error="not a data: URL of a picture in base64: data:image/jpeg;base64,...")
    return decoded(url[found.end() :])
