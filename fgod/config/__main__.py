"""python -m fgod.config: see `fgod.config.schema`."""

from fgod.config.schema import main

main()
