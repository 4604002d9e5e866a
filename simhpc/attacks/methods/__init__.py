"""The attacks, one file each: a file `my_attack.py` here with a `METHOD` is the attack `my-attack` of a study.

These modules need nothing but what tensors can do themselves, so that a study is checked without importing torch.
"""
