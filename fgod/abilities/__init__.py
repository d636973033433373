"""What a model can do, beside what the base can: the same items asked of both, and what was lost and gained.

    fgod evaluate BASE TUNED --items FILE …        results/abilities/{lineage}.json and .tsv

Three kinds of items (`items`): multiple choice by log-likelihood (`choices`), code that is run (`sandbox`), and
instructions that a program can check (`checks`). Statistics of pairs are in `paired`.
"""
