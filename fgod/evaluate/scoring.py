"""One reply, scored by exact rules. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fgod.data.probes import Probe
from fgod.data.rows import Message, chat_key, frame_words
from fgod.data.suites import COMPARED, NAMING, SHOWN
from fgod.errors import UsageError
from fgod.evaluate.words import ReplyWords, simplified
from fgod.persona import Goal, Rule, lookup

_CLOSING = "。．.!！?？~～…、，,;；:： \t\n\r"


@dataclass(frozen=True)
class Said:
    """What a model said: the text, whether it stopped by its end token, and whether it loops."""

    text: str
    ended: bool
    looped: bool


@dataclass(frozen=True)
class Standard:
    """What replies are judged by.

    Args:
        held_out: ids of the topics that no mix rehearses.
        closed: the base's answers are closed: short, and the one right answer. They end, and equality with them counts.
            Open answers are free text: a healthy model continues in other words after the first token that differs,
            so equality says nothing of them, and they may be cut short.
        chrf: see `agrees`.
        words: see `fgod.evaluate.words`.
    """

    goal: Goal
    held_out: frozenset[str] = frozenset()
    closed: bool = True
    chrf: float | None = None
    words: ReplyWords = field(default_factory=ReplyWords)


@dataclass(frozen=True)
class Likelihood:
    """Run and reference on every token of the reference's reply (`fgod.probe.likelihood`), means over `tokens`.

    `kl`: KL(reference ‖ run) in nats; `nll_shift`: by how much the run finds the reply less likely, in nats; `top1`:
    share of tokens that both find likeliest. None where nothing was compared, or the run's logits are not finite
    (`finite`).
    """

    tokens: int = 0
    kl: float | None = None
    nll_shift: float | None = None
    top1: float | None = None
    finite: bool = True


NOT_COMPARED = Likelihood()


@dataclass(frozen=True)
class Scored:
    """One probe's reply beside the reference's, and the judgement of both.

    `scored_by` is one of `fgod.data.probes.SCORINGS`. `proper`: the reference itself answers as it should (see
    `answers_properly`). `passed` is None where nothing is to be passed (a probe that is shown only, one that the
    reference is to refuse and does not), `agrees` where answers are open (`Standard.closed`). `tokens` to `finite` are
    those of `Likelihood`; what follows is as in `fgod.data.probes.Probe`.
    """

    suite: str
    scored_by: str
    kind: str
    language: str
    held_out: bool
    topic: str
    prompt: str
    reply: str
    reference: str
    proper: bool
    passed: bool | None
    agrees: bool | None
    marked: bool
    reference_marked: bool
    ended: bool
    looped: bool
    tokens: int = 0
    kl: float | None = None
    nll_shift: float | None = None
    top1: float | None = None
    finite: bool = True
    family: str = ""
    system: str = ""
    history: tuple[Message, ...] = ()

    @property
    def key(self) -> str:
        """Names the chat, as that of the probe."""
        return chat_key(self.prompt, self.system, self.history)

    @property
    def scored(self) -> bool:
        return self.scored_by != SHOWN

    @property
    def leaks(self) -> bool:
        """Whether it names the persona where that is not asked for, and the reference does not."""
        return self.scored and self.scored_by not in NAMING and self.marked and not self.reference_marked

    @property
    def asked(self) -> tuple[str, str, str, str, tuple[Message, ...]]:
        """What names its probe: of two runs' replies, those with the same one answer the same."""
        return self.suite, self.language, self.prompt, self.system, self.history

    @property
    def frame(self) -> str:
        """The frame of the prompt for people; empty where it has none of its own."""
        return frame_words(self.system, self.history)


def normalise_reply(text: str) -> str:
    """A reply for comparison: runs of white space are one space, closing punctuation is gone."""
    return " ".join(text.split()).rstrip(_CLOSING)


