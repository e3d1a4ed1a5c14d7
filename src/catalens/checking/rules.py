"""The rules: what each looks for, how bad it is, what it does to a run, and the fix.

    Evidence of a catalogue in which product 10432877 has a row in train and one in test
    -> Finding("error", "1 product in more than one split", "What is scored was seen in training, ...", ...)

A rule yields nothing where all is well. `RULES` names them all.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

from catalens.checking.distributions import spelling_twins
from catalens.checking.evidence import (
    NAMED_ROWS,
    PLACEHOLDER_PRODUCTS,
    SEVERITIES,
    Evidence,
    Finding,
    Named,
    Severity,
)

MAX_BAD = 0.05
"""Share of a split's rows that training may leave out before it refuses."""
RARE = 5
"""Training rows of a category below which it is rare."""
SMALL_SIDE = 112
"""Pixels of the shorter side below which a picture shows little: a third of a crop of 336."""
LONG_RATIO = 4.0
"""Longer side over shorter from which most of the crops are padding."""
MAX_DECIMALS = 4
"""Decimals of a price or a size; more are noise."""
LONG_TEXT = 300
"""Characters from which a text is no title that a picture could tell."""
MARKUP = re.compile(r"<\s*/?\s*[a-zA-Z!][^>]*>|&(?:[a-zA-Z]{2,8}|#\d{1,7}|#x[0-9a-fA-F]{1,6});")
FORMULA = re.compile(r"\s*[=@][\w(]|\s*[+-][A-Za-z(]")


def find(evidence: Evidence) -> list[Finding]:
    """All findings, errors first, then those that concern most rows."""
    found = [finding for rule in RULES for finding in rule(evidence)]
    return sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), -finding.count))


def _splits(evidence: Evidence) -> Iterator[Finding]:
    rows = evidence.card.rows
    for split in ("train", "validation", "test"):
        if not rows.get(split):
            needed = split != "test"
            yield Finding(
                "error" if needed else "warning",
                f"Split {split} has no rows",
                "Training stops without it." if needed else "There is nothing to score a run on.",
                "Prepare more rows, or other shares with --splits.",
                0,
            )


def _rejected(evidence: Evidence) -> Iterator[Finding]:
    count = sum(rejection.count for rejection in evidence.rejections)
    if count:
        share = count / (count + len(evidence.scan))
        yield Finding(
            "warning" if share > MAX_BAD else "note",
            f"{_rows(count)} of the table ({share:.1%}) did not make it into the catalogue",
            "They are not learnt from and not scored.",
            "Mend them in the table by the reasons below, and prepare again.",
            count,
            tuple(Named(row, reason) for r in evidence.rejections for row, reason in r.rows)[:NAMED_ROWS],
        )


def _undecodable(evidence: Evidence) -> Iterator[Finding]:
    scan = evidence.scan
    rows = [row for row, look in enumerate(scan.pictures) if look.size is None]
    yield from evidence.finding(
        _by_share(evidence, rows),
        f"{_count(len(rows), 'picture')} cannot be decoded",
        f"Training leaves such rows out, and stops where they are more than {MAX_BAD:.0%} of a split.",
        "Prepare the catalogue again: it refuses pictures that do not decode.",
        rows,
        (scan.pictures[row].reason for row in rows),
    )


def _unwritable(evidence: Evidence) -> Iterator[Finding]:
    rows = sorted(evidence.problems)
    yield from evidence.finding(
        _by_share(evidence, rows),
        f"The text of {_rows(len(rows))} does not read back as it is written",
        f"Training leaves such rows out, and stops where they are more than {MAX_BAD:.0%} of a split.",
        "Change the text in the table, or the labels and the number format in the recipe.",
        rows,
        (evidence.problems[row].removeprefix(f"{evidence.scan.name(row)}: ") for row in rows),
    )


def _missing(evidence: Evidence) -> Iterator[Finding]:
    for name, values in evidence.scan.values.items():
        rows = [row for row, value in enumerate(values) if value is None]
        yield from evidence.finding(
            _by_share(evidence, rows),
            f"Field {name} is missing in {_rows(len(rows))}",
            "A row without a field cannot be learnt from and is left out.",
            "Fill the value in, or leave the row out of the table.",
            rows,
        )


def _rounded(evidence: Evidence) -> Iterator[Finding]:
    rows = sorted(evidence.rounded)
    yield from evidence.finding(
        "warning",
        f"The recipe's number format loses digits in {_rows(len(rows))}",
        "The model learns, and is scored against, numbers that are not those of the table.",
        "Raise prompt.numbers.decimals in the recipe, or leave it unset.",
        rows,
        (evidence.rounded[row] for row in rows),
    )


