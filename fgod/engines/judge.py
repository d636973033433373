"""Whether an engine says of a format what the gate let through, by its replies to probes. Pure.

The gate's checks are made of the engine's replies. Those that need distributions are not: an engine lists the likeliest
tokens alone. A check that the released replies to the same probes fail too says nothing of the engine (of a few probes
a limit may be missed by chance), and is not made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray

from fgod.data.probes import Probe
from fgod.documents import Metrics
from fgod.errors import FgodError
from fgod.evaluate.measure import measure_all
from fgod.evaluate.metric import Estimate
from fgod.evaluate.requirements import Check
from fgod.evaluate.scoring import Scored
from fgod.gate import Verdict, weigh


@dataclass(frozen=True)
class Judged:
    """`verdict`: that of the gate, by `checks`; `unjudged`: metrics with a limit that no check was made of."""

    verdict: Verdict
    metrics: Mapping[str, Estimate]
    checks: tuple[Check, ...]
    unjudged: tuple[str, ...]


def chosen(probes: Iterable[Probe], count: int | None) -> list[Probe]:
    """So many of the probes, always the same ones: of each suite in turn, in an order that only the probes decide.

    Args:
        count: None: all.
    """
    suites: dict[str, list[Probe]] = {}
    for probe in probes:
        suites.setdefault(probe.suite, []).append(probe)
    mixed = [sorted(of_suite, key=_mixed) for of_suite in suites.values()]
    return [probe for probe in chain.from_iterable(zip_longest(*mixed)) if probe is not None][:count]


def _mixed(probe: Probe) -> str:
    return hashlib.sha256(probe.key.encode()).hexdigest()


def judge(ours: Sequence[Scored], theirs: Sequence[Scored], checks: Sequence[Check]) -> Judged:
    """The verdict on the replies of an engine.

    Args:
        ours: what was released, of the same probes.
        theirs: scored without distributions.

    Raises:
        FgodError: no check can be made.
    """
    released, metrics = measure_all(ours), measure_all(theirs)
    made = [check for check in checks if _holds(check, released) and metrics[check.metric].value is not None]
    if not made:
        names = ", ".join(dict.fromkeys(check.metric for check in checks))
        raise FgodError(
            f"none of {len(theirs)} replies measures what has a limit; expected probes for some of {names} "
            "(release.engine_probes: more of them)"
        )
    left = dict.fromkeys(check.metric for check in checks if check not in made)
    verdict = weigh(made, Metrics(status="measured", metrics=metrics), lambda: theirs)
    return Judged(verdict, metrics, tuple(made), tuple(left))


def _holds(check: Check, found: Mapping[str, Estimate]) -> bool:
    value = found[check.metric].value
    return value is not None and check.holds(value)


def same_reply(ours: str, theirs: str) -> bool:
    """Whether two replies are one text, but for white space around it and the half of a character at a cut."""
    return ours.strip().rstrip("\ufffd") == theirs.strip().rstrip("\ufffd")


def divergence(log_probabilities: NDArray[np.float64], listed: Mapping[int, float]) -> float:
    """Σ p·log(p/q) in nats over the tokens that an engine lists. As it leaves out the others, it may be below 0.

    Args:
        log_probabilities: log p by token [V].
        listed: log q by token.
    """
    ids = np.fromiter(listed, dtype=np.int64)
    own, theirs = log_probabilities[ids], np.fromiter(listed.values(), dtype=np.float64)
    return float((np.exp(own) * (own - theirs)).sum())
