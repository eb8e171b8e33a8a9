"""The allocators, a module each; see `csqtool.searching.allocation`."""
