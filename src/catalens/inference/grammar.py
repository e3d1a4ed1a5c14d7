"""Grammar of the answers over the tokens of a model: constrained decoding with llguidance.

    start: "Product: " field_0 " " field_1 " " field_2
    field_0[suffix=", Category:"]: /(< )?,?...{0,56}<?/       text, up to the next label
    field_1[suffix=", Full Price:"]: /BAGS|SHOES/             one of the catalogue's categories
    field_2: /(0|[1-9][0-9]{0,4})\\.[0-9]{1,1}/               a number as the catalogue writes it

Every sentence of the grammar parses, and it is finite: text has a longest length, so no answer is cut off. Text is
what training accepts, but for `<|`, with which special tokens begin, for a comma that is a word, with which labels
begin, and for `<` in a row. `Constraint.refused` tells which rows of a table cannot be written.
"""

import json
import os
import re
from collections.abc import Sequence
from copy import copy
from functools import cached_property

import llguidance
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from catalens.config import FieldSpec, NumberFormat, PromptSpec
from catalens.errors import CheckpointError, InferenceError
from catalens.examples import AnswerSchema, ChatTemplate, FieldConstraints

# A `<` goes before no `|` and no comma, a comma that begins a word before no other: what stands before a label, or
# before the end, is a whole text then, so that the label is one. No complement: the lexer gives up on long ones.
LATER = r"([^\p{Z}\p{Cc}<]|<[^\p{Z}\p{Cc}<|,])"
FIRST = r",?([^\p{Z}\p{Cc}<,]|<[^\p{Z}\p{Cc}<|,])"
BYTES = 10
"""Most that the grammar spends on a character: four and what may stand before it, as in `a< < ,<b`."""
CORES = 4
"""Fewest of a machine on which waking threads for the masks of a batch is cheaper than one thread."""


class Vocabulary:
    """Tokens of a model with `size` rows in its embedding, as bytes."""

    def __init__(self, tokenizer: Tokenizer, size: int, template: ChatTemplate) -> None:
        self.tokenizer, self.size, self.template = copy(tokenizer), size, template
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        end = self.tokenizer.token_to_id(template.end_token)
        if end is None:
            raise CheckpointError(f"the tokenizer has no {template.end_token} token: use the model's own")
        self.end: int = end
        self.guide = llguidance.LLTokenizer(self.tokenizer.to_str(), n_vocab=size, eos_token=[self.end])
        self._pieces: dict[int, bytes] = {}

    def piece(self, token: int) -> bytes:
        """The bytes that a token writes."""
        if token not in self._pieces:
            self._pieces[token] = self.guide.decode_bytes([token])
        return self._pieces[token]


class Constraint:
    """Constraint on the answers of a prompt, token by token.

    The grammar opens with what the tokenizer puts between prompt and answer, which for the official ones is a space.
    """

    def __init__(
        self, vocabulary: Vocabulary, prompt: PromptSpec, schema: AnswerSchema, free_categories: bool = False
    ) -> None:
        self.vocabulary, self.prompt = vocabulary, prompt
        self._question = vocabulary.template.chat(prompt.question).partition(vocabulary.template.image_tag)[2]
        self._end = vocabulary.template.end_token
        self.grammar = answer_grammar(prompt, schema, free_categories, self._opening())
        labels = sum(_most_tokens(f", {field.label}: ") for field in prompt.fields)
        values = sum(_most_tokens_of(field, schema.of(field.column), prompt.numbers) for field in prompt.fields)
        self.max_new_tokens = 1 + labels + values
        if problem := llguidance.LLMatcher.validate_grammar(self.grammar, vocabulary.guide):
            raise CheckpointError(
                f"best/answers.json makes no grammar ({problem.partition(chr(10))[0]}): train again"
            )
        self._fresh = llguidance.LLMatcher(vocabulary.guide, self.grammar)

    def start(self) -> llguidance.LLMatcher:
        """Give the state before the first token of an answer."""
        return self._fresh.deep_copy()

    def follow(self, matcher: llguidance.LLMatcher, token: int) -> list[int]:
        """Take a token, and those that must follow it, which are given: the end where nothing else may come."""
        matcher.consume_token(token)
        return [] if token == self.vocabulary.end else self.forced(matcher)

    def forced(self, matcher: llguidance.LLMatcher) -> list[int]:
        """Take the tokens that must come now; InferenceError where the grammar is too much to follow."""
        if matcher.is_error():
            reason = matcher.get_error().partition("\n")[0]
            raise InferenceError(f"constrained decoding failed ({reason}): the grammar of the answers is too large")
        tokens = matcher.compute_ff_tokens()
        if tokens:
            matcher.consume_tokens(tokens)
        if matcher.is_stopped() and (not tokens or tokens[-1] != self.vocabulary.end):
            tokens.append(self.vocabulary.end)
        return tokens

    def refused(self, tokens: list[int]) -> str | None:
        """Find the column at which an answer, without its end, cannot go on; None where all can be written."""
        matcher = self.start()
        taken = matcher.try_consume_tokens(tokens)
        if taken == len(tokens) and matcher.is_accepting():
            return None
        written = self.vocabulary.guide.decode_str(tokens[:taken])
        columns = [field.column for field in self.prompt.fields if f", {field.label}:" in f", {written.lstrip()}"]
        return columns[-1] if columns else self.prompt.fields[0].column

    def allowed(self, matchers: Sequence[llguidance.LLMatcher | None]) -> NDArray[np.bool_]:
        """Mask of the tokens that may come next, [rows, vocabulary]; all of them for a row that has no matcher."""
        bits = llguidance.numpy.allocate_token_bitmask(len(matchers), self.vocabulary.size)
        self.fill(matchers, bits)
        flags = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
        return flags[:, : self.vocabulary.size].astype(bool)

    def fill(self, matchers: Sequence[llguidance.LLMatcher | None], bits: NDArray[np.int32]) -> None:
        """Write the same mask into `bits` [rows, words], the first token in the lowest bit; rows in parallel."""
        bits[:] = -1
        constrained = [(matcher, row) for row, matcher in enumerate(matchers) if matcher is not None]
        if self.executor and len(constrained) > 1:
            llguidance.numpy.fill_next_token_bitmask_par(self.executor, constrained, bits)
        else:
            for matcher, row in constrained:
                llguidance.numpy.fill_next_token_bitmask(matcher, bits, row)

    @cached_property
    def executor(self) -> llguidance.LLExecutor | None:
        """Threads for the masks of a batch, started when they are first needed; None where cores are few."""
        return llguidance.LLExecutor() if (os.cpu_count() or 1) >= CORES else None

    def _opening(self) -> str:
        """Text of the first token of an answer before the first label."""
        label = self.prompt.fields[0].label
        written = self.vocabulary.guide.decode_bytes(self._tokens(f"{label}: 1{self._end}"))
        return written.decode("utf-8", errors="replace").partition(label)[0]

    def _tokens(self, answer: str) -> list[int]:
        encode = self.vocabulary.tokenizer.encode
        return encode(self._question + answer).ids[len(encode(self._question).ids) :]


