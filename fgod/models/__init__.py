"""Families of chat models: which tensors a model of a family has, and which of them share a scale.

One file for each family. It registers an `Architecture` under the name that `architectures` of config.json gives. A
plugin may register more (see `fgod.registry`). Nothing here loads weights or imports torch.
"""
