"""Exports for ONNX Runtime: the graphs, their answers beside those of the run, and what they need to run."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from PIL import Image

from catalens import export, load_predictor
from catalens.checkpoint import load_run
from catalens.config import PromptSpec
from catalens.errors import CheckpointError, RecipeError
from catalens.examples import AnswerSchema, FieldConstraints, Query
from catalens.exporting import check, target_of, write_graphs
from catalens.inference import Generator, describe, load_calibration, open_export
from catalens.model import Phi3VConfig, Phi3VForCausalLM

NEEDED = ("onnx", "onnxscript", "onnxruntime", "onnxruntime_genai")
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_onnx = [
    pytest.mark.onnx,
    pytest.mark.integration,
    pytest.mark.skipif(bool(LACKING), reason=f"{', '.join(LACKING)} not installed: make setup"),
]
golden = pytest.mark.skipif(not parity.available(), reason="no goldens (set CATALENS_GOLDEN)")
HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "pyarrow", "scipy", "sklearn", "aiohttp")
SWITCH = 32
FEW = AnswerSchema(
    fields={
        "title": FieldConstraints(longest=8),
        "category3_code": FieldConstraints(values=("BAGS", "SHOES", "SCARVES")),
        "full_price": FieldConstraints(digits=3, decimals=(1, 1)),
    }
)
"""Answers that random weights write soon."""


def onnx(test):
    for mark in needs_onnx:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def exported(adapted, tmp_path_factory) -> Path:
    return export(adapted, "onnx", tmp_path_factory.mktemp("exports") / "onnx", rows=8).folder


def encoded(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def apart(ours, theirs) -> float:
    """The largest difference of summed log-probabilities; the answers are equal."""
    assert [one.pieces for one in ours] == [one.pieces for one in theirs]
    assert [one.prompt_tokens for one in ours] == [one.prompt_tokens for one in theirs]
    return max(abs(sum(a.log_probabilities) - sum(b.log_probabilities)) for a, b in zip(ours, theirs, strict=True))


@onnx
def test_an_export_answers_as_its_run(adapted, exported, photos):
    loaded = load_run(adapted)
    ours = Generator(loaded.model, loaded.processor, loaded.prompt, 8, 64, loaded.space).generate(photos)
    assert apart(ours, open_export(exported)[0].generate(photos)) < 1e-4
    native, predictor = load_predictor(adapted), load_predictor(exported)
    assert predictor.calibrated
    for one, other in zip(native.predict(photos), predictor.predict(photos), strict=True):
        assert one.values == other.values
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
        assert one.intervals == other.intervals


@onnx
def test_values_grow_on_the_same_trees(exported, adapted, photos):
    loaded = load_run(adapted)
    ours = Generator(loaded.model, loaded.processor, loaded.prompt, 8, 64, loaded.space, estimate="median").generate(
        photos
    )
    theirs = open_export(exported, estimate="median")[0].generate(photos)
    assert apart(ours, theirs) < 1e-4
    for one, other in zip(ours, theirs, strict=True):
        assert one.distributions.keys() == other.distributions.keys() == {"category3_code", "full_price"}, one
        assert one.distributions["full_price"] == other.distributions["full_price"]
        for (value, share), (again, told) in zip(
            *(each.distributions["category3_code"].top(3) for each in (one, other)), strict=True
        ):
            assert value == again
            assert share == pytest.approx(told, abs=1e-4)
    assert load_predictor(exported).generator.estimate == "median"


@onnx
def test_the_check_of_an_export_can_be_repeated(exported):
    certificate = check(exported)
    assert certificate.passed
    assert {one.name for one in certificate.checks} == {"pixels", "ids", "logits", "answers", "log_probability"}


@onnx
def test_a_quantised_export_is_judged_by_its_accuracy(adapted, tmp_path):
    certificate = export(adapted, "onnx", tmp_path / "int8", precision="int8", rows=8).certificate
    judged = {one.name for one in certificate.checks if one.allowed is not None}
    assert judged == {"pixels", "ids", "accuracy"}
    assert set(certificate.accuracy) == {"title", "category3_code", "full_price"}
    assert load_predictor(tmp_path / "int8").calibrated


@onnx
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantised_export_is_smaller_and_calibrated_anew(adapted, exported, tmp_path, precision):
    loaded, target = load_run(adapted), target_of("onnx")
    assert target.write(loaded, tmp_path, precision) == describe(tmp_path).precision == precision
    small, large = ((folder / "text.onnx.data").stat().st_size for folder in (tmp_path, exported))
    assert small < 0.7 * large
    anew = target.calibration(loaded, tmp_path, lambda *_: None)
    assert anew.fields != load_calibration(adapted, loaded.prompt).fields
    assert anew.products == load_calibration(adapted, loaded.prompt).products


@onnx
@pytest.mark.parametrize("size", [(56, 56), (300, 40), (40, 300), (120, 90), (200, 60)], ids=lambda size: str(size))
def test_pictures_of_all_shapes_have_the_embeddings_of_the_model(adapted, exported, size):
    loaded, generator = load_run(adapted), open_export(exported)[0]
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    inputs = loaded.processor.image_processor(Image.fromarray(noise))
    with torch.no_grad():
        expected = loaded.model.get_image_features(**inputs).numpy()
    found = generator.features([encoded(Image.fromarray(noise))])[1]
    assert np.abs(found - expected).max() < 2e-5


@onnx
def test_queries_of_several_pictures_and_other_questions_are_answered_as_by_the_run(adapted, exported, photos):
    loaded = load_run(adapted)
    queries = [Query(tuple(photos[:2]), "What are these?"), Query((photos[2], photos[0], photos[1]), "Which?")]
    ours = Generator(loaded.model, loaded.processor, loaded.prompt, 8, 64, loaded.space).generate(queries)
    assert apart(ours, open_export(exported)[0].generate(queries)) < 1e-4


@onnx
def test_categories_may_be_left_open(adapted, exported, photos):
    loaded = load_run(adapted)
    ours = Generator(loaded.model, loaded.processor, loaded.prompt, 8, 64, loaded.space, free_categories=True)
    assert (
        apart(ours.generate(photos[:4]), open_export(exported, free_categories=True)[0].generate(photos[:4])) < 1e-4
    )
    assert not load_predictor(exported, free_categories=True).calibrated


@onnx
def test_what_is_no_picture_has_an_error_beside_the_others(exported, photos):
    good, bad, other = load_predictor(exported).predict([photos[0], b"no picture", photos[1]])
    assert good.values
    assert other.values
    assert str(bad.error).startswith("picture not a picture in one of")


@onnx
def test_rows_that_come_to_the_longrope_switch_are_written_as_by_the_run(adapted, photos, tmp_path):
    loaded = load_run(adapted)
    half = loaded.model.config.hidden_size // loaded.model.config.num_attention_heads // 2
    factors = {"type": "longrope", "short_factor": [1.0] * half, "long_factor": [1.5] * half}
    fields = loaded.model.config.to_dict() | {"rope_scaling": factors, "original_max_position_embeddings": SWITCH}
    crossing = Phi3VForCausalLM(Phi3VConfig(**fields)).eval()
    crossing.load_state_dict(loaded.model.state_dict())
    loaded.processor.image_processor.num_crops = 3
    write_graphs(replace(loaded, model=crossing), tmp_path, "fp32")
    everything = [*photos[:6], encoded(Image.new("RGB", (300, 40), (40, 90, 200)))]  # the last one is beyond it
    ours = Generator(crossing, loaded.processor, loaded.prompt, 8, 64, loaded.space).generate(everything)
    assert {one.prompt_tokens > SWITCH for one in ours} == {True, False}
    assert any(one.prompt_tokens <= SWITCH < one.prompt_tokens + len(one.pieces) for one in ours)
    assert apart(ours, open_export(tmp_path)[0].generate(everything)) < 1e-4


@onnx
def test_onnxruntime_genai_is_told_of_the_graphs(exported):
    import onnx as library

    known = json.loads((exported / "genai_config.json").read_text())["model"]
    assert known["type"] == "phi3v"
    for part in ("vision", "embedding"):
        graph = library.load(exported / known[part]["filename"]).graph
        assert set(known[part]["inputs"].values()) == {one.name for one in graph.input}
        assert set(known[part]["outputs"].values()) == {one.name for one in graph.output}
    assert known["decoder"]["filename"] == "text.onnx"
    assert known["decoder"]["inputs"]["inputs_embeds"] == "inputs_embeds"


@onnx
def test_predict_imports_no_torch_and_sends_no_telemetry(exported, photos, tmp_path):
    (tmp_path / "photo.png").write_bytes(photos[0])
    (tmp_path / "none.jpg").write_bytes(b"none")
    code = f"""
