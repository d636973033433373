# What all rules share: the checked config, the walk, and input functions that ask it.
#
# Everything whose output is somewhere an ancient() input (base, answers, mixes, audits, trainings, exports) has no params
# but those that its path determines; the rest stands in the shell line. Nothing there may run again for another reason
# than a missing file: snakemake skips the check of all jobs behind one that does, also behind ancient().
import atexit
import json
import logging
import os
import re
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from fgod import inputs, layout, records, config as settings
from fgod.checkpoints import gpus as gpus_sharing
from fgod.config import engine_pairs
from fgod.cluster import UNKNOWN_MINUTES, Needs
from fgod.confirm.folds import Reservations, read_folds
from fgod.context import context_of
from fgod.data.probes import probe_files
from fgod.decisions import ACCEPTED
from fgod.devlog.next_step import LogSettings
from fgod.system.stop import exit_on_fgod_error
from fgod.experiments import OWN, experiments_of
from fgod.known import Known, none_of_mixes, walked
from fgod.plan import stopped
from fgod.promotion import of_walk
from fgod.plugins import plugin_options
from fgod.session import Session, visits_of
from fgod.system.files import canonical_json, check_room
from fgod.system.lock import held
from fgod.system.stop import run_sigterm_handler_in_thread

ALONE = ExitStack()
atexit.register(ALONE.close)
SESSION = Session()

logging.raiseExceptions = False  # else a full disk prints a traceback for each line of snakemake's own log


@cache
def standing(run):
    """What the gate says, or will say, of a run by the records that stood when this snakemake first met it."""
    return records.standing(CONFIG, run)


with exit_on_fgod_error():
    check_room(Path("."))
    for file in workflow.configfiles:
        settings.read_yaml(Path(file))  # snakemake takes the second of two keys, and says nothing
    CONFIG_NAME = ", ".join(map(str, workflow.configfiles))
    CHAINS = experiments_of(config, CONFIG_NAME or "config")
    CONFIG, INPUTS = CHAINS[OWN].config, CHAINS[OWN].inputs
    PLUGINS = inputs.plugins_digest(CONFIG)
    read_folds(layout.RESULTS)

# In shell lines and no params: a plugin's change makes again only what its digest is part of.
FGOD = shlex.join(["fgod", *plugin_options(CONFIG["plugins"])])

BASE = layout.base(INPUTS.base_id)
RUN = layout.run_records("{stage}", "{lineage}")
WEIGHTS = layout.run_weights("{stage}", "{lineage}")
MIX = layout.mix("{mix}")
BASE_WEIGHTS = str(inputs.own_weights(CONFIG["base"]) or BASE.master)
BASE_DTYPE = CONFIG["stages"][0]["train"]["compute_dtype"]
BASE_EXPORT = BASE.export(BASE_DTYPE)
BASE_SPEC = canonical_json(CONFIG["base"])
# By base_id: the base, and weights that an experiment starts from.
BASES = {chain.weights_id: chain.weights for chain in CHAINS.values() if chain.weights} | {
    INPUTS.base_id: CONFIG["base"]
}
SOURCES = CONFIG["data"]["folder"]
LANGUAGES = inputs.languages_of(CONFIG)
SOURCED = shlex.join(["--sources", SOURCES, *(["--languages", *LANGUAGES] if LANGUAGES else [])])
SELF_ASKED = {chain.inputs.self_asked_id: chain for chain in CHAINS.values() if chain.inputs.self_asked_id}
REHEARSALS = {chain.inputs.rehearsal_id: chain for chain in CHAINS.values()}
CHAT = canonical_json(CONFIG["chat"])
PROBED = canonical_json(CONFIG["probe"])
CLUSTER = (
    workflow.non_local_exec and not workflow.remote_exec
)  # whether jobs are handed to a cluster, by this snakemake
GPU = int(CLUSTER or any(Path("/dev").glob("nvidia[0-9]*")))  # whether there is one where jobs run
NEEDS = Needs(CONFIG)
OF_RUN = "{stage}-{lineage}"  # jobs of a run share one allocation of a cluster
REFERENCE = BASE.answers(inputs.reference_id(CONFIG))
FOLDS = {inputs.reference_id(CONFIG, fold): fold for fold in inputs.folds(CONFIG)}  # of held-back wordings, by answers
PROBES = [str(file) for file in probe_files(CONFIG)]
LIMITS = canonical_json({"gate": CONFIG["gate"], "require": [stage["require"] for stage in CONFIG["stages"]]})
GOAL = canonical_json({key: CONFIG[key] for key in ("persona", "disambiguation")})
CHECKED = f"--probes {shlex.join(PROBES)} {SOURCED} --goal {shlex.quote(GOAL)}"
ENGINES = engine_pairs(CONFIG)
KNOWN = Known(CONFIG_NAME, CHAINS)


