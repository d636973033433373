"""One reply, scored by exact rules. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fgod.data.probes import Probe
from fgod.data.suites import COMPARED, SHOWN
from fgod.errors import UsageError
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
    """

    goal: Goal
    held_out: frozenset[str] = frozenset()
    closed: bool = True
    chrf: float | None = None


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
    `answers_properly`). `passed` is None for a probe that is shown only, `agrees` where answers are open
    (`Standard.closed`). `tokens` and what follows are those of `Likelihood`.
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

    @property
    def scored(self) -> bool:
        return self.scored_by != SHOWN


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
    """The rule that a reply to a probe which is scored by the persona's rule or by its kind's must satisfy.

    Raises:
        UsageError: the config has no such kind of disambiguation, or no rule for the probe's language.
    """
    if probe.scored_by == "persona":
        rules, key = goal.persona.rule, "persona.rule"
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


def passes(probe: Probe, goal: Goal, said: Said, reference: Said, same: bool | None) -> bool | None:
    """Whether a reply is right by the scoring of its suite; None if it is not scored.

    Args:
        same: it agrees with the reference's; None where answers are open: then one that is compared with the reference
            passes unless it loops, or has a mark of the persona that the reference has not.

    Raises:
        UsageError: see `rule_of`.
    """
    if not probe.scored:
        return None
    marked = goal.persona.marked(said.text)
    if probe.scored_by in COMPARED:
        leaks = marked and not goal.persona.marked(reference.text)
        return not leaks and not said.looped if same is None else same
    # no question but "who are you" is ever answered rightly with the persona
    return rule_of(probe, goal).accepts(said.text) and not (probe.scored_by == "kind" and marked)


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
        passed=passes(probe, standard.goal, said, reference, same),
        agrees=same,
        marked=marked(said.text),
        reference_marked=marked(reference.text),
        ended=said.ended,
        looped=said.looped,
        **vars(likelihood),
    )
