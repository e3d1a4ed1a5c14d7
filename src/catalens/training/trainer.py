"""Hugging Face's Trainer with the run's own plan, optimizer, validation and figures.

Trainer sees the whole plan as a single epoch, so that its count of steps is the place in the plan.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from catalens.checkpoint import agreed, processes
from catalens.collation import IGNORED, ProductDataset
from catalens.config import TrainingSpec
from catalens.errors import TrainingError
from catalens.metrics import Figure, ImageUse
from catalens.model import Phi3VProcessor
from catalens.tracking import LoggedExample
from catalens.training.batching import Plan, PlannedBatches
from catalens.training.checkpoints import SafeCheckpoints
from catalens.training.optimizers import make_optimizer
from catalens.training.throughput import Meter

Figures = Mapping[str, Figure]
"""Such as `{"title.exact": {"value": 0.9, "low": 0.85, "high": 0.94}}`."""


class Score(Protocol):
    """What the caller gives to score a model by free generation on a fixed sample of validation rows."""

    def __call__(self, model: Any, processor: Phi3VProcessor) -> tuple[Figures, Sequence[LoggedExample]]:
        """Figures, and some of the rows with what was written about them; in every process the same."""
        ...

    def image_use(self, model: Any, processor: Phi3VProcessor) -> tuple[ImageUse, Figures]:
        """What other products' pictures do to the score, and the figures with them."""
        ...


class CatalensTrainer(SafeCheckpoints):
    """Trains by a plan; validates by the exact loss and, as far as the budget allows, by free generation."""

    def __init__(
        self,
        spec: TrainingSpec,
        data: tuple[ProductDataset, ProductDataset],
        plans: tuple[Plan, Plan],
        meter: Meter,
        score: Callable[[Any], Figures] | None,
        workers: int,
        **kwargs: Any,
    ) -> None:
        self.spec, self.meter, self.score, self.workers = spec, meter, score, workers
        self.training_plan, self.validation_plan = plans
        self.training_data, self.validation_data = data
        self._begun, self._scored, self._last = time.monotonic(), 0.0, 0.0
        super().__init__(**kwargs)
        self._seen = list(accumulate(sum(map(len, step)) for step in self.training_plan))

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer's, and FSDP2 on CPUs, which torch has and accelerate keeps to accelerators."""
        super().create_accelerator_and_postprocess()
        if self.spec.fsdp and self.accelerator.distributed_type == DistributedType.MULTI_CPU:
            processes().distributed_type = DistributedType.FSDP
            state = AcceleratorState()  # takes over what stands there
            asked: Any = self.args.fsdp_plugin_args
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**asked)
            self.is_fsdp_enabled = True

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The recipe's, in groups by part."""
        if self.optimizer is None:
            trained: Any = model or self.model
            self.optimizer = make_optimizer(trained.named_parameters(), self.spec)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The batches of the plan that are this process's."""
        return self._loader(self.training_data, self.training_plan, self.workers)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[dict[str, torch.Tensor]]:
        """Validation rows of this process."""
        return self._loader(self.validation_data, self.validation_plan, 0)

    def _loader(self, dataset: ProductDataset, plan: Plan, workers: int) -> DataLoader[dict[str, torch.Tensor]]:
        return DataLoader(
            dataset,
            batch_sampler=PlannedBatches(plan, self.args.process_index, self.args.world_size),
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # the run's own numbers stay as they are
        )

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The batches of a step, counted, and the time that they were waited for."""
        started = time.perf_counter()
        try:
            batches, labels = super().get_batch_samples(epoch_iterator, num_batches, device)
        except TrainingError as error:  # a worker of the loader puts its whole traceback into the message
            raise TrainingError(str(error).strip().rpartition("TrainingError: ")[2]) from error
        self.meter.count(batches, time.perf_counter() - started)
        return batches, labels

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's own loss, its targets smoothed while it trains."""
        smoothing = self.spec.label_smoothing
        smoothed = {**inputs, "label_smoothing": smoothing} if smoothing and model.training else dict(inputs)
        return super().compute_loss(model, smoothed, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Learning rates by part and throughput go with every training loss."""
        if "loss" in logs:
            optimizer: Any = self.optimizer
            rates = {f"learning_rate/{group['name']}": group["lr"] for group in optimizer.param_groups}
            logs = {**logs, **rates, **self.meter.recent()}
        if "train_runtime" in logs:  # Trainer's own rates count validation, and rows that are not there
            logs = {name: logs[name] for name in ("train_runtime", "train_loss")}
        self.state.epoch = self._seen[self.state.global_step - 1] / len(self.training_data)
        super().log(logs, start_time)
        if "loss" in logs:
            self._check("training", logs["loss"])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's; no training time."""
        with self.meter.paused():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._check("training", float(self._tr_loss))  # a spoilt state is never kept
        with self.meter.paused():
            super()._save_checkpoint(model, trial)

    def evaluation_loop(
        self, dataloader: DataLoader[Any], *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Mean loss of all answer tokens, then generation; TrainingError where the loss is no number."""
        model: Any = self.model
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for batch in dataloader:
                labels = int((batch["labels"] != IGNORED).sum())
                loss = model(**self._prepare_inputs(batch), num_items_in_batch=1).loss  # the sum over the labels
                sums += torch.tensor([float(loss), labels], dtype=torch.float64, device=self.args.device)
        total: Any = self.accelerator.reduce(sums, "sum")
        loss = float(total[0] / total[1])
        self._check("validation", loss)
        metrics = {f"{metric_key_prefix}_loss": loss}
        for name, figure in (self._scores() if self.score else {}).items():
            metrics[f"{metric_key_prefix}_{name}"] = figure["value"]
            metrics |= {f"{metric_key_prefix}_{name}/{end}": figure[end] for end in ("low", "high") if end in figure}
        return EvalLoopOutput(
            predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=len(self.validation_data)
        )

    def _check(self, kind: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the {kind} loss at step {self.state.global_step} is no finite number: "
                "lower training.learning_rate or raise training.warmup"
            )

    def _scores(self) -> Figures:
        """Figures from generation; none where they would cost more of the wall time than the budget.

        Where one of them chooses the best checkpoint, every round has them: the clock would choose another one in the
        next run.
        """
        assert self.score is not None
        now = time.monotonic()
        share = (self._scored + self._last) / max(now - self._begun + self._last, 1e-9)
        always = self.spec.best_by != "loss" or self.state.global_step >= self.state.max_steps
        if not agreed(always or not self._last or share <= self.spec.evaluation_budget):
            return {}
        figures = self.score(self.model)
        self._last = time.monotonic() - now
        self._scored += self._last
        return figures
