"""What the manifest answers: who made a file, whether all is as it was, whether a run made again has its bits."""
