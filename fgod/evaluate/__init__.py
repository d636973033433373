"""Replies → scores → metrics → what a stage requires. Pure: no file is read, no model is loaded.

`scoring` judges one reply, `metric` says what a metric is and how it is printed, `metrics/` holds the project's own,
`measure` computes them all, `requirements` reads `require: {NAME: ">=0.9"}`.
"""
