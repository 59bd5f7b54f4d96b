"""``python -m gsnn`` is the command ``gsnn``."""

from gsnn.app.cli import app

if __name__ == "__main__":
    app()
