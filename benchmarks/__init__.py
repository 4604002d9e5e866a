"""Figures, side by side: the same work done by simhpc and by what one would use instead. See docs/performance.md."""
