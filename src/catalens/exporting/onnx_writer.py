"""Writer of an export for ONNX Runtime: three graphs, with all that its runtime needs beside them.

    vision.onnx  embedding.onnx      see `model/graphs.py`
    text.onnx                        inputs_embeds, attention_mask, past_key_values.* -> logits, present.*
    genai_config.json                the graphs as onnxruntime-genai knows them, for programs in other languages
    onnx.json                        precision, and sizes of pictures, vocabulary and cache
    tokenizer.json  prompt.json  answers.json

The decoder is written by the model builder of onnxruntime-genai, with its fused attention; in int8 and int4 its
matrices are quantised in blocks, while the tower and the projector stay in fp32.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import Phi3ForCausalLM

from catalens.checkpoint import Run, greedy
from catalens.errors import CheckpointError, RecipeError, first_line
from catalens.files import ONNX
from catalens.inference.onnx import Description, Precision, runtime
from catalens.model import Graph, family_of, picture_graphs, plain_decoder

OPSET = 18
"""Version of the operators of ONNX in the graphs of the pictures."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime_genai.models.builder")
TYPE = "phi3v"
"""Name by which onnxruntime-genai knows the model."""
LARGE = 2**30
"""Bytes of weights that go into a file of their own: a protobuf holds 2 GB."""


def write_graphs(run: Run, folder: Path, precision: Precision) -> None:
    """Write a loaded run's graphs, and what the runtime needs, into a folder.

    Raises RecipeError where the packages for it are not installed, CheckpointError where the model cannot be
    exported.
    """
    runtime()
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError as error:
            raise RecipeError(f"--to onnx needs {error.name}: pip install 'catalens[onnx-export]'") from error
    try:
        graphs = picture_graphs(run.model)
    except ValueError as error:
        raise CheckpointError(f"{run.folder}: {error}") from error
    model = run.model.to("cpu", torch.float32).eval()
    with _quiet(), torch.no_grad():
        for graph in graphs:
            _write_graph(graph, folder / f"{graph.name}.onnx")
        _write_text(run, model, folder, precision)
        _write_genai_config(graphs, folder / "genai_config.json")
    _write_settings(run, model, folder, precision)


def _write_graph(graph: Graph, path: Path) -> None:
    torch.onnx.export(
        graph.module,
        tuple(graph.inputs.values()),
        path,
        input_names=list(graph.inputs),
        output_names=[graph.output],
        dynamic_shapes={name: dict(free) or None for name, free in graph.dynamic_shapes.items()},
        opset_version=OPSET,
        dynamo=True,
        external_data=sum(weight.nbytes for weight in graph.module.parameters()) > LARGE,
        verbose=False,
    )


def _write_text(run: Run, model: Any, folder: Path, precision: Precision) -> None:
    """Write the decoder, and its `genai_config.json`, from a plain Phi-3 of the same weights."""
    builder = import_module("onnxruntime_genai.models.builder")
    config, weights = plain_decoder(model)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        with torch.device("meta"):
            decoder = Phi3ForCausalLM(config)
        decoder.save_pretrained(aside, state_dict=weights)
        greedy(run.processor).save_pretrained(aside)
        run.processor.tokenizer.save_pretrained(aside)
        config._name_or_path = aside  # from where the builder takes the weights
        rope: Any = config.rope_parameters
        rope.setdefault("type", rope["rope_type"])  # the name that the builder asks for
        builder.create_model(
            None,
            aside,
            str(folder),
            precision,
            "cpu",
            str(Path(aside) / "cache"),
            filename="text.onnx",
            exclude_embeds=True,
            prune_lm_head=True,  # scores of the last token alone
            hf_details={"hf_config": config, "hf_name": aside, "extra_kwargs": {}},
        )
    for name in (
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ):  # copies of the builder's
        (folder / name).unlink(missing_ok=True)


def _write_genai_config(graphs: list[Graph], path: Path) -> None:
    """Add the graphs of the pictures to the decoder's configuration."""
    known = json.loads(path.read_bytes())
    known["model"]["type"] = TYPE
    for graph in graphs:
        known["model"][graph.name] = {
            "filename": f"{graph.name}.onnx",
            "inputs": {name: name for name in graph.inputs},
            "outputs": {graph.output: graph.output},
        }
    path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _write_settings(run: Run, model: Any, folder: Path, precision: Precision) -> None:
    config, ends = model.config, greedy(run.processor).eos_token_id
    description = Description(
        precision=precision,
        vocabulary=config.vocab_size,
        image_token=config.image_token_id,
        ends=tuple(ends),  # pyright: ignore[reportArgumentType]
        layers=config.num_hidden_layers,
        key_value_heads=config.num_key_value_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        hidden=config.hidden_size,
        switch=family_of(config.model_type).rope_switch(config),
        tiling=run.processor.image_processor.cutter(),
    )
    texts = {
        "tokenizer.json": run.processor.tokenizer.backend_tokenizer.to_str(),
        "prompt.json": run.prompt.model_dump_json(indent=2),
        "answers.json": run.space.model_dump_json(indent=2),
        ONNX: description.model_dump_json(indent=2),
    }
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters print and warn to themselves; what they raise becomes one sentence."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as error:
        raise CheckpointError(f"the model cannot be exported to onnx ({first_line(error)})") from error
    finally:
        logging.disable(disabled)
