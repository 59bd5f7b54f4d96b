"""Model files: saved in one step, read without pickle."""

from gsnn.io.container import FORMAT_VERSION, replacing
from gsnn.io.model import load, read_header, save

__all__ = ["FORMAT_VERSION", "load", "read_header", "replacing", "save"]
