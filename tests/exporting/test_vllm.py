"""Exports for vLLM: what is written, answers by a server's interface, and vLLM itself where it is installed."""

import base64
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import parity
import pytest
import yaml
from PIL import Image
from test_onnx import FEW, apart, encoded
from typer.testing import CliRunner

from catalens import export, load_predictor
from catalens.checkpoint import load_run
from catalens.cli import app
from catalens.config import PromptSpec
from catalens.errors import CheckpointError, InferenceError, RecipeError
from catalens.examples import Query
from catalens.exporting import Certificate, check, renew_equality, target_of
from catalens.inference import Generator, Local, Server, open_vllm

HERE = importlib.util.find_spec("vllm") is not None
needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.integration,
    pytest.mark.skipif(not HERE, reason="vLLM is not installed: make test-vllm"),
    pytest.mark.filterwarnings("ignore"),  # of vLLM and what it imports
]
without_vllm = pytest.mark.skipif(HERE, reason="vLLM is installed")
golden = pytest.mark.skipif(not parity.available(), reason="no goldens (set CATALENS_GOLDEN)")


def vllm(test):
    for mark in needs_vllm:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def exported(adapted, tmp_path_factory) -> Path:
    return export(adapted, "vllm", tmp_path_factory.mktemp("exports") / "vllm", rows=8).folder


def native(run: Path, **options: Any) -> Generator:
    loaded = load_run(run)
    return Generator(loaded.model, loaded.processor, loaded.prompt, 8, 64, loaded.space, **options)


# ----------------------------------------------------------------------------------------- without vLLM


@pytest.mark.integration
def test_an_export_tells_how_it_is_served(adapted, exported):
    settings = yaml.safe_load((exported / "vllm.yaml").read_text())
    assert settings["served-model-name"] == "adapted"
    assert settings["dtype"] == "float32"
    assert settings["max-model-len"] == load_run(adapted).model.config.max_position_embeddings
    assert settings["structured-outputs-config"] == {"backend": "guidance"}
    assert json.loads((exported / "preprocessor_config.json").read_text())["processor_class"] == "Phi3VProcessor"


@pytest.mark.integration
@without_vllm
def test_what_cannot_be_checked_here_says_so_and_how_it_can(exported):
    certificate = Certificate.load(exported)
    assert not certificate.passed
    assert certificate.lines() == [
        "not checked: vLLM is not installed here; "
        "`catalens export --check FOLDER` checks it where it is (make vllm-env)"
    ]
    assert "not checked: vLLM" in (exported / "README.md").read_text()
    with pytest.raises(RecipeError, match=r"--engine vllm needs vllm.*make vllm-env"):
        check(exported)


@pytest.mark.integration
def test_torch_runs_an_export_too(adapted, exported, photos):
    predictor = load_predictor(exported)
    assert predictor.calibrated
    assert predictor.number.estimate == "mode"  # as vLLM writes
    assert apart(native(adapted).generate(photos[:4]), predictor.generator.generate(photos[:4])) < 1e-4


@pytest.mark.integration
def test_a_tokenizer_that_reads_the_chat_otherwise_is_refused(adapted, tmp_path):
    loaded = load_run(adapted)
    loaded.processor.tokenizer.add_tokens(["What is"])  # a token that a piece of text begins with, and no other place
    family = loaded.processor.tokenizer
    family.bos_token = "<|system|>"
    with pytest.raises(CheckpointError, match="reads a chat otherwise in one go: use --to merged"):
        target_of("vllm").write(loaded, tmp_path)