def answer_grammar(prompt: PromptSpec, schema: AnswerSchema, free_categories: bool = False, opening: str = "") -> str:
    """Write the grammar of a prompt's answers in llguidance's Lark; `opening` stands before the first label."""
    start, rules = [_literal(f"{opening}{prompt.fields[0].label}: ")], []
    for index, (field, following) in enumerate(zip(prompt.fields, (*prompt.fields[1:], None), strict=True)):
        own, name = schema.of(field.column), f"field_{index}"
        if field.kind == "number":
            value = _number(own, prompt.numbers)
        elif field.kind == "category" and own.values and not free_categories:
            value = "|".join(map(_escaped, own.values))
        else:
            value = f"(< )?{FIRST}({LATER}|<? (< )?{FIRST}){{0,{own.longest - 1}}}<?"
        # Lazy: a comma may belong to the value or to the label, and a greedy lexeme would not go back. The space
        # behind the label is not part of it, since a token may begin with it; a label is one as soon as it stands.
        ends = f"[suffix={_literal(f', {following.label}:')}]" if following else ""
        rules.append(f"{name}{ends}: /{value}/")
        start += [name, '" "'] if following else [name]
    return "\n".join([f"start: {' '.join(start)}", *rules]) + "\n"


def _most_tokens_of(field: FieldSpec, own: FieldConstraints, numbers: NumberFormat) -> int:
    if field.kind == "number":
        signs = own.digits // 3 * _most_tokens(numbers.thousands) + _most_tokens(numbers.prefix + numbers.suffix)
        return own.digits + own.decimals[1] + 2 + signs
    return max([BYTES * own.longest, *map(_most_tokens, own.values)])


def _number(own: FieldConstraints, spec: NumberFormat) -> str:
    """Numbers as `format_number` writes them, with no more digits than the catalogue's have."""
    whole = f"0|[1-9][0-9]{{0,{own.digits - 1}}}"
    if spec.thousands:
        group, (groups, first) = f"{_escaped(spec.thousands)}[0-9]{{3}}", divmod(own.digits - 1, 3)
        fewer = f"|[1-9][0-9]{{0,2}}({group}){{0,{groups - 1}}}" if groups else ""
        whole = f"0|[1-9][0-9]{{0,{first}}}({group}){{{groups}}}{fewer}"
    fewest, most = own.decimals
    point = f"{_escaped(spec.decimal)}[0-9]{{{max(fewest, 1)},{most}}}" if most else ""
    if point and not fewest:
        point = f"({point})?"
    return f"{_escaped(spec.prefix)}{'-?' if own.negative else ''}({whole}){point}{_escaped(spec.suffix)}"


def _most_tokens(text: str) -> int:
    """Most tokens that a text may take: its bytes."""
    return len(text.encode())


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """Text inside a regular expression; `re.escape` also escapes what Rust's expressions do not let one escape."""
    return re.sub(r"([][{}()|.*+?^$\\/&~#-])", r"\\\1", text)
