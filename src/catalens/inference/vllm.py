"""Answers of an export for vLLM about pictures: by vLLM in this process, or by a server of it elsewhere.

    load_predictor("exports/vllm", engine="vllm").predict([photo])[0].values
    load_predictor("exports/vllm", server="http://gpu:8000").predict([photo])[0].values

vLLM gathers rows and writes their answers; pictures are read, questions tokenized and answers judged here, with no
torch where a server does the work. Answers follow the grammar of `grammar.py`, which vLLM's llguidance takes as
structured output, so that log-probabilities are among the tokens that were allowed, as everywhere in catalens.

A picture is sent as it stands after the HD transform, which leaves it as it is when the server does it again: that
is lossless, small, and upright by EXIF on every side.
"""

import base64
import json
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import yaml
from PIL import Image
from tokenizers import Tokenizer

from catalens.catalog.pictures import Encoded, open_picture
from catalens.config import PromptSpec
from catalens.errors import CheckpointError, InferenceError, PictureError, RecipeError, first_line
from catalens.examples import AnswerSchema, Query, complete_question, load_form
from catalens.files import CERTIFICATE, VLLM
from catalens.inference.grammar import Constraint, Vocabulary
from catalens.inference.records import Completion
from catalens.tiling import IMAGE_TOKEN, Chat, Tiler, tokenize

