"""Case C: what detectors of counterfeit images look at, and the generator behind the counterfeits. Lecture 15."""
