"""Phrases in every language of the report at once; the page shows the one that is chosen. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from markupsafe import Markup, escape

from fgod.devlog.words import LANGUAGES as OF_DEVLOG
from fgod.evaluate.metric import Legend
from fgod.report.words import LANGUAGES, METRICS_ZH_HANT


@dataclass(frozen=True)
class Phrase:
    """The same words in each language, as HTML, by language."""

    texts: Mapping[str, Markup]

    def __html__(self) -> Markup:
        return self._in("span")

    @property
    def svg(self) -> Markup:
        """Within the text of a drawing."""
        return self._in("tspan")

    @property
    def plain(self) -> str:
        """All languages in one line, where there can be no marks: attributes, options of a list."""
        return " / ".join(dict.fromkeys(text.striptags() for text in self.texts.values()))

    @property
    def labels(self) -> Markup:
        """The attributes by which a cell tells its column on a narrow screen."""
        pairs = ((LABELS[name], text.striptags()) for name, text in self.texts.items())
        return Markup(" ").join(Markup('{}="{}"').format(name, text) for name, text in pairs)

    def _in(self, tag: str) -> Markup:
        if len(set(self.texts.values())) == 1:
            return next(iter(self.texts.values()))
        shape = Markup('<{tag} class="w" lang="{name}">{text}</{tag}>')
        return Markup("").join(shape.format(tag=tag, name=name, text=text) for name, text in self.texts.items())


LABELS = {name: "data-label" if name == "en" else f"data-label-{name}" for name in LANGUAGES}


def say(key: str, **values: object) -> Phrase:
    """The phrase of a key of `Words`, filled in: values are escaped, and phrases among them stand in each language.

    Raises:
        AttributeError: there is no such key.
    """
    return Phrase({name: _filled(getattr(words, key), name, values) for name, words in LANGUAGES.items()})


def _filled(text: str, language: str, values: Mapping[str, object]) -> Markup:
    own = {key: value.texts[language] if isinstance(value, Phrase) else value for key, value in values.items()}
    return Markup(text).format(**own) if own else Markup(text)


def decided(decision: str) -> Phrase:
    """A verdict."""
    return Phrase({name: escape(OF_DEVLOG[name].decisions[decision]) for name in LANGUAGES})


def short(legend: Legend) -> Phrase:
    """A metric in short."""
    return _of_metric(legend.short, legend, 0)


def described(legend: Legend) -> Phrase:
    """What a metric counts or averages."""
    return _of_metric(legend.description, legend, 1)


def _of_metric(english: str, legend: Legend, place: int) -> Phrase:
    chinese = METRICS_ZH_HANT.get(legend.name)
    return Phrase({"en": escape(english), "zh-Hant": escape(chinese[place] if chinese else english)})


def listed(keys: Iterable[str]) -> Phrase:
    """The phrases of keys in a row."""
    said = [say(key) for key in keys]
    return Phrase({name: Markup("; ").join(phrase.texts[name] for phrase in said) for name in LANGUAGES})
