"""Networks wired by a graph: the GSNN, its residual block, its sparse layer, its regularizer."""
