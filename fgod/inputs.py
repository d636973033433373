"""Digests of the files that recipes depend on: the base, the written data, the user's data files, the probes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fgod import NUMERICS_VERSION, numerics_on
from fgod.chain import Inputs
from fgod.data.formats import ROW_FORMATS, UserSource, read_user_file, user_sources
from fgod.data.optional import FILES_OF_PARTS, LOADERS, files_of, files_used, load_asking
from fgod.data.probes import SUITES_FILE, Probe, asked_in, folds_of, load_probes, probe_files
from fgod.data.recipe import CLAIM, NAMED, NEIGHBOUR, PART_ROWS, TALK, MixRecipe
from fgod.data.sources import PAIRED_KIND, Sources, load_sources
from fgod.errors import UsageError, did_you_mean
from fgod.evaluate.checked import check_probes
from fgod.evaluate.words import ReplyWords, load_reply_words
from fgod.exporters.exporter import EXPORTERS
from fgod.model.spec import RANDOM_DESIGN
from fgod.models.architecture import ARCHITECTURES
from fgod.models.files import CONFIG, beside_weights
from fgod.persona import goal_from_config
from fgod.plugins import Registry
from fgod.system.digests import CACHE, cached_sha256
from fgod.system.files import digest, folder_files, read_json, sha256_file, sha256_files
from fgod.train.recipe import MEAN_FORMATS, OPTIMIZERS, SQUARE_FORMATS

PACKAGE = Path(__file__).resolve().parent


def gather(config: Mapping[str, Any], asked: Mapping[str, Any] | None = None) -> Inputs:
    """The digests for a checked config.

    Args:
        asked: the config that decides which prompts the base is asked for rehearsal; by default the same.

    Raises:
        UsageError: a written source is faulty, a held-out topic is not among them, or no row format reads a file of
            the user's.
    """
    data = config["data"]
    sources = sources_digest(Path(data["folder"]), languages_of(config))
    check_held_out(config)
    user = user_sources(data["sources"])
    check_user_sources(user)
    base = base_id(config["base"], sources, readers_of(config))
    self_asked = self_asked_id(config, base)
    return Inputs(
        base_id=base,
        self_asked_id=self_asked,
        rehearsal_id=digest(
            "rehearsal",
            base,
            numerics_on(config["probe"]["device"]),
            sources,
            rehearsal_settings(asked or config),
            _base_dtype(config),
            *_chat(config),
            *([self_asked] if self_asked else []),
        ),
        sources=sources,
        user_files={name: _rows_digest(name, source) for name, source in sorted(user.items())},
        user_settings={name: settings for name, source in sorted(user.items()) if (settings := source.settings())},
        row_formats=plugin_digests(config, ROW_FORMATS),
        state_formats={**plugin_digests(config, MEAN_FORMATS), **plugin_digests(config, SQUARE_FORMATS)},
        optimizers=plugin_digests(config, OPTIMIZERS),
        optional=optional_digests(Path(data["folder"]), config),
        check_probes=_check_probes(config),
    )


def _check_probes(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests by suite of the probes that a stage may be asked while it trains, and of the rules that judge them.

    Raises:
        UsageError: a stage's `train.check` names a suite that has none.
    """
    folder = Path(config["data"]["folder"])
    probes = _probes(config)
    found = check_probes(probes, goal_from_config(config), load_reply_words(folder, probes))
    for i, stage in enumerate(config["stages"]):
        try:
            found.of(stage["train"].get("check", {}).get("until", ()))
        except UsageError as error:
            raise UsageError(f"stages[{i} {stage['name']}].{error}") from error
    return found.digests


