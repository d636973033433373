"""`fgod compare`: two or more runs side by side, from their records alone: settings, metrics in pairs, changed replies.

`operands` finds the runs that are named, `pairs` has the statistics, `document` puts together what is said, `words` and
`page` say it as text and as HTML. Nothing is asked or measured anew.
"""