def _leaks(evidence: Evidence) -> Iterator[Finding]:
    scan, across = evidence.scan, evidence.across
    products: dict[str, list[int]] = defaultdict(list)
    for row, id in enumerate(scan.ids):
        products[id].append(row)
    for what, groups, why in (
        ("product", products.values(), "What is scored was seen in training, so the scores are too good."),
        ("picture", evidence.copies, "The very same picture is learnt and scored, so the scores are too good."),
    ):
        torn = [rows for rows in groups if len(evidence.splits(rows)) > 1]
        firsts = [list({scan.splits[row]: row for row in reversed(rows)}.values())[::-1] for rows in torn]
        yield from evidence.finding(
            "error",
            f"{_count(len(torn), what)} in more than one split",
            why,
            "Prepare the table again: variants and copies stay in one split then.",
            [row for rows in firsts for row in rows],
            ("" if row == rows[0] else f"as {scan.name(rows[0])}" for rows in firsts for row in rows),
        )
    yield from evidence.finding(
        "warning",
        f"{_count(len(across), 'pair')} of pictures that look alike straddle two splits",
        "If they show one product, it is learnt and scored, and the scores are too good.",
        "Look at the pairs in the page; give the rows of one product one id, and prepare again.",
        [a for a, _ in across],
        (f"like {scan.name(b)}" for _, b in across),
    )


def _repeated_pictures(evidence: Evidence) -> Iterator[Finding]:
    scan = evidence.scan
    rows = [row for group in evidence.placeholders for row in group]
    yield from evidence.finding(
        "warning",
        f"{_count(len(evidence.placeholders), 'picture')} shared by {PLACEHOLDER_PRODUCTS} or more products",
        "A placeholder (\u201cno photo yet\u201d) says nothing of the product: the model learns to guess.",
        "Remove those rows from the table, or give them their own pictures.",
        rows,
    )
    within = [(a, b) for a, b in evidence.near if scan.splits[a] == scan.splits[b] and scan.ids[a] != scan.ids[b]]
    yield from evidence.finding(
        "note",
        f"{_count(len(within), 'pair')} of pictures of two products look alike",
        "They count twice, or one product has two ids.",
        "Look at some; give the rows of one product one id.",
        [a for a, _ in within],
        (f"like {scan.name(b)}" for _, b in within),
    )


def _picture_shapes(evidence: Evidence) -> Iterator[Finding]:
    sizes = [look.size or (SMALL_SIDE, SMALL_SIDE) for look in evidence.scan.pictures]
    small = [row for row, size in enumerate(sizes) if min(size) < SMALL_SIDE]
    yield from evidence.finding(
        "warning",
        f"{_count(len(small), 'picture')} smaller than {SMALL_SIDE} pixels",
        "Enlarged to a crop it shows little more than colours.",
        "Take the shop's full-size pictures instead of thumbnails.",
        small,
        (f"{sizes[row][0]} \u00d7 {sizes[row][1]}" for row in small),
    )
    thin = [row for row, size in enumerate(sizes) if max(size) >= LONG_RATIO * min(size)]
    yield from evidence.finding(
        "note",
        f"{_count(len(thin), 'picture')} at least {LONG_RATIO:g} times as long as wide",
        "Most of what the model sees of it is white padding.",
        "Look at some: they may be banners, or several views in one picture.",
        thin,
        (f"{sizes[row][0]} \u00d7 {sizes[row][1]}" for row in thin),
    )


def _positions(evidence: Evidence) -> Iterator[Finding]:
    rows = [row for row, look in enumerate(evidence.scan.pictures) if look.position]
    yield from evidence.finding(
        "warning",
        f"{_count(len(rows), 'picture')} with the position where it was taken"
        if len(rows) == 1
        else f"{len(rows):,} pictures with the positions where they were taken",
        "Whoever is given the catalogue can read from it where somebody lives or works.",
        "Prepare the table again with --strip-metadata.",
        rows,
    )


def _numbers(evidence: Evidence) -> Iterator[Finding]:
    scan, by = evidence.scan, evidence.scan.roles.leading
    for name in evidence.scan.roles.columns("number"):
        values = scan.values[name]
        low = [row for row, value in enumerate(values) if value is not None and value <= 0]
        yield from evidence.finding(
            "warning",
            f"{name} is zero or negative in {_rows(len(low))}",
            "Relative errors have no meaning there, and no price or size is so.",
            "Correct the value or leave the row out.",
            low,
            (f"{name} {values[row]:,.12g}" for row in low),
        )
        fine = [row for row, value in enumerate(values) if value is not None and _decimals(value) > MAX_DECIMALS]
        yield from evidence.finding(
            "warning",
            f"{name} has more than {MAX_DECIMALS} decimals in {_rows(len(fine))}",
            "No picture tells so many digits: noise of narrow floats or of a currency's rate is learnt.",
            "Round the column in the table.",
            fine,
            (f"{name} {values[row]!r}" for row in fine),
        )
        far = evidence.outliers[name]
        within = (f" in {scan.values[by][row]}" if by else "" for row, _ in far)
        yield from evidence.finding(
            "warning",
            f"{name} stands far from its category in {_rows(len(far))}" if by else f"{name} has {len(far)} outliers",
            "A slipped decimal point or another currency teaches the model wrong prices.",
            "Look at the rows; correct or remove what is wrong.",
            [row for row, _ in far],
            (f"{values[row]:,.12g}{of}, median {median:,.6g}" for (row, median), of in zip(far, within, strict=True)),
        )


