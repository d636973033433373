"""Confirmation: a run that the gates let through is asked wordings that were held back, once.

`folds` says which of them, `compare` how far its figures there lie from those that the gate knew, `judge` whether it is
confirmed, `promotion` what of a walk is released. Imports no torch.
"""
