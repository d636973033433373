"""GGUF files as exports: NVFP4 blocks, metadata, tokenizers, Ollama's Modelfile, and the folder's weights read back.

`fgod.gguf.exporter` registers what is exported to them; `fgod.importing.gguf` makes a folder of plain weights of one.
"""
