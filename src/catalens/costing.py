"""What the rows of a catalogue cost the tiny model, for `catalens sample --like`."""

from collections.abc import Mapping, Sequence
from typing import Any

from catalens.catalog.storage import Roles
from catalens.checkpoint import load_model, load_processor
from catalens.collation import Collator, Encoder
from catalens.config import FieldSpec, PromptSpec
from catalens.mimicking.profile import Needs


class TinyMeter:
    """What rows of a catalogue cost the tiny model, for `catalens sample --like`."""

    def __init__(self, roles: Roles) -> None:
        fields = [FieldSpec(column=c, label=f"Field {n}", kind=k) for n, (c, k) in enumerate(roles.fields.items())]
        self._image, self._model = roles.image, load_model("tiny")
        self._encoder = Encoder(load_processor("tiny"), PromptSpec(fields=tuple(fields)))
        self._collate = Collator(self._encoder.tokenizer.pad_token_id)

    def needs(self, row: Mapping[str, Any]) -> Needs:
        """Tokens and crops of a row; PromptError or PictureError where it has no text or picture."""
        example = self._example(row)
        return Needs(len(example["input_ids"]), len(example["pixel_values"]))

    def step(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Decode, encode, forward, backward; nothing is learnt."""
        batch = self._collate([self._example(row) for row in rows])
        self._model.train()
        self._model(**{name: value.to(self._model.device) for name, value in batch.items()}).loss.backward()
        self._model.zero_grad()

    def _example(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return self._encoder.example(row, self._encoder.picture(row[self._image]))
