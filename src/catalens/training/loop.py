"""The training loop, on accelerate.

fetch a step's micro-batches, forward and backward of each, clip, step; log, evaluate and save when it is time

runs/demo/metrics.jsonl   {"step": 10, "train/loss": 0.71, "train/grad_norm": 1.2, "train/learning_rate": 9e-05, ...}
                          {"step": 30, "validation/loss": 0.69, "validation/title.exact": 0.41, ...}
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, send_to_device
from accelerate.utils.memory import should_reduce_batch_size
from rich.markup import escape
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from transformers import get_scheduler, set_seed

from catalens.config import TrainingSpec
from catalens.data import IGNORED, Collator, Examples
from catalens.devices import broadcast, compute_dtype, eager, processes
from catalens.errors import TrainingError, first_line
from catalens.metrics import Figure, ImageUse, higher_is_better, is_headline
from catalens.model import Family
from catalens.progress import Progress
from catalens.tracking import LoggedExample, Tracker
from catalens.training.batches import Plan, PlannedBatches, loader_workers, possible_passes, regroup, shapes_of
from catalens.training.checkpoints import State, Training, remove_surplus
from catalens.training.fitting import dry_step, tried_fit
from catalens.training.modules import (
    check_gradients,
    compile_layers,
    compile_seconds,
    compiles,
    make_optimizer,
    uncast_adapters,
)
from catalens.training.run import PreparedRun

SHARDED_BF16 = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
"""FSDP2 gathers weights in bf16, sums gradients in fp32, and leaves the loss as it is."""
Batch = Mapping[str, torch.Tensor]
Figures = Mapping[str, Figure]
"""Such as `{"title.exact": {"value": 0.9, "low": 0.85, "high": 0.94}}`."""


class Score(Protocol):
    """Scorer of a model by free generation on a fixed sample of validation rows."""

    def __call__(self, model: Any, validation: Examples) -> tuple[Figures, Sequence[LoggedExample]]:
        """Figures, and some of the rows with what was written about them; in every process the same."""
        ...

    def image_use(self, model: Any, validation: Examples) -> tuple[ImageUse, Figures]:
        """Verdict on the score with other products' pictures, and the figures with them."""
        ...