def _categories(evidence: Evidence) -> Iterator[Finding]:
    scan = evidence.scan
    for name in evidence.scan.roles.columns("category"):
        groups = evidence.categories(name)
        twins = spelling_twins(groups)
        rows = [row for group in twins for word in group[1:] for row in groups[word]]
        yield from evidence.finding(
            "warning",
            f"{name} spells {_count(len(twins), 'category', 'categories')} in more than one way",
            "The model cannot see which spelling a row has, so one of them is always wrong.",
            "Write each category in one way.",
            rows,
            (", ".join(repr(word) for word in group) for group in twins),
        )
        trained = {word: sum(scan.splits[row] == "train" for row in rows) for word, rows in groups.items()}
        unseen = [row for word, rows in groups.items() if not trained[word] for row in rows]
        words = Counter(scan.values[name][row] for row in unseen)
        yield from evidence.finding(
            "warning",
            f"{_count(len(words), 'category', 'categories')} of {name} without any training row",
            "A word that training never shows is never written: these rows are always wrong.",
            "Add rows of these categories, or join each to a larger one.",
            unseen,
            (str(scan.values[name][row]) for row in unseen),
        )
        rare = [word for word, rows in groups.items() if 0 < trained[word] < RARE]
        rows = [row for word in rare for row in groups[word]]
        yield from evidence.finding(
            "note",
            f"{_count(len(rare), 'category', 'categories')} of {name} with fewer than {RARE} training rows",
            "Too few to learn from, and macro F1 counts each as much as the largest.",
            "Join them to a larger category where that makes sense.",
            rows,
            (f"{scan.values[name][row]!r}" for row in rows),
        )


def _texts(evidence: Evidence) -> Iterator[Finding]:
    scan = evidence.scan
    for name in [*evidence.scan.roles.columns("text"), *evidence.scan.roles.columns("category")]:
        values = scan.values[name]
        long = [row for row, value in enumerate(values) if value and len(value) > LONG_TEXT]
        yield from evidence.finding(
            "warning",
            f"{name} is longer than {LONG_TEXT} characters in {_rows(len(long))}",
            "No picture tells so much, and the longest row decides how much memory a batch takes.",
            "Shorten it to what the picture shows.",
            long,
            (f"{len(values[row]):,} characters" for row in long),
        )
        marked = [row for row, value in enumerate(values) if value and MARKUP.search(value)]
        yield from evidence.finding(
            "warning",
            f"{name} holds HTML in {_rows(len(marked))}",
            "The model learns to write tags and entities.",
            "Strip the tags and decode the entities in the table.",
            marked,
            (values[row] for row in marked),
        )
        formulas = [row for row, value in enumerate(values) if value and FORMULA.match(value)]
        yield from evidence.finding(
            "note",
            f"{name} begins like a spreadsheet formula in {_rows(len(formulas))}",
            "A spreadsheet may run it when someone opens an export of this catalogue.",
            "Remove the sign in front, unless the title really has it.",
            formulas,
            (values[row] for row in formulas),
        )


def _repeated_texts(evidence: Evidence) -> Iterator[Finding]:
    for name in evidence.scan.roles.columns("text"):
        shared = evidence.repeated(name)
        yield from evidence.finding(
            "note",
            f"{_count(len(shared), 'value')} of {name} stand for more than one product",
            "Where products differ and their names do not, a picture cannot tell the name from others.",
            "Leave them, if that is how the shop names its products.",
            [row for row, _ in shared],
            (f"{evidence.scan.values[name][row]} ({products} products)" for row, products in shared),
        )


def _ids(evidence: Evidence) -> Iterator[Finding]:
    rows = [row for row, id in enumerate(evidence.scan.ids) if not id.strip()]
    yield from evidence.finding(
        "error",
        f"{_rows(len(rows))} without a product id",
        "Without it nobody can keep the variants of a product in one split.",
        "Fill the id in, or name another column with --id.",
        rows,
    )


RULES: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    _splits,
    _ids,
    _rejected,
    _undecodable,
    _unwritable,
    _missing,
    _rounded,
    _leaks,
    _repeated_pictures,
    _picture_shapes,
    _positions,
    _numbers,
    _categories,
    _texts,
    _repeated_texts,
)


def _decimals(value: float) -> int:
    """Digits after the point in the shortest decimal of a number."""
    return max(0, -int(Decimal(repr(value)).normalize().as_tuple().exponent))


def _by_share(evidence: Evidence, rows: Sequence[int]) -> Severity:
    """An error where training would refuse the split, for the share of its rows that are of no use."""
    bad = Counter(evidence.scan.splits[row] for row in rows)
    return "error" if any(n > MAX_BAD * evidence.card.rows[split] for split, n in bad.items()) else "warning"


def _count(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _rows(count: int) -> str:
    return _count(count, "row")
