"""Names of formats, for those who need no more of them: importing a format itself loads all of them."""

NVFP4 = "nvfp4"
"""What the workflow exports (`fgod.exporters.nvfp4`)."""