class Loop:
    """Training by a plan; validation by the exact loss and, as far as the budget allows, by free generation."""

    def __init__(
        self,
        run: PreparedRun,
        folder: Path,
        checkpoint: Path | None,
        score: Score | None,
        tracker: Tracker,
        progress: Progress,
    ) -> None:
        self.run, self.folder, self.checkpoint = run, folder, checkpoint
        self.score, self.tracker, self.progress = score, tracker, progress
        self.spec, self.meter = run.recipe.training, run.meter
        self.plan, self.validation_plan = run.plans
        self.compiled = compiles(self.spec)
        set_seed(self.spec.seed)
        self.accelerator = accelerator = start_accelerator(self.spec, run.encoder.family)
        run.model.config.use_cache = False
        if self.compiled:
            compile_layers(run.model)
            self._compiled_before = compile_seconds()
        steps = len(self.plan)
        warmup = math.ceil(steps * self.spec.warmup)
        self.training = Training(
            accelerator,
            run.model,
            lambda model: make_optimizer(model, self.spec),
            partial(get_scheduler, self.spec.schedule, num_warmup_steps=warmup, num_training_steps=steps),
            checkpoint,
        )
        self.state = State.load(checkpoint) if checkpoint else State()
        self.model, self.wrapped = self.training.model, self.training.wrapped
        self.beginning: dict[str, float] = {}
        """Seconds to the first step, and of compiling."""
        self._fit_memory()
        self.log_every = max(1, min(10, steps // 20))
        self.validate_every = max(1, math.ceil(steps / self.spec.num_evals))
        self.save_every = math.ceil(steps / self.spec.num_checkpoints)
        self._seen = list(accumulate(sum(map(len, step)) for step in self.plan))  # rows, after each step
        self._loss = torch.zeros((), device=accelerator.device)  # of the steps since the last line of the log
        self._loss_sum, self._logged, self._note = 0.0, self.state.step, ""
        self._begun, self._scored, self._last = time.monotonic(), 0.0, 0.0

    def _fit_memory(self) -> None:
        """Regroup the plan into as many passes as the memory asks for, tried on the longest one of them."""
        usual, count = self.spec.gradient_accumulation, self.accelerator.num_processes
        first, rows = self.run.setup.passes or usual, max(len(batch) for step in self.plan for batch in step)
        planned = self.plan
        possible = [number for number in possible_passes(usual, rows) if number >= first]
        passes = first
        if not self.training.sharded:  # whose processes would wait for one that failed
            passes = tried_fit(possible, lambda number: self._try(regroup(planned, count, usual, number)))
        tried = torch.tensor([possible.index(passes)], device=self.accelerator.device)
        gathered: Any = self.accelerator.gather(tried)
        passes = possible[int(gathered.max())]  # of all processes
        if passes != first:
            self.run.console.print(
                f"[yellow]out of memory[/]: {passes} passes of fewer rows make a step, in place of {first}",
                highlight=False,
            )
        self._take(regroup(planned, count, usual, passes))

    def _take(self, plan: Plan) -> None:
        """Go by a plan: its passes in a step, and the shapes of its batches."""
        family, pad_id = self.run.encoder.family, self.run.encoder.tokenizer.pad_token_id
        self.plan, packed = plan, self.spec.packing
        self.accumulation = PlannedBatches(plan, 0, self.accelerator.num_processes).accumulation
        shapes = shapes_of(plan, self.run.meter.tokens, packed) if self.compiled else None
        self.collate = Collator(family, pad_id, packed, shapes)

    def _try(self, plan: Plan) -> None:
        """Take a dry step with the longest batch of a plan; without compiling where that fails and need not be."""
        self._take(plan)
        rows, lengths = self.run.data["train"], self.run.meter.tokens
        longest = max((one for step in plan for one in step), key=lambda one: len(one) * max(lengths[i] for i in one))

        def inputs() -> dict[str, Any]:
            batch: Any = send_to_device(self.collate([rows[i] for i in longest]), self.accelerator.device)
            return batch

        try:
            with self._as_compiled(), uncast_adapters(self.model, self.spec):
                dry_step(self.model, inputs)
        except torch._dynamo.exc.TorchDynamoException as error:  # type: ignore[attr-defined]
            if self.spec.compile is True or should_reduce_batch_size(error):
                raise
            reason = escape(first_line(error))
            self.run.console.print(f"[yellow]layers cannot be compiled here[/] ({reason}): trained as they are")
            self.compiled = False
            self._try(plan)

    def _as_compiled(self) -> AbstractContextManager[object]:
        return nullcontext() if self.compiled else eager(self.model)

    def fit(self) -> float:
        """Train to the end of the plan, or until nothing gets better; give the seconds that it took.

        The model is the best one then. Raises TrainingError where the loss is no number, no gradient reaches a part
        that should learn, a picture cannot be read any more, or a checkpoint cannot be written.
        """
        started, first, total = time.perf_counter(), self.state.step, len(self.plan)
        optimizer, schedule = self.training.optimizer, self.training.schedule
        loader = self._loader(self.run.data["train"], self.plan, first, loader_workers(self.spec.workers))
        batches, rows = iter(loader), iter(loader.batch_sampler or ())
        self.meter.start()
        for _ in range(first, total):
            if self.spec.patience is not None and self.state.rounds_since_best >= self.spec.patience:
                break
            micro_batches = self._fetch(batches, rows)
            if self.checkpoint and self.state.step == first:
                self.training.load_random_state(self.checkpoint)
            self._backward(micro_batches)
            norm: Any = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.spec.max_grad_norm)
            if self.state.step == first:
                check_gradients(self.model, self.spec)  # waits for the device
                self.beginning["seconds_to_first_step"] = time.perf_counter() - self.run.started
            optimizer.step()
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            self.wrapped.zero_grad()
            self.state.step += 1
            if self.state.step % self.log_every == 0:
                self._log(norm, rate)
            self.progress("training", self.state.step, total, self._note)
            validate = self.state.step == total or self.state.step % self.validate_every == 0
            if validate:
                self._validate()
            if validate or self.state.step % self.save_every == 0:
                self._save()
        return self._finish(first, time.perf_counter() - started)

    def _loader(
        self, dataset: Examples, plan: Plan, first: int = 0, workers: int = 0
    ) -> DataLoader[dict[str, torch.Tensor]]:
        return DataLoader(
            dataset,
            batch_sampler=PlannedBatches(plan, self.accelerator.process_index, self.accelerator.num_processes, first),
            collate_fn=self.collate,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the run's own numbers stay as they are
        )

    def _fetch(self, batches: Any, rows: Any) -> list[Batch]:
        """Take the next step's micro-batches of this process; count them, and the time that they were waited for."""
        started = time.perf_counter()
        try:
            fetched = [next(batches) for _ in range(self.accumulation)]
        except TrainingError as error:  # a worker of the loader puts its whole traceback into the message
            raise TrainingError(str(error).strip().rpartition("TrainingError: ")[2]) from error
        waited, positions = time.perf_counter() - started, sum(batch["input_ids"].numel() for batch in fetched)
        self.meter.count([row for _ in fetched for row in next(rows)], positions, waited)
        return fetched

    def _backward(self, micro_batches: Sequence[Batch]) -> None:
        """Add up gradients of the mean loss over all labels of the step, of its micro-batches in all processes."""
        count: Any = sum((batch["labels"] != IGNORED).sum() for batch in micro_batches)
        labels: Any = self.accelerator.reduce(count.to(self.accelerator.device), "sum")
        smoothing = {"label_smoothing": self.spec.label_smoothing} if self.spec.label_smoothing else {}
        self.wrapped.train()
        for index, batch in enumerate(micro_batches):
            # FSDP2 keeps its sums sharded, and cannot wait where a module never runs
            sums_now = index == len(micro_batches) - 1 or self.training.sharded
            syncing = nullcontext() if sums_now else self.accelerator.no_sync(self.wrapped)
            with syncing, self._as_compiled(), uncast_adapters(self.model, self.spec):
                inputs = send_to_device(batch, self.accelerator.device)
                loss = self.wrapped(**inputs, **smoothing, num_items_in_batch=labels.float()).loss
                loss = loss * self.accelerator.num_processes  # DDP and FSDP2 take the mean of the gradients
                self.accelerator.backward(loss)
            self._loss += loss.detach()

    def _log(self, norm: torch.Tensor, rate: float) -> None:
        total, steps = self._drain(), self.state.step - self._logged
        self._logged = self.state.step
        loss = total / steps
        rates = {f"train/learning_rate/{g['name']}": g["lr"] for g in self.training.optimizer.param_groups}
        speed = self.meter.recent()
        self._record(
            {
                "train/loss": loss,
                "train/grad_norm": norm.item(),
                "train/learning_rate": rate,
                **rates,
                **{f"train/{name}": value for name, value in speed.items()},
                "train/epoch": self._epoch,
            }
        )
        self._note = f"loss {loss:.3f}" + (f", {speed['samples_per_second']:.3g} samples/s" if speed else "")
        self._check("training", loss)

    def _validate(self) -> None:
        """Validate; keep in mind the best round and how long ago it was."""
        started = time.perf_counter()
        with self.meter.paused(), eager(self.model):
            loss = self._validation_loss()
            self._check("validation", loss)
            scores = self._scores() if self.score else {}
        figures = {"loss": loss, **{name: figure["value"] for name, figure in scores.items()}}
        lines: dict[str, float] = {"validation/loss": loss}
        for name, figure in scores.items():
            lines[f"validation/{name}"] = figure["value"]
            lines |= {f"validation/{name}/{end}": figure[end] for end in ("low", "high") if end in figure}
        seconds, rows = time.perf_counter() - started, len(self.run.data["validation"])
        lines["validation/runtime"] = round(seconds, 4)
        lines["validation/samples_per_second"] = round(rows / seconds, 3)
        self._record(lines | {"train/epoch": self._epoch})
        told = {name for name in figures if is_headline(name)} | {self.spec.metric_for_best_model}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if name in told)
        self.run.console.print(
            f"step {self.state.step}: validation {shown}", highlight=False, markup=False, soft_wrap=True
        )
        if self.spec.metric_for_best_model not in figures:
            field = self.spec.metric_for_best_model.rpartition(".")[0]
            raise TrainingError(
                f"training.metric_for_best_model is {self.spec.metric_for_best_model}, but no row of the validation "
                f"sample has a value of {field!r}: choose another, such as loss, or raise training.validation_rows"
            )
        value, best = figures[self.spec.metric_for_best_model], self.state.best_value
        lower = not higher_is_better(self.spec.metric_for_best_model)
        if not math.isnan(value) and (best is None or (value < best if lower else value > best)):
            self.state.best_step, self.state.best_value, self.state.rounds_since_best = self.state.step, value, 0
        else:
            self.state.rounds_since_best += 1
        if self.state.best_step in (None, self.state.step):
            self.state.figures = figures

    @torch.no_grad()
    def _validation_loss(self) -> float:
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for batch in self._loader(self.run.data["validation"], self.validation_plan):
            labels = int((batch["labels"] != IGNORED).sum())
            inputs = send_to_device(batch, self.accelerator.device)
            loss = self.model(**inputs, num_items_in_batch=1).loss  # the sum over the labels
            sums += torch.tensor([float(loss), labels], dtype=torch.float64, device=self.accelerator.device)
        total: Any = self.accelerator.reduce(sums, "sum")
        return float(total[0] / total[1])

    def _scores(self) -> Figures:
        """Figures from generation; none where they would cost more of the wall time than the budget.

        Where one of them chooses the best checkpoint, every round has them: the clock would choose another one in the
        next run.
        """
        assert self.score is not None
        now = time.monotonic()
        share = (self._scored + self._last) / max(now - self._begun + self._last, 1e-9)
        always = self.spec.metric_for_best_model != "loss" or self.state.step == len(self.plan)
        if not broadcast(always or not self._last or share <= self.spec.evaluation_budget):
            return {}
        figures, shown = self.score(self.model, self.run.data["validation"])
        self.tracker.examples(shown, self.state.step)
        self._last = time.monotonic() - now
        self._scored += self._last
        return figures

    def _save(self) -> None:
        self._check("training", float(self._loss))  # a spoilt state is never kept
        with self.meter.paused():
            self.training.save(self.folder / "checkpoints", self.state, self.spec.keep_checkpoints)

    def _finish(self, first: int, seconds: float) -> float:
        """Log the loss of the whole, and go back to the best checkpoint."""
        if self.compiled:
            self.beginning["compile_seconds"] = compile_seconds() - self._compiled_before
        self._drain()
        loss = self._loss_sum / max(1, self.state.step - first)
        self._record({"train/runtime": round(seconds, 4), "train/loss": loss, "train/epoch": self._epoch})
        if self.state.best_step:
            folder = self.folder / "checkpoints"
            self.training.load_weights(folder / f"checkpoint-{self.state.best_step}")
            if self.accelerator.is_main_process and self.spec.keep_checkpoints == 1:
                remove_surplus(folder, 1, self.state.best_step, last=False)
        return seconds

    def _drain(self) -> float:
        """Take the loss since the last call, the mean over the processes."""
        gathered: Any = self.accelerator.gather(self._loss)
        total = gathered.mean().item()
        self._loss.zero_()
        self._loss_sum += total
        return total

    def _record(self, values: Mapping[str, float]) -> None:
        """Write figures to `metrics.jsonl` and to the tracker, under the same names."""
        if self.accelerator.is_main_process:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.state.step, **values}) + "\n")
            self.tracker.log(values, self.state.step)

    def _check(self, kind: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the {kind} loss at step {self.state.step} is no finite number: "
                "lower training.learning_rate or raise training.warmup"
            )

    @property
    def _epoch(self) -> float:
        return self._seen[self.state.step - 1] / len(self.run.data["train"])


def start_accelerator(spec: TrainingSpec, family: Family) -> Accelerator:
    """Start accelerate: the precision of products, FSDP2 where several processes are to share the weights."""
    bf16 = compute_dtype(spec.precision) == torch.bfloat16
    plugin = None
    if spec.fsdp and processes().num_processes > 1:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[*family.layer_classes],
            state_dict_type="FULL_STATE_DICT",
            reshard_after_forward=True,
            cpu_ram_efficient_loading=False,
            # accelerate's own would round the loss, and the sum of the gradients, to bf16
            mixed_precision_policy=SHARDED_BF16 if bf16 else None,
        )
    AcceleratorState._reset_state(reset_partial_state=True)  # of another run of this process, in another precision
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="bf16" if bf16 else "no", fsdp_plugin=plugin
    )
    if plugin and accelerator.distributed_type == DistributedType.MULTI_CPU:  # torch shards on CPUs, too
        processes().distributed_type = DistributedType.FSDP
        state = AcceleratorState()  # takes over what stands there
        state.fsdp_plugin = plugin
    return accelerator
