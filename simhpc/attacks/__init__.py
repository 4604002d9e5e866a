"""Adversarial attacks on [0, 1] pixels. torch only: no files, no study, no timm."""
