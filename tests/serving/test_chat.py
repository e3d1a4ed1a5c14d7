"""The server asked by OpenAI's own client, and by hand where that would not ask so."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from hostile import HTML, Hostile, jpeg, pixel_bomb
from served import FakePredictor, expected, serving, until

from catalens import Catalog, load_predictor
from catalens.config import PromptSpec
from catalens.examples import parse_answer

JPEG = jpeg(1)
QUESTION = PromptSpec().question


@pytest.fixture(scope="module")
def server():
    with serving() as served:
        yield served


def client(server, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0)


def data_url(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def message(*pictures: bytes, text: str | None = None) -> Any:
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
    return [{"role": "user", "content": [*parts, *([{"type": "text", "text": text}] if text else [])]}]


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": message(JPEG)} | changes


def test_the_client_reads_an_answer_with_its_confidences(server):
    with client(server) as asked:
        answer = asked.chat.completions.create(model="fake", messages=message(JPEG, text=QUESTION), temperature=0)
    values = expected(JPEG)
    assert answer.choices[0].message.content == (
        f"Product: {values['title']}, Category: BAGS, Full Price: {values['full_price']}"
    )
    assert answer.choices[0].finish_reason == "stop"
    told = (answer.model_extra or {})["prediction"]
    assert told["fields"]["title"] == {"value": values["title"], "confidence": 0.97, "needs_review": False}
    assert told == server.post(JPEG).json()["predictions"][0]


def test_the_client_gets_json_where_it_asks_for_it(server):
    with client(server) as asked:
        answer = asked.chat.completions.create(
            model="fake", messages=message(JPEG), response_format={"type": "json_object"}
        )
    assert json.loads(answer.choices[0].message.content or "") == expected(JPEG)


def test_a_stream_comes_in_one_piece(server):
    with client(server) as asked:
        stream = asked.chat.completions.create(model="fake", messages=message(JPEG), stream=True)
        chunks = list(stream)
    assert len(chunks) == 1
    assert chunks[0].choices[0].finish_reason == "stop"
    assert expected(JPEG)["title"] in (chunks[0].choices[0].delta.content or "")


def test_the_client_lists_the_model(server):
    with client(server) as asked:
        assert [one.id for one in asked.models.list()] == ["fake"]


def test_several_pictures_are_of_one_product():
    class Together(FakePredictor):
        def query(self, pictures, texts):
            assert not texts
            return b"".join(pictures[:1])

    with serving(Together()) as server:
        answer = server.request("POST", "/v1/chat/completions", json=body(messages=message(JPEG, jpeg(2))))
        assert answer.json()["prediction"]["fields"]["title"]["value"] == expected(JPEG)["title"]


@pytest.mark.integration
def test_the_model_that_ships_here_answers_as_to_predict(drawn):
    photo = bytes(next(iter(Catalog(drawn).batches("test", ["image"])))[0]["image"])
    with serving(load_predictor()) as server, client(server) as asked:
        answer = asked.chat.completions.create(model="fake", messages=message(photo))
        told = server.post(photo).json()["predictions"][0]
    assert (answer.model_extra or {})["prediction"]["fields"]["title"]["value"] == told["fields"]["title"]["value"]
    read = parse_answer(PromptSpec(), f"{answer.choices[0].message.content}<|end|>", "<|end|>")
    assert read.values == {column: field["value"] for column, field in told["fields"].items()}


def test_the_token_is_the_clients_key():
    with serving(token="sesame-sesame") as server:
        with client(server, "sesame-sesame") as asked:
            assert asked.chat.completions.create(model="fake", messages=message(JPEG)).choices
            assert asked.models.list().data
        with client(server, "wrong") as asked:
            with pytest.raises(openai.AuthenticationError, match="send the token"):
                asked.chat.completions.create(model="fake", messages=message(JPEG))
            with pytest.raises(openai.AuthenticationError, match="send the token"):
                asked.models.list()


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"model": "gpt"}, 404, "there is no model 'gpt': ask 'fake'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [*message(JPEG), *message(JPEG)]}, 400, "messages"),
        ({"messages": [{"role": "system", "content": "be brief"}]}, 400, "messages.0.role"),
        ({"messages": message(JPEG, text="What does it cost?")}, 400, "the model answers one question"),
        ({"messages": [{"role": "user", "content": QUESTION}]}, 400, "no picture"),
        ({"messages": message(HTML)}, 400, "not a picture"),
        ({"messages": message(pixel_bomb())}, 413, "more than 16,000,000 pixels"),
        ({"messages": message(*[JPEG] * 65)}, 413, "more than 64 pictures"),
        ({"n": 2}, 400, "n: "),
        ({"logprobs": True}, 400, "logprobs"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format.type"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:30],
)
def test_what_cannot_be_done_is_refused_in_the_form_of_openai(server, changes, status, says):
    answer = server.request("POST", "/v1/chat/completions", json=body(**changes))
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://shop.example/1.jpg", "--allow-urls"),
        ("data:text/html;base64,AAAA", "not a data: URL of a picture"),
        ("data:image/png,AAAA", "not a data: URL of a picture"),
        ("data:image/png;base64,*", "not base64"),
    ],
)
def test_pictures_that_are_named_otherwise_are_refused(server, url, says):
    content = [{"type": "image_url", "image_url": {"url": url}}]
    answer = server.request(
        "POST", "/v1/chat/completions", json=body(messages=[{"role": "user", "content": content}])
    )
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("data", "type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"x" * 20, "text/plain", 415),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 415),
    ],
)
def test_other_bodies_are_refused(server, data, type, status):
    answer = server.request("POST", "/v1/chat/completions", data=data, headers={"Content-Type": type})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_urls_are_fetched_where_the_server_allows_it():
    with Hostile() as shop, serving(allow_urls=True, network=shop.network()) as server:
        content = [{"type": "image_url", "image_url": {"url": shop.url("jpeg", 1, shop.shop)}}]
        answer = server.request(
            "POST", "/v1/chat/completions", json=body(messages=[{"role": "user", "content": content}])
        )
        assert answer.json()["prediction"]["fields"]["title"]["value"] == expected(JPEG)["title"]


def test_a_full_queue_says_when_to_come_back_in_that_form_too():
    with serving(queue=1) as server, ThreadPoolExecutor(2) as clients:
        server.predictor.go_on.clear()
        waiting = [clients.submit(server.post, JPEG)]
        until(lambda: server.predictor.batches)
        waiting.append(clients.submit(server.post, JPEG))
        until(lambda: server.service.batcher.depth)
        answer = server.request("POST", "/v1/chat/completions", json=body())
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
        assert answer.json()["error"]["type"] == "rate_limit_error"
        server.predictor.go_on.set()
        assert {one.result().status_code for one in waiting} == {200}


def test_the_description_tells_of_the_chat(server):
    described = server.request("GET", "/openapi.json").json()["paths"]
    schema = described["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages", "response_format", "stream"} <= set(schema["properties"])
    assert "$ref" not in json.dumps(schema)
    assert "/v1/models" in described