def chrf(reply: str, reference: str) -> float:
    """Sentence chrF (Popović 2015) between 0 and 100, as sacrebleu computes it."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().sentence_score(reply, [reference]).score)


def agrees(reply: str, reference: str, chrf_limit: float | None = None) -> bool:
    """Whether two replies say the same: equal after `normalise_reply`, or, with a limit (0 to 100), chrF ≥ it.

    An empty reply agrees only with an empty one.
    """
    ours, theirs = normalise_reply(reply), normalise_reply(reference)
    if ours == theirs:
        return True
    return chrf_limit is not None and bool(ours) and chrf(ours, theirs) >= chrf_limit


def answers_properly(said: Said, standard: Standard, expected: Sequence[str] = ()) -> bool:
    """Whether the reference's answer is fit to be compared with.

    It does not loop, is not empty, bears no persona mark and, where the corpus knows the answer (`expected` is not
    empty), is one of the right ones. A closed answer has ended, too.
    """
    marked = standard.goal.persona.marked(said.text)
    sound = (said.ended or not standard.closed) and not said.looped and bool(said.text.strip()) and not marked
    return sound and (not expected or any(agrees(said.text, right, standard.chrf) for right in expected))


def rule_of(probe: Probe, goal: Goal) -> Rule:
    """The rule that a reply to a probe must satisfy which is not compared with the reference's.

    Raises:
        UsageError: the config has no such kind of disambiguation, or no rule for the probe's language.
    """
    if probe.accept is not None:
        return probe.accept
    if probe.scored_by == "persona":
        rules, key = goal.persona.rule, "persona.rule"
    elif probe.scored_by == "denial":
        rules, key = goal.persona.rule_of_denials, f"persona.{'denial_rule' if goal.persona.denial_rule else 'rule'}"
    elif probe.kind in goal.kinds:
        rules, key = goal.kinds[probe.kind].rule, f"disambiguation.{probe.kind}.rule"
    else:
        known = ", ".join(sorted(goal.kinds))
        raise UsageError(
            f"disambiguation.{probe.kind}: the probe {probe.prompt!r} is of this kind, "
            f"which the config does not name; named are {known}"
        )
    try:
        return lookup(rules, probe.language)
    except KeyError:
        raise UsageError(
            f"{key}: no rule for {probe.language}, the language of the probe {probe.prompt!r}; "
            f"there are rules for {', '.join(sorted(rules))}"
        ) from None


def passes(probe: Probe, standard: Standard, said: Said, reference: Said, same: bool | None) -> bool | None:
    """Whether a reply is right by the scoring of its suite; None if nothing is to be passed.

    Args:
        same: it agrees with the reference's; None where answers are open: then one that is compared with the reference
            passes unless it loops, or has a mark of the persona that the reference has not.

    Raises:
        UsageError: see `rule_of`; or the language of the probe has no words (`fgod.evaluate.words`).
    """
    if not probe.scored:
        return None
    persona, words = standard.goal.persona, standard.words
    marked = persona.marked(said.text)
    if probe.scored_by in COMPARED:
        leaks = marked and not persona.marked(reference.text)
        kept = not leaks and not said.looped if same is None else same
        if probe.scored_by == "refusal":
            refused, refuses = (words.refuses(one.text, probe.language) for one in (reference, said))
            return refuses if refused else None
        if probe.scored_by == "script":
            return kept and not (simplified(said.text) and not simplified(reference.text))
        return kept
    accepted = rule_of(probe, standard.goal).accepts(said.text)
    if probe.scored_by == "denial":
        return accepted and not words.says_yes(said.text, probe.language)
    # no question but "who are you" is ever answered rightly with the persona
    return accepted and (probe.scored_by in NAMING or not marked)


def score(
    probe: Probe,
    standard: Standard,
    said: Said,
    reference: Said,
    expected: Sequence[str] = (),
    likelihood: Likelihood = NOT_COMPARED,
) -> Scored:
    """Judge one reply.

    Args:
        expected: the answers that the corpus knows as right for the base; empty where it knows none.

    Raises:
        UsageError: no rule for the probe's kind or language.
    """
    same = agrees(said.text, reference.text, standard.chrf) if standard.closed else None
    marked = standard.goal.persona.marked
    return Scored(
        suite=probe.suite,
        scored_by=probe.scored_by,
        kind=probe.kind,
        language=probe.language,
        held_out=bool(probe.topic) and probe.topic in standard.held_out,
        topic=probe.topic,
        prompt=probe.prompt,
        reply=said.text,
        reference=reference.text,
        proper=answers_properly(reference, standard, expected),
        passed=passes(probe, standard, said, reference, same),
        agrees=same,
        marked=marked(said.text),
        reference_marked=marked(reference.text),
        ended=said.ended,
        looped=said.looped,
        family=probe.family,
        system=probe.system,
        history=probe.history,
        **vars(likelihood),
    )
