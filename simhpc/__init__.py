"""How alike are image classifiers? Adversarial-attack transferability as a batch-job suite."""

__version__ = "0.1.0"
