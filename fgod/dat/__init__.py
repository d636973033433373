"""TorchSharp's state-dict files (`.dat`): the file itself, and NVFP4 weights without a tensor scale that lie in it.

`fgod.dat.exporter` registers what is exported to them, `fgod.importing.dat` makes a folder of plain weights of one.
"""
