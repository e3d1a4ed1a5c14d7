"""A catalogue -> its profile.

    1,981 products, 41 of their words used by 10 or more; TRAVEL has 38 products, SADDLERY 3: one of them is named

Of a product only its first row speaks. What fewer than k products share is counted at most, and never named.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from catalens.catalog.scan import PictureFacts, Scan
from catalens.catalog.storage import SPLITS, Catalog, Roles, facts_of
from catalens.checkpoint import load_processor
from catalens.config import FieldSpec, PromptSpec
from catalens.data import Encoder
from catalens.errors import CatalogError, PictureError, PromptError
from catalens.mimicking.profile import (
    ALPHA,
    OTHER,
    RARE,
    Category,
    Histogram,
    K,
    Needs,
    PictureFormat,
    PictureSize,
    Profile,
    Rounding,
    Stratum,
    Wording,
    last_place,
    quantile,
    summarise,
)
from catalens.mimicking.text import case_of, invent_words, shareable
from catalens.progress import Progress, silent

MEASURED = 100  # rows whose tokens are counted, about
MOST_WORDS = 1000  # of a column that a profile keeps, the most frequent ones
FEWEST_INVENTED, MOST_INVENTED = 4, 60  # words of a stratum; between, as many as would each be used by k products
MAX_LETTERS = 18  # of an invented word
LETTERS = (4.0, 9.0)  # where the catalogue has no rare words to go by


class Survey(Scan):
    """Facts of `total` rows, and the tokens and crops of a sample of them."""

    def __init__(self, roles: Roles, total: int) -> None:
        super().__init__(roles)
        self.total = total
        self.costs: list[Needs] = []
        specs = [FieldSpec(column=c, label=f"Field {n}", kind=k) for n, (c, k) in enumerate(roles.fields.items())]
        self._encoder = Encoder(load_processor("tiny"), PromptSpec(fields=tuple(specs)))

    def take(self, split: str, row: Mapping[str, Any]) -> None:
        """Take in a row with its picture and the facts of that."""
        self.add(split, row, facts_of(self.roles, row))
        if len(self) % max(1, self.total // MEASURED) == 0:
            try:
                image = self._encoder.image(row[self.roles.image])
                example = self._encoder.example(self._encoder.answer_ids(row), image)
            except (PromptError, PictureError):
                return  # as in training, which names it
            tiles = self._encoder.family.num_tiles(self._encoder.processor, image.hd_size)
            self.costs.append(Needs(len(example["input_ids"]), tiles))

    @property
    def needs(self) -> Needs | None:
        """Mean tokens and crops, where they were measured."""
        return Needs(*np.mean(self.costs, axis=0).round(2).tolist()) if self.costs else None

    def products(self, column: str | None) -> list[Any]:
        """The values of a column, a product each; None where there is no column."""
        return [self.values[column][row] if column else None for row in self.firsts.values()]


def survey_catalog(catalog: Catalog, progress: Progress = silent) -> Survey:
    """Read a catalogue once."""
    survey = Survey(catalog.card.roles, sum(catalog.card.rows.values()))
    for split, batch in catalog.all_batches([*survey.roles.names, *survey.roles.facts]):
        for row in batch:
            survey.take(split, row)
        progress("measuring", len(survey.ids), survey.total)
    return survey


def learn_profile(catalog: Catalog, k: int = K, survey: Survey | None = None) -> Profile:
    """Learn the profile of a catalogue, of which there may be a survey.

    Raises CatalogError where it has fewer than `k` + 2 products or pictures, too few to hide one among them, or
    cannot be read.
    """
    survey = survey or survey_catalog(catalog)
    rows = Counter(survey.ids)
    if len(rows) < k + 2:
        raise CatalogError(
            f"{catalog.folder} has {len(rows)} products: a profile that gives none away needs {k + 2} or more"
        )
    pictures = [seen for row in survey.firsts.values() if (seen := survey.pictures[row]).size]
    if len(pictures) < k + 2:
        raise CatalogError(
            f"{catalog.folder} has {len(pictures)} products with a picture that can be read, and {k + 2} are "
            "needed: see what `catalens check` says of the others"
        )
    learner, roles = _Learner(survey, k), survey.roles
    splits = Counter(survey.splits[row] for row in survey.firsts.values())
    return Profile(
        k=k,
        roles=roles.model_copy(update={"pictures": 1, "inputs": ()}),
        integer_fields=catalog.card.integer_fields,
        rows=len(survey.ids),
        products=len(rows),
        fractions={split: round(splits[split] / len(rows), 4) for split in SPLITS},
        photographs=summarise(list(rows.values()), k),
        id_prefix=_free_prefix(rows),
        categories={column: learner.category(column) for column in roles.columns("category")},
        texts={column: learner.wording(column) for column in roles.columns("text")},
        numbers={column: learner.rounding(column) for column in roles.columns("number")},
        pictures=_learn_pictures(pictures, k),
        bytes_a_row=round(sum(picture.stored for picture in pictures) / len(pictures)),
        strata=tuple(learner.stratum(name) for name in learner.strata if len(learner.strata[name]) >= k),
        needs=survey.needs,
    )


class _Learner:
    """Learner of what products have in common."""

    def __init__(self, survey: Survey, k: int) -> None:
        self.survey, self.k, roles = survey, k, survey.roles
        # nobody can reckon this hash who has not all of the rows, in whatever order
        rows = zip(survey.ids, survey.pictures, *survey.values.values(), strict=True)
        whole = sorted(json.dumps([id, seen.sha256[:16], *values]) for id, seen, *values in rows)
        self.secret = hashlib.sha256("\n".join(whole).encode()).hexdigest()
        self.columns = {name: survey.products(name) for name in roles.fields}
        self.known = {name: [value for value in values if value is not None] for name, values in self.columns.items()}
        self.logarithmic = {column: min(self.known[column], default=0) > 0 for column in roles.columns("number")}
        self.names: dict[str, dict[str, int]] = {}  # products by category that may be named
        for column in roles.columns("category"):
            counts = sorted(Counter(self.known[column]).items(), key=lambda item: (-item[1], item[0]))
            self.names[column] = {name: n for name, n in counts if n >= k and self._may_stay(name)}
        self.rare: dict[str, list[str]] = {}  # words that may not, from here on `rare word` in the texts
        self.frequent: dict[str, list[str]] = {}
        for column in roles.columns("text"):
            texts = [None if text is None else text.split() for text in self.columns[column]]
            counts = _uses(words for words in texts if words).most_common(MOST_WORDS)
            self.frequent[column] = named = [word for word, n in counts if n >= k and self._may_stay(word)]
            stays = set(named)
            self.rare[column] = [word for words in texts if words for word in words if word not in stays]
            self.columns[column] = [words and [w if w in stays else RARE for w in words] for words in texts]
            self.known[column] = [words for words in self.columns[column] if words is not None]
        self.taken = {id.casefold() for id in survey.firsts}
        for column in (*self.names, *self.rare):
            self.taken.update(word for text in survey.values[column] if text for word in text.casefold().split())
        kept = self.names.get(roles.leading or "", {})
        strata: dict[str | None, list[int]] = defaultdict(list)
        for index, name in enumerate(survey.products(roles.leading)):
            strata[name if name in kept else None].append(index)
        self.strata = dict(sorted(strata.items(), key=lambda item: (-len(item[1]), str(item[0]))))
        """Indices of the products by stratum, the largest first."""

    def category(self, column: str) -> Category:
        counts, kept = Counter(self.known[column]), self.names[column]
        rare = counts.total() - sum(kept.values())
        rare = rare if rare >= self.k or not kept else 0
        others = min(len(counts) - len(kept), MOST_INVENTED) if rare else 0
        invented = invent_words(others, partial(_letters, ()), case_of(counts), self.taken, f"{self.secret}/{column}")
        return Category(products=kept, rare_products=rare, rare_names=invented, missing=self._missing(column))

    def wording(self, column: str) -> Wording:
        """Learn where words stand in texts, and which are too rare in some strata to be named there."""
        places: dict[str, list[float]] = defaultdict(list)
        for words in self.known[column]:
            for place, word in enumerate(dict.fromkeys(words)):
                places[word].append(place / max(1, len(words) - 1))
        order = {word: round(fmean(some), 2) for word, some in sorted(places.items()) if len(some) >= self.k}
        unnamed: Counter[str] = Counter()  # not the difference to a total: that might be one product
        for name in self.strata:
            unnamed.update({word: n for word, n in _uses(self._of(column, name)).items() if n < self.k})
        elsewhere = {word: n for word, n in unnamed.most_common() if n >= self.k}
        return Wording(elsewhere=elsewhere, order=order, missing=self._missing(column))

    def rounding(self, column: str) -> Rounding:
        """Learn to how many digits numbers are given."""
        counts = sorted(Counter(map(last_place, self.known[column])).items())
        places = {place: n for place, n in counts if n >= self.k}
        return Rounding(places=places, logarithmic=self.logarithmic[column], missing=self._missing(column))

    def stratum(self, name: str | None) -> Stratum:
        """Learn what the products of a category tell; what they are too few for is told of all together."""
        words: dict[str, dict[str, int]] = {}
        for column in self.rare:
            used = _uses(self._of(column, name))
            others = sum(n for word, n in used.items() if n < self.k and word != RARE)
            words[column] = {word: n for word, n in used.most_common() if n >= self.k}
            words[column] |= {OTHER: others} if others >= self.k else {}

        def told(columns: Iterable[str], measure: Callable[[Any], float] = float) -> dict[str, Histogram]:
            found = {}
            for column in columns:
                for values in (self._of(column, name), self.known[column]):
                    log = self.logarithmic.get(column, False)
                    found[column] = found.get(column) or summarise([measure(value) for value in values], self.k, log)
            return {column: histogram for column, histogram in found.items() if histogram}

        return Stratum(
            category=name,
            products=len(self.strata[name]),
            lengths=told(self.rare, len),
            words=words,
            invented={column: self._invented(column, name) for column in self.rare},
            numbers=told(self.logarithmic),
        )

    def _of(self, column: str, stratum: str | None) -> list[Any]:
        """The known values of the products of a stratum."""
        return [value for index in self.strata[stratum] if (value := self.columns[column][index]) is not None]

    def _may_stay(self, name: str) -> bool:
        return all(map(shareable, name.split())) and name not in self.survey.firsts

    def _missing(self, column: str) -> float:
        missing = self.columns[column].count(None)
        return round(missing / len(self.survey.firsts), 4) if missing >= self.k else 0.0

    def _invented(self, column: str, stratum: str | None) -> tuple[str, ...]:
        """Words of the length and case of the column's rare words, fewer than these, so that each can be learnt."""
        uses = sum(words.count(RARE) for words in self._of(column, stratum))
        count = min(max(uses // self.k, FEWEST_INVENTED), MOST_INVENTED)
        letters = summarise([len(word) for word in self.rare[column]], self.k)
        case = case_of(self.rare[column] if letters else self.frequent[column] or ["Title"])
        return invent_words(count, partial(_letters, letters), case, self.taken, f"{self.secret}/{column}/{stratum}")


def _uses(of_products: Iterable[Iterable[Any]]) -> Counter[Any]:
    """Count the products that have each thing."""
    return Counter(thing for things in of_products for thing in dict.fromkeys(things))  # a set's order changes


def _letters(histogram: Histogram, at: float) -> float:
    """Length of an invented word for a share of 1."""
    return min(quantile(histogram, at), MAX_LETTERS) if histogram else float(np.interp(at, (0, 1), LETTERS))


def _free_prefix(ids: Iterable[str]) -> str:
    """A prefix that no id of the catalogue has."""
    prefix, number = "like-", 1
    while any(id.startswith(prefix) for id in ids):
        number += 1
        prefix = f"like{number}-"
    return prefix


def format_of(seen: PictureFacts) -> str:
    """The format of a picture, `PNG+alpha` being another than `PNG`."""
    return (seen.format or "PNG") + (ALPHA if seen.transparent else "")


def _learn_pictures(pictures: Sequence[PictureFacts], k: int) -> dict[str, PictureFormat]:
    """Learn the pictures of a catalogue by format; those of formats of too few count as of the most frequent one."""
    counts = Counter(map(format_of, pictures))
    main = min(counts, key=lambda format: (-counts[format], format))
    by_format: dict[str, list[PictureFacts]] = defaultdict(list)
    for picture in pictures:
        by_format[format_of(picture) if counts[format_of(picture)] >= k + 2 else main].append(picture)
    return {format: _learn_format(some, k) for format, some in sorted(by_format.items())}


def _learn_format(pictures: Sequence[PictureFacts], k: int) -> PictureFormat:
    sizes = [picture.size or (0, 0) for picture in pictures]
    frequent = {size: n for size, n in sorted(Counter(sizes).items()) if n >= k}
    rest = [size for size in sizes if size not in frequent]
    rest = rest if len(rest) >= k + 2 else sizes
    density = [picture.stored / (width * height) for picture, (width, height) in zip(pictures, sizes, strict=True)]
    return PictureFormat(
        products=len(pictures),
        sizes=tuple(PictureSize(*size, n) for size, n in frequent.items()),
        longest=summarise([max(size) for size in rest], k, logarithmic=True),
        ratio=summarise([width / height for width, height in rest], k, logarithmic=True),
        bytes_a_pixel=summarise(density, k, logarithmic=True),
        brightness=summarise([p.brightness for p in pictures if p.brightness is not None], k),
    )
