"""Where/what attention on mosaics: data, networks, stage-wise training and measures."""

__version__ = "0.1.0"
