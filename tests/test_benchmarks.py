"""Every benchmark of training runs at its smallest size and prints its table; no figure of time is looked at."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import digit_losses
import engines
import estimates
import full_size
import gpu
import gpu_all
import memory
import original
import training
from random_models import SMALL, drawn_rows, official_config, random_model
from rounds import Times, ratio, take_turns

from catalens.model import REFERENCE, Phi3VForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def test_ways_take_turns_after_a_round_that_warms_up():
    calls: list[str] = []
    ways = {name: (lambda name=name: calls.append(name)) for name in ("one", "other")}
    times = take_turns(ways, rounds=2, rows=4)
    assert calls == ["one", "other"] * 3
    assert [len(figures.wall) for figures in times.values()] == [2, 2]


def test_a_ratio_is_taken_within_each_round():
    found = ratio(Times([100.0, 300.0, 80.0]), Times([10.0, 60.0, 40.0]))
    assert (found.median, found.lowest, found.highest) == (5.0, 2.0, 10.0)


def test_a_random_model_is_the_official_one():
    with torch.device("meta"):
        whole = sum(p.numel() for p in Phi3VForCausalLM(official_config()).parameters())
    assert whole == 4_146_621_440
    model = random_model(official_config(**SMALL), torch.bfloat16)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert model.model.embed_tokens.weight.float().std().item() == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize(("tall", "crops", "tokens"), [(False, 5, 817), (True, 3, 529)])
def test_drawn_rows_have_their_slots(tall: bool, crops: int, tokens: int):
    config = official_config(**SMALL)
    (row,) = drawn_rows(config, 1, num_crops=4, tall=tall)
    assert (len(row["images"][0].pixels), len(row["input_ids"])) == (crops, tokens)
    assert int((row["input_ids"] == config.image_token_id).sum()) == tokens - 60


@pytest.mark.integration
def test_the_cookbooks_way_computes_what_ours_does():
    """The same loss from filled-up crops, padding, every block and all logits as from none of them."""
    from catalens.checkpoint import load_model
    from catalens.data import Collator

    model = load_model("tiny").eval()
    (row,) = drawn_rows(model.config, 1, num_crops=2, tall=True)
    losses = []
    for way in training.ways().values():
        if not way.bf16:
            batch = training._prepared(Collator(REFERENCE, 3)([row]), way, model, pad_id=3)
            losses.append(training._loss(model, batch, way, filled_to=5 if way.padded_crops else 0).item())
    assert len(losses) == 9
    assert losses == pytest.approx([losses[0]] * 9, abs=1e-4)


def test_without_a_lever_the_others_stay():
    ours = training.ways()["fused AdamW"]
    assert training.without("batches of 16") == training.replace(ours, batch_size=1)
    assert training.without("frozen tower") == training.replace(ours, frozen=False, cached=False)
    assert training.without("real crops only") == ours  # a cache computes no crop


@pytest.mark.integration
def test_training(capsys: pytest.CaptureFixture[str]):
    training.main(["--rows", "2", "--rounds", "1", "--num-crops", "1", "--vocabulary", "700"])
    printed = capsys.readouterr().out
    assert "700 words" in printed
    for line in (training.COOKBOOK, *training.LEVERS, training.BF16):
        assert printed.count(f"│ {line} ") == 2


@pytest.mark.integration
def test_original(capsys: pytest.CaptureFixture[str]):
    original.main(["--size", "tiny", "--rounds", "1", "--num-crops", "1"])
    printed = capsys.readouterr().out
    assert printed.count("ours, fp32") == printed.count("the original, bf16") == 2
    assert "2 of 2 crops" in printed


@pytest.mark.integration
def test_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("bitsandbytes")
    small = ["--num-crops", "1", "--largest-batch", "2", "--steps", "1", "--profile"]
    gpu.main(["--size", "tiny", *small, "--methods", "lora", "qlora", "full", "--out", str(tmp_path)])
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(record["method"], record["batch"]) for record in records] == [
        (method, batch) for method in ("lora", "qlora", "full") for batch in (1, 2)
    ]
    assert all(record["images_per_second"] > 0 < record["mfu"] for record in records)
    assert "lora" in capsys.readouterr().out
    assert "aten::" in (tmp_path / "profile.txt").read_text()


@pytest.mark.integration
def test_everything_for_a_gpu_runs_to_its_end_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    documented = gpu_all.DOCS.read_text()
    gpu_all.main(["--tiny", "--rows", "60", "--out", str(tmp_path)])
    report = (tmp_path / "report.md").read_text()
    assert "Failed" not in report
    assert report.count("\n### ") == 4
    assert "| logits, packed | 0.0e+00 |" in report
    assert "What trains under lora is of torch.float32." in report
    assert "`evaluate`, 16 rows" not in report or "0 errors" in report
    assert "All of it took" in capsys.readouterr().out
    assert gpu_all.DOCS.read_text() == documented  # of the full size only
    assert all(documented.count(marker) == 1 for marker in gpu_all.MARKERS)


def test_what_does_not_fit_is_written_down_and_halved():
    def figures(batch: int) -> gpu.Record:
        if batch >= 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"images_per_second": 1.0}

    records = list(gpu.halved(figures, largest=13))
    assert [record["batch"] for record in records] == [1, 13, 6, 3]
    assert records[1] == {"batch": 13, "failed": "out of memory"}
    assert list(gpu.halved(lambda batch: figures(9), largest=8)) == [{"batch": 1, "failed": "out of memory"}]


def test_a_method_that_fails_does_not_lose_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = gpu.argparse.Namespace(
        methods=["lora"], steps=1, num_crops=[1], largest_batch=1, profile=False, out=tmp_path
    )
    (record,) = gpu.measure(str(tmp_path / "nothing"), options)
    assert record["method"] == "lora"
    assert "cannot be loaded" in record["failed"]
    gpu._print([record])
    assert "cannot be" in capsys.readouterr().out


def test_full_size_on_a_machine_without_a_gpu_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="--size tiny runs anywhere"):
        gpu.main([])


@pytest.mark.integration
def test_full_size(capsys: pytest.CaptureFixture[str]):
    full_size.main(["--layers", "1", "--vision-layers", "2", "--num-crops", "1"])
    printed = capsys.readouterr().out
    assert "all 8 adapter matrices got a finite gradient and moved" in printed
    assert "adapters on 4 modules" in printed
    assert "GB at the peak" in printed


@pytest.mark.integration
def test_memory_is_measured_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]):
    memory.main(["--rows", "30"])
    assert "100.0%" in capsys.readouterr().out


def test_an_adapter_without_a_gradient_is_named():
    stuck = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(SystemExit, match="lora_A got no gradient"):
        full_size.check_adapters({"layers.0.lora_A": stuck}, {"layers.0.lora_A": torch.ones(2)})
    stuck.grad = torch.ones(2)
    with pytest.raises(SystemExit, match="did not move"):
        full_size.check_adapters({"layers.0.lora_A": stuck}, {"layers.0.lora_A": torch.ones(2)})
    stuck.grad = torch.tensor([float("nan"), 1.0])
    with pytest.raises(SystemExit, match="no finite number"):
        full_size.check_adapters({"layers.0.lora_A": stuck}, {"layers.0.lora_A": torch.zeros(2)})


@pytest.mark.integration
def test_engines_are_compared_answer_by_answer(
    run: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    kept = tmp_path / "torch.json"
    command = ["engines.py", str(run), "--catalog", str(drawn), "--rows", "3"]
    monkeypatch.setattr(sys, "argv", [*command, "--keep", str(kept)])
    engines.main()
    monkeypatch.setattr(sys, "argv", [*command, "--like", str(kept)])
    with pytest.raises(SystemExit) as ended:
        engines.main()
    assert not ended.value.code
    assert "; 3 of 3 answers as in torch.json, log-probabilities 0 apart at most" in capsys.readouterr().out
    kept.write_text(kept.read_text().replace("Price: ", "Price: 1", 1))
    with pytest.raises(SystemExit) as ended:
        engines.main()
    assert ended.value.code


@pytest.mark.integration
def test_estimates(run: Path, capsys: pytest.CaptureFixture[str]):
    estimates.main([str(run), "--draws", "2", "--within", "30%"])
    printed = capsys.readouterr().out
    assert "full_price: " in printed
    assert "within 30" in printed
    assert "intervals hold" in printed


@pytest.mark.integration
def test_losses_of_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    asked = ["--out", str(tmp_path), "--rows", "60", "--seeds", "0", "--catalogs", "demo"]
    digit_losses.main([*asked, "--set", "training.max_steps=2", "training.validation_rows=0", "training.num_evals=1"])
    printed = capsys.readouterr().out
    assert all(f"{loss} " in printed for loss in digit_losses.WEIGHTS)
    assert "difference to none" in printed
    answers = {one.stem: json.loads(one.read_text()) for one in tmp_path.glob("*.json")}
    assert len(answers) == len(digit_losses.WEIGHTS)
    assert all(len(one["said"]) == len(one["ids"]) > 0 for one in answers.values())
    before = {one: one.stat().st_mtime_ns for one in tmp_path.glob("*.json")}
    digit_losses.main(asked)  # what is there is not trained again
    assert {one: one.stat().st_mtime_ns for one in tmp_path.glob("*.json")} == before
