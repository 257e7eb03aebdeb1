"""Measurements of the package beside its peers: ``python -m benchmarks NAME --json FILE``.

Not installed, and never timed in tests.

``framework`` measures and prints, ``networks`` makes what it is measured on; every other file is one benchmark and says
what is compared with what.
"""
