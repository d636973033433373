"""Models: the embedded base and its tokenizer, folders of one's own, loading, greedy replies."""
