"""Chats as token ids: prompts up to where the answer begins, and rows with what is to be learned of them.

The model's own chat template decides what stands around the texts (`fgod.model.template`). What users, answers and
system prompts spell is text: a control token (`<|im_end|>`) in them is encoded letter by letter, and only the template
begins and ends turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fgod.chat import Chat, ChatSettings, answered, chat_of
from fgod.data.rows import Message, Row
from fgod.data.text import excerpt
from fgod.errors import UsageError
from fgod.model.load import explained, load_tokenizer
from fgod.model.template import ChatTemplate, Shape
from fgod.system.files import read_json
from fgod.system.garbage import no_collections

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Sample:
    """A row as token ids: chat prompt, answer, end token (none after a cut answer). What follows `prompt_length` is to
    be learned.

    `earlier`: answers before the last one that are to be learned too, each from its first token to behind its end.
    """

    ids: tuple[int, ...]
    prompt_length: int
    earlier: tuple[tuple[int, int], ...] = ()

    @property
    def answers(self) -> tuple[tuple[int, int], ...]:
        """All that are to be learned, as `earlier`."""
        return (*self.earlier, (self.prompt_length, len(self.ids)))

    @property
    def learned(self) -> list[int]:
        """Places in `ids` of the tokens that are to be learned, in order."""
        return [place for start, end in self.answers for place in range(start, end)]


@dataclass(frozen=True)
class _Piece:
    """A text, or something that the template writes (its control tokens are such); whether it is to be learned."""

    text: str
    template: bool
    learned: bool = False


@dataclass(frozen=True)
class _Text:
    """A text between control tokens, or what follows one that is encoded by itself (`goes_on`)."""

    text: str
    goes_on: bool


BEFORE = "\ue000"
"""A character of no script, which SentencePiece spells by its bytes: they join nothing. What follows it goes on."""


class ChatFormat:
    """How a model writes chats: its tokenizer with its template, the config's `chat`, and what ends an answer.

    Args:
        end_ids: tokens that end an answer, besides the tokenizer's end-of-sequence token.
        where: the folder, for messages.

    Raises:
        UsageError: there is no template, it does not know a variable of the settings, or there is no end token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: ChatSettings | None = None,
        end_ids: Iterable[int] = (),
        where: str = "the tokenizer",
    ) -> None:
        self.tokenizer, self.settings, self.where = tokenizer, settings or ChatSettings(), where
        own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.end_ids = tuple(dict.fromkeys([*end_ids, *own]))
        if not self.end_ids:
            raise UsageError(f"{where}: found no end-of-sequence token, expected one: answers would never end")
        self.template = ChatTemplate(tokenizer, self.settings, where)
        self._whole_checked: set[Shape] = set()
        self._prompts: dict[Chat, list[int]] = {}
        """Ids of chats that were asked for before: memory is predicted by them first, then they are asked."""

    @classmethod
    def of_folder(cls, folder: Path, settings: ChatSettings | None = None) -> ChatFormat:
        """Of a model folder. What ends an answer are the tokens of its generation_config.json, and its tokenizer's.

        Raises:
            UsageError: the folder or its tokenizer is missing or broken, or as above.
        """
        return cls(load_tokenizer(folder), settings, stored_end_ids(folder)[1], str(folder))

    @property
    def pad_id(self) -> int:
        """The token that fills up rows of a batch, which nothing looks at: an end token where there is none for it."""
        pad = self.tokenizer.pad_token_id
        return self.end_ids[0] if pad is None else int(cast(int, pad))

    def check(self) -> None:
        """Raise what a chat of one turn would: that it cannot be asked, learned or ended."""
        row = Row("?", "!", language="", part="", kind="")
        self.prompt_ids(chat_of(row))
        self.row_ids(row)

    # ------------------------------------------------------------------------------------------------------ to ask

    def prompt_ids(self, asked: str | Chat) -> list[int]:
        """Token ids of one chat up to where the answer begins; a text is a chat of one turn."""
        return self.prompts([asked])[0]

    def prompts(self, asked: Sequence[str | Chat]) -> list[list[int]]:
        """The same of many, by one call of the tokenizer, which is faster.

        Raises:
            UsageError: the template fails, or loses or changes a text: shows what it wrote. Or the tokenizer encodes
                parts of a chat otherwise than the whole.
        """
        chats = [chat_of(one) if isinstance(one, str) else one for one in asked]
        new = list(dict.fromkeys(chat for chat in chats if chat not in self._prompts))
        self._prompts.update(zip(new, self._encoded_prompts(new), strict=True))
        return [list(self._prompts[chat]) for chat in chats]

    def _encoded_prompts(self, chats: Sequence[Chat]) -> list[list[int]]:
        names = [f"the prompt {excerpt(chat.turns[-1].content)!r}" for chat in chats]
        said = self.template.said(chats, names, prompt=True)
        shapes = [self.template.shape(chat, prompt=True) for chat in chats]
        for shape in set(shapes) - self._whole_checked:
            self._check_whole(shape)
        groups = [[self._asked(shape, texts)] for shape, texts in zip(shapes, said, strict=True)]
        return [ids for (ids,) in self._encoded(groups)]

    def continued(self, cached: Sequence[int], chat: Chat) -> tuple[int, list[int]]:
        """How to go on from ids whose keys and values are cached: how many of them stay, and the ids to feed.

        Those that stay and those to feed are together `prompt_ids(chat)`: a cache that is cut and fed so is that of a
        full replay, also where a template changes earlier turns, or a reply's ids are not those of its text. One id is
        always to be fed.
        """
        whole = self.prompt_ids(chat)
        most = min(len(cached), len(whole) - 1)
        kept = next((place for place in range(most) if cached[place] != whole[place]), most)
        return kept, whole[kept:]

    def user_turn(self, system: str = "") -> tuple[list[int], tuple[int, ...]]:
        """Token ids of a chat up to where the first user's text begins, and the tokens that end such a turn.

        Args:
            system: as of a `Chat`.

        Raises:
            UsageError: as `prompts`; or the template writes no control token after a user's text.
        """
        chat = Chat((Message("user", "?"),), system)
        shape = self.template.shape(chat, prompt=True)
        (texts,) = self.template.said([chat], ["the opening of a user's turn"], prompt=True)
        after = self.template.frame(shape)[-1]
        found = self.template.control.search(after)
        if found is None:
            raise UsageError(
                f"{self.where}: chat_template: writes {after!r} after a user's text; expected a control token: a "
                "user's turn that the model writes would never end"
            )
        ends = dict.fromkeys([token_id(self.tokenizer, found.group()), *self.end_ids])
        return self._encoded([[self._asked(shape, texts)[:-2]]])[0][0], tuple(ends)

    def _asked(self, shape: Shape, texts: Sequence[str]) -> list[_Piece]:
        frame = self.template.frame(shape)
        pairs = [(_Piece(before, True), _Piece(text, False)) for before, text in zip(frame, texts, strict=False)]
        return [*(piece for pair in pairs for piece in pair), _Piece(frame[-1], True)]

    def _check_whole(self, shape: Shape) -> None:
        """Texts between control tokens are encoded by themselves: as they are in the whole."""
        texts = [f"text {number}" for number in range(shape.turns + shape.system_texts)]
        pieces = self._asked(shape, texts)
        if self._encoded([[pieces]])[0][0] != self._template_ids("".join(piece.text for piece in pieces)):
            raise UsageError(
                f"{self.where}: the tokenizer encodes the parts of a chat otherwise than the whole, as one does that "
                "marks where the first text begins alone; expected one that is byte-level, or marks every text "
                "behind a control token, as those imported from GGUF files"
            )
        self._whole_checked.add(shape)

    # ---------------------------------------------------------------------------------------------------- to learn

    def row_ids(self, row: Row) -> Sample:
        """One row as token ids."""
        return self.rows([row])[0]

    def rows(
        self, rows: Sequence[Row], seq_len: int | None = None, numbers: Sequence[int] | None = None
    ) -> list[Sample]:
        """Rows as token ids, each with the end token after its answer, unless that is cut.

        Args:
            numbers: of the rows, for messages; None: from 1.

        Raises:
            UsageError: a row has no answer or is longer than `seq_len`; names the row. Or the template fails, changes a
                text, ends no answer, or writes an earlier answer that is to be learned otherwise than a last one.
        """
        numbers = numbers or range(1, len(rows) + 1)
        samples = self._samples(rows, numbers)
        for number, row, sample in zip(numbers, rows, samples, strict=True):
            if not row.target.strip():
                raise UsageError(f"row {number} ({row.prompt!r}): the target {row.target!r} has no token")
            if seq_len is not None and len(sample.ids) > seq_len:
                raise UsageError(
                    f"row {number} ({row.prompt!r}): {len(sample.ids)} tokens; train.seq_len allows {seq_len}: shorten "
                    "the row or raise it"
                )
        self._check_earlier(rows, samples, numbers)
        return samples

    def row_lengths(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of each row as `rows` gives them: chat prompt, answer, end token if the answer ends."""
        return [len(sample.ids) for sample in self._samples(rows, range(1, len(rows) + 1))]

    @no_collections()
    def _samples(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[Sample]:
        """Rows of the same texts have the same sample: a mix has many copies."""
        spelled = [(answered(row), row.loss_on, row.cut) for row in rows]
        first = {one: place for place, one in reversed([*enumerate(spelled)])}
        places = sorted(first.values())
        distinct = self._distinct_samples([rows[place] for place in places], [numbers[place] for place in places])
        samples = dict(zip(places, distinct, strict=True))
        return [samples[first[one]] for one in spelled]

    def _distinct_samples(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[Sample]:
        chats = [answered(row) for row in rows]
        names = [f"row {number} ({row.prompt!r})" for number, row in zip(numbers, rows, strict=True)]
        groups = []
        for row, chat, texts in zip(rows, chats, self.template.said(chats, names, prompt=False), strict=True):
            pieces = self._learned(row, self.template.shape(chat, prompt=False), texts)
            groups.append([list(group) for _, group in groupby(pieces, key=lambda piece: piece.learned)])
        return [_sample(encoded) for encoded in self._encoded(groups)]

    def _learned(self, row: Row, shape: Shape, texts: Sequence[str]) -> Iterator[_Piece]:
        """The pieces of a row in order: by its `loss_on` every answer is to be learned, or the last one."""
        frame, ended, answers = self.template.frame(shape), 0, range(1, shape.turns, 2)
        for place, text in enumerate(texts):
            turn = place - shape.system_texts
            last = turn + 1 == shape.turns
            learned = turn in answers and (row.loss_on == "all" or last)
            begins = len(self.template.opening(shape, turn)) if learned else len(frame[place])
            yield _Piece(frame[place][ended:begins], True)
            if learned:
                ended = 0 if last and row.cut else self._end(frame[place + 1])
                yield _Piece(frame[place][begins:], True, True)
                yield _Piece(text, False, True)
                yield _Piece(frame[place + 1][:ended], True, True)
            else:
                ended = 0
                yield _Piece(text, False)

    def _end(self, after: str) -> int:
        """How many characters of what is written after an answer end it, by a token that ends answers."""
        end = self.template.end(after)
        spelled = self.template.control.search(after).group()  # type: ignore[union-attr]
        if token_id(self.tokenizer, spelled) not in self.end_ids:
            ends = ", ".join(map(repr, cast(Any, self.tokenizer).convert_ids_to_tokens(list(self.end_ids))))
            raise UsageError(
                f"{self.where}: the chat template ends an answer with {spelled!r}, expected one of {ends}, which end "
                f"answers by {GENERATION_CONFIG} and the tokenizer: answers would never end; add it to eos_token_id"
            )
        return end

    def _check_earlier(self, rows: Sequence[Row], samples: Sequence[Sample], numbers: Sequence[int]) -> None:
        """Earlier answers that are learned are encoded by themselves: as where they are not learned."""
        chosen = [place for place, sample in enumerate(samples) if sample.earlier]
        wanted = self.prompts([chat_of(rows[place]) for place in chosen])
        for place, ids in zip(chosen, wanted, strict=True):
            if list(samples[place].ids[: samples[place].prompt_length]) != ids:
                raise UsageError(
                    f"row {numbers[place]} ({rows[place].prompt!r}): loss_on: all: the tokenizer joins the beginning "
                    "of an earlier answer with what the template writes before it; expected an answer that begins "
                    "with no white space, or loss_on: last"
                )

    # ---------------------------------------------------------------------------------------------------- encoding

    def _encoded(self, chats: Sequence[Sequence[Sequence[_Piece]]]) -> list[list[list[int]]]:
        """Ids of chats of groups of pieces, which are encoded by themselves: control tokens of the template, and what
        stands between two of them as one text, which goes on in the next group.
        """
        parts = [self._parts(groups) for groups in chats]
        each = (part for groups in parts for group in groups for part in group)
        texts = list(dict.fromkeys(part for part in each if isinstance(part, _Text)))
        ids = dict(zip(texts, self._text_ids(texts), strict=True))
        return [
            [[one for part in group for one in (ids[part] if isinstance(part, _Text) else [part])] for group in groups]
            for groups in parts
        ]

    def _parts(self, groups: Sequence[Sequence[_Piece]]) -> list[list[int | _Text]]:
        found: list[list[int | _Text]] = []
        last: int | str = 0
        for group in groups:
            found.append([])
            for part in self._split(group):
                found[-1].append(_Text(part, isinstance(last, str)) if isinstance(part, str) else part)
                last = part
        return found

    def _split(self, pieces: Sequence[_Piece]) -> list[int | str]:
        """Control tokens, and the texts between them."""
        parts: list[int | str] = [""]
        for piece in pieces:
            found = list(self.template.control.finditer(piece.text)) if piece.template else []
            starts = [0, *(match.end() for match in found)]
            ends = [*(match.start() for match in found), len(piece.text)]
            texts = [piece.text[start:end] for start, end in zip(starts, ends, strict=True)]
            parts[-1] = f"{parts[-1]}{texts[0]}"
            for match, text in zip(found, texts[1:], strict=True):
                parts += [token_id(self.tokenizer, match.group()), text]
        return [part for part in parts if part != ""]

    def going_on(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that go on where another one ended, such as a prompt."""
        return self._text_ids([_Text(text, True) for text in texts])

    def _text_ids(self, texts: Sequence[_Text]) -> list[list[int]]:
        before = self._mark
        spelled = [f"{BEFORE}{text.text}" if before and text.goes_on else text.text for text in texts]
        encoded = encode_texts(self.tokenizer, spelled)
        return [ids[before:] if text.goes_on else ids for text, ids in zip(texts, encoded, strict=True)]

    @cached_property
    def _mark(self) -> int:
        """How many tokens `BEFORE` is with a mark of a beginning, as SentencePiece writes it; 0: there is no mark."""
        alone, before, both = encode_texts(self.tokenizer, ["x", BEFORE, f"{BEFORE}x"])
        return len(before) if both[: len(before)] == before and both[len(before) :] != alone else 0

    def _template_ids(self, text: str) -> list[int]:
        """Ids of a text in which control tokens are such."""
        return cast(list[int], _ids(self.tokenizer, text))


def _sample(groups: Sequence[Sequence[int]]) -> Sample:
    """A row of groups of ids: what is not learned, what is, and so on in turn."""
    bounds = [0]
    for group in groups:
        bounds.append(bounds[-1] + len(group))
    spans = list(pairwise(bounds))[1::2]
    ids = tuple(one for group in groups for one in group)
    return Sample(ids, spans[-1][0], tuple(spans[:-1]))


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts as they stand, without control tokens; one call, which is faster than one for each.

    Raises:
        UsageError: the tokenizer fails; names its folder.
    """
    return _ids(tokenizer, list(texts), split_special_tokens=True) if texts else []


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Any, **how: bool) -> Any:
    with explained(f"{tokenizer.name_or_path}: the tokenizer does not encode a text; tokenizer.json is damaged"):
        return tokenizer(texts, add_special_tokens=False, **how)["input_ids"]


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token by its spelling."""
    return int(cast(int, tokenizer.convert_tokens_to_ids(token)))


def stored_end_ids(folder: Path) -> tuple[Path, tuple[int, ...]]:
    """The tokens that end an answer by generation_config.json, else by config.json, and which file says so.

    Raises:
        UsageError: what the file says are no token ids.
    """
    for path in (folder / GENERATION_CONFIG, folder / "config.json"):
        found = read_json(path).get("eos_token_id") if path.is_file() else None
        ids = [] if found is None else found if isinstance(found, list) else [found]
        if any(isinstance(one, bool) or not isinstance(one, int) for one in ids):
            raise UsageError(f"{path}: eos_token_id: found {found!r}, expected a token id or a list of them")
        if ids:
            return path, tuple(ids)
    return folder / GENERATION_CONFIG, ()
