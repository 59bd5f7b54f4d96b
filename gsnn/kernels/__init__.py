"""How the blocks of a network are computed."""
