"""Training settings: parts that train, method, optimizer, schedule, checkpoints."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from catalens.config.prompt import Frozen

Part = Literal["vision", "projector", "embeddings", "text"]
PARTS: tuple[Part, ...] = ("vision", "projector", "embeddings", "text")
"""Parts of the model: CLIP tower; projector and separators; input and output embeddings; decoder layers."""


class PartSpec(Frozen):
    """Training of one part of the model. In YAML a bare word such as `frozen` stands for `{train: frozen}`."""

    train: Literal["frozen", "adapted", "full"]
    """Not at all, by low-rank adapters on its linear modules, or all of its weights."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of this part; unset: the one of the training."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: object) -> object:
        return {"train": value} if isinstance(value, str) else value


class PartsSpec(Frozen):
    """Parts of the model that train otherwise than the method says."""

    vision: PartSpec | None = None
    """The CLIP tower: `full` under the method `full`, else frozen."""
    projector: PartSpec | None = None
    """Projector and separators: `full` under the method `full`, else frozen."""
    embeddings: PartSpec | None = None
    """Input and output embeddings: `full` under the method `full`, else frozen; new words need them."""
    text: PartSpec | None = None
    """The decoder: `full` under the method `full`, else adapted."""


class LoraSpec(Frozen):
    """Low-rank adaptation (Hu et al., 2021) through PEFT, on the parts that are adapted."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update matrices."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (Kalajdzievski, 2023)."""
    dora: bool = False
    """Learn the magnitude of each weight apart from its direction (Liu et al., 2024); slower."""
    targets: tuple[str, ...] = ()
    """Names of the linear modules to adapt, such as `qkv_proj`; empty: all of an adapted part. One that matches no
    module is an error."""


class TrainingSpec(Frozen):
    """Training of the model."""

    method: Literal["full", "lora", "qlora"] = "lora"
    """Train all weights, low-rank adapters, or adapters over weights in 4 bits (nf4 with double quantisation)."""
    parts: PartsSpec = PartsSpec()
    """Parts that train otherwise than the method says."""
    lora: LoraSpec = LoraSpec()
    """Used where a part is adapted."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training split."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimizer steps, whatever the epochs say."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows in one forward pass on one device; `auto`: 8, and on a GPU those of an optimizer step, which are 8 times
    `gradient_accumulation`, in as few passes as its memory allows."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """In place of `batch_size`: as many rows as these tokens hold, padding included."""
    packing: bool = False
    """Rows of a batch stand in one sequence, without padding, each seeing itself only."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes in one optimizer step."""
    optimizer: Literal["adamw", "muon", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """`muon` orthogonalises the update of 2-D weights (Jordan et al., 2024) and leaves the rest to AdamW; not for
    adapters. The 8-bit ones keep their state in 8 bits (bitsandbytes), that of embeddings and head in 32; `paged`
    moves it to main memory when the GPU's is short."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Type of matrices that train in full: `bf16`, for the method `full` with an 8-bit optimizer and bf16 products,
    takes a third of the memory, and rounds updates up or down at random. All else that trains is fp32."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate: of Muon on the 2-D weights where it is used, of AdamW otherwise."""
    adamw_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Under `muon`: the peak of AdamW on everything else; unset, the same as `learning_rate`."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of all steps spent warming up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled decay; norms and biases are left out."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, about a third more time; `auto`: where a step would
    not fit the GPU without, by the estimate of `catalens check`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of products; `auto`: bf16 where a GPU can, fp32 on a CPU, some of which are quicker in bf16 too."""
    num_evals: int = Field(default=3, ge=1)
    """Validation rounds in a run, evenly spaced, the last one at the end."""
    evaluation_budget: float = Field(default=0.1, gt=0, le=1)
    """Most of the wall time that free generation may take where the best is chosen by the loss: rounds beyond it, but
    the last, have the loss alone. Where a figure of generation chooses, every round generates."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many validation rounds without a better `metric_for_best_model`."""
    validation_rows: int = Field(default=64, ge=0)
    """Validation rows that are generated freely at each round; 0: validation loss only."""
    metric_for_best_model: str = "loss"
    """Figure that chooses the best checkpoint: `loss`, `parse_rate`, or `<column>.<metric>` such as `title.exact`."""
    num_checkpoints: int = Field(default=10, ge=1)
    """Checkpoints written in a run, evenly spaced, besides those at validation rounds: what a kill can cost."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept on disk, the best one always among them."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention implementation; `auto`: causal without a mask, by torch's flash kernels where they suit."""
    feature_cache: bool | Literal["auto"] = "auto"
    """Keep the features of a frozen tower on disk, so that it sees each picture once; `auto`: where an estimate says
    that reading is quicker than computing."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that prepare batches ahead; unset: up to eight for a GPU, none where the cores train themselves."""
    fsdp: bool = False
    """Under torchrun: shard weights, gradients and optimizer state over the processes (FSDP2) instead of copying
    them to each (DDP)."""
    compile: bool | Literal["auto"] = "auto"
    """Compile each layer (torch.compile), for few shapes of batches; `auto`: on a GPU, but not under `fsdp`."""
    number_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Digits of a number learn what stands there in numbers around it, as far off as this share of it (a standard
    deviation); 0: its own digits alone. 0.05 for prices that might as well be a little higher or lower."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread over the vocabulary."""
    seed: int = 0
    """Seeds initialisation, order and dropout; on a CPU the same seed gives the same bits."""

    @field_validator("metric_for_best_model")
    @classmethod
    def _of_today(cls, metric: str) -> str:
        return metric.replace(".within_10pct", ".within_tolerance")  # as earlier versions called it

    @property
    def rows(self) -> int:
        """Rows of a planned micro-batch."""
        return 8 if self.batch_size == "auto" else self.batch_size

    @property
    def resolved_parts(self) -> dict[Part, PartSpec]:
        """Every part with what it does: what `parts` says, else what the method says."""
        usual = dict.fromkeys(PARTS, "full" if self.method == "full" else "frozen")
        if self.method != "full":
            usual["text"] = "adapted"
        return {part: getattr(self.parts, part) or PartSpec.model_validate(usual[part]) for part in PARTS}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        trains = {part: spec.train for part, spec in self.resolved_parts.items()}
        if trains["text"] == "full" and (self.method == "qlora" or "adapted" in trains.values()):
            raise ValueError("parts.text cannot be full beside adapters or in 4 bits: adapt it, or adapt nothing")
        if self.method == "full" and "adapted" in trains.values():
            raise ValueError("parts are adapted under the methods lora and qlora: choose one of these")
        if self.method == "qlora" and "adapted" not in trains.values():
            raise ValueError(
                "parts: qlora trains adapters beside weights in 4 bits: adapt a part, or take full or lora"
            )
        if self.optimizer == "muon" and "adapted" in trains.values():
            raise ValueError("muon is for weights that train in full: take adamw for adapters")
        if self.weights == "bf16" and (self.method != "full" or "8bit" not in self.optimizer):
            raise ValueError("weights are bf16 for the method full with an 8-bit optimizer: set optimizer=adamw_8bit")
        if self.fsdp and (self.method == "qlora" or self.optimizer != "adamw"):
            raise ValueError(
                "fsdp is for full and lora trained by adamw: leave it out, each process has its copy then"
            )
        if self.feature_cache is True and trains["vision"] != "frozen":
            raise ValueError("feature_cache is for a frozen tower: set parts.vision=frozen, or feature_cache=auto")
        return self