import os, sys
sys.argv = ["catalens", "predict", {str(exported)!r}, "photo.png", "none.jpg", "--engine", "onnx", "--max-bad", "50%"]
from catalens.cli import main
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
assert "onnxruntime" in sys.modules
print("heavy:", [name for name in {HEAVY} if name in sys.modules], os.environ["ORT_DISABLE_TELEMETRY"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, heavy = done.stdout.splitlines()
    assert heavy == "heavy: [] 1"
    assert json.loads(first)["file"] == "photo.png"
    assert json.loads(first)["error"] is None
    assert json.loads(second)["error"].startswith("picture not a picture")
    assert "1 of 2 pictures failed" in done.stderr


@pytest.mark.parametrize(
    "module",
    [f"catalens.{name}" for name in ("cli", "inference.onnx", "inference.batch", "serving.app", "exporting.onnx")],
)
def test_what_runs_an_export_imports_no_torch(module):
    code = f"import sys, {module}; print([name for name in {HEAVY[:5]} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@onnx
def test_photos_have_the_lines_that_a_folder_of_them_has(exported, photos, tmp_path):
    (tmp_path / "photo.png").write_bytes(photos[0])
    command = [sys.executable, "-m", "catalens", "predict", str(exported)]
    found = [subprocess.check_output([*command, where], cwd=tmp_path) for where in ("photo.png", ".")]
    assert json.loads(found[0]) == json.loads(found[1]) | {"file": "photo.png"}


@onnx
@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("vision.onnx", b"", "vision.onnx cannot be loaded"),
        ("text.onnx", b"\0" * 100, "text.onnx cannot be loaded"),
        ("text.onnx.data", None, "text.onnx cannot be loaded"),
        ("embedding.onnx", None, "embedding.onnx cannot be loaded"),
        ("onnx.json", b"{}", "onnx.json is not of this version"),
        ("tokenizer.json", b"{", "tokenizer.json cannot be read"),
        ("prompt.json", b"[]", "prompt.json or answers.json cannot be read"),
        ("answers.json", None, "prompt.json or answers.json cannot be read"),
    ],
)
def test_a_damaged_export_is_named_in_a_sentence(exported, tmp_path, file, content, says):
    for path in exported.iterdir():
        if path.name != file:
            (tmp_path / path.name).symlink_to(path)
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{says}.*: export the run again"):
        load_predictor(tmp_path, engine="onnx")