with exit_on_fgod_error():
    EXPECTED = {  # as far as known, pending gates accepted
        name: chain.chain.walk(KNOWN.met(chain, lambda run: standing(run).decision or ACCEPTED))
        for name, chain in CHAINS.items()
    }
# Folds of the candidates of all chains, those that this snakemake does not walk too.
RESERVED = Reservations(layout.RESULTS, [*FOLDS.values()], records.candidates(EXPECTED.values()))


def audit_of(run):
    """The audit of a run's rows: how long they may be is the run's, not the mix's."""
    return layout.mix(run.mix_id).audit(records.seq_len(run))


TRAINED = "[0-9a-f]{12}"
INTERPOLATED = rf"{TRAINED}-0\.[0-9]+"
LINEAGE = f"{TRAINED}|{INTERPOLATED}"


def unless_thrown(*outputs, each=({},)):
    """For the wildcard `lineage` of a rule that asks weights: no run whose weights lie in the trash, and of which all
    outputs stand. No rule makes them then, so that new probes or code do not make them again, which would lose them.
    `each`: the values of the rule's further wildcards, of each job."""
    return f"{records.none_of(records.thrown_away(), outputs, each)}(?:{LINEAGE})"


# Runs that experiments start from and that are known by their records alone, with those before them. They are inputs as
# others are, and no rule makes what stands of them: none knows how. Another set of inputs would train again.
RECORDED = [run for chain in CHAINS.values() for run in chain.recorded]


def unless_recorded(pattern, *outputs):
    """For the wildcard `lineage` of a rule that makes weights: those that match a pattern, but no such run of which all
    outputs stand."""
    return f"{records.none_of([(run.stage, run.lineage) for run in RECORDED], outputs)}{pattern}"


def unless_rows_stand(pattern):
    """The same for the wildcard `mix` of a rule that makes rows: none of the mixes of such runs whose rows are there."""
    return none_of_mixes(layout.mix(run.mix_id).rows for run in RECORDED) + pattern


wildcard_constraints:
    stage="[A-Za-z0-9][A-Za-z0-9._-]*",
    lineage=LINEAGE,
    mix=f"[0-9a-f]{{12}}({layout.PLACEBO})?",
    teacher="[0-9a-f]{12}",
    seq_len="[0-9]+",


def gpus(device):
    """What a job on a device of this name takes of the resource gpu: 1 for cuda, where this machine has one."""
    return GPU if device == "cuda" else 0


def shared_gpus(run):
    """What the training of a run takes of it: as many as share the run."""
    return gpus(records.device(run)) * gpus_sharing(layout.work(run.lineage), json.loads(run.recipe))


def asking_mb(device):
    """Memory of the host that a job takes which asks or exports a model on a device of this name."""
    return NEEDS.asking_mb(device)


def training_mb(run, attempt):
    """The same of a run's training, of all its ranks. It is predicted for a cluster alone: that imports torch."""
    one = NEEDS.training_mb(json.loads(run.recipe)["train"], attempt) if CLUSTER else asking_mb(records.device(run))
    return one * max(shared_gpus(run), 1)


def training_minutes(run, attempt):
    """How long a run's training may take on a cluster, which ends it then."""
    return NEEDS.training_minutes(run.stage, json.loads(run.recipe)["train"], attempt) if CLUSTER else UNKNOWN_MINUTES


def processes(device):
    """Threads of a job that asks a model on a device of this name: it forks as many processes. At most --cores."""
    return 1 if device == "cuda" else len(os.sched_getaffinity(0))


@cache
def say_that_gates_decide():
    """Said once in a dry-run."""
    logger.info("Pending gates count as accepted here: refits (a new fit from the base) are decided by the gates.")


def is_target(name):
    """Whether the command line of this snakemake asks for a rule by name."""
    return name in workflow.dag_settings.targets


