r"""Do prompts and targets belong together? Three permutation tests on (prompt, target) pairs. Pure and seeded.

`independent`: the same question (without its sample tag) stands with several targets. Questions and targets form a
bipartite graph; inside each of its connected components the mutual information of question and target is compared
with that of shuffled targets. Where it is not larger, the answer was drawn without a look at the question.
Components, because a file may draw targets within each of several domains: over the whole file that looks dependent.

`unrelated`: several questions share a target. Questions with the same target ought to resemble each other more than
questions with different targets do. Likeness is the mean cosine of rare characters, bigrams and words (idf
weights), the reference are shuffled targets; for each target apart, sets of as many other questions.

`wordless`: a target ought to share rare characters, bigrams and words with its question more than with other questions.

Each test says nothing (None, or no result) where the data are too few to tell.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 199
"""Shuffles of each test: the smallest p-value is .005."""
ALPHA = 0.05
"""Belonging together is believed below this p-value; the tests below look for its absence."""
INDEPENDENT = 0.2
"""Adjusted mutual information below which a component counts as drawn independently."""
UNRELATED = 0.2
"""p-value above which one target's questions count as unrelated (of related ones hardly any lies there)."""
MIN_REPEATED_PAIRS = 12
"""Pairs in a component below which shuffles cannot tell."""
MIN_QUESTIONS = 4
"""Questions with one target below which their likeness says nothing."""
MIN_SHARED_PAIRS = 30
"""Couples of questions with a common target below which the whole file's likeness says nothing."""
MIN_WORDED = 30
"""Pairs below which the words that prompt and target share say nothing."""
MAX_QUESTIONS = 1200
"""Pairs that the likeness tests look at (a seeded sample of larger files), for time and memory."""
SHORT_TARGET = 6
"""Targets of fewer letters are labels (yes, 42, positive), which unrelated prompts rightly share."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class Component:
    """A set of questions and targets linked by rows. `adjusted` is the mutual information of question and target
    above that of shuffled targets, divided by its largest possible value above it: 0 drawn independently, 1 one
    determines the other (adjusted mutual information, Vinh et al. 2010, with shuffles for the expectation)."""

    questions: int
    targets: int
    pairs: int
    adjusted: float
    examples: tuple[Pair, ...]

    @property
    def independent(self) -> bool:
        return self.adjusted < INDEPENDENT


@dataclass(frozen=True)
class Unrelated:
    """A target whose questions are no more alike than as many others."""

    target: str
    questions: int
    p_value: float
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Likeness:
    """`p_value` of the whole file (None: too few couples), and the unrelated targets out of those tested."""

    p_value: float | None
    tested: int
    unrelated: tuple[Unrelated, ...]
    questions_tested: int

    @property
    def questions_unrelated(self) -> int:
        return sum(target.questions for target in self.unrelated)


def features(text: str) -> frozenset[str]:
    """Words of Latin script, and single characters and bigrams of all others (Han, kana, hangul), folded."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"[a-z0-9à-ɏ#+]+", folded)
    runs = re.findall(r"[^\W_a-z0-9à-ɏ]+", folded)
    return frozenset(words).union(run[i : i + n] for run in runs for n in (1, 2) for i in range(len(run)))


def _p_value(observed: float, shuffled: Sequence[float]) -> float:
    """Share of shuffles that reach the observed value (one-sided, with the observation itself counted)."""
    return (1 + sum(value >= observed - 1e-9 for value in shuffled)) / (1 + len(shuffled))


def _shuffled(items: Sequence[str], rng: random.Random) -> list[str]:
    copy = list(items)
    rng.shuffle(copy)
    return copy


# ---------------------------------------------------------------------------------------------- independent


def mutual_information(xs: Sequence[str], ys: Sequence[str]) -> float:
    """I(X; Y) in nats of the empirical joint distribution."""
    n, x_counts, y_counts = len(xs), Counter(xs), Counter(ys)
    joint = Counter(zip(xs, ys, strict=True))
    return math.fsum(c / n * math.log(c * n / (x_counts[x] * y_counts[y])) for (x, y), c in joint.items())


def entropy(xs: Sequence[str]) -> float:
    """H(X) in nats of the empirical distribution."""
    return -math.fsum(c / len(xs) * math.log(c / len(xs)) for c in Counter(xs).values())


def _components(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pairs grouped by the connected component of the graph of questions and targets, in order of appearance."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    for question, target in pairs:
        parent[root(("question", question))] = root(("target", target))
    found: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        found.setdefault(root(("question", pair[0])), []).append(pair)
    return list(found.values())


def _tested(pairs: Sequence[Pair], rng: random.Random) -> Component | None:
    questions, targets = [q for q, _ in pairs], [t for _, t in pairs]
    n_questions, n_targets = len(set(questions)), len(set(targets))
    if n_questions < 2 or n_targets < 2 or len(pairs) < max(MIN_REPEATED_PAIRS, 2 * n_questions):
        return None
    observed = mutual_information(questions, targets)
    null = [mutual_information(questions, _shuffled(targets, rng)) for _ in range(PERMUTATIONS)]
    several = Counter(questions)
    shown = sorted({pair for pair in pairs if pair[0] == max(questions, key=lambda q: several[q])})[:3]
    mean = math.fsum(null) / len(null)
    room = min(entropy(questions), entropy(targets)) - mean
    adjusted = (observed - mean) / room if room > 1e-9 else 1.0
    return Component(n_questions, n_targets, len(pairs), round(adjusted, 3), tuple(shown))


def independence(pairs: Sequence[Pair], seed: str = "independence") -> list[Component]:
    """The components of the pairs that are large enough to be tested."""
    rng = random.Random(seed)
    found = (_tested(component, rng) for component in _components(pairs))
    return [component for component in found if component is not None]


# ---------------------------------------------------------------------------------------------- unrelated


def _weights(texts: Iterable[frozenset[str]]) -> dict[str, float]:
    """Inverse document frequency, ln(n / df): what stands in every text weighs nothing."""
    bags = list(texts)
    frequency = Counter(feature for bag in bags for feature in bag)
    return {feature: math.log(len(bags) / count) for feature, count in frequency.items()}


def _unit_vectors(bags: Sequence[frozenset[str]], weights: Mapping[str, float]) -> np.ndarray:
    """[len(bags), features] rows of length 1 (0 where no feature weighs anything)."""
    columns = {feature: i for i, feature in enumerate(sorted(weights))}
    matrix = np.zeros((len(bags), max(1, len(columns))))
    for i, bag in enumerate(bags):
        for feature in bag & columns.keys():
            matrix[i, columns[feature]] = weights[feature]
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(length > 0, length, 1)


def _within(likeness: np.ndarray, members: Sequence[int]) -> float:
    """Sum of the likeness of all ordered couples among some questions, themselves included."""
    return float(likeness[np.ix_(members, members)].sum())


def _file_p_value(likeness: np.ndarray, members: Iterable[Sequence[int]], rng: random.Random) -> float | None:
    """Are questions with a common target more alike than with shuffled targets?"""
    blocks = [block for block in members if len(block) > 1]
    if sum(len(block) * (len(block) - 1) // 2 for block in blocks) < MIN_SHARED_PAIRS:
        return None
    ends = list(itertools.accumulate(map(len, blocks)))
    everyone = range(len(likeness))

    def shuffled() -> float:
        order = rng.sample(everyone, ends[-1])
        return math.fsum(
            _within(likeness, order[end - len(block) : end]) for end, block in zip(ends, blocks, strict=True)
        )

    observed = math.fsum(_within(likeness, block) for block in blocks)
    return _p_value(observed, [shuffled() for _ in range(PERMUTATIONS)])


def _target_p_values(
    likeness: np.ndarray, members: Mapping[str, Sequence[int]], rng: random.Random
) -> dict[str, float]:
    """For each target: are its questions more alike than as many others? Targets with as many questions share their
    reference."""
    everyone = range(len(likeness))
    null = {
        size: [_within(likeness, rng.sample(everyone, size)) for _ in range(PERMUTATIONS)]
        for size in sorted({len(rows) for rows in members.values()})
    }
    return {target: _p_value(_within(likeness, rows), null[len(rows)]) for target, rows in members.items()}


def likeness_of_prompts(pairs: Sequence[Pair], seed: str = "likeness") -> Likeness:
    """The test `unrelated` on distinct pairs. Short targets (labels) are left out."""
    rng = random.Random(seed)
    kept = sorted({(q, t) for q, t in pairs if sum(map(str.isalnum, t)) >= SHORT_TARGET})
    if len(kept) > MAX_QUESTIONS:
        kept = sorted(rng.sample(kept, MAX_QUESTIONS))
    questions, targets = [q for q, _ in kept], [t for _, t in kept]
    members: dict[str, list[int]] = {}
    for i, target in enumerate(targets):
        members.setdefault(target, []).append(i)
    large = {t: m for t, m in members.items() if MIN_QUESTIONS <= len(m) <= len(kept) // 2}
    if len(members) < 3 or not large:
        return Likeness(None, 0, (), 0)
    bags = [features(question) for question in questions]
    vectors = _unit_vectors(bags, _weights(bags))
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, 1)
    p_values = _target_p_values(likeness, large, rng)
    unrelated = tuple(
        Unrelated(target, len(large[target]), p, tuple(questions[i] for i in large[target][:3]))
        for target, p in p_values.items()
        if p > UNRELATED
    )
    return Likeness(
        _file_p_value(likeness, members.values(), rng), len(large), unrelated, sum(map(len, large.values()))
    )


# ---------------------------------------------------------------------------------------------- wordless


def shared_words_p_value(pairs: Sequence[Pair], seed: str = "wordless") -> float | None:
    """The test `wordless`: p-value of the rare features that targets share with their questions, or None if there
    are fewer than `MIN_WORDED` pairs or 10 targets."""
    rng = random.Random(seed)
    kept = sorted(set(pairs))
    if len(kept) > MAX_QUESTIONS:
        kept = sorted(rng.sample(kept, MAX_QUESTIONS))
    if len(kept) < MIN_WORDED or len({t for _, t in kept}) < 10:
        return None
    questions = [features(q) for q, _ in kept]
    targets = [features(t) for _, t in kept]
    weights = _weights(questions)

    def shared(order: Sequence[int]) -> float:
        return math.fsum(weights[f] for i, j in enumerate(order) for f in sorted(questions[i] & targets[j]))

    order = list(range(len(kept)))
    observed, null = shared(order), []
    for _ in range(PERMUTATIONS):
        rng.shuffle(order)
        null.append(shared(order))
    return _p_value(observed, null)
