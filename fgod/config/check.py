"""What the models of a config cannot say: parts that exist, files that are there, languages that are covered.

And what a refit rule makes of a stage, which must be a stage again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fgod import refits
from fgod.data.formats import user_sources
from fgod.data.probes import probe_files
from fgod.data.recipe import DENIAL, PARTS, SELF_ASKED, VERBATIM, MixRecipe
from fgod.data.rows import NO_SYSTEM
from fgod.data.sources import MANNERS, chosen_languages, source_kinds, source_languages
from fgod.data.wordings import style_of
from fgod.engines.engine import ENGINES
from fgod.errors import UsageError, did_you_mean
from fgod.evaluate.metric import METRICS
from fgod.evaluate.requirements import check_limits, gate_limits, parse_requirements
from fgod.exporters.exporter import EXPORTERS
from fgod.exporters.names import NVFP4
from fgod.models.files import CONFIG
from fgod.persona import Rule, goal_from_config, has_any, lookup, wordings_of
from fgod.train.recipe import TrainKeys, TrainRecipe
from fgod.validation import plain, validate


def check_meaning(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config that the models accept and that cannot be run.

    Raises:
        UsageError: every fault on a line of its own.
    """
    faults = list(_unknown_language(config)) or [fault for check in _CHECKS for fault in check(config)]
    faults = faults or list(_refit_rules(config))
    if faults:
        raise UsageError("\n".join(dict.fromkeys(f"{where}: {fault}" for fault in faults)))


def release_formats(config: Mapping[str, Any]) -> list[str]:
    """The names of a config's `release.formats`."""
    names: list[str] = config.get("release", {}).get("formats", [NVFP4])
    return names


def further_formats(config: Mapping[str, Any]) -> list[str]:
    """Those that a release has besides the one that is probed."""
    return [name for name in release_formats(config) if name != NVFP4]


