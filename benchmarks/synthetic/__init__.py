"""Recovery of known features from synthetic data, by coders of SAELens and of this package."""