def teacher_settings(config: Mapping[str, Any], base_id: str, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the base's distributions over a run's rehearsed rows depend on; their digest names them.

    None where its recipe does not rehearse by them.
    """
    kl = recipe["train"].get("kl")
    if kl is None:
        return None
    asked = {key: kl[key] for key in ("teacher", "top_k", "temperature")}
    asked |= {"device": recipe["train"]["device"], "chat": recipe.get("chat", {})}
    return {"numerics": numerics_on(asked["device"]), "base": base_id, "dtype": _base_dtype(config), **asked}


def placebo_settings(config: Mapping[str, Any], base_id: str) -> dict[str, Any]:
    """What the base's answers to taught rows depend on, for `fgod.placebo`."""
    asked = {"max_new_tokens": config["data"]["rehearse"]["max_new_tokens"], "device": config["probe"]["device"]}
    return {
        "numerics": numerics_on(asked["device"]),
        "base": base_id,
        "dtype": _base_dtype(config),
        "chat": config["chat"],
        **asked,
    }


def optional_digests(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of what the optional written sources say, of those that some stage's mix uses.

    Raises:
        UsageError: one is missing or wrong.
    """
    recipes = [MixRecipe.from_dict(stage["mix"]) for stage in config["stages"]]
    used = {name for recipe in recipes for name in files_used(recipe)} | {*files_of(parts_of(config))}
    return {name: digest(_plain(load(folder))) for name, load in LOADERS.items() if name in used}


def _plain(content: Any) -> Any:
    return asdict(content) if is_dataclass(content) and not isinstance(content, type) else content


def parts_of(config: Mapping[str, Any]) -> set[str]:
    """The parts that a stage's mix has, or that a refit rule may give it."""
    found = {part for stage in config["stages"] for part in MixRecipe.from_dict(stage["mix"]).parts()}
    tables = ("mix.shares.", "mix.final_shares.", "mix.at_least.")
    keys = [key for rule in config["refits"].get("rules", ()) for key in rule.get("set", ())]
    return found | {key.rpartition(".")[2] for key in keys if key.startswith(tables)}


def plugin_digests(config: Mapping[str, Any], registry: Registry[Any]) -> dict[str, str]:
    """Digest of each of the config's plugin files that adds to a registry, by the file's name in the config.

    What a plugin imports from other files of the user's is not part of it.
    """
    files = [file for file in config["plugins"] if registry.adds(Path(file))]
    return {file: sha256_file(Path(file)) for file in sorted(files)}


def readers_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the plugin files without which the base might be other weights: model families, and for a folder the
    formats that it may be stored in."""
    formats = plugin_digests(config, EXPORTERS) if config["base"]["kind"] == "folder" else {}
    return {**plugin_digests(config, ARCHITECTURES), **formats}


def plugins_digest(config: Mapping[str, Any]) -> str:
    """Short digest of all plugin files, empty without one: a param of what measures and judges."""
    return digest([sha256_file(Path(file)) for file in config["plugins"]]) if config["plugins"] else ""


def _base_dtype(config: Mapping[str, Any]) -> str:
    """The number format in which the base answers: that of the first stage."""
    return str(config["stages"][0]["train"]["compute_dtype"])


def _chat(config: Mapping[str, Any]) -> list[Any]:
    """What of the config's `chat` is not as by default, which changes no digest."""
    return [config["chat"]] if config["chat"] else []


def self_asked_id(config: Mapping[str, Any], base: str) -> str:
    """Names the prompts that the base of this id asks of its own accord; empty where it does not."""
    asked = asking_settings(config)
    if asked is None:
        return ""
    return digest("self_asked", base, numerics_on(asked["device"]), asked, _base_dtype(config), *_chat(config))


def asking_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the base asks of its own accord: `data.self_asked`, the system prompts by language under which it does beside
    the config's own, and names that no prompt may have; None where it does not.

    Raises:
        UsageError: asking.yaml is missing or wrong.
    """
    asked = config["data"].get("self_asked")
    if asked is None:
        return None
    folder, persona = Path(config["data"]["folder"]), config["persona"]
    found = load_asking(folder, languages_of(config))
    settings = {key: value for key, value in asked.items() if key != "by_language"}
    return {
        **settings,
        "systems": {language: list(texts) if asked["by_language"] else [] for language, texts in found.items()},
        "names": [persona["name"], *persona.get("replaces", ())],
        "seed": config["seed"],
        "device": config["probe"]["device"],
    }


def _probes(config: Mapping[str, Any]) -> tuple[Probe, ...]:
    """The config's probes, of all splits."""
    files, folder = probe_files(config), Path(config["data"]["folder"])
    read = [path for path in (*files, folder / SUITES_FILE, folder / "questions.yaml") if path.is_file()]
    return _read_probes(tuple(files), folder, languages_of(config), tuple(map(sha256_file, read)))


@cache
def _read_probes(
    files: tuple[Path, ...], folder: Path, languages: tuple[str, ...], content: object
) -> tuple[Probe, ...]:
    """Probes of files with this content: read once, as thousands take half a second."""
    return tuple(load_probes(files, folder, languages))


def reply_words_digest(config: Mapping[str, Any]) -> str:
    """Digest of the words by which replies to the config's probes are judged, empty where none are needed."""
    words = load_reply_words(Path(config["data"]["folder"]), _probes(config))
    return digest(asdict(words)) if words != ReplyWords() else ""


REPLIES = (
    "chat.py",
    "model/attention.py",
    "model/chats.py",
    "model/template.py",
    "model/generate.py",
    "model/decode.py",
)
"""The modules that make replies of prompts."""

TABLES = ("dataframes.py", "system/table.py")
"""The modules that write and read tables."""


def rehearsal_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which prompts the base is asked for rehearsal. `kinds`: the disambiguation kinds that keep the
    base's own answer and that some stage's mix has rows of."""
    used = {kind for stage in config["stages"] for kind, weight in stage["mix"]["kinds"].items() if weight}
    used |= {PAIRED_KIND}
    kinds = sorted(used & {name for name, kind in config["disambiguation"].items() if kind["replies"] == "base"})
    data = config["data"]
    asked = {"seed": config["seed"], "kinds": kinds, "device": config["probe"]["device"]}
    parts = rehearsed_parts(config)
    neutral = data["rehearse"].get("neutral_system")
    return {
        **data["rehearse"],
        **({"replaces": list(config["persona"].get("replaces", ()))} if neutral else {}),
        "held_out": sorted(data["held_out_topics"]),
        **asked,
        **({"parts": parts} if parts else {}),
    }


def rehearsed_parts(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each part of an optional written source that is rehearsed: how many of its prompts the base is asked, the
    digest of its file, and what the config adds to it."""
    folder, rows, used = Path(config["data"]["folder"]), config["data"]["rehearse"], parts_of(config)
    found: dict[str, dict[str, Any]] = {}
    for part in (TALK, NAMED, NEIGHBOUR, CLAIM):
        if part in used:
            read = [_plain(LOADERS[name](folder)) for name in FILES_OF_PARTS[part]]
            found[part] = {"rows": rows.get(f"{part}_rows", PART_ROWS[part]), "file": digest(*read)}
    more = config["persona"].get("neighbours")
    if NEIGHBOUR in found and more:
        found[NEIGHBOUR]["more"] = more
    return found


def languages_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The languages that a config names; empty: all that its sources have."""
    return tuple(config.get("languages", ()))


@cache
def sources_digest(folder: Path, languages: tuple[str, ...] = ()) -> str:
    """Digest of what the written sources say in some languages: rows are made of it (the probes are not among it).

    Of what was read, once a process, so that a comment changes nothing; in its order, which decides where a prompt
    stands.
    """
    content = asdict(_sources(folder, languages))
    return digest(json.dumps(content, ensure_ascii=False))


@cache
def _sources(folder: Path, languages: tuple[str, ...]) -> Sources:
    return load_sources(folder, languages)


def check_held_out(config: Mapping[str, Any]) -> None:
    """Every held-out topic must be a topic of the written sources, in whatever language."""
    known = _sources(Path(config["data"]["folder"]), ()).topic_ids
    for topic in config["data"]["held_out_topics"]:
        if topic not in known:
            raise UsageError(
                f"data.held_out_topics: unknown topic {topic!r}{did_you_mean(topic, known)}; "
                f"the topics are the ids in {config['data']['folder']}"
            )


def check_user_sources(sources: Mapping[str, UserSource]) -> None:
    """Each of the user's data files may let only such faults through as can be."""
    accepting = {name: source.accept for name, source in sources.items() if source.accept}
    if accepting:
        from fgod.data.audit import check_accepted

        for name, accept in accepting.items():
            check_accepted(accept, f"data.sources.{name}.audit.accept")


def _rows_digest(name: str, source: UserSource) -> str:
    """Digest of the rows of a user's file, and of its lines that are none: comments and blank lines change nothing.

    Raises:
        UsageError: it is of no row format that is known here.
    """
    try:
        found = read_user_file(source.path, source.format).accepting(source.accept)
    except UsageError as error:
        raise UsageError(f"data.sources.{name}: {error}") from error
    rows = [{key: value for key, value in asdict(row).items() if key != "line"} for row in found.rows]
    return digest(rows, [fault.text for fault in found.errors])


def base_id(base: Mapping[str, Any], sources: str, families: Mapping[str, str] | None = None) -> str:
    """An embedded or random base is what it is made from; a folder or a file is its content, a TorchSharp file with
    what lies beside the weights of the folder that it is like.

    Args:
        families: digests of the plugins that add model families: these read, train and write the weights.
    """
    more: list[Any] = [families] if families else []
    more += ["untied"] if base.get("untie") else []
    if base["kind"] == "gguf":
        return digest("gguf", NUMERICS_VERSION, cached_sha256(Path(base["path"]), CACHE), *more)
    if base["kind"] == "dat":
        like = Path(base["like"])
        beside = {file.name: cached_sha256(file, CACHE) for file in beside_weights(like)}
        return digest("dat", NUMERICS_VERSION, cached_sha256(Path(base["path"]), CACHE), beside, *more)
    if base["kind"] != "folder":
        spec = {k: v for k, v in base.items() if k not in ("kind", "require", "closed_answers")}
        design = [RANDOM_DESIGN] if base["kind"] == "random" else []
        return digest(base["kind"], NUMERICS_VERSION, spec, sources, *design, *more)
    folder = Path(base["path"])
    files = {f.relative_to(folder).as_posix(): cached_sha256(f, CACHE) for f in folder_files(folder)}
    return digest("folder", files, *more)


def own_weights(base: Mapping[str, Any]) -> Path | None:
    """The user's own folder of plain weights, where it is the base as it stands; None: the base's weights are made.

    An export is decoded first (see `fgod.importing.nvfp4`), and a head that is to be untied is copied.
    """
    if base["kind"] != "folder" or base.get("untie"):
        return None
    folder = Path(base["path"])
    config = folder / CONFIG
    quantised = config.is_file() and "quantization_config" in read_json(config)
    return None if quantised else folder


def folds(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The folds of wordings that are held back for confirmations; empty where the probes have none."""
    return folds_of(_probes(config))


def reference_id(config: Mapping[str, Any], fold: int = 0) -> str:
    """Names the base's answers to the probes that the gate asks; with a fold, to those of the confirmation."""
    return digest(
        "reference",
        [asdict(probe) for probe in asked_in(_probes(config), fold)],
        {key: config["probe"][key] for key in ("max_new_tokens", "batch", "device")},
        _base_dtype(config),
        *_chat(config),
        code_digest("model/ask.py", *REPLIES),
    )


@cache
def code_digest(*names: str) -> str:
    """Digest of modules or folders of this package: a param of what judges and tells, never of what trains."""
    files = [f for name in names for f in ([PACKAGE / name] if name.endswith(".py") else folder_files(PACKAGE / name))]
    return sha256_files(PACKAGE, [f for f in files if "__pycache__" not in f.parts])[:12]
