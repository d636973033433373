"""Models from elsewhere as plain folders: GGUF files, quantised exports, and repositories of the Hugging Face hub."""

RECORD = "import.json"
"""In an imported folder: where it comes from, with digests, and what was stored there."""
