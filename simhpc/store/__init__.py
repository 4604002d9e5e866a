"""The files of a run: written atomically, verified, and checked again by every reader. See docs/formats.md."""
