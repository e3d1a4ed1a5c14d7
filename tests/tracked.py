"""Tells a tracker everything, in a process of its own: some libraries read the environment only when imported.

done = track(folder, home, {"to": "wandb"}, WANDB_MODE="offline")
assert_quiet(done)
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from catalens.config import TrackingSpec
from catalens.tracking import LoggedExample, start_tracker

CONFIG = {"training": {"epochs": 3}, "versions": {"catalog": "sha256:4f1c0ffee4f1c0ffee"}}
METADATA = {"validation/loss": 0.75, "catalog": "sha256:4f1c0ffee4f1c0ffee"}
HOSTILE = "<img src=x onerror=alert(1)> | <b>coat</b>"
WARNING = ("Shuffled pictures do not hurt", "Title and price are as good without the picture.")


def alone(home: Path, **settings: str) -> dict[str, str]:
    """An environment that holds nothing else."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **settings}


def track(folder: Path, home: Path, spec: dict[str, Any], **settings: str) -> subprocess.CompletedProcess:
    """Tell a tracker everything; warnings of catalens go to standard error, those of Python are errors."""
    return subprocess.run(
        # wandb leaves folders in /tmp to the interpreter's end
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", __file__, str(folder), json.dumps(spec)],
        env=alone(home, **settings),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_quiet(done: subprocess.CompletedProcess) -> None:
    """All went well, and nothing was said."""
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def records(run: Path, home: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of an offline run by kind, read back by wandb's own inspector."""
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    said = subprocess.run(inspect, env=alone(home), cwd=home, capture_output=True, text=True, check=True).stdout
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in said.splitlines():
        record = json.loads(line)
        kinds.setdefault(record["type"], []).append(record[record["type"]])
    return kinds


def history(kinds: dict[str, list[dict[str, Any]]]) -> dict[int, dict[str, Any]]:
    """Step to what was logged there, wandb's own figures left out."""
    return {
        record["item"]["_step"]: {name: value for name, value in record["item"].items() if not name.startswith("_")}
        for record in kinds["history"]
    }


def artifacts(kinds: dict[str, list[dict[str, Any]]], type: str) -> list[dict[str, Any]]:
    return [artifact for artifact in kinds.get("artifact", []) if artifact["type"] == type]


def picture(colour: str) -> bytes:
    """A PNG of 1024x768 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (1024, 768), colour).save(file, "PNG")
    return file.getvalue()


def rows(price: float) -> list[LoggedExample]:
    """One row that was read, and one whose answer did not parse."""
    return [
        LoggedExample(
            "coat-1", picture("red"), {"title": "Coat", "price": 10.0}, {"title": "Cape", "price": price}, None
        ),
        LoggedExample("bag-2", picture("blue"), {"title": HOSTILE, "price": 5.5}, None, "no price"),
    ]


def tell(folder: Path, spec: TrackingSpec) -> None:
    """A run of four steps, validated at two of them."""
    tracker = start_tracker(spec, folder, CONFIG, lambda text: print(text, file=sys.stderr))
    tracker.log({"train/loss": 2.5, "train/learning_rate": 0.001}, step=1)
    tracker.log({"train/loss": 1.5}, step=2)
    tracker.log({"validation/loss": 1.25}, step=2)
    tracker.examples(rows(12.0), step=2)
    tracker.log({"validation/loss": 0.75}, step=4)
    tracker.examples(rows(10.5), step=4)
    tracker.warn(*WARNING)
    best = folder / "best"
    (best / "processor").mkdir(parents=True, exist_ok=True)
    (best / "model.safetensors").write_bytes(bytes(54_321))
    (best / "processor" / "tokenizer.json").write_text("{}")
    tracker.model(best, 4, METADATA)
    tracker.summary({"best/loss": 0.75, "best/shuffled_hurts": False, "best/by": "loss"})
    tracker.finish()


if __name__ == "__main__":
    tell(Path(sys.argv[1]), TrackingSpec.model_validate({"project": "shop", **json.loads(sys.argv[2])}))