@onnx
def test_a_calibration_of_other_graphs_is_refused(exported, tmp_path):
    for path in exported.iterdir():
        if path.name != "answers.json":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "answers.json").write_text((exported / "answers.json").read_text() + "\n")
    with pytest.raises(CheckpointError, match=r"calibration\.json is of another model .*: export the run again"):
        load_predictor(tmp_path)


@onnx
def test_the_commands_of_the_docs_run(run_commands):
    text = run_commands("exporting-onnx.md")
    told = re.findall(r"`(\w+\.(?:onnx(?:\.data)?|json|parquet))`", text)
    assert {path.name for path in Path("exports/practice-onnx").iterdir()} == set(told) | {"README.md"}


@onnx
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
    write_graphs(loaded, tmp_path, "fp32")
    ours = Generator(model, processor, PromptSpec(), 4, 64, FEW).generate(photos[:10])
    generator = open_export(tmp_path)[0]
    assert apart(ours, generator.generate(photos[:10])) < 1e-4


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"to": "onnx", "precision": "int2"}, "--precision int2: the choices are fp32, int8, int4"),
        ({"to": "merged", "precision": "int8"}, "--precision int8: leave it out, merged keeps that of the run"),
    ],
)
def test_precisions_that_a_form_does_not_have_are_refused(tmp_path, asked, says):
    with pytest.raises(RecipeError, match=says):
        export(tmp_path / "run", out=tmp_path / "out", **asked)


@pytest.mark.parametrize(
    ("run", "engine", "error", "says"),
    [
        ("none", "onnx", CheckpointError, "is no export for onnx"),
        (None, "onnx", RecipeError, "--engine onnx needs an export"),
        ("none", "jax", RecipeError, "--engine jax: the choices are torch, onnx"),
    ],
)
def test_engines_say_what_they_need(tmp_path, run, engine, error, says):
    with pytest.raises(error, match=says):
        load_predictor(run and tmp_path / run, engine=engine)


@pytest.mark.parametrize("lacking", ["onnxruntime", "onnxscript"])
def test_packages_that_are_not_there_are_named_with_their_extra(adapted, tmp_path, monkeypatch, lacking):
    for name in NEEDED:
        monkeypatch.setitem(sys.modules, name, None if name == lacking else sys.modules[__name__])
    with pytest.raises(RecipeError, match=r"needs onnx.*: pip install 'catalens\[onnx"):
        export(adapted, "onnx", tmp_path / "out", rows=2)
    assert not (tmp_path / "out").exists()