KEY = "VLLM_API_KEY"
"""Environment variable with the key of a server, by vLLM's own name."""
SECONDS = 600.0
"""For one answer of a server, its wait in the queue included."""
KV_BYTES = 4 * 2**30
"""For keys and values on a CPU: a row of 4,096 tokens of the published model takes 3.2 GB in fp32."""
CHUNK = 256
"""Rows whose pictures are in memory together."""
REQUESTS = 64
"""At a time; vLLM gathers them."""
QUIET = {
    "VLLM_NO_USAGE_STATS": "1",  # it reports to its makers unless it is told not to before
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
SERVER_ONLY = ("served-model-name", "chat-template-content-format")
"""Settings in `vllm.yaml` that a server has, and vLLM in a process has not."""


@dataclass(frozen=True)
class Asked:
    """A question about pictures as vLLM takes it."""

    pictures: Sequence[Image.Image]
    """After the HD transform."""
    question: str
    short: Sequence[int]
    """Ids of the prompt, one slot a picture."""
    prompt: Sequence[int]
    """The same with as many slots as the pictures take."""


@dataclass(frozen=True)
class Written:
    """Tokens of an answer with their log-probabilities."""

    prompt: Sequence[int]
    """Ids of the prompt that vLLM made, all slots included."""
    tokens: Sequence[int]
    log_probabilities: Sequence[float]


class Backend(Protocol):
    """vLLM, wherever it is."""

    max_tokens: int
    """Most tokens of prompt and answer."""

    def write(
        self, asked: Sequence[Asked], grammar: str, longest: int, on_progress: Callable[[int], None]
    ) -> list[Written]:
        """Write an answer of at most `longest` tokens to each, in their order."""
        ...


class VllmGenerator:
    """Writer of answers by an export in vLLM, under the constraints of a schema.

    Raises CheckpointError where the folder is no whole export.
    """

    def __init__(
        self, folder: Path, prompt: PromptSpec, schema: AnswerSchema, backend: Backend, free_categories: bool = False
    ) -> None:
        self.family, self.folder, self.backend = Chat(), folder, backend
        try:
            self.tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
            config = json.loads((folder / "config.json").read_bytes())
            self.tiler = Tiler.of(json.loads((folder / "preprocessor_config.json").read_bytes()))
            size, slot = int(config["vocab_size"]), self.tokenizer.token_to_id(IMAGE_TOKEN)
            if slot is None:
                raise ValueError(f"its tokenizer has no {IMAGE_TOKEN}")
        except Exception as error:  # tokenizers raises bare ones
            raise CheckpointError(f"{folder} cannot be read ({first_line(error)}): export the run again") from error
        self.slot: int = slot
        self.vocabulary = Vocabulary(self.tokenizer, size, self.family)
        self.constraint = Constraint(self.vocabulary, prompt, schema, free_categories)
        first, _, rules = self.constraint.grammar.partition("\n")
        self.grammar = f"{first} {self.family.end_token}\n{rules}"  # vLLM's grammars end with the tokenizer's own
        self._question = complete_question(prompt, {})

    def generate(
        self, asked: Sequence[Query | Encoded], on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Completion]:
        """Write one answer each, in their order; what cannot be decoded, or is too long, has an `error`.

        Raises InferenceError where the server cannot be reached, or serves something else.
        """
        queries = [one if isinstance(one, Query) else Query((one,), self._question) for one in asked]
        completions: list[Completion] = []
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for start in range(0, len(queries), CHUNK):
                prepared = list(threads.map(self.prepare, queries[start : start + CHUNK]))
                completions += self._write(prepared, lambda done, before=start: on_progress(before + done))
        return completions

    def _write(
        self, prepared: Sequence[Asked | PictureError], on_progress: Callable[[int], None]
    ) -> Iterator[Completion]:
        short = [one for one in prepared if isinstance(one, Asked) and self._fits(one)]
        written = iter(self.backend.write(short, self.grammar, self.constraint.max_new_tokens, on_progress))
        for one in prepared:
            if isinstance(one, PictureError):
                yield Completion(error=f"picture {one}")
            else:
                yield self._completion(one, next(written) if self._fits(one) else None)

    def prepare(self, query: Query) -> Asked | PictureError:
        """Read the pictures of a query, and tokenize its question."""
        try:
            pictures = [self.tiler.hd_transform(open_picture(bytes(picture))) for picture in query.pictures]
        except PictureError as error:
            return error
        text = self.family.chat(query.question, len(pictures))
        counts = [self.tiler.image_tokens((one.height, one.width)) for one in pictures]
        short, prompt = (
            tokenize(lambda piece: self.tokenizer.encode(piece).ids, text, slots, self.slot)
            for slots in ([1] * len(pictures), counts)
        )
        return Asked(pictures, query.question, short, prompt)

    def _fits(self, asked: Asked) -> bool:
        return len(asked.prompt) < self.backend.max_tokens

    def _completion(self, asked: Asked, written: Written | None) -> Completion:
        """Check an answer; one that has no end was cut off at the longest row that vLLM takes."""
        if written is not None and list(written.prompt) != list(asked.prompt):
            raise InferenceError(
                f"vLLM read {len(written.prompt)} tokens where {self.folder} makes {len(asked.prompt)}, or others: "
                f"it has another model, start it by {start_command(self.folder)}"
            )
        if written is None or not written.tokens or written.tokens[-1] != self.vocabulary.end:
            length = f"{len(asked.prompt):,} tokens and the answer are more than {self.backend.max_tokens:,}"
            return Completion(error=f"too long for vLLM: {length}: use --engine torch, or lower num_crops")
        pieces = tuple(map(self.vocabulary.piece, written.tokens))
        scores = tuple(map(float, written.log_probabilities))
        return Completion(pieces, scores, {}, len(asked.prompt), len(written.tokens) - 1)


class Local:
    """vLLM in this process, with an export's settings; RecipeError where it is not installed.

    `options` replace settings of `vllm.yaml`, by the names of vLLM's arguments.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        settings = read_settings(folder)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self.max_tokens = settings["max-model-len"]
        arguments = {name.replace("-", "_"): value for name, value in settings.items() if name not in SERVER_ONLY}
        with warnings.catch_warnings():  # of what it imports
            warnings.simplefilter("ignore")
            try:
                import torch

                self._vllm: Any = import_module("vllm")
            except ImportError as error:
                fix = "`make vllm-env` makes an environment that has it; or give --server URL"
                raise RecipeError(f"--engine vllm needs {error.name}, which is not installed here: {fix}") from error
            if not torch.cuda.is_available():  # where it would compile for minutes, and take most of the memory
                arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": KV_BYTES}
            arguments |= {"disable_log_stats": True, "use_tqdm_on_load": False}
            try:
                self.llm: Any = self._vllm.LLM(str(folder), **arguments | options)
            except Exception as error:  # whatever it raises, of memory or of files
                reason = first_line(error)
                raise CheckpointError(f"vLLM cannot load {folder} ({reason}): export the run again") from error

    def write(
        self, asked: Sequence[Asked], grammar: str, longest: int, on_progress: Callable[[int], None]
    ) -> list[Written]:
        """See `Backend`; vLLM tells of its progress at the end."""
        rules = self._vllm.sampling_params.StructuredOutputsParams(grammar=grammar)
        outputs = self.ask(asked, longest, logprobs=0, structured_outputs=rules)
        on_progress(len(asked))
        written = []
        for output in outputs:
            answer = output.outputs[0]
            scores = [one[token].logprob for token, one in zip(answer.token_ids, answer.logprobs, strict=True)]
            written.append(Written(output.prompt_token_ids, list(answer.token_ids), scores))
        return written

    def ask(self, asked: Sequence[Asked], longest: int, **how: Any) -> list[Any]:
        """Let vLLM write, greedily; its own outputs, in their order."""
        prompts = [
            {"prompt_token_ids": list(one.short), "multi_modal_data": {"image": list(one.pictures)}} for one in asked
        ]
        sampling = self._vllm.SamplingParams(temperature=0.0, max_tokens=longest, **how)
        try:
            return self.llm.generate(prompts, sampling, use_tqdm=False) if prompts else []
        except Exception as error:  # whatever it raises
            raise InferenceError(f"vLLM failed ({first_line(error)}): give fewer rows, or --engine torch") from error


class Server:
    """A server of vLLM, or a router before several, by its OpenAI-compatible interface.

    Raises InferenceError where it cannot be reached or does not serve the folder's model.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address.rstrip("/").removesuffix("/v1")
        if not self.address.startswith(("http://", "https://")):
            raise RecipeError(f"--server {address}: give its URL, such as http://127.0.0.1:8000")
        name = read_settings(folder)["served-model-name"]
        models = self._ask("/v1/models").get("data")
        served = [one for one in models if isinstance(one, Mapping)] if isinstance(models, list) else []
        known = [one for one in served if one.get("id") == name] or (served if len(served) == 1 else [])
        if not known:
            ids = ", ".join(str(one.get("id")) for one in served[:5]) or "nothing"
            raise InferenceError(
                f"the server at {self.address} serves {ids}, not {name}: start it by {start_command(folder)}"
            )
        self.model = str(known[0].get("id"))
        longest = known[0].get("max_model_len")
        own = read_settings(folder)["max-model-len"]
        self.max_tokens = min(longest, own) if isinstance(longest, int) else own

    def write(
        self, asked: Sequence[Asked], grammar: str, longest: int, on_progress: Callable[[int], None]
    ) -> list[Written]:
        """See `Backend`."""
        with ThreadPoolExecutor(REQUESTS) as threads:
            coming = [threads.submit(self._write, one, grammar, longest) for one in asked]
            try:
                written = []
                for one in coming:
                    written.append(one.result())
                    on_progress(len(written))
                return written
            finally:
                for one in coming:
                    one.cancel()

    def _write(self, asked: Asked, grammar: str, longest: int) -> Written:
        content: list[Any] = [{"type": "image_url", "image_url": {"url": _data_url(one)}} for one in asked.pictures]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": asked.question}]}],
            "temperature": 0,
            "max_completion_tokens": min(longest, self.max_tokens - len(asked.prompt)),
            "logprobs": True,
            "return_token_ids": True,
            "structured_outputs": {"grammar": grammar},
        }
        answer = self._ask("/v1/chat/completions", body)
        try:
            choice = answer["choices"][0]
            scores = [one["logprob"] for one in choice["logprobs"]["content"]]
            tokens, prompt = choice["token_ids"], answer["prompt_token_ids"]
            if len(tokens) != len(scores):
                raise ValueError("tokens without scores")
            return Written(prompt, tokens, scores)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InferenceError(
                f"the server at {self.address} tells no tokens with their scores: "
                f"it must be vLLM, started by {start_command(self.folder)}"
            ) from error

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask the server; its answer, or InferenceError in one sentence."""
        headers = {"Content-Type": "application/json", "User-Agent": "catalens"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        fix = f"start it by {start_command(self.folder)}, or give another --server"
        try:
            request = urllib.request.Request(self.address + path, data, headers)
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                answer = json.loads(response.read())
            if not isinstance(answer, dict):
                raise ValueError("no object")
            return answer
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                fix = f"put its key into {KEY}"
            reason = f"HTTP {error.code}: {_message(error)}"
            raise InferenceError(f"the server at {self.address} refuses {path} ({reason}): {fix}") from error
        except (OSError, ValueError, HTTPException) as error:
            reason = first_line(getattr(error, "reason", None) or error)
            raise InferenceError(f"the server at {self.address} gives no answer ({reason}): {fix}") from error


def open_vllm(
    folder: Path, free_categories: bool = False, server: str | None = None, backend: Backend | None = None
) -> tuple[VllmGenerator, PromptSpec]:
    """Open an export, with its prompt, in vLLM: a `backend` that runs, at a `server`, or in this process.

    Raises CheckpointError where it is no whole export.
    """
    read_settings(folder)
    prompt, schema = load_form(folder)
    backend = backend or (Server(folder, server) if server else Local(folder))
    return VllmGenerator(folder, prompt, schema, backend, free_categories), prompt


def read_settings(folder: Path) -> dict[str, Any]:
    """Read `vllm.yaml`, the flags of `vllm serve`; CheckpointError where the folder is no export for vLLM."""
    try:
        settings = yaml.safe_load((folder / VLLM).read_bytes())
        if not isinstance(settings["max-model-len"], int) or not isinstance(settings["served-model-name"], str):
            raise ValueError("max-model-len or served-model-name is wrong")
        return settings
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is no export for vllm (no {VLLM}): make one by `catalens export RUN --to vllm`"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise CheckpointError(f"{folder / VLLM} cannot be read: export the run again") from error


def is_certified(folder: Path) -> bool:
    """Tell whether an export's certificate passed in vLLM, so that the run's calibration holds there."""
    try:
        return json.loads((folder / CERTIFICATE).read_bytes())["passed"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def start_command(folder: Path) -> str:
    """Write the command that serves an export."""
    return f"`vllm serve {folder} --config {folder / VLLM}`"


def _data_url(picture: Image.Image) -> str:
    file = BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _message(error: urllib.error.HTTPError) -> str:
    """Take the reason out of a refusal, in one line."""
    try:
        told = json.loads(error.read())
        told = told.get("error", told)
        text = told.get("message") or told.get("detail") if isinstance(told, Mapping) else told
    except (OSError, ValueError, AttributeError):
        text = error.reason
    return first_line(Exception(str(text)))[:200]