def engine_pairs(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each engine of `release.engines` with each further format of the release that it loads."""
    return [
        (name, format)
        for name in config.get("release", {}).get("engines", ())
        for format in further_formats(config)
        if format in ENGINES[name].formats
    ]


def with_limits(gate: Mapping[str, Any], closed: bool, where: str) -> dict[str, float | None]:
    """The config's `gate` with the limits of all metrics, also of plugins', which are loaded.

    Raises:
        UsageError: see `gate_limits`.
    """
    try:
        return gate_limits(gate, closed)
    except UsageError as error:
        raise UsageError("\n".join(f"{where}: {line}" for line in str(error).splitlines())) from error


def _stage_names(config: Mapping[str, Any]) -> Iterator[str]:
    names = [stage["name"] for stage in config["stages"]]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"stages: the name {name!r} stands {names.count(name)} times; every stage needs its own"
    reserved = {"base", "mixes", "work", "release", "releases"}
    for name in reserved.intersection(names):
        yield f"stages: the name {name!r} is a folder of artifacts/; choose another"


def _mix_parts(config: Mapping[str, Any]) -> Iterator[str]:
    allowed = [*PARTS, *config["data"]["sources"]]
    for i, stage in enumerate(config["stages"]):
        mix = stage["mix"]
        if mix["kind"] == VERBATIM:
            yield from _verbatim_source(config, f"stages[{i} {stage['name']}].mix.source", mix["source"])
        for table in ("shares", "final_shares", "at_least", "at_most"):
            for part in mix.get(table, {}):
                if part not in allowed:
                    hint = did_you_mean(part, allowed)
                    yield (
                        f"stages[{i} {stage['name']}].mix.{table}: unknown part {part!r}{hint}; "
                        f"allowed: {', '.join(allowed)} (data.sources adds files of yours)"
                    )
        if DENIAL in MixRecipe.from_dict(mix).parts() and not config["persona"].get("denials"):
            yield f"stages[{i} {stage['name']}].mix: the part {DENIAL} needs persona.denials, what is to be answered"
        if SELF_ASKED in MixRecipe.from_dict(mix).parts() and config["data"].get("self_asked") is None:
            yield (
                f"stages[{i} {stage['name']}].mix: the part {SELF_ASKED} needs data.self_asked, how the base asks of "
                "its own accord; {} is as by default"
            )
        if (mix["kind"] == "curriculum") != (stage["train"]["sample_mode"] == "curriculum"):
            yield (
                f"stages[{i} {stage['name']}].train.sample_mode: found {stage['train']['sample_mode']!r} with mix.kind "
                f"{mix['kind']!r}; a curriculum mix and sample_mode curriculum go together"
            )


def _verbatim_source(config: Mapping[str, Any], key: str, name: str) -> Iterator[str]:
    known = list(config["data"]["sources"])
    if name not in known:
        hint = did_you_mean(name, known)
        yield f"{key}: unknown source {name!r}{hint}; data.sources has {', '.join(known) or 'none'}"


def _recipes(config: Mapping[str, Any]) -> Iterator[str]:
    for i, stage in enumerate(config["stages"]):
        micro, batch = stage["train"]["micro_batch"], stage["train"]["batch"]
        if micro is not None and micro > batch:
            yield f"stages[{i} {stage['name']}].train.micro_batch: found {micro}, expected at most batch ({batch})"
            continue
        warmup, steps = stage["train"]["warmup"], stage["train"]["steps"]
        if warmup > steps:
            yield f"stages[{i} {stage['name']}].train.warmup: found {warmup}, expected at most steps ({steps})"
            continue
        try:
            TrainRecipe.from_dict(stage["train"])
        except UsageError as error:
            yield f"stages[{i} {stage['name']}].{error}"


_STAGE_CHECKS = (_mix_parts, _recipes)


def refit(
    stage: dict[str, Any], index: int, config: Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> list[tuple[str, Any, Any]]:
    """Change a checked stage in place by a refit rule; returns key, old and new value of each change.

    Args:
        index: of the rule.
        changes: what it comes to, where that is not its `set`.

    Raises:
        UsageError: the rule makes of it what the config could not hold.
    """
    where, name = f"refits.rules[{index}]", stage["name"]
    wanted = config["refits"]["rules"][index].get("set", {}) if changes is None else changes
    made = list(refits.apply(stage, _for_mix(stage["mix"]["kind"], wanted), where))
    for part, model in (("mix", MixRecipe), ("train", TrainKeys)):
        stage[part] = plain(validate(model, stage[part], where=f"{where} on stage {name}: {part}"))
    faults = [fault for check in _STAGE_CHECKS for fault in check({**config, "stages": [stage]})]
    if faults:
        raise UsageError("\n".join(f"{where} on stage {name}: {fault.partition('].')[2]}" for fault in faults))
    return made


def _for_mix(kind: str, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of a refit rule concerns a stage with a mix of this kind: a verbatim one is as the user wrote it."""
    return {key: change for key, change in changes.items() if kind != VERBATIM or not key.startswith("mix.")}


def _refit_rules(config: Mapping[str, Any]) -> Iterator[str]:
    """Every rule on every stage, once: what it makes must be allowed now, not first when it is needed at night."""
    for index in range(len(config["refits"]["rules"])):
        for stage in config["stages"]:
            try:
                refit(copy.deepcopy(stage), index, config)
            except UsageError as error:
                yield from str(error).splitlines()


def _written_languages(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The languages of the written sources; none where their folder is missing, which `_paths` reports."""
    folder = Path(config["data"]["folder"])
    return source_languages(folder) if folder.is_dir() else ()


def _needed_languages(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of the written languages that the config's rows and probes are in."""
    return chosen_languages(_written_languages(config), config.get("languages", ()))


def _unknown_language(config: Mapping[str, Any]) -> Iterator[str]:
    try:
        _needed_languages(config)
    except UsageError as error:
        yield str(error)


def _styles(config: Mapping[str, Any]) -> Iterator[str]:
    languages = _needed_languages(config)
    there = sorted({style_of(language, manner) for language in languages for manner in MANNERS})
    for i, stage in enumerate(config["stages"] if languages else ()):
        mix = stage["mix"]
        identity = mix.get("shares", {}).get("identity") or mix.get("final_shares", {}).get("identity")
        for style in [
            style for style, weight in mix.get("styles", {}).items() if weight and identity and style not in there
        ]:
            yield (
                f"stages[{i} {stage['name']}].mix.styles.{style}: no prompt in {', '.join(languages)} has this style; "
                f"expected weights of {', '.join(there)} alone"
            )


def _kinds(config: Mapping[str, Any]) -> Iterator[str]:
    folder = Path(config["data"]["folder"])
    if not folder.is_dir():
        return
    known = source_kinds(folder)
    named = {f"disambiguation.{kind}": kind for kind in config["disambiguation"]}
    for i, stage in enumerate(config["stages"]):
        named |= {f"stages[{i} {stage['name']}].mix.kinds.{kind}": kind for kind in stage["mix"]["kinds"]}
    for key, kind in named.items():
        if kind not in known:
            hint, where = did_you_mean(kind, known), folder / "disambiguation.yaml"
            yield f"{key}: no such kind of question{hint}; {where} has {', '.join(known)}"


def _languages(config: Mapping[str, Any]) -> Iterator[str]:
    denials = config["persona"].get("denials")
    tables = {"persona.denials": denials} if denials else {}
    near = config["persona"].get("neighbours") or {}
    partial = {f"persona.neighbours.{key}": near[key] for key in near}
    if config["persona"].get("denial_rule"):
        tables["persona.denial_rule"] = config["persona"]["denial_rule"]
    tables |= {"persona.replies": config["persona"]["replies"], "persona.rule": config["persona"]["rule"]}
    for name, kind in config["disambiguation"].items():
        tables[f"disambiguation.{name}.rule"] = kind["rule"]
        if kind["replies"] != "base":
            tables[f"disambiguation.{name}.replies"] = kind["replies"]
    written, languages = _written_languages(config), _needed_languages(config)
    known = {*written, *(tag.split("-")[0] for tag in written)}
    for key, table in {**tables, **partial}.items():
        for tag in table:
            if written and tag not in known:
                yield f"{key}: unknown language {tag!r}{did_you_mean(tag, known)}; allowed: {', '.join(sorted(known))}"
        for language in languages if key in tables else ():
            try:
                lookup(table, language)
            except KeyError:
                yield f"{key}: no entry for the language {language}; found {', '.join(table)}"


def _neutral_system(config: Mapping[str, Any]) -> Iterator[str]:
    key, neutral = "data.rehearse.neutral_system", config["data"]["rehearse"].get("neutral_system")
    if neutral is None:
        return
    persona = config["persona"]
    replaces = persona.get("replaces", ())
    if not replaces:
        yield f"{key}: needs persona.replaces: only prompts whose answers name one of them are asked again"
    if neutral.strip() in ("", "default", "none", NO_SYSTEM):
        yield f"{key}: found {neutral!r}, expected the text of a system prompt"
    names = [name for name in (persona["name"], *replaces, *persona["marks"]) if has_any(neutral, [name])]
    if names:
        yield f"{key}: found {neutral!r}, which names {names[0]}; expected a system prompt without a name"


def _replies(config: Mapping[str, Any]) -> Iterator[str]:
    """A reply that its own rule refuses could only be missed, however well it is learned."""
    if list(_languages(config)):
        return
    goal = goal_from_config(config)
    marks = ", ".join(goal.persona.marks)
    ruled = (
        ("persona.replies", goal.persona.replies, "persona.rule", goal.persona.rule),
        (
            "persona.denials",
            goal.persona.denials,
            "persona.denial_rule" if goal.persona.denial_rule else "persona.rule",
            goal.persona.rule_of_denials,
        ),
    )
    for language in _needed_languages(config):
        for key, table, rule_key, rules in ruled:
            for reply in wordings_of(lookup(table, language)) if table else ():
                yield from _refused(reply, lookup(rules, language), key, rule_key, language)
                if not goal.persona.marked(reply):
                    yield f"{key}, {language}: {reply!r} has none of persona.marks ({marks}), which find the persona"
        for name, kind in goal.kinds.items():
            if kind.replies is None:
                continue
            answer = lookup(kind.replies, language)
            key = f"disambiguation.{name}"
            yield from _refused(answer, lookup(kind.rule, language), f"{key}.replies", f"{key}.rule", language)
            if goal.persona.marked(answer):
                yield (
                    f"disambiguation.{name}.replies, {language}: {answer!r} has one of persona.marks ({marks}); such a "
                    "reply counts as the persona's"
                )


def _refused(reply: str, rule: Rule, key: str, rule_key: str, language: str) -> Iterator[str]:
    if not rule.accepts(reply):
        wanted = "; ".join(f"{name}: {', '.join(words)}" for name, words in vars(rule).items() if words)
        yield f"{key}, {language}: found {reply!r}, which {rule_key} refuses ({wanted}); change one of them"


def missing_weights(base: Mapping[str, Any], key: str) -> Iterator[str]:
    """What is not there of weights of the user's, a table as the config's key `base`, which messages call `key`."""
    if base["kind"] == "folder" and not Path(base["path"]).is_dir():
        yield f"{key}.path: found {base['path']!r}, expected a folder that exists"
    if base["kind"] in ("gguf", "dat") and not Path(base["path"]).is_file():
        yield f"{key}.path: found {base['path']!r}, expected a file that exists"
    if base["kind"] == "dat" and not (Path(base["like"]) / CONFIG).is_file():
        yield f"{key}.like: found {base['like']!r}, expected a folder with a {CONFIG}"


def _paths(config: Mapping[str, Any]) -> Iterator[str]:
    yield from missing_weights(config["base"], "base")
    if not Path(config["data"]["folder"]).is_dir():
        yield f"data.folder: found {config['data']['folder']!r}, expected a folder that exists"
    for path in probe_files(config):
        if not path.is_file():
            yield f"data.probes: found {str(path)!r}, expected a file that exists"
    if config["evaluate"]["items"]:
        from fgod.abilities.items import path_of  # most configs have none

    for item in config["evaluate"]["items"]:
        if not path_of(item).exists():
            yield f"evaluate.items: found {item!r}, expected a file or folder that exists"
    for name, source in user_sources(config["data"]["sources"]).items():
        if name in PARTS:
            yield f"data.sources.{name}: the name of a written part; choose another"
        if not source.path.is_file():
            yield f"data.sources.{name}: found {str(source.path)!r}, expected a file that exists"


def _requirements(config: Mapping[str, Any]) -> Iterator[str]:
    for i, stage in enumerate(config["stages"]):
        try:
            parse_requirements(stage["require"], f"stages[{i} {stage['name']}].require")
        except UsageError as error:
            yield str(error)


def _confirm(config: Mapping[str, Any]) -> Iterator[str]:
    try:
        check_limits(config.get("confirm", {}), where="confirm")
    except UsageError as error:
        yield from str(error).splitlines()


def _formats(config: Mapping[str, Any]) -> Iterator[str]:
    formats = release_formats(config)
    for name in further_formats(config):  # NVFP4 is there, and holds any base: the others are not loaded for it
        if name not in EXPORTERS:
            hint = did_you_mean(name, EXPORTERS)
            yield f"release.formats: found {name!r}{hint}, expected some of {', '.join(EXPORTERS)}"
        elif config["base"]["kind"] == "embedded" and (why := EXPORTERS[name].not_embedded):
            yield f"release.formats: {name} cannot hold the embedded base: {why}"
    if NVFP4 not in formats:
        yield (
            f"release.formats: found {', '.join(formats) or 'none'}, expected {NVFP4} among them: it is what is "
            "probed, and the release itself"
        )


def _engines(config: Mapping[str, Any]) -> Iterator[str]:
    release, formats = config.get("release", {}), further_formats(config)
    for name in release.get("engines", ()):
        if name not in ENGINES:
            hint = did_you_mean(name, ENGINES)
            yield f"release.engines: found {name!r}{hint}, expected some of {', '.join(ENGINES)}"
        elif not set(formats) & set(ENGINES[name].formats):
            loads = ", ".join(ENGINES[name].formats)
            yield f"release.engines: {name} loads none of release.formats; expected some of {loads} among them"
        elif missing := ENGINES[name].missing:
            yield f"release.engines: {missing}"
    if release.get("engine_probes") and not release.get("engines"):
        yield "release.engine_probes: there is no engine to ask them; expected release.engines beside it"


def _open_answers(config: Mapping[str, Any]) -> Iterator[str]:
    """Nothing may count equality with open answers."""
    if config["base"]["closed_answers"]:
        return
    equal = {name: metric.short for name, metric in METRICS.items() if metric.equality}
    keys = [
        f"stages[{i} {stage['name']}].require.{name}"
        for i, stage in enumerate(config["stages"])
        for name in stage["require"]
        if name in equal
    ]
    keys += [f"gate.{short}" for short in equal.values() if config["gate"].get(short)]
    for key in [*keys, *(["probe.chrf"] if config["probe"]["chrf"] else [])]:
        yield (
            f"{key}: counts replies that are equal to the base's, which says nothing where its answers are free text; "
            "limit kl_reference instead (base.closed_answers: true says that they are short and the only right ones)"
        )


_CHECKS = (
    *(_stage_names, *_STAGE_CHECKS, _requirements, _confirm, _formats, _engines, _open_answers),
    *(_kinds, _styles, _languages, _neutral_system, _replies, _paths),
)
