"""What the inventory says, in English."""

from __future__ import annotations

WORDS = {
    "title": "Inventory of weights",
    "how": "Made anew by every run of snakemake, by `fgod inventory`, `pin`, `trash`, `restore` and `prune`. "
    "Write only between the marks of a remark: that is kept, all else is made anew. "
    "`fgod manifest why FILE` says who made a file, from what, by which command.",
    "remark": "Remark:",
    "lost": "Remarks on what is not listed any more",
    "totals": "Status",
    "folders": "Folders",
    "file": "File",
    "status": "Status",
    "purpose": "Purpose",
    "bytes": "Bytes",
    "sha256": "SHA-256",
    "base": "Base {id}",
    "release": "Release {number}",
    "base_origin": "The original weights: {kind}.",
    "run_origin": "Stage {stage}, started from {start}; {how}.",
    "steps": "{steps} steps, learning rate {lr}, seed {seed}",
    "interpolated": "not trained: its weights lie at α {alpha} between that and the end of {of}",
    "trained_on": " Trained on {device} ({cpu}), torch {torch}.",
    "verdict": " The gate: {decision}{reasons}.",
    "pending": " No verdict.",
    "pinned": " Pinned as {pins}.",
    "released": " Released: {folders}.",
    "release_origin": "The export of {run} with a model card, released after {fits} fits{counts}.",
    "counts": "; this is the release that counts",
    "purpose_base": "the base: every first stage starts from it",
    "purpose_base_export": "the base rounded, which gives the reference's answers ({format})",
    "purpose_master": "what the next stage starts from",
    "purpose_export": "the export, which is probed and released ({format})",
    "purpose_format": "the same weights in a further format ({format})",
    "purpose_release": "to be used ({format})",
}
"""By what is said; names in braces are filled in."""

STATUSES = {
    "base": "base",
    "candidate": "candidate",
    "accepted": "accepted",
    "released": "released",
    "pinned": "pinned",
    "failed": "failed",
    "pending": "pending",
    "trashed": "trashed",
    "emptied": "emptied",
    "missing": "missing",
}
"""What the statuses are called. Accepted: by the gate, in no fit that was accepted as a whole; pending: without a
verdict; emptied: deleted from the trash; missing: gone without the trash."""
