"""`fgod status`: how it is going, from records and the process table alone.

    records.py    tables and documents, as far as they are written; processes.py, gpus.py   who lives, who uses the GPU
    facts.py      all that is looked at, once
    judge.py      what follows from it: running or stopped, why, what comes next. Pure
    text.py       the same in words, with a curve of the loss; watch.py   again and again

What runs is told by its process (its number, when it started, since which boot), never by a file that is there. Nothing
here imports torch, numpy or pydantic: a status takes a tenth of a second.
"""