class FakeVllm(BaseHTTPRequestHandler):
    """A server of vLLM's interface, whose answers a torch generator writes; `change` spoils them."""

    generator: Generator
    change: Any = staticmethod(lambda path, answer: answer)
    asked: list[dict[str, Any]]
    one = threading.Lock()

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "adapted", "max_model_len": 2048}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        *pictures, text = body["messages"][0]["content"]
        sent = [base64.b64decode(one["image_url"]["url"].partition(",")[2]) for one in pictures]
        with self.one:  # a generator is not for two threads
            (completion,) = self.generator.generate([Query(tuple(sent), text["text"])])
        tokenizer = self.generator.processor.tokenizer.backend_tokenizer
        known = {self.generator.vocabulary.piece(token): token for token in range(tokenizer.get_vocab_size())}
        sizes = [Image.open(io.BytesIO(one)).size for one in sent]
        family, processor = self.generator.family, self.generator.processor
        prompt = family.token_ids(
            processor, family.chat(text["text"], len(sent)), [(height, width) for width, height in sizes]
        )
        content = [{"logprob": score} for score in completion.log_probabilities]
        tokens = [known[piece] for piece in completion.pieces]
        choice = {"token_ids": tokens, "logprobs": {"content": content}}
        self.answer({"choices": [choice], "prompt_token_ids": prompt})

    def answer(self, told: dict[str, Any]) -> None:
        changed = self.change(self.path, told)
        status, body = changed if isinstance(changed, tuple) else (200, changed)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def fake_vllm(run: Path, change: Any = lambda path, answer: answer):
    handler = type("Handler", (FakeVllm,), {"generator": native(run), "change": staticmethod(change), "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def certified(exported, tmp_path) -> Path:
    """An export whose certificate passed."""
    folder = tmp_path / "certified"
    shutil.copytree(exported, folder)
    Certificate("vllm", "fp32", 8, []).save(folder)
    return folder


@pytest.mark.integration
def test_a_server_answers_as_the_run(adapted, certified, photos):
    with fake_vllm(adapted) as (address, asked):
        queries = [*photos[:6], b"no picture", Query(tuple(photos[:2]), "What are these?")]
        predictor = load_predictor(certified, server=f"{address}/v1/")
        assert predictor.calibrated
        theirs = predictor.generator.generate(queries)
        progress = []
        predictions = predictor.predict(photos[:3], progress.append)
    ours = native(adapted).generate(queries)
    assert apart(ours, theirs) < 1e-4
    assert theirs[6].error == ours[6].error
    assert progress == [1, 2, 3]
    for one, other in zip(load_predictor(certified).predict(photos[:3]), predictions, strict=True):
        assert one.values == other.values
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
    grammar = asked[0]["structured_outputs"]["grammar"]
    assert grammar.startswith("start: ")
    assert grammar.partition("\n")[0].endswith("<|end|>")
    assert asked[0]["temperature"] == 0
    size = Image.open(
        io.BytesIO(base64.b64decode(asked[0]["messages"][0]["content"][0]["image_url"]["url"][22:]))
    ).size
    assert all(side % 56 == 0 for side in size)  # whole crops: smaller than the photo, and cut the same


@pytest.mark.integration
def test_pictures_are_in_memory_some_at_a_time(adapted, certified, photos, monkeypatch):
    monkeypatch.setattr("catalens.inference.vllm.CHUNK", 2)
    with fake_vllm(adapted) as (address, _):
        generator, progress = load_predictor(certified, server=address).generator, []
        written = generator.generate([*photos[:3], b"none", *photos[3:5]], progress.append)
    assert progress == [1, 2, 3, 5, 6]  # what is no picture asks nobody
    assert apart(native(adapted).generate(photos[:5]), [*written[:3], *written[4:]]) < 1e-4


@pytest.mark.integration
def test_confidences_are_not_calibrated_without_a_certificate(adapted, certified):
    Certificate("vllm", "fp32", 8, [], unchecked="not here").save(certified)
    with fake_vllm(adapted) as (address, _):
        assert not load_predictor(certified, server=address).calibrated


@pytest.mark.integration
def test_rows_that_are_too_long_have_an_error_beside_the_others(adapted, certified, photos):
    def short(path, answer):
        return {"data": [{"id": "adapted", "max_model_len": 60}]} if path.endswith("models") else answer

    with fake_vllm(adapted, short) as (address, _):
        generator = load_predictor(certified, server=address).generator
        one, many = generator.generate([photos[0], Query(tuple(photos[:4]), "Which?")])
    assert one.error is None or "too long" in one.error
    assert str(many.error).startswith("too long for vLLM: ")
    assert "use --engine torch, or lower num_crops" in str(many.error)


def without(*keys: str):
    def change(path, answer):
        if path.endswith("models"):
            return answer
        for key in keys:
            (answer if key in answer else answer["choices"][0]).pop(key)
        return answer

    return change


@pytest.mark.integration
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path, answer: (404, {"detail": "Not Found"}), r"/v1/models \(HTTP 404: Not Found\): start it by"),
        (lambda path, answer: (401, {"error": "Who"}), r"HTTP 401: Who\): put its key into VLLM_API_KEY"),
        (lambda path, answer: b"<html>", r"gives no answer \(Expecting value.*start it by `vllm serve"),
        (lambda path, answer: {"data": []}, "serves nothing, not adapted: start it by"),
        (lambda path, answer: {"data": [{"id": "a"}, {"id": "b"}]}, "serves a, b, not adapted"),
        (without("token_ids"), "tells no tokens with their scores: it must be vLLM"),
        (without("prompt_token_ids"), "tells no tokens with their scores"),
        (
            lambda path, answer: answer | ({} if path.endswith("models") else {"prompt_token_ids": [1, 2]}),
            r"vLLM read 2 tokens where .* makes \d+, or others: it has another model",
        ),
        (
            lambda path, answer: answer if path.endswith("models") else (400, {"error": {"message": "no\nway"}}),
            r"refuses /v1/chat/completions \(HTTP 400: no\)",
        ),
    ],
)  # fmt: skip
def test_another_server_is_told_in_a_sentence(adapted, certified, photos, change, says):
    with fake_vllm(adapted, change) as (address, _), pytest.raises(InferenceError, match=says) as raised:
        load_predictor(certified, server=address).predict(photos[:1])
    assert "\n" not in str(raised.value)


