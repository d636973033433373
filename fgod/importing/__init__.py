"""Models from elsewhere as plain folders: GGUF files, quantised exports, and repositories of the Hugging Face hub."""