def active():
    """The chains that this snakemake walks."""
    return walked(CHAINS, workflow.dag_settings.targets, "campaign")


def expected_visits(decide):
    """The visits of all chains that this snakemake walks."""
    return [visit for chain in active() for visit in visits_of(chain.chain.walk(decide), chain.name)]


@cache
def decided(run, decision):
    """Tell `fgod status` what is expected since a gate has decided."""
    SESSION.expects(expected_visits(lambda run: records.decision(run) or ACCEPTED))


def decide(run):
    """A run's verdict. Pending asks the checkpoint, so that the DAG is made anew after the gate; a dry-run counts it
    as accepted, and one that will be judged again by what the gate will say: it shows the whole of what follows."""
    before = standing(run)
    if workflow.dryrun:
        if before.decision is None:
            say_that_gates_decide()
        return before.decision or ACCEPTED
    with checkpoints.gate.get(stage=run.stage, lineage=run.lineage).output[0].open():
        decision = records.decision(run)
    decided(run, decision)
    if decision is None and before.stale and before.fresh:  # else a job of this snakemake made records: a gate follows
        raise WorkflowError(records.overlooked(run, before.stale))
    return decision


def walk(chain):
    """The walk of a chain as far as the gates have decided."""
    return KNOWN.walk(chain, decide)


# What is told of a chain lies in results/ or results/experiments/NAME/: the wildcard `of` is empty, or the latter.
OF = {f"/{layout.EXPERIMENTS}/{chain.name}" if chain.name else "": chain for chain in CHAINS.values()}


wildcard_constraints:
    of=f"(?:{'|'.join(map(re.escape, OF))})",


def told(wildcards):
    """The chain that a path names."""
    return OF[wildcards.of]


def visited(name, chain=None):
    """Input function: one file of the records of every run of a chain's walk."""
    return lambda wildcards: [getattr(records.records_of(run), name) for run in walk(chain or told(wildcards)).runs]


def candidate(name):
    """Input function: one file of the artifacts of every run of the accepted fit."""
    return lambda wildcards: [getattr(records.weights_of(run), name) for run in walk(told(wildcards)).candidate]


def run_of(wildcards):
    """The run that a path names."""
    run = KNOWN.runs.get((wildcards.stage, wildcards.lineage))
    if run is None:
        raise WorkflowError(f"{wildcards.stage}/{wildcards.lineage} is no run of this config's walk (see `fgod plan`)")
    return run


def recorded_walk(chain):
    """The walk of a chain in JSON, from the verdicts on record."""
    decided = chain.chain.walk(records.decision)
    return records.walk_json(decided, records.fold_of(decided, RESERVED))


def say_what_is_finished():
    """How far the experiments came of a campaign that was stopped. No command says it: their walks are longer than a
    shell's argument may be."""
    for chain in active():
        if chain.name:
            decided = json.loads(recorded_walk(chain))
            print(
                f"\nExperiment {chain.name}. {stopped(decided, of_walk(decided, layout.RESULTS), experiment=True)}",
                flush=True,
            )


def accepted(chain):
    """The last run of the accepted fit, in a list; empty where there is none, or it is a control."""
    return [run for run in walk(chain).candidate[-1:] if not records.is_control(run)]


def refused(chain, run):
    """Whether held-back wordings refuse an accepted run, as far as is known: a dry-run judges by the limits of now."""
    if not FOLDS:
        return False
    return records.will_refuse(chain.config, run) if workflow.dryrun else records.refused(run)


def to_release(chain):
    """The last run of the accepted fit, in a list; empty also where held-back wordings do not confirm it: what only a
    release needs is made of no other. Pending asks the checkpoint; a dry-run counts it as confirmed."""
    last = accepted(chain)
    for run in last if FOLDS and not workflow.dryrun else ():
        with checkpoints.confirm.get(stage=run.stage, lineage=run.lineage).output[0].open():
            pass
    return [run for run in last if not refused(chain, run)]


def engine_verdicts(wildcards):
    """Input function: what engines say with the formats of the release that they are asked of."""
    return [records.records_of(run).engine(*pair) for run in to_release(told(wildcards)) for pair in ENGINES]


def confirmation(wildcards):
    """Input function: the confirmation of the accepted fit's last run, where wordings are held back."""
    return [records.confirmation_of(run).confirmation for run in walk(told(wildcards)).candidate[-1:] if FOLDS]
