"""Training data: what people write (`traindata/`), the prompts composed from it, and the mixes made of them."""