@pytest.mark.integration
def test_a_server_that_is_not_there_is_told_in_a_sentence(certified, photos, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "photo.png").write_bytes(photos[0])
    command = ["predict", str(certified), str(tmp_path / "photo.png"), "--server", f"http://127.0.0.1:{port}"]
    ended = CliRunner().invoke(app, command)
    assert isinstance(ended.exception, InferenceError)
    assert "gives no answer ([Errno 111] Connection refused): start it by `vllm serve" in str(ended.exception)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"run": None, "engine": "vllm"}, RecipeError, "--engine vllm needs an export"),
        ({"run": "none", "engine": "vllm"}, CheckpointError, "is no export for vllm"),
        ({"run": "none", "engine": "onnx", "server": "http://x"}, RecipeError, "--server is for --engine vllm"),
        ({"run": "vllm", "server": "x:80"}, RecipeError, "--server x:80: give its URL"),
        (
            {"run": "broken", "server": "http://x"},
            CheckpointError,
            r"vllm\.yaml cannot be read: export the run again",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, error, says):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "vllm.yaml").write_text("[")
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "vllm.yaml").write_text("max-model-len: 10\nserved-model-name: a\n")
    (tmp_path / "vllm" / "prompt.json").write_text(PromptSpec().model_dump_json())
    (tmp_path / "vllm" / "answers.json").write_text("{}")
    run = options["run"] and tmp_path / options["run"]
    with pytest.raises(error, match=says):
        load_predictor(**options | {"run": run})


# ------------------------------------------------------------------------------------------- in vLLM


@vllm
def test_vllm_answers_as_the_run(adapted, exported, photos):
    assert Certificate.load(exported).passed
    queries = [*photos, Query(tuple(photos[:2]), "What are these?"), Query((photos[2], photos[0]), "Which?")]
    predictor = load_predictor(exported, engine="vllm")
    assert predictor.calibrated
    assert apart(native(adapted).generate(queries), predictor.generator.generate(queries)) < 1e-4
    good, bad = predictor.predict([photos[0], b"no picture"])
    assert good.values
    assert str(bad.error).startswith("picture not a picture")
    for size in [(56, 56), (300, 40), (40, 300), (120, 90)]:
        noise = encoded(Image.effect_noise(size, 90).convert("RGB"))
        assert apart(native(adapted).generate([noise]), predictor.generator.generate([noise])) < 1e-4


@vllm
def test_a_certificate_that_was_left_open_is_made_by_the_check(exported, tmp_path):
    folder = tmp_path / "open"
    shutil.copytree(exported, folder)
    left_open = Certificate("vllm", "fp32", 8, [], unchecked="not here")
    renew_equality(folder, Certificate.load(folder), left_open)
    left_open.save(folder)
    assert "not checked: not here" in (folder / "README.md").read_text()
    assert check(folder).passed
    assert Certificate.load(folder).passed
    assert (folder / "README.md").read_text() == (exported / "README.md").read_text()
    assert {one.name for one in Certificate.load(folder).checks} == {
        "pixels", "ids", "logits", "answers", "log_probability"
    }  # fmt: skip


@vllm
@golden
@pytest.mark.parity
@pytest.mark.parametrize("family", parity.FAMILIES)
def test_official_sizes_answer_as_here(adapted, photos, tmp_path, family):
    processor = parity.Phi3VProcessor.from_pretrained(parity.FOLDER / "official" / family, num_crops=1)
    processor.image_processor.num_crops = 1
    model = parity.model(family)
    loaded = replace(
        load_run(adapted, weights=False), model=model, processor=processor, prompt=PromptSpec(), space=FEW
    )
    target_of("vllm").write(loaded, tmp_path)
    ours = Generator(model, processor, PromptSpec(), 4, 64, FEW).generate(photos[:10])
    generator, _ = open_vllm(tmp_path, backend=Local(tmp_path))
    assert apart(ours, generator.generate(photos[:10])) < 1e-4


@contextmanager
def served(folder: Path):
    """A server of vLLM on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["--config", folder / "vllm.yaml", "--host", "127.0.0.1", "--port", port]
    flags += ["--enforce-eager", "--kv-cache-memory-bytes", "1G"]  # on a CPU
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, *flags]
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                assert server.poll() is None
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@vllm
def test_a_server_of_vllm_answers_as_the_run(adapted, exported, photos):
    with served(exported) as address:
        predictor = load_predictor(exported, server=address)
        assert isinstance(predictor.generator.backend, Server)
        queries = [*photos, Query(tuple(photos[:2]), "What are these?")]
        assert apart(native(adapted).generate(queries), predictor.generator.generate(queries)) < 1e-4


@vllm
def test_the_commands_of_the_docs_run(run_commands):
    run_commands("exporting-vllm.md")
