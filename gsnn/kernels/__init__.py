"""How the blocks of a network are computed; nothing here knows a model."""

from gsnn.kernels.interface import BlockKernel
from gsnn.kernels.registry import KERNELS, Choice, chosen, use

__all__ = ["KERNELS", "BlockKernel", "Choice", "chosen", "use"]
