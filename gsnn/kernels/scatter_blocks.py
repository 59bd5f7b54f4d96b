"""The kernel ``scatter``: the reference with the products of :mod:`gsnn.kernels.scatter`."""

from gsnn.kernels import scatter
from gsnn.kernels.reference import Products, Reference


class ScatterBlocks(Reference):
    """Any type on any device that torch-scatter knows; keeps nothing and computes the stack again."""

    name = "scatter"
    products = Products(scatter.lin_in, scatter.lin_out)

    def missing(self) -> str | None:
        """None where torch-scatter is installed (the extra ``scatter``)."""
        return scatter.missing()
