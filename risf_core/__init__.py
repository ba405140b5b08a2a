"""RISF: few-shot detection with a background- and negative-robust loss and image-text re-scoring."""

__version__ = "0.1.0"
