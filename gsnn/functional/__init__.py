"""Pure functions without state: the mathematics that the classes of the other layers stand on."""
