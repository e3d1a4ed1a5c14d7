"""Writer of a catalogue, row by row: into a folder beside it, which is renamed at the end; it is whole or absent.

    with CatalogWriter("catalogs/demo", roles, provenance) as writer:
        writer.add("train", picture, "10432877", {"title": "Striped Red Tote Bag", "full_price": 129.0})
        writer.reject(RejectedRow(row=7, id="A17", reason="HTTP 404"))

What stands in its place is replaced only where it is known for a catalogue of ours that nobody has touched.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalens.catalog.folder import Manifests, partial_of, put_in_place, recover, refuse_taken, sweep
from catalens.catalog.pictures import PictureFacts, picture_facts
from catalens.catalog.splits import key
from catalens.catalog.storage import (
    FACT_TYPES,
    GROUP_BYTES,
    SPLITS,
    CatalogCard,
    RejectedRow,
    Roles,
    kind_of_reason,
    refuse_double_roles,
)
from catalens.catalog.values import is_missing
from catalens.errors import CatalogError
from catalens.files import locked, writing

SHARD_BYTES = 256 * 2**20
GROUP_ROWS = 1000
REJECTED = pa.schema([("row", pa.int64()), ("id", pa.string()), ("url", pa.string()), ("reason", pa.string())])
EXTENSIONS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp"}


class CatalogWriter:
    """Writes a catalogue row by row, with memory bounded by one row group a split.

    Use as a context manager: the folder appears when the block ends without an error, and only then. It takes the
    place of one whose `manifest` is in `replaces`; the new one's is added before it is there.
    """

    def __init__(
        self,
        folder: Path | str,
        roles: Roles,
        provenance: Mapping[str, Any],
        integer_fields: Sequence[str] = (),
        replaces: Manifests | None = None,
    ) -> None:
        self.folder, self._replaces = Path(folder), replaces
        refuse_taken(self.folder, replaces)
        refuse_double_roles(roles)
        self.roles, self.provenance, self.integer_fields = roles, dict(provenance), tuple(integer_fields)
        self.figures: dict[str, float] = {}
        self.aside = partial_of(self.folder)
        """Becomes the folder when the block ends, with whatever else was put into it."""
        self.missing: Counter[str] = Counter()
        """Rows that lack a value, by field."""
        self._reasons: Counter[str] = Counter()
        self._rejected = _Shards(self.aside / "rejected.parquet", REJECTED)
        schema, data = _schema(roles, self.integer_fields), self.aside / "data"
        self._shards = {split: _Shards(data / f"{split}-{{:05d}}-of-{{:05d}}.parquet", schema) for split in SPLITS}
        self._products = {split: array("Q") for split in SPLITS}  # 8 bytes a row, whatever the ids
        self._digest = hashlib.sha256()
        self._held = ExitStack()

    def __enter__(self) -> Self:
        with writing(self.folder), ExitStack() as held:
            recover(self.folder)
            if not held.enter_context(locked(self.aside)):
                raise CatalogError(
                    f"{self.folder} is being written by another process: wait for it or choose another --out"
                )
            (self.aside / "data").mkdir()
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._held, ExitStack() as undo:
            undo.callback(sweep, self.aside)
            if kind is None:
                with writing(self.folder):
                    self._finish()
                    put_in_place(self.aside, self.folder, self._replaces)
                undo.pop_all()  # what is there now may be another process's

    def add(
        self,
        split: str,
        image: bytes,
        id: str,
        values: Mapping[str, object],
        facts: PictureFacts | None = None,
        more: Sequence[tuple[bytes, PictureFacts]] = (),
    ) -> None:
        """Add a row with the facts of its picture, which is decoded where they are not known, and `more` pictures.

        A value that the row lacks is None. Raises CatalogError where the row cannot be written.
        """
        roles, shards = self.roles, self._shards[split]
        pictures = [(image, facts or picture_facts(image)), *more]
        row: dict[str, Any] = {roles.id: id} | {name: values[name] for name in (*roles.fields, *roles.inputs)}
        for name, facts_name, (data, known) in zip(roles.images, roles.facts, pictures, strict=False):
            place = "" if name == roles.image else name.removeprefix(roles.image).replace("_", "-")
            path = f"{split}-{shards.rows:07d}{place}.{EXTENSIONS.get(data[:2], 'img')}"
            row |= {
                name: {"bytes": data, "path": path},
                facts_name: {fact: getattr(known, fact) for fact in FACT_TYPES},
            }
        with writing(self.folder):
            shards.add(row, sum(len(data) for data, _ in pictures))
        self._products[split].append(key(id))
        self.missing.update(name for name in roles.fields if is_missing(values[name]))
        told = [values[name] for name in (*roles.fields, *roles.inputs)]
        self._digest.update(json.dumps([split, id, told]).encode())
        for _, known in pictures:
            self._digest.update(bytes.fromhex(known.sha256))

    def reject(self, row: RejectedRow) -> None:
        """Record a row that is not in the catalogue."""
        self._reasons[kind_of_reason(row.reason)] += 1
        with writing(self.folder):
            self._rejected.add(row.model_dump())

    @cached_property
    def card(self) -> CatalogCard:
        """Content of `catalog.json`; complete once the block has ended."""
        return CatalogCard(
            name=self.folder.name,
            roles=self.roles,
            provenance=self.provenance,
            rows={split: shards.rows for split, shards in self._shards.items()},
            products={split: len(np.unique(products)) for split, products in self._products.items()},
            integer_fields=self.integer_fields,
            content_hash=f"sha256:{self._digest.hexdigest()}",
            left_out=dict(self._reasons.most_common()),
            figures=self.figures,
        )

    def _finish(self) -> None:
        for shards in (*self._shards.values(), self._rejected):
            shards.close()
        (self.aside / "catalog.json").write_text(self.card.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (self.aside / "README.md").write_text(_dataset_card(self.card, self.missing), encoding="utf-8")


class _Shards:
    """The files of one split, numbered `-of-N` when N is known; none of an empty one: datasets cannot read it."""

    def __init__(self, pattern: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._pattern, self._schema = pattern, schema
        self._group: list[dict[str, Any]] = []
        self._group_bytes = self._file_bytes = 0
        self._paths: list[Path] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any], size: int = 0) -> None:
        if self._file_bytes >= SHARD_BYTES:
            self._end_file()
        self.rows += 1
        self._group.append(row)
        self._group_bytes += size
        if self._group_bytes >= GROUP_BYTES or len(self._group) == GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        self._end_file()
        for number, path in enumerate(self._paths):
            path.rename(self._pattern.with_name(self._pattern.name.format(number, len(self._paths))))

    def _flush(self) -> None:
        if self._writer is None:
            stem = self._pattern.stem.partition("-")[0]
            self._paths.append(self._pattern.with_name(f"{stem}-{len(self._paths):05d}.partial"))
            self._writer = pq.ParquetWriter(self._paths[-1], self._schema)
        self._writer.write_table(pa.Table.from_pylist(self._group, schema=self._schema))
        self._file_bytes += self._group_bytes
        self._group, self._group_bytes = [], 0

    def _end_file(self) -> None:
        if self._group:
            self._flush()
        if self._writer is not None:
            self._writer.close()
        self._writer, self._file_bytes = None, 0


def _schema(roles: Roles, integer_fields: Sequence[str]) -> pa.Schema:
    """Arrow schema with the metadata by which datasets knows the Image feature."""
    types = {name: "float64" if kind == "number" else "string" for name, kind in roles.fields.items()}
    types = (
        {roles.id: "string"} | types | dict.fromkeys(integer_fields, "int64") | dict.fromkeys(roles.inputs, "string")
    )
    image, facts = pa.struct([("bytes", pa.binary()), ("path", pa.string())]), list(FACT_TYPES.items())
    columns: list[tuple[str, Any]] = [(name, image) for name in roles.images]
    columns += [(name, pa.type_for_alias(dtype)) for name, dtype in types.items()]
    columns += [(name, pa.struct([(fact, pa.type_for_alias(t)) for fact, t in facts])) for name in roles.facts]
    features = {name: {"_type": "Image"} for name in roles.images}
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _dataset_card(card: CatalogCard, missing: Mapping[str, int]) -> str:
    files = "".join(f"  - {{split: {split}, path: data/{split}-*}}\n" for split, rows in card.rows.items() if rows)
    counts = "".join(f"| {split} | {rows} | {card.products[split]} |\n" for split, rows in card.rows.items())
    fields = ", ".join(f"`{name}` ({kind})" for name, kind in card.roles.fields.items())
    images = ", ".join(f"`{name}`" for name in card.roles.images)
    inputs = ", ".join(f"`{name}`" for name in card.roles.inputs)
    lacking = ", ".join(f"`{name}` in {count}" for name, count in missing.items())
    left_out = ", ".join(f"{count} ({reason})" for reason, count in card.left_out.items())
    return (
        f"---\npretty_name: {json.dumps(card.name)}\ntags: [catalens, product-pictures]\nconfigs:\n"
        f"- config_name: default\n  version: {_version(card)}\n  data_files:\n{files}---\n\n"
        f"# {card.name}\n\nA catalogue of product pictures, made by catalens.\n\n"
        f"| split | rows | products |\n|---|---:|---:|\n{counts}\n"
        f"Product id: `{card.roles.id}`. Pictures: {images}. Fields: {fields}.\n"
        + (f"Texts that a question may give: {inputs}.\n" if inputs else "")
        + (f"Rows without a value: {lacking}.\n" if lacking else "")
        + (f"\nLeft out: {left_out}.\n" if left_out else "")
    )


def _version(card: CatalogCard) -> str:
    """`1.x.y` by content and columns: `datasets` keeps what it has read by a folder's name and this version."""
    columns = json.dumps([card.content_hash, card.roles.model_dump(), card.integer_fields])
    digest = hashlib.sha256(columns.encode()).digest()
    return f"1.{int.from_bytes(digest[:4], 'big')}.{int.from_bytes(digest[4:8], 'big')}"
