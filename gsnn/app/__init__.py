"""The main job and its command line."""
