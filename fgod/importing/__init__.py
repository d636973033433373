"""Models from elsewhere as plain folders: GGUF and TorchSharp files, quantised exports, and repositories of the hub."""

RECORD = "import.json"
"""In an imported folder: where it comes from, with digests, and what was stored there."""
