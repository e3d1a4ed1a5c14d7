"""benchmarks/calibration.py on a made-up run."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import calibration as benchmark

from catalens.config import FieldSpec, PromptSpec
from catalens.errors import CheckpointError
from catalens.inference import FieldScore, fit_calibration

PROMPT = PromptSpec(
    fields=(
        FieldSpec(column="title", label="Product", kind="text"),
        FieldSpec(column="price", label="Price", kind="number"),
    )
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """300 rows calibrated, 300 evaluated: unsure titles are mostly wrong; prices err by 2 %, the last has none."""
    rng = np.random.default_rng(0)
    sure = rng.random(600) < 0.8
    right = np.where(sure, rng.random(600) < 0.995, rng.random(600) < 0.3)
    prices = rng.uniform(10, 90, 600)
    truths = [{"title": "bag", "price": price} for price in prices]
    said = [
        {"title": "bag" if hit else "scarf", "price": price * factor}
        for hit, price, factor in zip(right, prices, rng.lognormal(0, 0.02, 600), strict=True)
    ]
    scores = [{"title": FieldScore(-0.01 if one else -2.0, 4), "price": FieldScore(-1.0, 4)} for one in sure]
    calibration = fit_calibration(PROMPT, truths[:300], said[:300], scores[:300])
    rows = [
        {f"truth.{name}": truth[name] for name in truth}
        | {f"predicted.{name}": values[name] for name in values}
        | {f"confidence.{name}": calibration.apply(name, score[name]) for name in score}
        | dict(zip(("low.price", "high.price"), calibration.bounds("price", values["price"]) or (), strict=False))
        for truth, values, score in zip(truths[300:], said[300:], scores[300:], strict=True)
    ]
    rows[-1] |= {name: None for name in rows[-1] if not name.startswith("truth.")}
    for folder in ("best", "evaluation"):
        (tmp_path / folder).mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "evaluation" / "predictions.parquet")
    (tmp_path / "best" / "prompt.json").write_text(PROMPT.model_dump_json())
    calibration.save(tmp_path)
    return tmp_path


def test_a_run_without_a_calibration_is_named(run: Path, monkeypatch: pytest.MonkeyPatch):
    (run / "calibration.json").unlink()
    monkeypatch.setattr(sys, "argv", ["calibration.py", str(run)])
    with pytest.raises(CheckpointError, match=r"no calibration\.json"):
        benchmark.main()


def test_it_prints_a_line_a_field(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "argv", ["calibration.py", str(run)])
    benchmark.main()
    printed = capsys.readouterr().out
    assert "300 rows, calibrated on 300 products, target 5.0%" in printed
    lines = [line.replace("│", " ").split() for line in printed.splitlines() if line.startswith("│")]
    title, price = (next(line for line in lines if line[0] == name) for name in ("title", "price"))
    assert 0.8 < float(title[1]) < 0.9
    assert float(title[2]) < 0.06
    assert 0.7 < float(title[5]) < 0.85  # accepted: the sure ones
    assert int(title[7]) >= 95
    assert price[1] == "0.997"  # the row without an answer is wrong
    assert 0.85 < float(price[4]) < 0.95
    assert price[5:7] == ["of", "0.9"]
    assert price[8] == "0.997"
