"""Pure functions: arrays in, tidy results out. No files, no torch."""
