"""Tables in: reading, matching by name, scaling."""
