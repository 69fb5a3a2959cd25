"""Presets: rule files that are shipped, and where this machine's registries are that some of them stand for."""
