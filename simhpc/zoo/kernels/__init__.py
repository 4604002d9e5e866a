"""Convolutions in C, for CPUs: what the machine's compiler makes of a few lines when a process first needs them."""
