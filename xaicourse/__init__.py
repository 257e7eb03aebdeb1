"""Explaining the predictions of neural networks: the package behind the course.

Each module serves a lecture and is imported by its name, `from xaicourse import lrp, models`. This file stays
empty, so that `import xaicourse` is light: what a lecture does not use is never loaded.
"""

__version__ = "0.1.0"
