"""The keys of a rule, in the config and in suites of probes. `fgod.persona.Rule` judges by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from annotated_types import MinLen
from pydantic.dataclasses import dataclass

from fgod.validation import KEYS, Keys, Texts, fault


@dataclass(frozen=True, config=KEYS)
class Rule(Keys):
    """Words that a reply must have, compared after NFKC, without case and white space."""

    all: Texts = ()
    """Words that it has, each of them."""
    any: Texts = ()
    """Words of which it has one at least."""
    none: Texts = ()
    """Words that it does not have."""

    def __post_init__(self) -> None:
        if not (self.all or self.any or self.none):
            raise fault("", "found {}, expected at least 1 key")


RuleByLanguage = Annotated[Mapping[str, Rule], MinLen(1)]
