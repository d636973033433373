"""Talking to weights: `fgod ask`, `fgod chat` and `fgod parity`.

Modules: `session` (one KV cache, fed only what is new), `sampling`, `stream` (text of tokens as they come),
`conversation` (messages, and how they are fed), `open` (folders and files as models), `script` (turns with expected
marks), `terminal` (what people type and see), `work` (what the commands do, under the guard).
"""
